"""Backups before the blocking phase: each is restored into a server of its own, and the rows are read there."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import core.run
from core import faults
from core.errors import CommandFailed, DatabaseFailed, NoSpace
from core.report import Event, Report
from core.run import Result
from core.sql import Connection, Database, Engine
from migrations.scratch import scratch_server
from migrations.snapshot import Snapshot, every, find, remove, take
from tests.migrations.traffic import writers

QUIET = Report()


def fill(database: Database, rows: int = 500) -> None:
    with Connection.open(database) as connection:
        connection.execute("CREATE TABLE cdr (id INT PRIMARY KEY, note VARCHAR(40))")
        with connection.transaction():
            for number in range(rows):
                connection.execute("INSERT INTO cdr VALUES (%s, %s)", (number, f"call {number}"))


def rows(database: Database) -> int:
    with Connection.open(database) as connection:
        row = (
            connection.one("SELECT COUNT(*) FROM cdr WHERE note = CONCAT('call ', id)")
            if (database.engine is not Engine.SQLITE)
            else connection.one("SELECT COUNT(*) FROM cdr WHERE note = 'call ' || id")
        )
    return int(row[0]) if row else -1


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "backups"


def restored(snapshot: Snapshot, source: Database, tmp_path: Path) -> int:
    """The rows that a server finds which is started on the backup's data."""
    if source.engine is Engine.SQLITE:
        shutil.copy(snapshot.data, tmp_path / "restored")
        return rows(replace(source, path=tmp_path / "restored"))
    assert source.password_file is not None
    with scratch_server(source.engine, template=source.password_file.parent, empty=True) as server:
        shutil.copytree(snapshot.data, server.data)
        server.data.chmod(0o700)
        owner = server.own.stat()
        for path in (server.data, *server.data.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)
        server.start()
        return rows(replace(server.database, database=source.database))


def test_taken_and_restored(database: Database, target: Path, tmp_path: Path) -> None:
    fill(database)
    made = take(database, target, label="billing-MR96-1", report=QUIET)
    with Connection.open(database) as connection:
        connection.execute("DELETE FROM cdr")
    assert restored(made, database, tmp_path) == 500
    assert made == find(target, "billing-MR96-1")
    assert made.bytes > 0 and made.restore and made.version
    assert [path.name for path in target.iterdir()] == ["billing-MR96-1"]
    assert stat.S_IMODE(made.path.stat().st_mode) == 0o700


def test_a_complete_one_is_not_made_again(sqlite: Database, target: Path) -> None:
    fill(sqlite)
    first = take(sqlite, target, label="a", report=QUIET)
    before = first.data.stat().st_mtime_ns
    assert take(sqlite, target, label="a", report=QUIET) == first
    assert first.data.stat().st_mtime_ns == before


def test_while_others_write(mariadb: Database, target: Path, tmp_path: Path) -> None:
    fill(mariadb)

    def write(connection: Connection, number: int) -> None:
        connection.execute("INSERT INTO cdr VALUES (%s, %s)", (number + 1000, f"call {number + 1000}"))

    with writers(mariadb, write) as traffic:
        made = take(mariadb, target, label="a", report=QUIET)
    assert not traffic.failures
    assert 500 < restored(made, mariadb, tmp_path) <= rows(mariadb)


@pytest.mark.parametrize("place", ["snapshot:begun", "snapshot:copied", "snapshot:marked"])
def test_a_cut_leaves_nothing_that_looks_complete(sqlite: Database, target: Path, place: str) -> None:
    fill(sqlite)

    def cut(name: str) -> None:
        if name == place:
            os._exit(9)

    if (child := os.fork()) == 0:
        faults.arm(cut)
        take(sqlite, target, label="a", report=QUIET)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    assert find(target, "a") is None and every(target) == []
    assert take(sqlite, target, label="a", report=QUIET) == find(target, "a")
    assert [path.name for path in target.iterdir()] == ["a"]


