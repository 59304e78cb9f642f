"""A change of many rows in small transactions, each together with the note of how far it is: every row is dealt with
exactly once, wherever it is broken off. The pace follows the server: its load, its replicas, and how long a chunk took.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from decimal import MAX_EMAX, MIN_EMIN, Context, Decimal
from itertools import pairwise
from typing import Any, Final

from core.errors import MigrationFailed
from core.faults import point
from core.report import Report
from core.sql import Engine
from migrations.catalogue import Batch
from migrations.changes import Verb
from migrations.ddl import parse
from migrations.engines import Guard, Server
from migrations.guards import Budget
from migrations.ledger import Key, Ledger
from migrations.text import tokens

#: Seconds: chunks that take longer are made smaller, and those that take less than a quarter of it larger again.
SLOW: Final = 0.4

#: Seconds between two looks at the server's load.
LOOK: Final = 1.0


@dataclass(slots=True, kw_only=True)
class Pace:
    """How many rows at a time, and how long a rest after them."""

    most: int
    pause: float
    rows: int = 0

    def __post_init__(self) -> None:
        self.rows = self.rows or self.most

    def took(self, seconds: float) -> float:
        """Learn from a chunk; returns the seconds to rest. The server gets as much time to itself as the chunk took,
        unless that was next to nothing.
        """
        if seconds > SLOW:
            self.rows = max(1, self.rows // 2)
        elif seconds < SLOW / 4:
            self.rows = min(self.most, self.rows * 2)
        return max(self.pause, seconds if seconds > SLOW / 4 else 0.0)

    def refused(self) -> None:
        """A chunk met a lock: smaller ones meet fewer."""
        self.rows = max(1, self.rows // 4)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRun:
    """A batch under way. `stopping` is asked between chunks, and raises to stop there."""

    server: Server
    ledger: Ledger
    batch: Batch
    key: Key
    step: str
    budget: Budget
    report: Report
    stopping: Callable[[], None]
    pace: Pace

    def run(self, guard: Guard) -> str:
        """Go on from the recorded position to the end of the table; returns a line on what was done. Raises SqlError
        with the position kept: call it again.
        """
        connection = self.server.connection
        self._check()
        self.server.begin_batches(guard)
        statement, names = render(self.batch.statement, self.server.engine)
        entry = self.ledger.entries()[self.key]
        low = decode(entry.position) if entry.position is not None else None
        done = entry.rows
        total = max(self.server.size(self.batch.table).rows, 1)
        passed, looked = 0, 0.0
        while True:
            self.stopping()
            if time.monotonic() - looked > LOOK:
                self._wait_for_calm()
                looked = time.monotonic()
            began = time.monotonic()
            chunk = self._chunk(low)
            if chunk is None:
                return f"{done} rows"
            first, high, whole = chunk
            if low is None:
                low = below(first, f"{self.batch.table}.{self.batch.key}")
            bounds = {"low": low, "high": high}
            with connection.transaction():
                result = connection.execute(statement, [bounds[name] for name in names])
                point("migrate:chunk-executed")
                self.ledger.advanced(self.key, encode(high), result.changed)
                point("migrate:chunk-committing")
            point("migrate:chunk-done")
            low, done = high, done + result.changed
            passed = min(passed + self.pace.rows, total) if whole else total
            self.report.progress(self.step, passed, total, "rows")
            if not whole:
                return f"{done} rows"
            self.budget.clock.sleep(self.pace.took(time.monotonic() - began))

    def _chunk(self, low: Any) -> tuple[Any, Any, bool] | None:
        """The keys of the next chunk above `low`: the first, the last, and whether there are as many as wanted. None at
        the end of the table.
        """
        table, key = self.server.quoted(self.batch.table), self.server.quoted(self.batch.key)
        above, values = (f"{key} > %s", [low]) if low is not None else (f"{key} IS NOT NULL", [])
        ask = f"SELECT {key} FROM {table} WHERE {above} ORDER BY {key}"
        one = self.server.connection.one
        if (first := one(f"{ask} LIMIT 1", values)) is None:
            return None
        if (last := one(f"{ask} LIMIT 1 OFFSET {self.pace.rows - 1}", values)) is not None:
            return first[0], last[0], True
        last = one(f"{ask} DESC LIMIT 1", values)
        return None if last is None else (first[0], last[0], False)

    def _check(self) -> None:
        """Whether it can be done exactly once at all."""
        neutral = self.batch.statement.replace(":low", "0").replace(":high", "0")
        parsed = parse(neutral, self.server.engine)
        dml = (Verb.INSERT, Verb.UPDATE, Verb.DELETE)
        if any(change.verb not in dml for change in parsed.changes):
            raise MigrationFailed(
                f"the batch over {self.batch.table} is not an INSERT, UPDATE or DELETE",
                what=f"{self.batch.where}: {' '.join(self.batch.statement.split())[:200]}",
                state="the batch was not begun",
                next="give DDL as a statement of its own",
            )
        for table in {self.batch.table, *parsed.tables}:
            if not self.server.transactional(table):
                raise MigrationFailed(
                    f"the batch over {self.batch.table} cannot be done exactly once",
                    what=f"the storage engine of {table} has no transactions",
                    state="the batch was not begun",
                    next=f"ALTER TABLE {table} ENGINE=InnoDB    in a migration before it",
                )

    def _wait_for_calm(self) -> None:
        """Until load and lag are within their limits."""
        limits, said = self.budget.limits, False
        most = self.batch.max_running or limits.max_running
        while True:
            load = self.server.load()
            busy = []
            if most and load.running > most:
                busy.append(f"{load.running} statements are running, of {most}")
            if limits.max_lag is not None and load.lag is not None and load.lag > limits.max_lag:
                busy.append(f"a replica is {load.lag:.0f} s behind, of {limits.max_lag:g} s")
            if not busy:
                return
            if not said:
                self.report.note(f"{self.step} waits: {', '.join(busy)}")
                said = True
            self.stopping()
            self.budget.clock.sleep(LOOK)


def render(statement: str, engine: Engine) -> tuple[str, list[str]]:
    """The statement with ``%s`` in place of :low and :high, and their names in order. Strings are left alone."""
    pieces: list[str] = []
    names: list[str] = []
    end = 0
    words = tokens(statement, engine)
    for colon, word in pairwise(words):
        if (
            statement[colon.start : colon.end + 1] == ":"
            and word.start == colon.end + 1
            and word.text in ("low", "high")
        ):
            pieces += [statement[end : colon.start].replace("%", "%%"), "%s"]
            names.append(word.text)
            end = word.end + 1
    return "".join([*pieces, statement[end:].replace("%", "%%")]), names


# -- keys


def encode(value: Any) -> str:
    """A key's value as it stands in the ledger."""
    match value:
        case bool():
            raise _no_key(value)
        case int() | str():
            return json.dumps(value)
        case float() if math.isfinite(value):
            return json.dumps({"float": value.hex()})
        case Decimal():
            return json.dumps({"decimal": str(value)})
        case dt.datetime():
            return json.dumps({"datetime": value.isoformat()})
        case dt.date():
            return json.dumps({"date": value.isoformat()})
        case uuid.UUID():
            return json.dumps({"uuid": str(value)})
        case bytes() | bytearray() | memoryview():
            return json.dumps({"bytes": bytes(value).hex()})
    raise _no_key(value)


