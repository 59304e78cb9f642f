"""MariaDB, and MySQL as far as it is the same. DDL commits by itself: a statement and its record are two steps, and
what lies between them is found out from the schema.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any, Final

from blake3 import blake3

from core.errors import DatabaseFailed
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Statement
from migrations.changes import Parsed, Verb
from migrations.ddl import parse
from migrations.engines import Guard, Holder, Load, Presence, Size, Work, apart, probed, together
from migrations.engines.mariadb_effects import derived, quoted
from migrations.reading.way import takes_a_way, with_way

#: What the vendor's statements were tried with, whatever the server's default is: nothing is cut off in silence.
SQL_MODE: Final = "STRICT_TRANS_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION"

#: Seconds that the server keeps a connection of ours that says nothing: a machine that lost its power holds the lock no
#: longer.
IDLE: Final = 600

_ROWS: Final = frozenset({Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT})

#: How often, and with how many seconds in between, is asked whether a table is free.
_ASK: Final = 8
_BETWEEN: Final = 0.02


class MariadbServer:
    """A server, as `migrations.engines.Server`. `replicas`: those whose lag counts; the primary does not know it."""

    engine = Engine.MARIADB
    whole = False

    def __init__(self, database: Database, replicas: Sequence[Database] = ()) -> None:
        """Connect. Raises SqlError."""
        self.database = database
        self.replicas = tuple(replicas)
        self.connection = self._open()

    def _open(self) -> Connection:
        connection = Connection.open(self.database)
        row = connection.one("SELECT version(), connection_id(), @@log_bin, @@binlog_format")
        assert row is not None
        self._said, self._id = str(row[0]), int(row[1])
        self._is_mariadb = "mariadb" in self._said.lower()
        self._rows_are_logged = not row[2] or str(row[3]).upper() != "STATEMENT"
        connection.execute(f"SET SESSION sql_mode = '{SQL_MODE}', wait_timeout = {IDLE}, lock_wait_timeout = 1, "
                           "innodb_lock_wait_timeout = 1")  # fmt: skip
        return connection

    def version(self) -> str:
        number = self._said.split("-")[0]
        return f"{'MariaDB' if self._is_mariadb else 'MySQL'} {number}"

    # -- fit to be written to

    def require_primary(self) -> None:
        row = self.connection.one("SELECT @@global.read_only, @@global.innodb_read_only, current_user()")
        assert row is not None
        if (master := self._master()) is not None:
            raise DatabaseFailed(
                f"{self.database} is a replica of {master}",
                what="what is changed here would be missing there, and may break the replication",
                state="nothing was changed",
                next="run the migrations where the primary is; its changes come here by themselves",
            )
        if row[0] or row[1]:
            raise SqlError(
                f"{self.database} is read-only",
                reason=Reason.READ_ONLY,
                code="1290",
                what="read_only is on" if row[0] else "innodb_read_only is on",
                state="nothing was changed",
                next="find out who set it and why; SET GLOBAL read_only = 0 where this is the primary",
            )

    def _master(self) -> str | None:
        """Whom it replicates from; None too where we may not ask."""
        try:
            rows = _named(self.connection, "SHOW ALL SLAVES STATUS" if self._is_mariadb else "SHOW REPLICA STATUS")
        except SqlError as error:
            if error.reason in (Reason.DENIED, Reason.SYNTAX):
                return None
            raise
        hosts = [row.get("Master_Host") or row.get("Source_Host") for row in rows]
        return next((f"{host}" for host in hosts if host), None)

    # -- the lock

    def hold(self) -> bool:
        row = self.connection.one("SELECT get_lock(%s, 0)", [self._lock])
        return bool(row and row[0] == 1)

    def release(self) -> None:
        self.connection.execute("SELECT release_lock(%s)", [self._lock])

    @property
    def _lock(self) -> str:
        """Locks are the whole server's, and their names at most 64 letters long."""
        return f"updater:{blake3(self.database.database.encode()).hexdigest(length=16)}"

    def reopen(self) -> None:
        self.connection.close()
        self.connection = self._open()

    def close(self) -> None:
        self.connection.close()

    # -- who is in the way

    def holders(self, tables: Sequence[str], *, older: float = 1.0) -> list[Holder]:
        """By the server's list of metadata locks, where it keeps one; else all transactions that are old enough. None,
        where we lack the PROCESS privilege.
        """
        try:
            found = self._sessions(older)
        except SqlError as error:
            if error.reason is not Reason.DENIED:
                raise
            return []
        locking = self._locking(tables) if found else None
        if locking is None:
            return found
        return [replace(each, certain=True) for each in found if each.id in locking]

    def _sessions(self, older: float) -> list[Holder]:
        rows = self.connection.execute(
            "SELECT p.id, p.user, p.host, timestampdiff(MICROSECOND, t.trx_started, sysdate(6)) / 1000000, "
            "coalesce(p.info, ''), p.command FROM information_schema.innodb_trx t "
            "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id "
            "WHERE p.id <> connection_id() ORDER BY t.trx_started"
        ).rows
        return [
            Holder(
                id=str(row[0]),
                who=f"{row[1]}@{str(row[2]).rpartition(':')[0] or row[2]}",
                seconds=max(float(row[3]), 0.0),
                query=str(row[4]),
                idle=row[5] == "Sleep",
            )
            for row in rows
            if float(row[3]) > older
        ]

    def _locking(self, tables: Sequence[str]) -> set[str] | None:
        """The sessions that have locked one of the tables; None where the server does not tell."""
        wanted = {(name.rpartition(".")[0] or self.database.database, name.rpartition(".")[2]) for name in tables}
        for ask in (_BY_PLUGIN, _BY_SCHEMA):
            with suppress(SqlError):
                rows = self.connection.execute(ask).rows
                if rows:
                    return {str(row[0]) for row in rows if (row[1], row[2]) in wanted}
        return None

    def free(self, tables: Sequence[str]) -> bool:
        if not self._is_mariadb:
            return True
        names = ", ".join(f"{quoted(table)} WRITE" for table in tables)
        for attempt in range(_ASK):
            try:
                self.connection.execute(f"LOCK TABLES {names} NOWAIT")
                self.connection.execute("UNLOCK TABLES")
                return True
            except SqlError as error:
                if error.reason is Reason.GONE:
                    raise
                if error.reason is not Reason.LOCKED:
                    return True
            if attempt < _ASK - 1:
                time.sleep(_BETWEEN)
        return False

    # -- statements

    def atomic(self, statement: Statement) -> bool:
        return self._is_rows(parse(statement.sql, self.engine))

    def _is_rows(self, parsed: Parsed) -> bool:
        """Changes of rows are transactions with their record, in tables that know transactions."""
        return all(change.verb in _ROWS for change in parsed.changes) and all(map(self.transactional, parsed.tables))

    def execute(self, work: Sequence[Work], guard: Guard) -> None:
        (each,) = work
        parsed = parse(each.statement.sql, self.engine)
        self._wait(guard)
        sql = self._guarded(parsed, guard)
        if self._is_mariadb and guard.time_limit is not None:
            sql = f"SET STATEMENT max_statement_time = {max(guard.time_limit, 0.001):.3f} FOR {sql}"
        with self._limited(guard):
            if self._is_rows(parsed):
                together(self.connection, [replace(each, statement=replace(each.statement, sql=sql))])
            else:
                apart(self.connection, sql, each)

    def _guarded(self, parsed: Parsed, guard: Guard) -> str:
        """The statement, with what it lacks so that it keeps nobody from writing."""
        verbs = {change.verb for change in parsed.changes}
        if verbs == {Verb.DROP_TABLE} and "IF EXISTS" not in parsed.options:
            head, _, rest = parsed.sql.partition(" ")  # of several, those that went before a crash are gone
            words = rest.split(None, 1)
            return f"{head} {words[0]} IF EXISTS {words[1]}" if words[0].upper() == "TABLE" else parsed.sql
        if not guard.online or not (takes_a_way(parsed) or Verb.PARTITION in verbs):
            return parsed.sql
        lock = parsed.options.get("LOCK")
        if Verb.PARTITION in verbs or lock not in (None, "NONE"):
            why = "its partitioning" if Verb.PARTITION in verbs else f"LOCK={lock} is written in it"
            raise SqlError(
                f"{self.database}: it would keep others from writing: {why}",
                reason=Reason.REFUSED,
                code="LOCK",
                what=" ".join(parsed.sql.split())[:300],
            )
        return with_way(parsed, algorithm=parsed.options.get("ALGORITHM", ""), lock="NONE")

    def _wait(self, guard: Guard) -> None:
        seconds = max(1, math.floor(guard.lock_wait))
        self.connection.execute(f"SET SESSION lock_wait_timeout = {seconds}, innodb_lock_wait_timeout = {seconds}")
        self.connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")

    @contextmanager
    def _limited(self, guard: Guard) -> Iterator[None]:
        """A statement that ran into its limit says at times that it was killed. One whose user lost patience is
        killed, for else the server would go on with it.
        """
        began = time.monotonic()
        try:
            yield
        except SqlError as error:
            if error.reason is Reason.KILLED and guard.time_limit and time.monotonic() - began >= guard.time_limit:
                error.reason = Reason.OVERRAN
            raise
        except DatabaseFailed:
            raise
        except BaseException as error:
            if not isinstance(error, Exception):
                self._cancel()
            raise

    def _cancel(self) -> None:
        with suppress(DatabaseFailed), Connection.open(self.database) as other:
            other.execute(f"KILL QUERY {self._id}")

    def presence(self, statement: Statement) -> Presence:
        found = probed(self.connection, statement)
        return found or derived(self.connection, parse(statement.sql, self.engine))

    # -- load and size

    def load(self) -> Load:
        row = self.connection.one("SHOW GLOBAL STATUS LIKE 'Threads_running'")
        lags = [lag for each in self.replicas if (lag := _lag(each)) is not None]
        return Load(running=max(int(row[1]) - 1, 0) if row else 0, lag=max(lags, default=None))

    def size(self, table: str) -> Size:
        row = self._about(table, "table_rows, data_length + index_length")
        return Size(rows=int(row[0] or 0), bytes=int(row[1] or 0)) if row else Size(rows=0, bytes=0)

    def transactional(self, table: str) -> bool:
        """Whether its storage engine is; a view, or what is not there, counts as if it were."""
        row = self._about(table, "engine")
        return row is None or row[0] is None or str(row[0]).upper() in ("INNODB", "ROCKSDB", "NDBCLUSTER", "SEQUENCE")

    def _about(self, table: str, columns: str) -> tuple[Any, ...] | None:
        database, dot, name = table.rpartition(".")
        return self.connection.one(
            f"SELECT {columns} FROM information_schema.tables WHERE table_schema = %s AND table_name = %s",
            [database if dot else self.database.database, name],
        )

    def begin_batches(self, guard: Guard) -> None:
        """Without gap locks, where the binary log allows it: nobody who inserts next to a chunk has to wait for it."""
        self._wait(guard)
        if self._rows_are_logged:
            self.connection.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def quoted(self, name: str) -> str:
        return quoted(name)


_BY_PLUGIN: Final = (
    "SELECT thread_id, table_schema, table_name FROM information_schema.metadata_lock_info "
    "WHERE lock_type = 'Table metadata lock'"
)
_BY_SCHEMA: Final = (
    "SELECT t.processlist_id, m.object_schema, m.object_name FROM performance_schema.metadata_locks m "
    "JOIN performance_schema.threads t ON t.thread_id = m.owner_thread_id "
    "WHERE m.object_type = 'TABLE' AND m.lock_status = 'GRANTED'"
)


def _named(connection: Connection, query: str) -> list[dict[str, Any]]:
    """Rows by the names of their columns, which differ between versions."""
    cursor = connection.raw.cursor()
    connection.execute("SELECT 1")  # errors of the connection in our words
    try:
        cursor.execute(query)
    except Exception:
        connection.execute(query)
        raise
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]


def _lag(replica: Database) -> float | None:
    """Seconds that a replica is behind; None when it does not replicate, or cannot be asked."""
    with suppress(DatabaseFailed), Connection.open(replica) as connection:
        lags = [row.get("Seconds_Behind_Master") for row in _named(connection, "SHOW SLAVE STATUS")]
        return max((float(lag) for lag in lags if lag is not None), default=None)
    return None
