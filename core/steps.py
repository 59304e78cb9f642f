"""Steps, and the engine that runs them, goes on with them after a crash, and undoes them.

The engine records the intent before each effect and the outcome after. What is true it asks the machine: on resume
every step that is not behind a reboot is asked again whether it is done.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

from core.errors import UpdaterError
from core.faults import point
from core.journal import Facts, Journal, Run, StepRecord, StepState
from core.report import Kind, Report


class Step(Protocol):
    """One thing to do, with a way to tell whether it is done and a way back."""

    @property
    def name(self) -> str:
        """Stable: it is written in journals that another release will read."""
        ...

    def describe(self) -> str:
        """One line for plans, screens and reports."""
        ...

    def is_done(self, record: StepRecord | None) -> bool:
        """Ask the machine; the record only where the machine cannot tell. None: the step was never begun."""
        ...

    def before(self) -> Facts:
        """Facts, as JSON, that `is_done` and `undo` will need; recorded before `apply`."""
        ...

    def apply(self, facts: Facts, report: Report) -> str:
        """Do it; return a line on what was done. Safe to run again after dying half-way."""
        ...

    def undo(self, facts: Facts) -> None:
        """Take it back, from whatever point it was left at."""
        ...


class Handover(Exception):
    """Raised by a step whose end another process will see: the run goes on after a reboot."""


def run_steps(journal: Journal, run: Run, steps: Sequence[Step], report: Report, *, behind: int = 0) -> None:
    """Run the steps of an open run in order; what is done already is passed over. `behind`: so many of the first are
    not even asked any more.

    Raises what a step raises, after recording it; the run stays open. Handover passes through with the step's
    intent on record.
    """
    records = journal.steps(run)
    for seq, step in enumerate(steps[behind:], behind):
        record = records.get(step.name)
        if record is not None and record.state is StepState.UNDONE:
            record = None
        if step.is_done(record):
            if record is None or record.state is not StepState.DONE:
                journal.intend(run, seq, step.name, record.facts if record else step.before())
                journal.outcome(run, step.name, StepState.DONE, "found done")
                report.emit(Kind.SKIPPED, step.name, "done already")
            continue
        facts = record.facts if record is not None else step.before()
        point(f"{step.name}:before")
        journal.intend(run, seq, step.name, facts)
        point(f"{step.name}:intended")
        detail = _apply(journal, run, step, facts, report)
        point(f"{step.name}:applied")
        journal.outcome(run, step.name, StepState.DONE, detail)
        point(f"{step.name}:done")


def _apply(journal: Journal, run: Run, step: Step, facts: Facts, report: Report) -> str:
    report.emit(Kind.STARTED, step.name, step.describe())
    started = time.monotonic()
    try:
        detail = step.apply(facts, report)
    except Handover:
        report.emit(Kind.FINISHED, step.name, "goes on after the reboot", seconds=round(time.monotonic() - started, 3))
        raise
    except BaseException as error:
        message = str(error) or type(error).__name__
        report.emit(Kind.FAILED, step.name, message)
        if isinstance(error, (UpdaterError, OSError)):
            journal.outcome(run, step.name, StepState.FAILED, message)
        raise
    report.emit(Kind.FINISHED, step.name, detail, seconds=round(time.monotonic() - started, 3))
    return detail


def undo_steps(journal: Journal, run: Run, steps: Sequence[Step], report: Report) -> None:
    """Undo, last first, every step of the run that was begun. The run stays open; safe to run again."""
    records = journal.steps(run)
    for step in reversed(steps):
        record = records.get(step.name)
        if record is None or record.state is StepState.UNDONE:
            continue
        point(f"{step.name}:undo")
        step.undo(record.facts)
        point(f"{step.name}:undone")
        journal.outcome(run, step.name, StepState.UNDONE, record.detail)
        report.emit(Kind.UNDONE, step.name)


def describe(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The steps as a plan for people and machines: name, describe."""
    return [{"step": step.name, "what": step.describe()} for step in steps]
