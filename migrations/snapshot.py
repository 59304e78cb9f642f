"""A backup of a database before the blocking phase: whole, consistent, checked, and marked complete only at the end.

Each is a directory of its own with the data and ``snapshot.json``, which says what it is and how to restore it. While
it is being made its name begins with a dot; what a crash leaves under such a name is removed by the next try.
"""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from core.errors import CommandFailed, DatabaseFailed, NoSpace, NotPermitted, UpdaterError
from core.faults import point
from core.files import fsync_dir, write_atomic
from core.report import Report
from core.run import run
from core.sql import Connection, Database, Engine
from migrations.client_file import libpq, write_client_file
from migrations.scratch import program
from migrations.transient import transient_directory

#: Beyond the data's size: a tenth of it, and this many bytes for logs that grow meanwhile.
RESERVE: Final = 64 << 20

#: Seconds for a backup where nobody says otherwise.
DEADLINE: Final = 6 * 3600.0

ABOUT: Final = "snapshot.json"
DATA: Final = "data"

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A complete backup. `path`: its directory. `made_at`: UTC. `bytes`: its size. `restore`: what to do, step by step,
    to have it back. `said`: the last line of the operator's own program.
    """

    path: Path
    label: str
    engine: str
    database: str
    version: str
    made_at: str
    seconds: float
    bytes: int
    restore: tuple[str, ...] = ()
    said: str = ""

    @property
    def data(self) -> Path:
        """The data: a directory that the server starts on, or SQLite's file."""
        return self.path / DATA


