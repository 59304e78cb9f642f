"""The records of runs: what was to be done, what was seen and done, who said what, and how traffic stood meanwhile.

They can be read at any time, whether a controller runs or not.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from core.errors import UpdaterError, WrongState
from core.schema import structure
from core.sql import Connection
from zdu.lease import Lease
from zdu.records import Approve, Leg, Run, RunState, Said, Sample, StepRecord, StepState, Told, Word, now
from zdu.runbook import Runbook
from zdu.tables import Tables

_RUN = "id, installation, start, target, bundle, approve, who, began, ended, state, text, leg, waits_for"
_STEP = "leg, step, state, attempts, fence, began, ended, text, evidence, error"


class Runs:
    """The records. Reading needs nothing; what a controller writes asks for its lease, and is refused when lost."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    # What is there

    def open_run(self, installation: str) -> Run | None:
        """The run that has not ended; None: there is none."""
        return self._run("installation = %s AND ended = ''", installation)

    def run(self, name: str) -> Run | None:
        """A run by its id."""
        return self._run("id = %s", name)

    def last(self, installation: str) -> Run | None:
        """The run that began last."""
        return self._run("installation = %s ORDER BY began DESC, id DESC LIMIT 1", installation)

    def all(self, installation: str) -> list[Run]:
        """Every run, the last one first."""
        query = f"SELECT {_RUN} FROM zdu_runs WHERE installation = %s ORDER BY began DESC, id DESC"
        return [_a_run(row) for row in self._rows(query, installation)]

    def legs(self, run: str) -> list[Leg]:
        """Its legs in order."""
        query = "SELECT leg, runbook, passed, began, ended, outcome, error FROM zdu_legs WHERE run = %s ORDER BY leg"
        return [_a_leg(row) for row in self._rows(query, run)]

    def leg(self, run: str, number: int) -> Leg:
        """One of them."""
        query = "SELECT leg, runbook, passed, began, ended, outcome, error FROM zdu_legs WHERE run = %s AND leg = %s"
        return _a_leg(self._rows(query, run, number)[0])

    def steps(self, run: str) -> list[StepRecord]:
        """All steps that were begun, in the order in which they began."""
        rows = self._rows(f"SELECT {_STEP} FROM zdu_steps WHERE run = %s ORDER BY leg, began, step", run)
        return [_a_step(row) for row in rows]

    def said(self, run: str) -> list[Said]:
        """What people said, in order."""
        rows = self._rows("SELECT id, word, what, who, at, taken FROM zdu_words WHERE run = %s ORDER BY id", run)
        return [Said(id=i, word=Word(w), what=x, who=y, at=z, taken=t) for i, w, x, y, z, t in rows]

    def events(self, run: str, after: int = 0) -> list[Told]:
        """Events with a number greater than `after`."""
        query = "SELECT id, at, kind, step, text, data FROM zdu_events WHERE run = %s AND id > %s ORDER BY id"
        rows = self._rows(query, run, after)
        return [Told(id=i, at=a, kind=k, step=s, text=t, data=json.loads(d)) for i, a, k, s, t, d in rows]

    def samples(self, run: str, *, newest: int = 0) -> list[Sample]:
        """Samples in order of time; `newest`: only so many of the last ones."""
        query = "SELECT id, at, data FROM zdu_samples WHERE run = %s ORDER BY id"
        if newest:
            query = f"SELECT id, at, data FROM ({query} DESC LIMIT {int(newest)}) AS newest ORDER BY id"
        return [Sample(at=at, **json.loads(data)) for _, at, data in self._rows(query, run)]

    # What people say

    def say(self, run: str, word: Word, what: str, who: str) -> int:
        """Leave a word for the controller of the run; the number of it."""

        def insert(db: Connection) -> int:
            db.execute(
                "INSERT INTO zdu_words (run, word, what, who, at, taken) VALUES (%s, %s, %s, %s, %s, '')",
                (run, word, what, who, now()),
            )
            row = db.one("SELECT max(id) FROM zdu_words WHERE run = %s", (run,))
            assert row is not None
            return int(row[0])

        return self._tables.transact(insert)

    # What a controller writes

    def begin(self, lease: Lease, run: Run, runbook: Runbook) -> None:
        """A new run with its first leg. Raises WrongState when one is open."""

        def insert(db: Connection) -> None:
            lease.confirm(db)
            found = db.one("SELECT id FROM zdu_runs WHERE installation = %s AND ended = ''", (run.installation,))
            if found is not None and found[0] == run.id:
                return  # the connection broke after the commit
            if found is not None:
                raise already_open(found[0])
            values = [getattr(run, key) for key in _RUN.split(", ")]
            marks = ", ".join(["%s"] * len(values))
            db.execute(f"INSERT INTO zdu_runs ({_RUN}) VALUES ({marks})", values)
            _insert_leg(db, run.id, 1, runbook, ())

        self._tables.transact(insert)

    def next_leg(self, lease: Lease, run: Run, runbook: Runbook, passed: Iterable[str]) -> int:
        """Begin another leg of a run; its number."""
        number = run.leg + 1
        state = RunState.ABORTING if runbook.back else RunState.RUNNING

        def insert(db: Connection) -> None:
            lease.confirm(db)
            db.execute(
                "UPDATE zdu_runs SET leg = %s, state = %s, text = '', waits_for = '' WHERE id = %s",
                (number, state, run.id),
            )
            db.execute("DELETE FROM zdu_legs WHERE run = %s AND leg = %s", (run.id, number))
            _insert_leg(db, run.id, number, runbook, passed)

        self._tables.transact(insert)
        return number

    def set_state(self, lease: Lease, run: str, state: RunState, text: str = "", waits_for: str = "") -> None:
        """How the run stands now. DONE and ABORTED end it."""
        ended = now() if state in (RunState.DONE, RunState.ABORTED) else ""

        def update(db: Connection) -> None:
            lease.confirm(db)
            db.execute(
                "UPDATE zdu_runs SET state = %s, text = %s, waits_for = %s, ended = %s WHERE id = %s",
                (state, text, waits_for, ended, run),
            )

        self._tables.transact(update)

    def end_leg(self, lease: Lease, run: str, number: int, state: RunState, error: UpdaterError | None) -> None:
        """The leg is over and leaves the run in this state. The first one to say so is right."""
        told = json.dumps(error.as_json()) if error else "{}"
        ended = now()

        def update(db: Connection) -> None:
            lease.confirm(db)
            changed = db.execute(
                "UPDATE zdu_legs SET ended = %s, outcome = %s, error = %s WHERE run = %s AND leg = %s AND outcome = ''",
                (ended, state, told, run, number),
            ).changed
            if changed:
                closed = ended if state in (RunState.DONE, RunState.ABORTED) else ""
                db.execute(
                    "UPDATE zdu_runs SET state = %s, text = %s, waits_for = '', ended = %s WHERE id = %s",
                    (state, error.message if error else "", closed, run),
                )

        self._tables.transact(update)

    def step_begun(self, lease: Lease, run: str, leg: int, step: str) -> int:
        """A step begins; how many times it has begun by now. Written before anything is done."""

        def write(db: Connection) -> int:
            lease.confirm(db)
            key = (run, leg, step)
            row = db.one("SELECT attempts FROM zdu_steps WHERE run = %s AND leg = %s AND step = %s", key)
            if row is None:
                db.execute(
                    f"INSERT INTO zdu_steps (run, {_STEP}) VALUES (%s, %s, %s, %s, 1, %s, %s, '', '', '[]', '{{}}')",
                    (*key, StepState.BEGUN, lease.fence, now()),
                )
                return 1
            db.execute(
                "UPDATE zdu_steps SET state = %s, attempts = attempts + 1, fence = %s, ended = '', error = '{}'"
                " WHERE run = %s AND leg = %s AND step = %s",
                (StepState.BEGUN, lease.fence, *key),
            )
            return int(row[0]) + 1

        return self._tables.transact(write)

    def step_ended(
        self,
        lease: Lease,
        run: str,
        leg: int,
        step: str,
        *,
        text: str,
        evidence: list[dict[str, Any]],
        error: UpdaterError | None = None,
    ) -> None:
        """A step is done, or failed; what was seen is added to what was seen in attempts before."""

        def write(db: Connection) -> None:
            lease.confirm(db)
            key = (run, leg, step)
            row = db.one("SELECT evidence FROM zdu_steps WHERE run = %s AND leg = %s AND step = %s", key)
            before = json.loads(row[0]) if row else []
            db.execute(
                "UPDATE zdu_steps SET state = %s, ended = %s, text = %s, evidence = %s, error = %s"
                " WHERE run = %s AND leg = %s AND step = %s",
                (
                    StepState.FAILED if error else StepState.DONE,
                    now(),
                    text,
                    json.dumps(before + evidence, default=str),
                    json.dumps(error.as_json()) if error else "{}",
                    *key,
                ),
            )

        self._tables.transact(write)

    def hear(self, lease: Lease, said: Said) -> None:
        """The controller has taken up what somebody said."""

        def write(db: Connection) -> None:
            lease.confirm(db)
            db.execute("UPDATE zdu_words SET taken = %s WHERE id = %s AND taken = ''", (now(), said.id))

        self._tables.transact(write)

    def tell(self, run: str, kind: str, step: str, text: str, data: dict[str, Any] | None = None) -> None:
        """Record an event."""
        self._tables.work(
            lambda db: db.execute(
                "INSERT INTO zdu_events (run, at, kind, step, text, data) VALUES (%s, %s, %s, %s, %s, %s)",
                (run, now(), kind, step, text, json.dumps(data or {}, default=str)),
            )
        )

    def sampled(self, run: str, sample: Sample) -> None:
        """Record a sample."""
        data = json.dumps({"calls": sample.calls, "lag": sample.lag, "delta": sample.delta})
        self._tables.work(
            lambda db: db.execute(
                "INSERT INTO zdu_samples (run, at, data) VALUES (%s, %s, %s)", (run, sample.at or now(), data)
            )
        )

    def _rows(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._tables.work(lambda db: db.execute(query, values).rows)

    def _run(self, condition: str, *values: Any) -> Run | None:
        rows = self._rows(f"SELECT {_RUN} FROM zdu_runs WHERE {condition}", *values)
        return _a_run(rows[0]) if rows else None


def already_open(run: str) -> WrongState:
    """One run at a time."""
    return WrongState(
        f"the run {run} is open",
        what="an installation has one run at a time",
        state="this command changed nothing",
        next=["updater zdu status", "updater zdu resume    goes on with it", "updater zdu abort    takes it back"],
    )


def _insert_leg(db: Connection, run: str, number: int, runbook: Runbook, passed: Iterable[str]) -> None:
    db.execute(
        "INSERT INTO zdu_legs (run, leg, runbook, passed, began, ended, outcome, error)"
        " VALUES (%s, %s, %s, %s, %s, '', '', '{}')",
        (run, number, json.dumps(runbook.as_json()), json.dumps(sorted(passed)), now()),
    )


def _a_run(row: tuple[Any, ...]) -> Run:
    data = dict(zip(_RUN.split(", "), row, strict=True))
    return Run(**data | {"approve": Approve(data["approve"]), "state": RunState(data["state"])})


def _a_leg(row: tuple[Any, ...]) -> Leg:
    number, runbook, passed, began, ended, outcome, error = row
    return Leg(
        number=number,
        runbook=structure(json.loads(runbook), Runbook),
        passed=tuple(json.loads(passed)),
        began=began,
        ended=ended,
        outcome=outcome,
        error=json.loads(error),
    )


def _a_step(row: tuple[Any, ...]) -> StepRecord:
    data = dict(zip(_STEP.split(", "), row, strict=True))
    told = {key: json.loads(data[key]) for key in ("evidence", "error")}
    return StepRecord(**data | told | {"state": StepState(data["state"])})