def decode(text: str) -> Any:
    """The value again."""
    raw = json.loads(text)
    if not isinstance(raw, dict):
        return raw
    ((kind, value),) = raw.items()
    return _KINDS[kind](value)


_KINDS: Final[dict[str, Callable[[str], Any]]] = {
    "float": float.fromhex,
    "decimal": Decimal,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "uuid": uuid.UUID,
    "bytes": bytes.fromhex,
}


def _next_below(value: Decimal) -> Decimal:
    """Less by one in its last digit, exactly: servers have more digits than Python's default context."""
    _, digits, exponent = value.as_tuple()
    assert isinstance(exponent, int)  # as of all that are finite
    exact = Context(prec=len(digits) + 1, Emin=MIN_EMIN, Emax=MAX_EMAX)
    return exact.subtract(value, Decimal((0, (1,), exponent)))


def below(value: Any, column: str) -> Any:
    """Something of the same kind that is less than the smallest key. Raises MigrationFailed where there is nothing."""
    match value:
        case bool():
            pass
        case int() if value > -(2**63):
            return value - 1
        case float():
            return math.nextafter(value, -math.inf)
        case Decimal() if value.is_finite():
            return _next_below(value)
        case dt.datetime() if value.replace(tzinfo=None) > dt.datetime.min:
            return value - dt.timedelta(microseconds=1)
        case dt.datetime():
            pass
        case dt.date() if value > dt.date.min:
            return value - dt.timedelta(days=1)
        case uuid.UUID() if value.int:
            return uuid.UUID(int=value.int - 1)
        case str() if value:
            return ""
        case bytes() | bytearray() | memoryview() if bytes(value):
            return b""
    raise MigrationFailed(
        f"a batch cannot begin at the smallest value of {column}",
        what=f"nothing is less than {value!r}",
        state="the batch was not begun",
        next="choose another unique column as the key",
    )


def _no_key(value: Any) -> MigrationFailed:
    return MigrationFailed(
        f"a value of type {type(value).__name__} cannot be the key of a batch",
        what=repr(value)[:100],
        next="choose another unique column as the key",
    )