def take(
    database: Database,
    directory: Path,
    *,
    label: str,
    report: Report,
    command: Sequence[str] = (),
    deadline: float = DEADLINE,
) -> Snapshot:
    """Back up the whole server (SQLite: the file) into ``directory/label``; one that is complete there stays as it is.

    `command`: the operator's own program, which gets what it must know as JSON on its standard input, and does the
    work instead. `deadline`: seconds. Raises NoSpace before anything is done, DatabaseFailed, CommandFailed; then
    nothing is left that could be taken for a backup.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}", label):
        raise ValueError(f"label: {label!r} must be letters, digits, dots, hyphens")
    if found := find(directory, label):
        return found
    with _translated(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = directory / f".{label}.part"
        shutil.rmtree(part, ignore_errors=True)
        version, home = _known(database)
        size = 0
        if not command:
            size = require_space(database, directory)
        part.mkdir(mode=0o700)
        point("snapshot:begun")
        begun = time.monotonic()
        try:
            said = ""
            with _progress(part, size, report):
                if command:
                    said = _by_command(command, database, part, label, deadline)
                else:
                    _BY_ENGINE[database.engine](database, part, deadline)
            point("snapshot:copied")
            run("sync", "--file-system", part, timeout=deadline)
            made = Snapshot(
                path=directory / label,
                label=label,
                engine=str(database.engine),
                database=str(database),
                version=version,
                made_at=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=round(time.monotonic() - begun, 3),
                bytes=_size(part),
                restore=() if command else _restore(database, directory / label / DATA, home),
                said=said,
            )
            about = {name: value for name, value in asdict(made).items() if name != "path"}
            write_atomic(part / ABOUT, json.dumps(about, indent=1) + "\n", mode=0o600)
            point("snapshot:marked")
            part.rename(made.path)
            fsync_dir(directory)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
    return made


def find(directory: Path, label: str) -> Snapshot | None:
    """The complete backup of this label, or None."""
    path = directory / label
    try:
        about: dict[str, Any] = json.loads((path / ABOUT).read_text(encoding="utf-8"))
        known = {name: about[name] for name in Snapshot.__slots__ if name not in ("path", "restore", "said")}
        return Snapshot(path=path, restore=tuple(about.get("restore", ())), said=str(about.get("said", "")), **known)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def every(directory: Path) -> list[Snapshot]:
    """The complete backups there, the oldest first."""
    names = [path.name for path in directory.iterdir() if not path.name.startswith(".")] if directory.is_dir() else []
    return sorted((each for each in (find(directory, name) for name in names) if each), key=lambda each: each.made_at)


def remove(snapshot: Snapshot) -> None:
    """Remove a backup: first what marks it as complete."""
    (snapshot.path / ABOUT).unlink(missing_ok=True)
    fsync_dir(snapshot.path)
    shutil.rmtree(snapshot.path)


# -- by engine


def _mariadb(database: Database, part: Path, deadline: float) -> None:
    """Copy the files of the running server, and make them whole by what was logged meanwhile."""
    with transient_directory() as directory:
        secrets = directory / "client.cnf"
        write_client_file(secrets, database)
        tool = program(Engine.MARIADB, "mariadb-backup", package="mariadb-backup")
        data = f"--target-dir={part / DATA}"
        _run(tool, f"--defaults-file={secrets}", "--backup", "--parallel=2", data, timeout=deadline)
        point("snapshot:unprepared")
        _run(tool, "--no-defaults", "--prepare", data, timeout=deadline)


def _postgresql(database: Database, part: Path, deadline: float) -> None:
    """A base backup with the log that it needs, verified by its own checksums."""
    with transient_directory() as directory:
        environment = libpq(directory / "pass", database)
        basebackup = program(Engine.POSTGRESQL, "pg_basebackup", package="postgresql-client")
        options = ("--wal-method=stream", "--checkpoint=fast", "--no-password")
        _run(basebackup, f"--pgdata={part / DATA}", *options, timeout=deadline, env=environment)
    verify = Path(basebackup).with_name("pg_verifybackup")
    if verify.exists():
        _run(str(verify), "--no-parse-wal", "--quiet", str(part / DATA), timeout=deadline)


def _sqlite(database: Database, part: Path, deadline: float) -> None:
    """A copy by SQLite itself, in one go: writers wait for it in rollback-journal mode."""
    assert database.path is not None
    with (
        closing(sqlite3.connect(f"{database.path.as_uri()}?mode=ro", uri=True, timeout=10)) as source,
        closing(sqlite3.connect(part / DATA)) as copy,
    ):
        source.backup(copy)
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DatabaseFailed(
            f"{database} is damaged", what=str(verdict), state="nothing was migrated", next="restore an older backup"
        )


_BY_ENGINE: Final = {Engine.MARIADB: _mariadb, Engine.POSTGRESQL: _postgresql, Engine.SQLITE: _sqlite}


def _by_command(command: Sequence[str], database: Database, part: Path, label: str, deadline: float) -> str:
    """The operator's own program. It may use the directory that it is told, or any other place."""
    facts = {
        "label": label,
        "engine": str(database.engine),
        "database": database.database,
        "host": database.host,
        "port": database.port,
        "socket": str(database.socket or ""),
        "user": database.user,
        "password_file": str(database.password_file or ""),
        "path": str(database.path or ""),
        "directory": str(part),
    }
    lines = _run(*command, timeout=deadline, input=json.dumps(facts)).splitlines()
    return lines[-1][:500] if lines else ""


def _run(*argv: str, timeout: float, env: dict[str, str] | None = None, input: str | None = None) -> str:
    """A program that ends with us. Raises CommandFailed with its last words."""
    try:
        ends_with_us = ("setpriv", "--pdeathsig=KILL", "--")
        return run(*ends_with_us, *argv, timeout=timeout, env=env, input=input).stdout
    except CommandFailed as error:
        name = Path(argv[0]).name
        raise CommandFailed(
            f"the backup failed: {error.message.replace('setpriv', name)}",
            what=error.what[1:] or error.what,
            state="nothing was migrated; what was copied has been removed",
            next=["mend what it complains of, and try again", "updater migrate plan"],
        ) from error


# -- before


def _known(database: Database) -> tuple[str, str]:
    """The server's version, and its data directory as far as it tells. Raises DatabaseFailed where there is more."""
    if database.engine is Engine.SQLITE:
        return sqlite3.sqlite_version, ""
    with Connection.open(database) as connection:
        if database.engine is Engine.MARIADB:
            row = connection.one("SELECT version(), @@datadir")
        else:
            row = connection.one(
                "SELECT version(), (SELECT setting FROM pg_settings WHERE name = 'data_directory'),"
                " (SELECT string_agg(spcname, ', ') FROM pg_tablespace WHERE spcname NOT LIKE 'pg\\_%')"
            )
    assert row is not None
    if len(row) > 2 and row[2]:
        raise _needs_command(database, f"it has tablespaces of its own: {row[2]}")
    return str(row[0]), str(row[1] or "").rstrip("/")


