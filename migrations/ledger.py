"""What has been done to a database, written in the database itself, statement by statement.

Two tables: ``updater_migrations`` has a row per statement, ``updater_runner`` one row about who runs. Their form only
grows: another release's agent reads them. Every write is fenced: it is in one transaction with a look at the fence, a
number that each new runner raises, so that a runner that was replaced can write nothing any more. Times are the
server's, in UTC, and for people only: nothing is decided by them.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from core.errors import Busy, MigrationStopped, NotReady
from core.sql import Connection, Engine, Reason, SqlError
from migrations.catalogue import Action, Direction, Migration

#: The form that this agent writes, and the newest that it understands.
FORM: Final = 1

MIGRATIONS: Final = "updater_migrations"
RUNNER: Final = "updater_runner"

Key = tuple[int, Direction, int]


class State(StrEnum):
    """What a row says of its statement."""

    STARTED = "started"  # and perhaps done: ask the schema
    FINISHED = "finished"
    UNDONE = "undone"  # taken back: as if it had never run


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One statement or batch. `total`: how many its migration had then. `position`: the last key that a batch has dealt
    with, as JSON; `rows`: how many it has changed. `seconds` by our own steady clock.
    """

    number: int
    direction: Direction
    seq: int
    total: int
    checksum: str
    name: str
    database: str
    state: State
    release: str
    run_id: str
    fence: int
    started_at: datetime | None = None
    finished_at: datetime | None = None
    seconds: float | None = None
    position: str | None = None
    rows: int = 0
    detail: str = ""

    @property
    def key(self) -> Key:
        """Where it stands."""
        return self.number, self.direction, self.seq


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A runner: where it runs, for what, and since when (the server's time)."""

    run_id: str
    host: str
    pid: int
    release: str = ""
    since: datetime | None = None
    fence: int = 0

    @classmethod
    def here(cls, run_id: str, release: str) -> Who:
        """This very process."""
        return cls(run_id=run_id, host=socket.gethostname(), pid=os.getpid(), release=release)

    @property
    def is_dead(self) -> bool:
        """Whether it ran on this host, and its process is gone."""
        if self.host != socket.gethostname() or self.pid <= 0:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            return False
        return False

    def __str__(self) -> str:
        since = f" since {self.since:%Y-%m-%d %H:%M:%S} UTC" if self.since else ""
        return f"process {self.pid} on {self.host}, run {self.run_id}{since}"


class LockHeld(Busy):
    """Another runner has the database. `holder`: what it wrote about itself, if it did."""

    def __init__(self, database: str, holder: Who | None) -> None:
        super().__init__(
            f"another run is migrating {database}",
            what=str(holder) if holder else "it has not written yet who it is",
            state="this run changed nothing in the meantime",
            next="updater migrate status    see how far it is, and try again when it has ended",
        )
        self.holder = holder


class Superseded(MigrationStopped):
    """Another runner has taken over: this one may write nothing any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Dialect:
    now: str
    time: str
    text: str
    share: str  # makes the look at the fence wait for who changes it, and keeps others from changing it
    tail: str = ""


_DIALECTS: Final = {
    Engine.MARIADB: _Dialect(
        now="UTC_TIMESTAMP(6)",
        time="DATETIME(6)",
        text="LONGTEXT",
        share=" LOCK IN SHARE MODE",
        tail=" ENGINE=InnoDB DEFAULT CHARACTER SET utf8mb4",
    ),
    Engine.POSTGRESQL: _Dialect(now="clock_timestamp()", time="timestamptz", text="text", share=" FOR SHARE"),
    Engine.SQLITE: _Dialect(now="strftime('%Y-%m-%dT%H:%M:%fZ', 'now')", time="TEXT", text="TEXT", share=""),
}

_COLUMNS: Final = (
    "number, direction, seq, total, checksum, name, logical_database, state, started_at, finished_at, seconds, "
    "release_id, run_id, fence, position_key, rows_done, detail"
)

_AT: Final = "number = %s AND direction = %s AND seq = %s"


class Ledger:
    """The two tables, over the runner's connection. Writes need `claim` first."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._dialect = _DIALECTS[connection.engine]
        self.fence = 0

    # -- reading

    def exists(self) -> bool:
        """Whether the tables have been made. Raises NotReady when a newer agent has made them in a form of its own."""
        try:
            row = self._connection.one(f"SELECT oldest_reader FROM {RUNNER} WHERE id = 1")
        except SqlError as error:
            if error.reason is Reason.MISSING:
                return False
            raise
        if row is not None and row[0] > FORM:
            raise NotReady(
                f"the migrations of {self._connection.database} were recorded by a newer agent",
                what=f"table {RUNNER} asks for readers of form {row[0]}, this agent knows {FORM}",
                state="nothing was changed",
                next="use the agent of the newer release: boot its slot, or install its package",
            )
        return row is not None

    def entries(self) -> dict[Key, Entry]:
        """All rows; none where the tables are missing."""
        if not self.exists():
            return {}
        rows = self._connection.execute(f"SELECT {_COLUMNS} FROM {MIGRATIONS} ORDER BY number, direction, seq").rows
        return {entry.key: entry for entry in map(_entry, rows)}

    def runner(self) -> Who | None:
        """Who has claimed the database last; it may be long gone."""
        if not self.exists():
            return None
        row = self._connection.one(f"SELECT run_id, host, pid, release_id, since, fence FROM {RUNNER} WHERE id = 1")
        if row is None or not row[5]:
            return None
        return Who(run_id=row[0], host=row[1], pid=row[2], release=row[3], since=_time(row[4]), fence=row[5])

    # -- writing

    def prepare(self) -> None:
        """Make the tables where they are missing. To be called with the server's lock held."""
        if self.exists():
            return
        d = self._dialect
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {MIGRATIONS} ("
            f"number INTEGER NOT NULL, direction VARCHAR(4) NOT NULL, seq INTEGER NOT NULL, total INTEGER NOT NULL, "
            f"checksum VARCHAR(64) NOT NULL, name VARCHAR(64) NOT NULL, logical_database VARCHAR(64) NOT NULL, "
            f"state VARCHAR(16) NOT NULL, started_at {d.time}, finished_at {d.time}, seconds DOUBLE PRECISION, "
            f"release_id VARCHAR(32) NOT NULL, run_id VARCHAR(64) NOT NULL, fence BIGINT NOT NULL, "
            f"position_key {d.text}, rows_done BIGINT NOT NULL, detail {d.text}, "
            f"PRIMARY KEY (number, direction, seq)){d.tail}"
        )
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {RUNNER} ("
            f"id INTEGER NOT NULL PRIMARY KEY, oldest_reader INTEGER NOT NULL, fence BIGINT NOT NULL, "
            f"run_id VARCHAR(64) NOT NULL, host VARCHAR(255) NOT NULL, pid BIGINT NOT NULL, "
            f"release_id VARCHAR(32) NOT NULL, since {d.time}){d.tail}"
        )
        self._connection.execute(
            f"INSERT INTO {RUNNER} (id, oldest_reader, fence, run_id, host, pid, release_id) "
            "VALUES (1, %s, 0, '', '', 0, '')",
            [FORM],
        )

    def claim(self, who: Who) -> int:
        """Write down who runs now; returns the new fence. To be called with the server's lock held."""
        with self._connection.transaction():
            self._connection.execute(
                f"UPDATE {RUNNER} SET fence = fence + 1, run_id = %s, host = %s, pid = %s, release_id = %s, "
                f"since = {self._dialect.now} WHERE id = 1",
                [who.run_id, who.host, who.pid, who.release],
            )
            row = self._connection.one(f"SELECT fence FROM {RUNNER} WHERE id = 1")
        assert row is not None
        self.fence = int(row[0])
        return self.fence

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A fenced transaction."""
        with self._connection.transaction():
            self.check_fence()
            yield

    def check_fence(self) -> None:
        """Within a transaction: make sure that nobody has taken over, and that nobody can until it ends."""
        row = self._connection.one(
            f"SELECT fence, run_id, host, pid, since FROM {RUNNER} WHERE id = 1{self._dialect.share}"
        )
        if row is None or row[0] != self.fence or not self.fence:
            by = Who(run_id=row[1], host=row[2], pid=row[3], since=_time(row[4])) if row else "somebody"
            raise Superseded(
                f"another run has taken over {self._connection.database}",
                what=f"by {by}; our fence is {self.fence}, the newest {row[0] if row else 'gone'}",
                state="this run has written nothing since",
                next="updater migrate status",
            )

    def intend(self, migration: Migration, direction: Direction, seq: int, action: Action, who: Who) -> None:
        """Write down that an action is about to be done. What an earlier try has reached is kept."""
        with self.writing():
            self.intended(migration, direction, seq, action, who)

    def intended(self, migration: Migration, direction: Direction, seq: int, action: Action, who: Who) -> None:
        """The same, inside of a fenced transaction."""
        at = [migration.number, direction.value, seq]
        earlier = self._connection.one(
            f"SELECT state, checksum, position_key, rows_done FROM {MIGRATIONS} WHERE {_AT}", at
        )
        goes_on = earlier is not None and earlier[0] == State.STARTED and earlier[1] == action.checksum
        self._connection.execute(f"DELETE FROM {MIGRATIONS} WHERE {_AT}", at)
        self._connection.execute(
            f"INSERT INTO {MIGRATIONS} (number, direction, seq, total, checksum, name, logical_database, state, "
            "started_at, release_id, run_id, fence, position_key, rows_done, detail) VALUES "
            f"(%s, %s, %s, %s, %s, %s, %s, %s, {self._dialect.now}, %s, %s, %s, %s, %s, '')",
            [
                *at,
                len(migration.actions(direction)),
                action.checksum,
                migration.name,
                migration.database,
                State.STARTED.value,
                who.release,
                who.run_id,
                self.fence,
                earlier[2] if earlier and goes_on else None,
                earlier[3] if earlier and goes_on else 0,
            ],
        )

    def finished(self, key: Key, seconds: float, detail: str = "") -> None:
        """Inside of a transaction: note that an intended action is done."""
        self.check_fence()
        self._connection.execute(
            f"UPDATE {MIGRATIONS} SET state = %s, finished_at = {self._dialect.now}, seconds = %s, detail = %s "
            f"WHERE {_AT}",
            [State.FINISHED.value, seconds, detail, *key],
        )

    def advanced(self, key: Key, position: str, rows: int) -> None:
        """Inside of a transaction: note how far a batch is, and how many rows the chunk changed."""
        self.check_fence()
        self._connection.execute(
            f"UPDATE {MIGRATIONS} SET position_key = %s, rows_done = rows_done + %s WHERE {_AT}", [position, rows, *key]
        )

    def forget(self, key: Key) -> None:
        """Take an intent back: the action was not done."""
        with self.writing():
            self._connection.execute(
                f"DELETE FROM {MIGRATIONS} WHERE {_AT} AND state = %s", [*key, State.STARTED.value]
            )

    def undone(self, number: int) -> None:
        """Note that a migration has been taken back, whole."""
        with self.writing():
            self._connection.execute(
                f"UPDATE {MIGRATIONS} SET state = %s, finished_at = {self._dialect.now} WHERE number = %s",
                [State.UNDONE.value, number],
            )


def _entry(row: tuple[Any, ...]) -> Entry:
    return Entry(
        number=row[0],
        direction=Direction(row[1]),
        seq=row[2],
        total=row[3],
        checksum=row[4],
        name=row[5],
        database=row[6],
        state=State(row[7]),
        started_at=_time(row[8]),
        finished_at=_time(row[9]),
        seconds=row[10],
        release=row[11],
        run_id=row[12],
        fence=row[13],
        position=row[14],
        rows=row[15],
        detail=row[16] or "",
    )


def _time(value: Any) -> datetime | None:
    """The engines' forms of a time in UTC."""
    if value is None:
        return None
    made = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return made.astimezone(UTC) if made.tzinfo else made.replace(tzinfo=UTC)