def test_a_fault_leaves_nothing(sqlite: Database, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(sqlite)

    def refuse(name: str) -> None:
        if name == "snapshot:copied":
            raise OSError(28, "No space left on device")

    faults.arm(refuse)
    try:
        with pytest.raises(NoSpace):
            take(sqlite, target, label="a", report=QUIET)
    finally:
        faults.arm(None)
    assert list(target.iterdir()) == []


def test_space_is_looked_at_first(database: Database, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(database)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr("migrations.snapshot.shutil.disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(NoSpace, match="no space for a backup") as caught:
        take(database, target, label="a", report=QUIET)
    assert "1 MiB are free" in caught.value.what[0]
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("engine", ["mariadb", "postgresql"])
def test_the_password_is_on_no_command_line(
    engine: str, request: pytest.FixtureRequest, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    database: Database = request.getfixturevalue(engine)
    seen: list[str] = []
    real = core.run.run

    def watched(*argv: Any, **options: Any) -> Result:
        seen.extend([*map(str, argv), *map(str, (options.get("env") or {}).values())])
        return real(*argv, **options)

    monkeypatch.setattr("migrations.snapshot_ways.run", watched)
    fill(database, 3)
    take(database, target, label="a", report=QUIET)
    assert seen and not any(database.password() in word for word in seen)
    assert database.password() not in (target / "a" / "snapshot.json").read_text()


def test_progress(mariadb: Database, target: Path) -> None:
    fill(mariadb)
    events: list[Event] = []
    take(mariadb, target, label="a", report=Report(events.append))
    assert all(event.data["done"] <= event.data["total"] for event in events if "done" in event.data)


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[[str], list[str]]]:
    def make(script: str) -> list[str]:
        path = tmp_path / "backup"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return [str(path)]

    yield make


def test_the_operators_own_program(
    postgresql: Database, target: Path, tmp_path: Path, program: Callable[[str], list[str]]
) -> None:
    fill(postgresql)
    command = program(f"cat > {tmp_path}/told; echo noise; echo kept as 4711")
    made = take(postgresql, target, label="a", report=QUIET, command=command)
    told = json.loads((tmp_path / "told").read_text())
    assert told["engine"] == "postgresql" and told["database"] == postgresql.database and told["label"] == "a"
    assert postgresql.password() not in (tmp_path / "told").read_text()
    assert told["password_file"] == str(postgresql.password_file)
    assert made.said == "kept as 4711" and find(target, "a") == made


def test_its_failure_stops(sqlite: Database, target: Path, program: Callable[[str], list[str]]) -> None:
    with pytest.raises(CommandFailed, match="the backup failed") as caught:
        take(sqlite, target, label="a", report=QUIET, command=program("echo no tape >&2; exit 3"))
    assert "no tape" in caught.value.what
    assert list(target.iterdir()) == []


def test_a_server_elsewhere_needs_a_program(mariadb: Database, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("migrations.snapshot_ways.Path.is_dir", lambda path: False)
    with pytest.raises(DatabaseFailed, match="cannot be backed up from here") as caught:
        take(mariadb, target, label="a", report=QUIET)
    assert "backup_command" in caught.value.next[0]


def test_wrong_password(mariadb: Database, target: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("guessed")
    wrong.chmod(0o600)
    with pytest.raises(DatabaseFailed):
        take(replace(mariadb, password_file=wrong), target, label="a", report=QUIET)
    assert list(target.iterdir()) == []


def test_a_damaged_sqlite_file(sqlite: Database, target: Path) -> None:
    fill(sqlite, 5000)
    assert sqlite.path is not None
    with sqlite.path.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(DatabaseFailed):
        take(sqlite, target, label="a", report=QUIET)
    assert list(target.iterdir()) == []


def test_the_steps_to_restore_take_away_what_a_kill_left(sqlite: Database, target: Path) -> None:
    """A hot journal would be rolled into whatever file stands beside it."""
    fill(sqlite, 5000)
    made = take(sqlite, target, label="a", report=QUIET)
    assert sqlite.path is not None
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as killed:
        killed.execute("PRAGMA cache_size = 5")
        killed.execute("BEGIN")
        killed.execute("UPDATE cdr SET note = 'overwritten, and longer than it was'")
        left = [Path(f"{sqlite.path}{ending}") for ending in ("", "-journal")]
        for path in left:
            shutil.copy(path, target / path.name)
    for path in left:
        (target / path.name).rename(path)
    assert made.restore[0] == "stop what uses the database"
    for step in made.restore[1:]:
        subprocess.run(["sh", "-c", step], check=True)
    with Connection.open(sqlite) as connection:
        assert connection.one("PRAGMA integrity_check") == ("ok",)
    assert rows(sqlite) == 5000


@pytest.mark.parametrize("interrupted", [True, False])
def test_a_locked_sqlite_file_is_given_up(sqlite: Database, target: Path, interrupted: bool) -> None:
    """At the deadline, or at Ctrl-C; not when whoever holds it lets go."""
    fill(sqlite)
    assert sqlite.path is not None
    begun = time.monotonic()
    with closing(sqlite3.connect(sqlite.path, isolation_level=None)) as holder:

        def hold(name: str) -> None:
            if name == "snapshot:begun":
                holder.execute("BEGIN EXCLUSIVE")
                if interrupted:
                    signal.setitimer(signal.ITIMER_REAL, 0.3)

        before = signal.signal(signal.SIGALRM, signal.default_int_handler)
        faults.arm(hold)
        try:
            with pytest.raises(KeyboardInterrupt if interrupted else DatabaseFailed) as caught:
                take(sqlite, target, label="a", report=QUIET, deadline=60 if interrupted else 0.5)
        finally:
            faults.arm(None)
            signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - begun < 8
    assert interrupted or "did not end within 0.5 s" in str(caught.value)
    assert list(target.iterdir()) == []


def test_a_backup_in_many_pieces_is_of_one_moment(
    sqlite: Database, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("migrations.snapshot_ways.PAGES", 1)
    fill(sqlite, 5000)
    assert sqlite.path is not None
    with closing(sqlite3.connect(sqlite.path)) as mode:
        mode.execute("PRAGMA journal_mode = WAL")

    def write(connection: Connection, number: int) -> None:
        with connection.transaction():
            connection.execute("UPDATE cdr SET note = %s", (f"all {number}",))

    with writers(sqlite, write, count=1):
        made = take(sqlite, target, label="a", report=QUIET)
    with closing(sqlite3.connect(made.data)) as copy:
        assert copy.execute("SELECT COUNT(DISTINCT note), COUNT(*) FROM cdr").fetchone() == (1, 5000)
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_every_and_remove(sqlite: Database, target: Path) -> None:
    assert every(target) == []
    fill(sqlite)
    one = take(sqlite, target, label="one", report=QUIET)
    two = take(sqlite, target, label="two", report=QUIET)
    assert {each.label for each in every(target)} == {"one", "two"}
    remove(one)
    assert every(target) == [two] and not one.path.exists()
    (two.path / "snapshot.json").unlink()  # a removal that was cut short
    assert every(target) == []
    assert take(sqlite, target, label="two", report=QUIET) == find(target, "two")


def test_a_label_cannot_leave_the_directory(sqlite: Database, target: Path) -> None:
    for label in ("../x", "", ".x", "a/b"):
        with pytest.raises(ValueError, match="label"):
            take(sqlite, target, label=label, report=QUIET)
