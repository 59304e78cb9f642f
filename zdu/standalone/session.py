"""A database as a ledger uses it: exact settings, transactions that are tried again, money in the engine's own form.

Everything that a ledger does is idempotent. So a transaction that met a deadlock, a lock or a broken connection is
simply done again, also when nobody knows whether its COMMIT arrived.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from enum import StrEnum
from typing import Any, Final, Self, TypeVar

from core.errors import DatabaseFailed
from core.faults import point
from core.sql import Connection, Database, Engine, Reason, Result, SqlError
from zdu.standalone.money import MOST_STORED, from_micro, money, to_micro

T = TypeVar("T")

#: After these, the same transaction may well succeed.
_AGAIN: Final = frozenset({Reason.DEADLOCK, Reason.LOCKED, Reason.GONE, Reason.UNREACHABLE})

#: Two wrote the same key at the same time: the second look sees it.
DUPLICATE: Final = frozenset({"1062", "SQLITE_CONSTRAINT_PRIMARYKEY", "SQLITE_CONSTRAINT_UNIQUE"})
_DUPLICATES: Final = 3

#: Rows in one statement.
ROWS: Final = 1000


class Binlog(StrEnum):
    """What becomes of the writes of a session in the binary log of MariaDB. A delta database lies on a server that is
    a replica otherwise: its writes must not get into the GTID domain of the main site, or it cannot join again.
    """

    SERVER = "server"  # as the server is set
    DOMAIN = "domain"  # in a GTID domain of its own; needs BINLOG REPLAY
    OFF = "off"  # not at all; needs BINLOG ADMIN


#: The GTID domain of a delta, unless the sites file says otherwise.
DOMAIN: Final = 7


class Session:
    """One database, for one thread; it connects when first used, and again when the connection is lost.

    `patience`: seconds during which what may pass is tried again. `read_only`: the server refuses writes of ours.
    `domain`: of `Binlog.DOMAIN`; the engines of a site and the sites file (`standalone.gtid_domain`) have to agree.
    """

    def __init__(
        self,
        database: Database,
        *,
        binlog: Binlog = Binlog.SERVER,
        domain: int = DOMAIN,
        read_only: bool = False,
        patience: float = 5.0,
    ) -> None:
        if database.engine not in (Engine.MARIADB, Engine.SQLITE):
            raise DatabaseFailed(f"a ledger is kept in MariaDB or SQLite, not in {database.engine}")
        self.database = database
        self.patience = patience
        self._binlog = binlog
        self._domain = domain
        self._read_only = read_only
        self._connection: Connection | None = None
        self.is_mariadb = database.engine is Engine.MARIADB
        #: Endings of a SELECT that holds the rows against writers, or against everybody, until the transaction ends.
        #: A transaction on SQLite holds the whole file.
        self.shared = " LOCK IN SHARE MODE" if self.is_mariadb else ""
        self.locked = " FOR UPDATE" if self.is_mariadb else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def transaction(self, work: Callable[[], T]) -> T:
        """Do the work in one transaction; all of it again after what may pass, so it must be safe to repeat.

        Raises SqlError when `patience` is over.
        """

        def once() -> T:
            with self._open().transaction():
                done = work()
                point("ledger:commit")
            point("ledger:committed")
            return done

        return self.retried(once)

    def snapshot(self, work: Callable[[], T]) -> T:
        """Do the work, which only reads, and sees one moment of the database."""

        def once() -> T:
            if self.is_mariadb:  # for the next transaction only
                self._open().execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            with self._open().transaction():
                return work()

        return self.retried(once)

    def retried(self, work: Callable[[], T]) -> T:
        """Do the work; again after what may pass, until `patience` is over."""
        until = time.monotonic() + self.patience
        duplicates, pause = 0, 0.002
        while True:
            try:
                return work()
            except SqlError as error:
                if error.reason in (Reason.GONE, Reason.UNREACHABLE):
                    self.close()
                duplicates += error.code in DUPLICATE
                again = duplicates < _DUPLICATES if error.code in DUPLICATE else error.reason in _AGAIN
                if not again or time.monotonic() > until:
                    raise
            time.sleep(random.uniform(0, pause))
            pause = min(pause * 2, 0.25)

    def execute(self, statement: str, values: Sequence[Any] = ()) -> Result:
        """Run one statement, inside `transaction` or alone."""
        point("ledger:statement")
        return self._open().execute(statement, values)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        return self.execute(statement, values).rows

    def one(self, statement: str, values: Sequence[Any] = ()) -> tuple[Any, ...] | None:
        """The first row of a query, or None."""
        found = self.rows(statement, values)
        return found[0] if found else None

    def insert(self, table: str, columns: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert many rows, many at a time. `columns`: names, separated by commas."""
        self._many(f"INSERT INTO {table} ({columns}) VALUES ", columns, rows, "")

    def replace(self, table: str, columns: str, key: str, rows: Sequence[Sequence[Any]]) -> None:
        """Write many rows: those whose `key` (columns) is there get the other columns, those missing are added."""
        others = [name for name in _names(columns) if name not in _names(key)]
        if self.is_mariadb:
            ending = " ON DUPLICATE KEY UPDATE " + ", ".join(f"{name} = VALUES({name})" for name in others)
        else:
            ending = f" ON CONFLICT ({key}) DO UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in others)
        self._many(f"INSERT INTO {table} ({columns}) VALUES ", columns, rows, ending)

    def insert_missing(self, table: str, columns: str, key: str, rows: Sequence[Sequence[Any]]) -> None:
        """Insert the rows whose `key` (columns) is not there yet; the others stay as they are."""
        first = _names(key)[0]
        ending = (
            f" ON DUPLICATE KEY UPDATE {first} = {first}" if self.is_mariadb else f" ON CONFLICT ({key}) DO NOTHING"
        )
        self._many(f"INSERT INTO {table} ({columns}) VALUES ", columns, rows, ending)

    def _many(self, start: str, columns: str, rows: Sequence[Sequence[Any]], ending: str) -> None:
        one = "(" + ", ".join(["%s"] * len(_names(columns))) + ")"
        for part in parts(rows):
            values = [value for row in part for value in row]
            self.execute(start + ", ".join([one] * len(part)) + ending, values)

    def put(self, amount: Decimal) -> Decimal | int:
        """Money as a value for the engine. Raises ValueError where it cannot be (a balance that outgrew the column)."""
        checked = money(amount, most=MOST_STORED)
        return checked if self.is_mariadb else to_micro(checked)

    def take(self, value: Any) -> Decimal:
        """A value of the engine as money; NULL (a sum of nothing) is 0."""
        if value is None:
            return Decimal(0)
        return Decimal(value) if self.is_mariadb else from_micro(int(value))

    def _open(self) -> Connection:
        if self._connection is None:
            opened = Connection.open(self.database)
            try:
                for setting in self._settings():
                    opened.execute(setting)
            except BaseException:
                opened.close()
                raise
            self._connection = opened
        return self._connection

    def _settings(self) -> Iterable[str]:
        if not self.is_mariadb:
            yield "PRAGMA busy_timeout = 5000"
            if self._read_only:
                yield "PRAGMA query_only = ON"
            return
        yield (
            "SET SESSION sql_mode = 'STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION', "
            "time_zone = '+00:00', innodb_lock_wait_timeout = 5"
        )
        # What is read with a lock is the latest; gaps between rows are not locked, so fewer deadlocks.
        yield "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED"
        if self._read_only:
            yield "SET SESSION TRANSACTION READ ONLY"
        if self._binlog is Binlog.DOMAIN:
            yield f"SET SESSION gtid_domain_id = {self._domain:d}"
        elif self._binlog is Binlog.OFF:
            yield "SET SESSION sql_log_bin = 0"


def parts(rows: Sequence[T], size: int = ROWS) -> Iterable[Sequence[T]]:
    """The rows in groups small enough for one statement."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def marks(values: Sequence[Any]) -> str:
    """Placeholders for an IN list: ``(%s, %s)``."""
    return "(" + ", ".join(["%s"] * len(values)) + ")"


def _names(columns: str) -> list[str]:
    return [name.strip() for name in columns.split(",")]
