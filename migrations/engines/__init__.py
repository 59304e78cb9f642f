"""What the runner asks of a server, whatever its kind: `Server`. One module per engine beside this one.

Everything goes over one connection, the runner's own. The lock against a second runner belongs to that very connection,
so it lasts exactly as long as the server works for us: even for a statement whose client has died.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from core.faults import point
from core.sql import Connection, Engine
from migrations.catalogue import Statement


class Effect(StrEnum):
    """Whether what a statement brings about is there."""

    THERE = "there"
    ABSENT = "absent"
    HALF = "half"  # a part of it, or something else in its place
    UNKNOWN = "unknown"  # nobody can tell: no probe, and no way to derive one


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """What the server says of a statement's effect. `text`: what is there and what is not, for people. `rest`: for a
    statement that is half there, the statement that would do what is missing, where it can be told.
    """

    effect: Effect
    text: str = ""
    rest: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A session whose open transaction keeps locks. `seconds`: how long the transaction has been open. `query`: what it
    runs, or ran last (may be empty). `certain`: it is known to lock one of the tables that were asked about.
    """

    id: str
    who: str
    seconds: float
    query: str = ""
    idle: bool = False
    certain: bool = False

    def __str__(self) -> str:
        doing = "idle in a transaction" if self.idle else "in a transaction"
        query = " ".join(self.query.split())
        said = f": {query[:80]}{'…' * (len(query) > 80)}" if query else ""
        return f"{self.who}, session {self.id}, {doing} for {self.seconds:.0f} s{said}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """How busy the server is. `running`: statements being executed, ours not counted. `lag`: seconds that the slowest
    replica is behind; None where there is none, or the server cannot tell.
    """

    running: int
    lag: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """A table's size, as the server estimates it."""

    rows: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """What a statement may do to others. `lock_wait`: seconds that it may queue for each lock (others queue behind it).
    `online`: nobody may be kept from writing while it runs (the non-blocking phase). `time_limit`: seconds after which
    the server breaks it off.
    """

    lock_wait: float = 1.0
    online: bool = False
    time_limit: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A statement, and `record`, which notes in the ledger that it is done. `record` runs inside of a transaction that
    the server opened, and raises to prevent its commit. `done`: the effect is there, only the record is missing.
    """

    statement: Statement
    record: Callable[[], None]
    done: bool = False


class Server(Protocol):
    """A server, seen over one connection. All methods raise SqlError as the connection does."""

    #: Whether the statements of a migration, as far as they are `atomic`, are best done in one transaction.
    whole: bool

    @property
    def engine(self) -> Engine:
        """What kind it is."""
        ...

    @property
    def connection(self) -> Connection:
        """The runner's own connection, another one after `reopen`."""
        ...

    def version(self) -> str:
        """As the server says it, for people: MariaDB 10.11.6."""
        ...

    def require_primary(self) -> None:
        """Raises DatabaseFailed unless it takes writes, is not a replica, and the user may do what migrations need."""
        ...

    def hold(self) -> bool:
        """Take the lock that only one runner of this database has, without waiting. It ends with the connection."""
        ...

    def release(self) -> None:
        """Give the lock back."""
        ...

    def reopen(self) -> None:
        """Connect anew, after the connection broke. The lock is lost; it is free when the server has stopped working
        for the old connection.
        """
        ...

    def close(self) -> None:
        """Close the connection."""
        ...

    def holders(self, tables: Sequence[str], *, older: float = 1.0) -> list[Holder]:
        """Transactions, open for more than `older` seconds, that may keep the tables locked; the oldest first. The
        certain ones only, where the server knows which tables each has locked.
        """
        ...

    def free(self, tables: Sequence[str]) -> bool:
        """Whether the tables could be locked at this moment. Asks without queueing: nobody waits behind the question.
        True too when it cannot be told.
        """
        ...

    def atomic(self, statement: Statement) -> bool:
        """Whether the statement and its record in the ledger are one transaction: then the ledger knows."""
        ...

    def execute(self, work: Sequence[Work], guard: Guard) -> None:
        """Run statements (several only where `whole`, all of them `atomic`) and their records, under the guard."""
        ...

    def presence(self, statement: Statement) -> Presence:
        """Whether the statement's effect is there: by its own probe, else derived from the schema."""
        ...

    def load(self) -> Load:
        """How busy the server is now. Cheap enough to be asked every second."""
        ...

    def size(self, table: str) -> Size:
        """How big a table is."""
        ...

    def transactional(self, table: str) -> bool:
        """Whether changes of the table's rows can be rolled back."""
        ...

    def begin_batches(self, guard: Guard) -> None:
        """Prepare the connection for many small transactions under the guard."""
        ...

    def quoted(self, name: str) -> str:
        """A name, quoted."""
        ...


def together(connection: Connection, work: Sequence[Work]) -> None:
    """Statements and their records in one transaction: all of it, or nothing."""
    with connection.transaction():
        for each in work:
            if not each.done:
                connection.execute(each.statement.sql)
            point("migrate:executed")
            each.record()
        point("migrate:committing")


def apart(connection: Connection, sql: str, work: Work) -> None:
    """A statement that commits by itself, and then its record."""
    if not work.done:
        connection.execute(sql)
    point("migrate:executed")
    with connection.transaction():
        work.record()
        point("migrate:committing")


def probed(connection: Connection, statement: Statement) -> Presence | None:
    """The answer of the statement's own probe; None where it has none. A NULL or no row means absent."""
    if not statement.probe:
        return None
    row = connection.one(statement.probe)
    there = bool(row and row[0])
    return Presence(
        effect=Effect.THERE if there else Effect.ABSENT,
        text=f"its probe says {row[0] if row else 'nothing'!r}: {' '.join(statement.probe.split())[:120]}",
    )
