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

#: Seconds until a server that does not answer counts as unreachable.
CONNECT: Final = 10

#: Seconds after which a server that is cut off (not one that works for long) counts as gone.
SILENCE: Final = 24


class Engine(StrEnum):
    """What kind of server, or file, holds the data."""

    MARIADB = "mariadb"  # MySQL too: the server says which it is
    POSTGRESQL = "postgresql"
    SQLITE = "sqlite"


class Reason(StrEnum):
    """Why a statement failed, as far as what to do next depends on it."""

    UNREACHABLE = "unreachable"  # no server, no route, too many connections
    DENIED = "denied"  # wrong password, missing privilege
    GONE = "gone"  # the connection broke or was killed in mid-statement: what was done is not known
    LOCKED = "locked"  # a lock was not granted in time
    DEADLOCK = "deadlock"  # the server took the transaction back
    OVERRAN = "overran"  # the statement took longer than it was allowed to
    KILLED = "killed"  # somebody had the statement broken off; the connection lives
    READ_ONLY = "read-only"
    FULL = "full"
    EXISTS = "exists"  # what the statement makes is there already
    MISSING = "missing"  # what it works on is not there
    REFUSED = "refused"  # the server cannot do it in the way that was asked for (ALGORITHM, LOCK)
    SYNTAX = "syntax"
    OTHER = "other"


class SqlError(DatabaseFailed):
    """A statement or a connection failed. `code`: the engine's own (errno, SQLSTATE, SQLite's name)."""

    def __init__(self, message: str, *, reason: Reason, code: str, **said: Any) -> None:
        super().__init__(message, **said)
        self.reason = reason
        self.code = code


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

_MARIADB: Final = {
    **dict.fromkeys((1040, 2002, 2003, 2005), Reason.UNREACHABLE),
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1370, 1698), Reason.DENIED),
    **dict.fromkeys((1053, 1077, 1079, 1152, 1158, 1159, 1160, 1161, 1184, 1927, 2006, 2013), Reason.GONE),
    **dict.fromkeys((1205, 1637), Reason.LOCKED),
    1213: Reason.DEADLOCK,
    1317: Reason.KILLED,
    **dict.fromkeys((1969, 3024), Reason.OVERRAN),
    **dict.fromkeys((1036, 1290, 1792, 1836), Reason.READ_ONLY),
    **dict.fromkeys((1021, 1030, 1114, 1041), Reason.FULL),
    **dict.fromkeys((1007, 1022, 1050, 1060, 1061, 1068, 1304, 1359, 1517, 1826), Reason.EXISTS),
    **dict.fromkeys((1008, 1049, 1051, 1054, 1072, 1091, 1146, 1176, 1305, 1360, 1507), Reason.MISSING),
    **dict.fromkeys((1221, 1845, 1846), Reason.REFUSED),
    **dict.fromkeys((1064, 1149), Reason.SYNTAX),
}

#: By SQLSTATE, or by its class (the first two letters).
_POSTGRESQL: Final = {
    "08": Reason.GONE,
    "57P01": Reason.GONE,
    "57P02": Reason.GONE,
    "57P03": Reason.UNREACHABLE,
    "57P05": Reason.GONE,
    "25P03": Reason.GONE,
    "53300": Reason.UNREACHABLE,
    "28": Reason.DENIED,
    "3D000": Reason.MISSING,
    "42501": Reason.DENIED,
    "55P03": Reason.LOCKED,
    "55006": Reason.LOCKED,
    "40P01": Reason.DEADLOCK,
    "40001": Reason.DEADLOCK,
    "57014": Reason.OVERRAN,
    "25006": Reason.READ_ONLY,
    "53": Reason.FULL,
    "42P07": Reason.EXISTS,
    "42701": Reason.EXISTS,
    "42710": Reason.EXISTS,
    "42P06": Reason.EXISTS,
    "42723": Reason.EXISTS,
    "42P01": Reason.MISSING,
    "42703": Reason.MISSING,
    "42704": Reason.MISSING,
    "42883": Reason.MISSING,
    "3F000": Reason.MISSING,
    "42601": Reason.SYNTAX,
}

_SQLITE: Final = {
    "SQLITE_CANTOPEN": Reason.UNREACHABLE,
    "SQLITE_PERM": Reason.DENIED,
    "SQLITE_AUTH": Reason.DENIED,
    "SQLITE_BUSY": Reason.LOCKED,
    "SQLITE_LOCKED": Reason.LOCKED,
    "SQLITE_READONLY": Reason.READ_ONLY,
    "SQLITE_FULL": Reason.FULL,
    "SQLITE_IOERR": Reason.FULL,
    "SQLITE_INTERRUPT": Reason.OVERRAN,
}


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
        known = _judge(database.engine, error)
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


def _judge(engine: Engine, error: Exception) -> tuple[Reason, str] | None:
    """Why it failed, and the engine's code; None where it is not the driver's error."""
    if engine is Engine.SQLITE:
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorname", "SQLITE_ERROR")
        by_code = next((reason for start, reason in _SQLITE.items() if code.startswith(start)), None)
        return by_code or _sqlite_by_text(str(error)), code
    if engine is Engine.MARIADB:
        import pymysql

        if isinstance(error, pymysql.err.InterfaceError):
            return Reason.GONE, "connection"
        if not isinstance(error, pymysql.Error):
            return None
        number = int(error.args[0]) if error.args and isinstance(error.args[0], int) else 0
        full = any(words in str(error.args[-1]) for words in ("No space left", "Temp file write failure", "Disk full"))
        return Reason.FULL if full else _MARIADB.get(number, Reason.OTHER), str(number)
    import psycopg

    if not isinstance(error, psycopg.Error):
        return None
    state = error.sqlstate or ""
    if not state and isinstance(error, psycopg.OperationalError):
        text = str(error)
        if "authentication failed" in text or "no password supplied" in text:
            return Reason.DENIED, "connection"
        lost = "closed the connection" in text or "connection is closed" in text or "connection is lost" in text
        return (Reason.GONE if lost else Reason.UNREACHABLE), "connection"
    if state == "57014" and "user request" in str(error):  # pg_cancel_backend; the rest of this code is time limits
        return Reason.KILLED, state
    return _POSTGRESQL.get(state) or _POSTGRESQL.get(state[:2]) or Reason.OTHER, state


def _sqlite_by_text(text: str) -> Reason:
    """SQLite has one code for all that is wrong with a statement."""
    if "already exists" in text or "duplicate column" in text:
        return Reason.EXISTS
    if "no such" in text:
        return Reason.MISSING
    return Reason.SYNTAX if "syntax error" in text else Reason.OTHER
