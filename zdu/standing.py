"""How a run stands, by its records: its steps in all legs together, its way back, its errors. Pure, but for reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.errors import UpdaterError, WrongState
from zdu.progress import Progress, way_back_from
from zdu.records import Leg, StepRecord, StepState
from zdu.runbook import Phase, Runbook, Step
from zdu.runs import Runs
from zdu.sites import Sites


def back(sites: Sites, runs: Runs, run: str) -> Runbook:
    """The way back of a run, from wherever it stands. Raises RollbackRefused, or WrongState when it is under way."""
    legs = runs.legs(run)
    if legs[-1].runbook.back:
        raise WrongState(
            f"the run {run} is on its way back already",
            state="this command changed nothing",
            next=["updater zdu status", "updater zdu resume    goes on with it"],
        )
    return way_back_from(sites, Progress(runbook=legs[-1].runbook, states=states(legs, runs.steps(run))))


def states(legs: Iterable[Leg], records: Iterable[StepRecord]) -> Mapping[str, StepState]:
    """How the steps of the last direction stand, all its legs together: what is done once is done."""
    all_legs = list(legs)
    direction = all_legs[-1].runbook.back
    numbers = {leg.number for leg in all_legs if leg.runbook.back == direction}
    found: dict[str, StepState] = {}
    for record in sorted(records, key=lambda record: record.leg):
        if record.leg in numbers and found.get(record.step) is not StepState.DONE:
            found[record.step] = record.state
    return found


def phase_opened(runbook: Runbook, batch: tuple[Step, ...]) -> Phase | None:
    """The phase that begins with this batch; None: it is in the middle of one."""
    phase = next(phase for phase in runbook.phases if phase.name == runbook.phase_of[batch[0].id])
    return phase if phase.steps[0].id == batch[0].id else None


def unexpected(error: Exception) -> UpdaterError:
    """A fault of ours, or of a library: told as it is, and the run stops."""
    return UpdaterError(
        f"unexpected: {type(error).__name__}: {str(error) or 'no text'}".splitlines()[0][:300],
        state="the step was stopped where it was; nothing after it was begun",
        next=["updater zdu resume    looks again, and goes on", "updater zdu abort    goes the way back"],
    )


def rebuilt(data: Mapping[str, Any]) -> UpdaterError:
    """An error from its JSON, with the class that it had."""
    classes = [UpdaterError]
    for known in classes:
        classes += known.__subclasses__()
    kind = next((each for each in classes if each.kind == data.get("kind")), UpdaterError)
    made = UpdaterError.__new__(kind)
    UpdaterError.__init__(
        made, data.get("message", ""), what=data.get("what", ()), state=data.get("state", ""), next=data.get("next", ())
    )
    return made
