"""Connections to MariaDB (and MySQL), PostgreSQL and SQLite: one small face, and errors in our words.

A `Connection` is in autocommit: each statement stands alone unless `transaction()` holds several together.
Placeholders are ``%s`` for every engine. Statements without parameters pass through untouched, per cent signs included.
"""

from __future__ import annotations

import re
import socket
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

from core.errors import DatabaseFailed
from core.sql_errors import Reason, SqlError, of_mariadb, of_postgresql, of_sqlite

__all__ = [
    "DEFAULT_PORT",
    "SILENCE",
    "Connection",
    "Database",
    "Engine",
    "Reason",
    "Result",
    "SqlError",
    "notice_silence",
]

#: Seconds until a server that does not answer counts as unreachable.
CONNECT: Final = 10

#: Seconds after which a server that is cut off (not one that works for long) counts as gone.
SILENCE: Final = 24


class Engine(StrEnum):
    """What kind of server, or file, holds the data."""

    MARIADB = "mariadb"  # MySQL too: the server says which it is
    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


@dataclass(frozen=True, slots=True, kw_only=True)
class Database:
    """Where a database is and who asks. A server by `socket`, or `host` and `port`, with the `database` on it; SQLite
    by `path`. The password is in a file of its own that only its owner may read.
    """

    engine: Engine
    database: str = ""
    host: str = ""
    port: int = 0
    socket: Path | None = None
    user: str = ""
    password_file: Path | None = None
    tls_ca: Path | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.engine is Engine.SQLITE:
            if self.path is None or not self.path.is_absolute():
                raise ValueError("path: an SQLite database needs an absolute one")
            return
        if not self.database:
            raise ValueError("database: missing")
        if bool(self.host) == (self.socket is not None):
            raise ValueError("host: give either host or socket")
        if not 0 <= self.port <= 65535:
            raise ValueError("port: must be from 1 to 65535")

    def __str__(self) -> str:
        if self.engine is Engine.SQLITE:
            return str(self.path)
        return f"{self.engine} {self.socket or f'{self.host}:{self.port or DEFAULT_PORT[self.engine]}'}/{self.database}"

    def password(self) -> str:
        """The password, without the newline at its end. Raises DatabaseFailed when its file can be read by others."""
        if self.password_file is None:
            return ""
        try:
            if self.password_file.stat().st_mode & 0o077:
                raise DatabaseFailed(
                    f"{self.password_file} can be read by others than its owner",
                    state="nothing was sent to the database",
                    next=f"chmod 600 {self.password_file}",
                )
            return self.password_file.read_text(encoding="utf-8").rstrip("\n")
        except OSError as error:
            raise DatabaseFailed(
                f"the password for {self} cannot be read", what=str(error), next=f"ls -l {self.password_file}"
            ) from error


DEFAULT_PORT: Final = {Engine.MARIADB: 3306, Engine.POSTGRESQL: 5432}


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Rows of a query (empty for others) with the names of their columns, and how many rows were changed."""

    rows: list[tuple[Any, ...]]
    changed: int
    columns: tuple[str, ...] = ()

    @property
    def tables(self) -> list[dict[str, Any]]:
        """The rows by name of column."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


class Connection:
    """An open connection. Use as a context manager."""

    def __init__(self, database: Database, raw: Any) -> None:
        self.database = database
        self.engine = database.engine
        self.raw = raw

    @classmethod
    def open(cls, database: Database) -> Self:
        """Connect. Raises SqlError (UNREACHABLE, DENIED), or DatabaseFailed when the driver is not installed."""
        with _translated(database, "connect"):
            return cls(database, _OPEN[database.engine](database))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it; a connection that is gone already is no fault."""
        with suppress(Exception):
            self.raw.close()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Result:
        """Run one statement to its end. Raises SqlError with what the server said."""
        with _translated(self.database, statement):
            if self.engine is Engine.SQLITE:
                cursor = self.raw.execute(_question_marks(statement) if values else statement, tuple(values))
            else:
                cursor = self.raw.cursor()
                cursor.execute(statement, tuple(values) if values else None)
            rows = [tuple(row) for row in cursor.fetchall()] if cursor.description else []
            names = tuple(str(column[0]) for column in cursor.description or ())
            return Result(rows=rows, changed=max(cursor.rowcount, 0), columns=names)

    def one(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        rows = self.execute(statement, values).rows
        return rows[0] if rows else None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, durable when the context is left, or nothing of it."""
        self.execute("BEGIN IMMEDIATE" if self.engine is Engine.SQLITE else "BEGIN")
        try:
            yield
            self.execute("COMMIT")
        except BaseException:
            with suppress(SqlError):  # a connection that is gone has rolled back by itself
                self.execute("ROLLBACK")
            raise


