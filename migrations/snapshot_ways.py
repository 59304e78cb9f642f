"""How each engine's data is copied while its server runs, and how much there is of it."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Final

from core.errors import CommandFailed, DatabaseFailed
from core.faults import point
from core.run import run
from core.sql import Connection, Database, Engine
from migrations.client_file import libpq, write_client_file
from migrations.scratch import program
from migrations.transient import transient_directory

#: The copy in a backup's directory: a directory that a server starts on, or SQLite's file.
DATA: Final = "data"

#: Seconds that a try to lock an SQLite file waits, and the pages of it that are copied at a time.
BREATH: Final = 0.2
PAGES: Final = 1000

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


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
    """A copy by SQLite itself, under one read lock: writers wait for it in rollback-journal mode. It is made in pieces:
    between two of them the deadline is looked at, and Ctrl-C is heard.
    """
    assert database.path is not None
    until = time.monotonic() + deadline

    def on_time(*_: object) -> None:
        if time.monotonic() > until:
            raise DatabaseFailed(
                f"the backup of {database} did not end within {deadline:g} s",
                what="the file is too large for that, or another process keeps it locked",
                state="nothing was migrated; what was copied has been removed",
                next=f"fuser -v {database.path}    shows who uses it",
            )

    where = f"{database.path.as_uri()}?mode=ro"
    with (
        closing(sqlite3.connect(where, uri=True, timeout=BREATH, isolation_level=None)) as source,
        closing(sqlite3.connect(part / DATA)) as copy,
    ):
        _lock_for_reading(source, on_time)
        source.backup(copy, pages=PAGES, progress=on_time)
        (verdict,) = copy.execute("PRAGMA quick_check(1)").fetchone()
    if verdict != "ok":
        raise DatabaseFailed(
            f"{database} is damaged", what=str(verdict), state="nothing was migrated", next="restore an older backup"
        )


def _lock_for_reading(source: sqlite3.Connection, on_time: Callable[[], None]) -> None:
    """Until the connection is closed. `on_time` raises to give up."""
    source.execute("BEGIN")
    while True:
        try:
            source.execute("SELECT 1 FROM sqlite_master").fetchone()
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                raise
        on_time()


BY_ENGINE: Final = {Engine.MARIADB: _mariadb, Engine.POSTGRESQL: _postgresql, Engine.SQLITE: _sqlite}


def by_command(command: Sequence[str], database: Database, part: Path, label: str, deadline: float) -> str:
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


def known(database: Database) -> tuple[str, str]:
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


def bytes_of(database: Database) -> int:
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
            return size_of(data)
    raise _needs_command(database, f"mariadb-backup copies the server's files, and {data} is not readable here")


def _needs_command(database: Database, why: str) -> DatabaseFailed:
    return DatabaseFailed(
        f"{database} cannot be backed up from here",
        what=why,
        state="nothing was begun",
        next='in node.toml: [migrations] backup = "command", and backup_command = ["/your/own/program"]',
    )


def size_of(path: Path) -> int:
    """Bytes on disk below a directory; files may come and go meanwhile."""
    total = 0
    for each in path.rglob("*"):
        with suppress(OSError):
            status = each.lstat()
            total += min(status.st_size, status.st_blocks * 512)
    return total
