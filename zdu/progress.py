"""How far a run has come, and what follows from it: which steps are next, whether there is a way back. Pure.

The controller writes down the state of each step; everything else it asks here, again after each crash.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from core.errors import RollbackRefused, WrongState
from zdu.planning import plan_back
from zdu.records import Approve, StepState
from zdu.runbook import Phase, Runbook, Step, expected
from zdu.sites import Sites


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A runbook and what is on record of its steps; those that are not in `states` have not been begun. A step that was
    begun or has failed may have had its effect or not. `approved`: ids of steps and names of phases. `paused`: nothing
    is begun.
    """

    runbook: Runbook
    states: Mapping[str, StepState] = field(default_factory=dict)
    approve: Approve = Approve.NONE
    approved: frozenset[str] = frozenset()
    paused: bool = False

    def is_done(self, step: Step) -> bool:
        """Is the step on record as done? Then its gates were open."""
        return self.states.get(step.id) is StepState.DONE

    @property
    def batch(self) -> tuple[Step, ...]:
        """The steps of the first batch that is not done; empty at the end."""
        unfinished = (b for b in self.runbook.batches if not all(map(self.is_done, b)))
        return next(unfinished, ())

    @property
    def finished(self) -> bool:
        """Is every step done?"""
        return not self.batch

    @property
    def phase(self) -> Phase | None:
        """The phase that is under way or comes next; None at the end."""
        batch = self.batch
        name = self.runbook.phase_of[batch[0].id] if batch else ""
        return next((phase for phase in self.runbook.phases if phase.name == name), None)

    @property
    def past_return(self) -> bool:
        """Has the point of no return been begun?"""
        point = self.runbook.by_id.get(self.runbook.point_of_no_return)
        return point is not None and point.id in self.states

    @property
    def seconds_left(self) -> float:
        """How long the rest is expected to take; what is under way counts whole."""
        return expected(tuple(step for step in self.runbook.steps if not self.is_done(step)))


def next_steps(progress: Progress, under_way: frozenset[str] = frozenset()) -> tuple[Step, ...]:
    """The steps that may be begun now, beside those `under_way` in this process. One that is on record as begun and is
    not under way is begun again: its controller died, and every step is safe to repeat.
    """
    batch = progress.batch
    if not batch or progress.paused or wants_approval(progress):
        return ()
    room = batch[0].at_most - len(under_way)
    waiting = [step for step in batch if step.id not in under_way and not progress.is_done(step)]
    return tuple(waiting[: max(0, room)])


def wants_approval(progress: Progress) -> str:
    """What somebody has to approve before the run goes on: the name of a phase or the id of a step (the first of its
    batch); empty: nothing. What was begun once goes on.
    """
    batch = progress.batch
    if not batch or any(step.id in progress.states for step in batch):
        return ""
    phase = progress.runbook.phase_of[batch[0].id]
    first = progress.runbook.by_id[batch[0].id]
    if progress.approve is Approve.EACH and first.id not in progress.approved:
        return first.id
    begins = next(each for each in progress.runbook.phases if each.name == phase).steps[0].id == first.id
    if progress.approve is Approve.PHASE and begins and phase not in progress.approved:
        return phase
    return ""


def check_approval(progress: Progress, what: str, digest: str = "") -> None:
    """Raises WrongState unless `what` (and the runbook, by its digest) is what waits for approval."""
    wanted = wants_approval(progress)
    if digest and digest != progress.runbook.digest:
        raise WrongState(
            "the runbook is another one than was approved",
            what=f"approved: {digest}; this one: {progress.runbook.digest}",
            state="nothing was approved",
            next="updater zdu status    shows what waits",
        )
    if not wanted or what != wanted:
        raise WrongState(
            f"{what} does not wait for approval",
            what=f"{wanted} does" if wanted else "nothing does",
            state="nothing was approved",
            next=f"updater zdu approve {wanted}" if wanted else "updater zdu status",
        )


def way_back_from(sites: Sites, progress: Progress) -> Runbook:
    """The way back from here, as a runbook that begins where the run stands. Raises RollbackRefused past the point of
    no return, WrongState where this run is a way back itself.
    """
    runbook = progress.runbook
    if runbook.back:
        raise WrongState(
            "this run is on its way back already",
            state=f"{sum(map(progress.is_done, runbook.steps))} of {len(runbook.steps)} steps are done",
            next="updater zdu resume    goes on with it",
        )
    done = [name for name, state in progress.states.items() if state is StepState.DONE]
    back = plan_back(sites, runbook, progress.states, done)
    if back is None:
        raise RollbackRefused(
            "the point of no return is behind us",
            what=f"{runbook.point_of_no_return}: {runbook.no_return_why}",
            state="every site is left as it is",
            next="updater zdu resume    goes on with the upgrade",
        )
    return back