def _open_mariadb(database: Database) -> Any:
    import pymysql

    where: dict[str, Any] = (
        {"unix_socket": str(database.socket)}
        if database.socket
        else {"host": database.host, "port": database.port or DEFAULT_PORT[Engine.MARIADB]}
    )
    tls: dict[str, Any] = {}
    if database.tls_ca:
        tls = {"ssl": {"ca": str(database.tls_ca)}, "ssl_verify_identity": True}
    elif database.socket:
        tls = {"ssl_disabled": True}  # getting ready for TLS costs 40 ms, and protects nothing on a socket
    raw = pymysql.connect(
        **where,
        **tls,
        user=database.user or None,
        password=database.password().encode(),  # PyMySQL itself would take Latin-1
        database=database.database,
        charset="utf8mb4",
        autocommit=True,
        connect_timeout=CONNECT,
    )
    if database.host:
        notice_silence(raw._sock)
    return raw


def notice_silence(peer: socket.socket) -> None:
    """Have the kernel notice a peer that is cut off, also while a long statement is waited for: after `SILENCE`."""
    for level, option, value in (
        (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
        (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, SILENCE // 2),
        (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, SILENCE // 8),
        (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
        (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENCE * 1000),
    ):
        peer.setsockopt(level, option, value)


def _open_postgresql(database: Database) -> Any:
    import psycopg

    tls: dict[str, Any] = {"sslmode": "verify-full", "sslrootcert": str(database.tls_ca)} if database.tls_ca else {}
    return psycopg.connect(
        host=str(database.socket.parent if database.socket else database.host),
        port=database.port or _port_of(database.socket) or DEFAULT_PORT[Engine.POSTGRESQL],
        user=database.user or None,
        password=database.password() or None,
        dbname=database.database,
        autocommit=True,
        connect_timeout=CONNECT,
        prepare_threshold=None,  # a plan kept over DDL is a surprise
        application_name="updater",
        keepalives_idle=SILENCE // 2,
        keepalives_interval=SILENCE // 8,
        keepalives_count=4,
        tcp_user_timeout=SILENCE * 1000,
        **tls,
    )


def _port_of(socket: Path | None) -> int:
    """PostgreSQL's sockets carry their port: .s.PGSQL.5432."""
    ending = socket.name.rpartition(".")[2] if socket else ""
    return int(ending) if ending.isdigit() else 0


def _open_sqlite(database: Database) -> Any:
    assert database.path is not None
    raw = sqlite3.connect(f"file:{_quoted(database.path)}?mode=rw", uri=True, isolation_level=None, timeout=1)
    raw.execute("PRAGMA foreign_keys = ON")
    raw.execute("PRAGMA synchronous = EXTRA")
    return raw


def _question_marks(statement: str) -> str:
    """Placeholders as SQLite has them; ``%%`` is a per cent sign, as with the other drivers."""
    return re.sub("%([s%])", lambda found: "?" if found[1] == "s" else "%", statement)


def _quoted(path: Path) -> str:
    from urllib.parse import quote

    return quote(str(path))


_OPEN: Final = {
    Engine.MARIADB: _open_mariadb,
    Engine.POSTGRESQL: _open_postgresql,
    Engine.SQLITE: _open_sqlite,
}

_JUDGE: Final = {Engine.MARIADB: of_mariadb, Engine.POSTGRESQL: of_postgresql, Engine.SQLITE: of_sqlite}


@contextmanager
def _translated(database: Database, statement: str) -> Iterator[None]:
    """The drivers' errors as SqlError."""
    try:
        yield
    except DatabaseFailed:
        raise
    except ImportError as error:
        raise DatabaseFailed(
            f"the driver for {database.engine} is not installed",
            what=str(error),
            next=f"pip install updater[{database.engine}]",
        ) from error
    except Exception as error:
        known = _JUDGE[database.engine](error)
        if known is None:
            raise
        reason, code = known
        text = str(error.args[1] if len(error.args) > 1 else error).strip().splitlines() or [type(error).__name__]
        raise SqlError(
            f"{database}: {text[0]}",
            reason=reason,
            code=code,
            what=[f"{code}: {' '.join(statement.split())[:300]}", *text[1:4]],
        ) from error
