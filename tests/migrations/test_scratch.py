"""Scratch servers: quick to start, private, and gone afterwards whatever happens to us."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import CommandFailed, DatabaseFailed
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.scratch import make_template, scratch, scratch_server

SERVERS = [Engine.MARIADB, Engine.POSTGRESQL]


@pytest.fixture
def template(request: pytest.FixtureRequest) -> Callable[[Engine], Path]:
    def of(engine: Engine) -> Path:
        found: Path = request.getfixturevalue(f"{engine}_template")
        return found

    return of


def test_an_empty_database_of_each_engine(database: Database) -> None:
    with Connection.open(database) as connection:
        connection.execute("CREATE TABLE t (a INT)")
        connection.execute("INSERT INTO t VALUES (1)")
        assert connection.one("SELECT a FROM t") == (1,)


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_a_copy_of_a_template_starts_quickly_and_leaves_nothing(
    engine: Engine, template: Callable[[Engine], Path]
) -> None:
    source = template(engine)
    begun = time.monotonic()
    with scratch_server(engine, template=source) as server:
        seconds = time.monotonic() - begun
        pid, directory = server.pid, server.directory
        modes = [path.stat().st_mode for path in (server.own, server.data, directory / "password")]
        modes.append(directory.stat().st_mode & ~0o010)  # the group of the server's user may enter
        with Connection.open(server.database) as connection:
            assert connection.one("SELECT 1") == (1,)
    assert seconds < 10  # about 1 s on an idle machine
    assert not any(mode & 0o077 for mode in modes)
    assert not alive(pid) and not directory.exists()


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_without_a_template(engine: Engine) -> None:
    with scratch(engine) as database, Connection.open(database) as connection:
        assert connection.one("SELECT 1") == (1,)


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_data_survives_a_kill_and_a_stop(engine: Engine, template: Callable[[Engine], Path]) -> None:
    with scratch_server(engine, template=template(engine)) as server:
        with Connection.open(server.database) as connection:
            connection.execute("CREATE TABLE t (a INT)")
            connection.execute("INSERT INTO t VALUES (1)")
        first = server.pid
        server.kill()
        assert not alive(first)
        with pytest.raises(SqlError) as caught:
            Connection.open(server.database)
        assert caught.value.reason is Reason.UNREACHABLE
        server.start()
        server.stop()
        server.start()
        assert server.pid != first
        with Connection.open(server.database) as connection:
            assert connection.one("SELECT a FROM t") == (1,)


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_by_tcp_and_with_a_password(engine: Engine, template: Callable[[Engine], Path], tmp_path: Path) -> None:
    with scratch(engine, template=template(engine), tcp=True) as database:
        assert database.host == "127.0.0.1" and database.port > 1024
        with Connection.open(database) as connection:
            assert connection.one("SELECT 1") == (1,)
        wrong = tmp_path / "wrong"
        wrong.write_text("guessed")
        wrong.chmod(0o600)
        with pytest.raises(SqlError) as caught:
            Connection.open(replace(database, password_file=wrong))
        assert caught.value.reason is Reason.DENIED


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_its_password_is_on_no_command_line(engine: Engine, template: Callable[[Engine], Path]) -> None:
    with scratch_server(engine, template=template(engine)) as server:
        said = Path(f"/proc/{server.pid}/cmdline").read_bytes() + Path(f"/proc/{server.pid}/environ").read_bytes()
        assert server.database.password().encode() not in said
        assert len(server.database.password()) == 32


@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_a_bad_option_is_told_with_the_servers_words(engine: Engine, template: Callable[[Engine], Path]) -> None:
    option = "--no-such-option" if engine is Engine.MARIADB else "no_such_setting=1"
    with (
        pytest.raises(DatabaseFailed, match="does not start") as caught,
        scratch(engine, template=template(engine), options=[option]),
    ):
        pass
    assert any(
        option.strip("-").split("=")[0] in line.replace("-", "_") or option in line for line in caught.value.what
    )


@pytest.mark.parametrize("engine", [*SERVERS, Engine.SQLITE], ids=str)
def test_nothing_is_left_when_we_are_killed(engine: Engine, template: Callable[[Engine], Path], tmp_path: Path) -> None:
    """kill -9 of the process that has a server: the server ends, and its directory goes."""
    source = "None" if engine is Engine.SQLITE else f"Path({str(template(engine))!r})"
    if engine is Engine.SQLITE:
        body = "with scratch(Engine.SQLITE) as d: print(os.getpid(), d.path.parent, flush=True); time.sleep(600)"
    else:
        body = (
            f"with scratch_server(Engine({str(engine)!r}), template={source}) as s:\n"
            "    print(s.pid, s.directory, flush=True); time.sleep(600)"
        )
    code = (
        "import os, time\nfrom pathlib import Path\nfrom core.sql import Engine\n"
        f"from migrations.scratch import scratch, scratch_server\n{body}\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        pid, directory = child.stdout.readline().split()
        assert alive(int(pid)) and Path(directory).is_dir()
        child.kill()
    until = time.monotonic() + 20
    while (alive(int(pid)) or Path(directory).exists()) and time.monotonic() < until:
        time.sleep(0.02)
    assert not alive(int(pid)) and not Path(directory).exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has others to fear")
@pytest.mark.parametrize("engine", SERVERS, ids=str)
def test_root_writes_nowhere_where_the_servers_user_may_put_a_link(
    engine: Engine, template: Callable[[Engine], Path], tmp_path: Path
) -> None:
    victim = tmp_path / "shadow"
    victim.write_text("root's own")
    user = "mysql" if engine is Engine.MARIADB else "postgres"
    with scratch_server(engine, template=template(engine)) as server:
        secret = server.database.password()
        assert server.own.owner() == server.data.owner() == user
        for path in (server.directory, server.log, server.directory / "password"):
            assert path.owner() == "root" and path.stat().st_mode & 0o022 == 0
            link = f"rm -rf {path}; ln -sfn {victim} {path}"
            subprocess.run(["runuser", "-u", user, "--", "sh", "-c", link], stderr=subprocess.DEVNULL)
            assert not path.is_symlink()
        server.stop()
        server.start()
        assert server.database.password() == secret
    assert victim.read_text() == "root's own" and victim.owner() == "root"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(CommandFailed, match="mariadbd is not installed") as caught, scratch(Engine.MARIADB):
        pass
    assert caught.value.next == ("apt-get install mariadb-server",)


def test_what_postgresql_shares_goes_with_its_directory(template: Callable[[Engine], Path]) -> None:
    with scratch_server(Engine.POSTGRESQL, template=template(Engine.POSTGRESQL)) as server:
        assert any((server.data / "pg_dynshmem").iterdir())


def test_a_template_goes_too() -> None:
    with make_template(Engine.POSTGRESQL) as template:
        assert (template / "data" / "PG_VERSION").is_file()
    assert not template.exists()


def alive(pid: int) -> bool:
    """Whether the process exists and is not merely waiting to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_another_server_has_in_the_temporary_directory_stays() -> None:
    """A MariaDB that starts removes what looks like its own from there; one of the operator's may be using it."""
    others = Path(tempfile.gettempdir(), f"#sql-temptable-{secrets.token_hex(4)}.MAI")
    others.touch()
    try:
        if os.geteuid() == 0:
            shutil.chown(others, "mysql")
        with make_template(Engine.MARIADB):
            assert others.exists()
    finally:
        others.unlink(missing_ok=True)
