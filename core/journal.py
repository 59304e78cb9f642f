"""The node's journal: what was intended, what came of it, and what each slot holds. SQLite on the data partition.

It is read by the agents of the release before and the release after this one, so its form only ever grows: columns
and tables are added, never changed, and JSON values tolerate unknown keys. Every commit is durable when the call
returns.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

from core.errors import Busy, NotReady, UpdaterError
from core.faults import point
from core.report import Event
from core.store import Store

Facts = dict[str, Any]
T = TypeVar("T")

_FORM = """
CREATE TABLE IF NOT EXISTS journal (oldest_reader INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS runs (
    id TEXT PRIMARY KEY, verb TEXT NOT NULL, plan TEXT NOT NULL, state TEXT NOT NULL, agent TEXT NOT NULL,
    started TEXT NOT NULL, ended TEXT, outcome TEXT NOT NULL DEFAULT '');
CREATE UNIQUE INDEX IF NOT EXISTS one_open_run ON runs (state) WHERE state = 'open';
CREATE TABLE IF NOT EXISTS steps (
    run TEXT NOT NULL REFERENCES runs (id), seq INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    facts TEXT NOT NULL, started TEXT NOT NULL, ended TEXT, detail TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (run, name));
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, run TEXT, kind TEXT NOT NULL, step TEXT NOT NULL, text TEXT NOT NULL,
    data TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS slots (slot TEXT PRIMARY KEY, facts TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class RunState(StrEnum):
    """Where a run stands. Only one can be open; the others are ends."""

    OPEN = "open"
    DONE = "done"
    ABORTED = "aborted"
    FAILED = "failed"  # and everything it did was undone
    FELL_BACK = "fell-back"


class StepState(StrEnum):
    """Where a step of a run stands. `INTENT` is recorded before the step touches anything."""

    INTENT = "intent"
    DONE = "done"
    FAILED = "failed"
    UNDONE = "undone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One use of a verb that changes the node. `plan` is what resume executes; times are UTC."""

    id: str
    verb: str
    plan: Facts
    state: RunState
    agent: str
    started: datetime
    ended: datetime | None
    outcome: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What the journal knows of a step; `facts` were recorded before its effect."""

    name: str
    state: StepState
    facts: Facts
    started: datetime
    ended: datetime | None
    detail: str


class Journal(Store):
    """The journal's file, opened. Use as a context manager."""

    WHAT = "the journal"
    FORM = _FORM
    NEWEST = "facts"
    READERS = "journal"

    # -- runs

    def begin(self, verb: str, plan: Facts, *, ending: Run | None = None, why: str = "") -> Run:
        """Open a run. Raises Busy when another one is open: there is one upgrade at a time.

        `ending`: the open run that this one takes the place of, in one go; it is aborted, and `why` is its outcome.
        """
        from importlib.metadata import version  # it brings half of the e-mail package along

        now = datetime.now(UTC)
        point("journal:begin")
        with self._transaction():
            name = self._free_id(now)
            if ending is not None:
                self._db.execute(
                    "UPDATE runs SET state = 'aborted', ended = ?, outcome = ? WHERE id = ?",
                    (now.isoformat(), why, ending.id),
                )
            try:
                self._db.execute(
                    "INSERT INTO runs (id, verb, plan, state, agent, started) VALUES (?, ?, ?, 'open', ?, ?)",
                    (name, verb, json.dumps(plan), version("updater"), now.isoformat()),
                )
            except sqlite3.IntegrityError as error:
                raise Busy(
                    f"cannot begin to {verb}: another run is open",
                    state="this command changed nothing",
                    next=["updater resume    goes on with it", "updater abort     undoes it"],
                ) from error
        return self.run(name)

    def close(self, run: Run, state: RunState, outcome: str) -> None:
        """End a run for good."""
        point("journal:close")
        with self._transaction():
            self._db.execute(
                "UPDATE runs SET state = ?, ended = ?, outcome = ? WHERE id = ?",
                (state, datetime.now(UTC).isoformat(), outcome, run.id),
            )

    def run(self, name: str) -> Run:
        """The run with this id. Raises UpdaterError."""
        found = self._first(_run, "SELECT * FROM runs WHERE id = ?", name)
        if found is None:
            raise UpdaterError(
                f"there is no run {name}", state="nothing was changed", next="updater history    lists them"
            )
        return found

    def open_run(self) -> Run | None:
        """The run that is under way or was interrupted, if there is one."""
        return self._first(_run, "SELECT * FROM runs WHERE state = 'open'")

    def runs(self, limit: int = 50) -> list[Run]:
        """The latest runs, newest first."""
        return self._every(_run, "SELECT * FROM runs ORDER BY rowid DESC LIMIT ?", limit)

    def settled(self) -> Run | None:
        """The latest run that ended with a change: it is done, or fell back."""
        return self._first(_run, "SELECT * FROM runs WHERE state IN ('done', 'fell-back') ORDER BY rowid DESC LIMIT 1")

    # -- steps

    def intend(self, run: Run, seq: int, name: str, facts: Facts) -> None:
        """Record, before any effect, that a step begins, with the facts that undoing it will need.

        Where the step was begun before, the first facts stay: they describe the state before *any* of its effects.
        """
        point(f"journal:intend:{name}")
        with self._transaction():
            self._db.execute(
                "INSERT INTO steps (run, seq, name, state, facts, started) VALUES (?, ?, ?, 'intent', ?, ?) "
                "ON CONFLICT (run, name) DO UPDATE SET state = 'intent', ended = NULL",
                (run.id, seq, name, json.dumps(facts), datetime.now(UTC).isoformat()),
            )

    def outcome(self, run: Run, name: str, state: StepState, detail: str = "") -> None:
        """Record how a step ended, after its effect."""
        point(f"journal:outcome:{name}")
        with self._transaction():
            self._db.execute(
                "UPDATE steps SET state = ?, ended = ?, detail = ? WHERE run = ? AND name = ?",
                (state, datetime.now(UTC).isoformat(), detail, run.id, name),
            )

    def steps(self, run: Run) -> dict[str, StepRecord]:
        """The steps of a run that were begun, by name, in their order."""
        steps = self._every(_step, "SELECT * FROM steps WHERE run = ? ORDER BY seq", run.id)
        return {step.name: step for step in steps}

    # -- what is known of the node

    def slot(self, slot: str) -> Facts:
        """What was recorded of a slot's content: release, content, written, sealed, ... Empty where nothing is."""
        return self._first(lambda row: _table(row["facts"]), "SELECT facts FROM slots WHERE slot = ?", slot) or {}

    def set_slot(self, slot: str, facts: Facts) -> None:
        """Replace what is recorded of a slot's content."""
        point("journal:slot")
        with self._transaction():
            self._db.execute(
                "INSERT INTO slots (slot, facts) VALUES (?, ?) ON CONFLICT (slot) DO UPDATE SET facts = excluded.facts",
                (slot, json.dumps(facts)),
            )

    def fact(self, key: str) -> Any:
        """A fact about the node that outlives runs (None where it is not recorded)."""
        return self._first(lambda row: json.loads(row["value"]), "SELECT value FROM facts WHERE key = ?", key)

    def set_fact(self, key: str, value: Any) -> None:
        """Record a fact about the node."""
        point(f"journal:fact:{key}")
        with self._transaction():
            self._db.execute(
                "INSERT INTO facts (key, value) VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                (key, json.dumps(value)),
            )

    # -- history

    def record(self, run: Run | None, event: Event) -> None:
        """Keep an event for `updater history`."""
        with self._transaction():
            self._db.execute(
                "INSERT INTO events (at, run, kind, step, text, data) VALUES (?, ?, ?, ?, ?, ?)",
                (event.at.isoformat(), run and run.id, event.kind, event.step, event.text, json.dumps(event.data)),
            )

    def events(self, run: Run) -> list[Facts]:
        """The events kept of a run, oldest first: at, kind, step, text, data."""
        query = "SELECT at, kind, step, text, data FROM events WHERE run = ? ORDER BY id"
        return self._every(lambda row: {**dict(row), "data": _table(row["data"])}, query, run.id)

    # -- inside

    def _free_id(self, now: datetime) -> str:
        taken = set(self._every(lambda row: row["id"], "SELECT id FROM runs"))
        return next(name for name in (f"{now:%Y-%m-%d}-{_letters(n)}" for n in count()) if name not in taken)

    def _first(self, make: Callable[[sqlite3.Row], T], query: str, *values: Any) -> T | None:
        row = self._one(query, *values)
        with _readable(self.path):
            return None if row is None else make(row)

    def _every(self, make: Callable[[sqlite3.Row], T], query: str, *values: Any) -> list[T]:
        rows = self._all(query, *values)
        with _readable(self.path):
            return [make(row) for row in rows]


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError) as error:  # a record that no agent has written so
        raise NotReady(
            f"the journal {path} cannot be used",
            what=f"a record in it is damaged: {error}",
            state="slots and boot environment are untouched by this",
            next="updater doctor    checks the data partition",
        ) from error


def _table(text: str) -> Facts:
    """The JSON object in a column. Raises ValueError."""
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError(f"expected an object, found {text[:40]!r}")
    return value


def _letters(n: int) -> str:
    """0, 1, ... as a, b, ... z, aa, ab, ..."""
    text = ""
    while True:
        text = chr(ord("a") + n % 26) + text
        n = n // 26 - 1
        if n < 0:
            return text


def _time(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _run(row: sqlite3.Row) -> Run:
    return Run(
        id=row["id"],
        verb=row["verb"],
        plan=_table(row["plan"]),
        state=RunState(row["state"]),
        agent=row["agent"],
        started=datetime.fromisoformat(row["started"]),
        ended=_time(row["ended"]),
        outcome=row["outcome"],
    )


def _step(row: sqlite3.Row) -> StepRecord:
    return StepRecord(
        name=row["name"],
        state=StepState(row["state"]),
        facts=_table(row["facts"]),
        started=datetime.fromisoformat(row["started"]),
        ended=_time(row["ended"]),
        detail=row["detail"],
    )
