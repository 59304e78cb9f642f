"""PostgreSQL: DDL is transactional, so a statement and its record in the ledger are one transaction. What cannot run in
one (CREATE INDEX CONCURRENTLY and its like) runs by itself, and what it leaves when it breaks off is cleared away.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from core.errors import DatabaseFailed
from core.faults import point
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Statement
from migrations.changes import Parsed, Verb
from migrations.ddl import parse
from migrations.engines import Guard, Holder, Load, Presence, Size, Work, apart, probed, together
from migrations.engines.postgresql_effects import derived, quoted, regclass
from migrations.engines.postgresql_locks import Needs, needs
from migrations.engines.postgresql_queries import HOLDERS, INVALID, TREE

#: The advisory lock of the one runner of a database; advisory locks are the database's own.
LOCK: Final = 0x7570_6461_7465_7201

#: Seconds that a CONCURRENTLY statement may wait for transactions older than itself. Nobody queues behind it, but each
#: new try builds the index from the beginning.
CONCURRENT_WAIT: Final = 300.0

#: Seconds: no limit.
LONGEST: Final = 86400.0

#: Seconds that a statement with a lock may at least work, in the non-blocking phase, however long it waited.
SHORTEST: Final = 0.1

#: Limits that an administrator may have set for users or databases: ours are said with each statement.
_OWN_LIMITS: Final = (
    "statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "transaction_timeout",
    "idle_session_timeout",
)  # fmt: skip


class PostgreSQLServer:
    """A PostgreSQL server, as `migrations.engines.Server`."""

    #: Each statement in a transaction of its own: locks are kept for the shortest time, and at most one is waited for.
    whole = False

    def __init__(self, database: Database) -> None:
        self.database = database
        self._connection = _connect(database)
        self._sent: deque[tuple[float, int]] = deque(maxlen=3600)

    @property
    def engine(self) -> Engine:
        """PostgreSQL."""
        return Engine.POSTGRESQL

    @property
    def connection(self) -> Connection:
        """The runner's own connection."""
        return self._connection

    def version(self) -> str:
        """PostgreSQL 15.6."""
        row = self._connection.one("SHOW server_version")
        return f"PostgreSQL {str(row[0]).split()[0]}" if row else "PostgreSQL"

    def require_primary(self) -> None:
        """Raises DatabaseFailed unless it takes writes, is not a standby, and we may create tables in it."""
        row = self._connection.one(
            "SELECT pg_is_in_recovery(), current_setting('default_transaction_read_only')::bool, current_schema(),"
            " has_schema_privilege(current_schema(), 'CREATE'), current_user"
        )
        assert row is not None
        standby, read_only, schema, may_create, user = row
        if standby:
            sender = self._connection.one("SELECT sender_host, sender_port FROM pg_stat_wal_receiver")
            of = f" of {sender[0]}:{sender[1]}" if sender and sender[0] else ""
            raise _unfit(
                f"{self.database} is a standby{of}, not the primary",
                "changes of the schema come to it from its primary",
                "run the migrations on the site whose database is the primary",
            )
        if read_only:
            raise _unfit(
                f"{self.database} is read-only",
                "default_transaction_read_only is on for the server, the database or the user",
                f"psql -c 'ALTER DATABASE {quoted(self.database.database)} RESET default_transaction_read_only'",
            )
        if schema is None or not may_create:
            raise _unfit(
                f"user {user} may not create tables in {self.database}",
                f"no CREATE privilege on schema {schema}" if schema else "no schema of its search_path exists",
                f"psql -c 'GRANT CREATE ON SCHEMA {quoted(schema or 'public')} TO {quoted(str(user))}'",
            )

    def hold(self) -> bool:
        """Take the one runner's lock, without waiting."""
        row = self._connection.one("SELECT pg_try_advisory_lock(%s)", (LOCK,))
        return bool(row and row[0])

    def release(self) -> None:
        """Give it back."""
        self._connection.execute("SELECT pg_advisory_unlock(%s)", (LOCK,))

    def reopen(self) -> None:
        """Connect anew."""
        self._connection.close()
        self._connection = _connect(self.database)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def holders(self, tables: Sequence[str], *, older: float = 1.0) -> list[Holder]:
        """Transactions, prepared ones too, that lock one of the tables or a partition of it."""
        names = [regclass(each) for each in tables]
        rows = self._connection.execute(HOLDERS, (names, older)).rows if names else []
        return [
            Holder(id=str(id), who=str(who), seconds=float(seconds), query=query or "", idle=bool(idle), certain=True)
            for id, who, seconds, query, idle in rows
        ]

    def free(self, tables: Sequence[str]) -> bool:
        """Whether nobody keeps the tables for longer than a moment: the locks of short transactions on a busy table
        come and go, and a try gets in between.
        """
        return not self.holders(tables, older=0.5)

    def atomic(self, statement: Statement) -> bool:
        """Whether it may run in a transaction."""
        return not needs(parse(statement.sql, self.engine)).alone

    def execute(self, work: Sequence[Work], guard: Guard) -> None:
        """Run statements and their records under the guard."""
        parsed = [parse(each.statement.sql, self.engine) for each in work]
        wanted = [Needs() if each.done else needs(its) for each, its in zip(work, parsed, strict=True)]
        if any(each.alone for each in wanted):
            self._alone(work[0], parsed[0], guard)
        elif guard.online and any(each.stalls for each in wanted):
            self._online(work, wanted, guard)
        else:
            self._limit(guard.lock_wait, guard.time_limit)
            together(self._connection, work)

    def presence(self, statement: Statement) -> Presence:
        """By its probe, else from the catalogues of the server."""
        found = probed(self._connection, statement)
        return found or derived(self._connection, parse(statement.sql, self.engine))

    def load(self) -> Load:
        """Statements under way, and the slowest standby's lag."""
        row = self._connection.one(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return Load(running=int(row[0]) if row else 0, lag=self._lag())

    def size(self, table: str) -> Size:
        """The planner's estimate of its rows, and the bytes of it, its indexes and its partitions."""
        name = regclass(table)
        plan = self._connection.one(f"EXPLAIN (FORMAT JSON) SELECT 1 FROM {name}")
        row = self._connection.one(
            f"WITH {TREE} SELECT coalesce(sum(pg_total_relation_size(oid)), 0) FROM tree", ([name],)
        )
        return Size(rows=int(plan[0][0]["Plan"]["Plan Rows"]) if plan else 0, bytes=int(row[0]) if row else 0)

    def transactional(self, table: str) -> bool:
        """All tables of PostgreSQL are, but not those that lie elsewhere."""
        row = self._connection.one("SELECT relkind = 'f' FROM pg_class WHERE oid = to_regclass(%s)", (regclass(table),))
        return not (row and row[0])

    def begin_batches(self, guard: Guard) -> None:
        """Small transactions under the guard."""
        self._limit(guard.lock_wait, guard.time_limit)

    def quoted(self, name: str) -> str:
        """A name, quoted."""
        return quoted(name)

    # -- ways to run a statement

    def _limit(self, lock: float, statement: float | None) -> None:
        """Limits in seconds for what follows (None: no limit)."""
        values = (str(_milliseconds(lock)), str(_milliseconds(statement)))
        self._connection.execute(
            "SELECT set_config('lock_timeout', %s, false), set_config('statement_timeout', %s, false)", values
        )

    def _online(self, work: Sequence[Work], wanted: Sequence[Needs], guard: Guard) -> None:
        """First the locks, then the statement in what is left of the time that writers may stall: so a statement that
        keeps a table locked for longer is broken off, and one that only had to wait is told apart from it.
        """
        until = time.monotonic() + guard.lock_wait
        with self._connection.transaction():
            tables = [(mode, table) for need in wanted for mode, names in need.locks for table in self._existing(names)]
            for mode, table in tables:
                self._limit(max(0.01, until - time.monotonic()), None)
                self._connection.execute(f"LOCK TABLE {table} IN {mode} MODE")
            point("migrate:locked")
            # What locks by itself (rows, mostly) gets the time for it, and then a little more.
            left = until - time.monotonic() if tables else guard.lock_wait + SHORTEST
            self._limit(guard.lock_wait, min(max(SHORTEST, left), guard.time_limit or LONGEST))
            for each in work:
                if not each.done:
                    self._connection.execute(each.statement.sql)
                point("migrate:executed")
                each.record()
            point("migrate:committing")

    def _existing(self, names: Sequence[str]) -> list[str]:
        """Those that are tables, or the tables of those that are indexes, as the server writes them."""
        rows = self._connection.execute(
            "SELECT coalesce(indrelid, oid)::regclass::text"
            " FROM unnest(%s::text[]) WITH ORDINALITY AS wanted(name, place)"
            " JOIN pg_class ON oid = to_regclass(name) LEFT JOIN pg_index ON indexrelid = oid"
            " WHERE relkind IN ('r', 'p', 'i', 'I') ORDER BY place",
            ([regclass(each) for each in names],),
        ).rows
        return [str(name) for (name,) in rows]

    def _alone(self, work: Work, parsed: Parsed, guard: Guard) -> None:
        """A statement that refuses to run in a transaction. Others do not queue behind it."""
        self._limit(guard.lock_wait, guard.time_limit)
        self._repair(parsed)
        self._limit(CONCURRENT_WAIT, guard.time_limit)
        point("migrate:alone")
        try:
            apart(self._connection, work.statement.sql, work)
        except SqlError:
            with suppress(SqlError):  # next time, if not now
                self._limit(guard.lock_wait, None)
                self._repair(parsed)
            raise

    def _repair(self, parsed: Parsed) -> None:
        """Drop the INVALID index that a broken CREATE INDEX CONCURRENTLY left: it costs writers, and serves nobody."""
        for change in parsed.changes:
            if change.verb is not Verb.ADD_INDEX or "CONCURRENTLY" not in change.words or not change.name:
                continue
            row = self._connection.one(INVALID, (change.name, regclass(change.table)))
            if row is None:
                continue
            index, builder = row
            if builder is not None:
                raise SqlError(
                    f"{self.database}: the index {index} is being built by another session",
                    reason=Reason.LOCKED,
                    code="55P03",
                    what=f"session {builder}",
                )
            self._connection.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {index}")
            point("migrate:repaired")

    def _lag(self) -> float | None:
        """Seconds that the slowest standby is behind: as the server says it, or by when we saw the position that the
        standby has not replayed yet (the server's own figure stands still while a standby does).
        """
        rows = self._connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0'), pg_wal_lsn_diff(replay_lsn, '0/0'),"
            " extract(epoch FROM replay_lag) FROM pg_stat_replication WHERE replay_lsn IS NOT NULL"
        ).rows
        if not rows:
            return None
        now = time.monotonic()
        self._sent.append((now, int(rows[0][0])))
        replayed = min(int(row[1]) for row in rows)
        since = next((at for at, position in self._sent if position > replayed), now)
        said = [float(row[2]) for row in rows if row[2] is not None and int(row[1]) < int(row[0])]
        return max(now - since, *said, 0.0)


def _connect(database: Database) -> Connection:
    connection = Connection.open(database)
    try:
        connection.execute(
            "SELECT set_config(name, '0', false) FROM pg_settings WHERE name = ANY(%s)", (list(_OWN_LIMITS),)
        )
        # The server notices within a second that we have died, and ends the statement.
        connection.execute(
            "SELECT set_config(name, '1000', false) FROM pg_settings WHERE name = 'client_connection_check_interval'"
        )
        # Deadlocks are found soon, and by us: then it is our transaction that is taken back, not the application's. And
        # an autovacuum makes room well before the lock times out.
        connection.execute(
            "SELECT set_config('deadlock_timeout', '200', false) FROM pg_roles"
            " WHERE rolname = current_user AND rolsuper"
        )
    except BaseException:
        connection.close()
        raise
    return connection


def _milliseconds(seconds: float | None) -> int:
    """For PostgreSQL's settings, where 0 means no limit."""
    return 0 if seconds is None else max(1, round(seconds * 1000))


def _unfit(message: str, what: str, next: str) -> DatabaseFailed:
    return DatabaseFailed(message, what=what, state="nothing was changed", next=next)