def require_space(database: Database, directory: Path) -> int:
    """The bytes that will be copied. Raises NoSpace when they do not fit, DatabaseFailed when they are not here."""
    size = _bytes(database)
    wanted = size + size // 10 + RESERVE
    free = shutil.disk_usage(next(each for each in (directory, *directory.parents) if each.exists())).free
    if free < wanted:
        raise NoSpace(
            f"no space for a backup of {database}",
            what=f"it takes up to {wanted >> 20} MiB in {directory}, {free >> 20} MiB are free",
            state="nothing was begun",
            next=[f"df -h {directory}", f"ls {directory}    older backups can go"],
        )
    return size


def _bytes(database: Database) -> int:
    with Connection.open(database) as connection:
        if database.engine is Engine.POSTGRESQL:
            row = connection.one(
                "SELECT coalesce(sum(pg_database_size(oid)), 0) FROM pg_database"
                " WHERE has_database_privilege(oid, 'CONNECT') OR pg_has_role('pg_read_all_stats', 'MEMBER')"
            )
            return int(row[0]) if row else 0
        if database.engine is Engine.SQLITE:
            pages, size = connection.one("PRAGMA page_count"), connection.one("PRAGMA page_size")
            return int(pages[0]) * int(size[0]) if pages and size else 0
        row = connection.one("SELECT @@datadir")
    data = Path(str(row[0])) if row else Path("/nonexistent")
    here = database.socket is not None or database.host in _LOCAL
    with suppress(PermissionError):
        if here and data.is_dir():
            return _size(data)
    raise _needs_command(database, f"mariadb-backup copies the server's files, and {data} is not readable here")


def _needs_command(database: Database, why: str) -> DatabaseFailed:
    return DatabaseFailed(
        f"{database} cannot be backed up from here",
        what=why,
        state="nothing was begun",
        next='in node.toml: [migrations] backup = "command", and backup_command = ["/your/own/program"]',
    )


# -- small things


def _restore(database: Database, data: Path, home: str) -> tuple[str, ...]:
    """For people, at night."""
    if database.engine is Engine.SQLITE:
        return ("stop what uses the database", f"cp {data} {database.path}", f"rm -f {database.path}-wal")
    unit, user = ("mariadb", "mysql") if database.engine is Engine.MARIADB else ("postgresql", "postgres")
    home = home or "DIRECTORY"
    return (
        f"systemctl stop {unit}",
        f"mv {home} {home}.before",
        f"cp -a {data} {home}",
        f"chown -R {user}:{user} {home}",
        f"systemctl start {unit}",
    )


def _size(path: Path) -> int:
    """Bytes on disk below a directory; files may come and go meanwhile."""
    total = 0
    for each in path.rglob("*"):
        with suppress(OSError):
            status = each.lstat()
            total += min(status.st_size, status.st_blocks * 512)
    return total


@contextmanager
def _progress(part: Path, total: int, report: Report) -> Iterator[None]:
    """Tell once a second how much is copied."""
    ended = threading.Event()

    def tell() -> None:
        while not ended.wait(1):
            report.progress("backup", min(_size(part), total), total)

    teller = threading.Thread(target=tell, daemon=True)
    if total:
        teller.start()
    try:
        yield
    finally:
        ended.set()
        if total:
            teller.join()


@contextmanager
def _translated(directory: Path) -> Iterator[None]:
    """Faults of the file system and of SQLite in our words."""
    try:
        yield
    except UpdaterError:
        raise
    except PermissionError as error:
        raise NotPermitted(
            f"no permission to write backups to {directory}", what=str(error), next="run it as root (sudo)"
        ) from error
    except (OSError, sqlite3.Error) as error:
        full = "no space" in str(error).lower() or "full" in str(error).lower()
        kind = NoSpace if full else DatabaseFailed
        what, state = str(error), "nothing was migrated"
        raise kind(f"the backup into {directory} failed", what=what, state=state, next="df -h") from error
