"""One leg of a run, piece by piece: whether the next steps may begin, the steps themselves, and the end.

The pieces are called by the durable workflow (`zdu.workflow`), each exactly until it has ended once. Every piece may be
called again after a crash in its middle; what it finds then is asked of the sites and of the records, not remembered.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar

from core.errors import FencedOff, RollbackRefused, UpdaterError, WrongState
from core.faults import point
from zdu.conduct import Evidence, Pace, conduct
from zdu.lease import Lease, Lost
from zdu.limits import NotifyEvent
from zdu.notify import Notifier
from zdu.opening import takes_out, window_open
from zdu.progress import Progress, wants_approval
from zdu.records import Approve, Leg, Run, RunState, Said, StepState, Word
from zdu.runbook import Action, Step
from zdu.runs import Runs
from zdu.sites import Sites
from zdu.standing import back, phase_opened, rebuilt, unexpected
from zdu.world import World

T = TypeVar("T")

#: Seconds between two looks at what people have said.
LISTEN: Final = 0.5


class Leaving(BaseException):
    """This controller ends, and the run stays as it is for the next one. Not an Exception, so that nothing takes it for
    the failure of a step.
    """


class AbortWanted(Exception):
    """Somebody wants the way back while a step waits."""


class Engine:
    """The pieces. `show` is called with each event as it comes: kind, step, text. `ended`: set when the leg has been
    closed. `fault`: why the controller cannot go on, if it cannot.
    """

    def __init__(
        self,
        *,
        sites: Sites,
        runs: Runs,
        lease: Lease,
        world: World,
        notifier: Notifier,
        pace: Pace,
        run: Run,
        show: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self.sites = sites
        self.runs = runs
        self.lease = lease
        self.world = world
        self.notifier = notifier
        self.pace = pace
        self.run = run
        self.show = show
        self.ended = threading.Event()
        self.leaving = threading.Event()
        self.fault: UpdaterError | None = None
        self._legs: dict[int, Leg] = {}
        self._under_way = 0
        self._guard = threading.Lock()
        self._heard: tuple[float, bool] = (0.0, False)

    def leg(self, number: int) -> Leg:
        """A leg, read once: its runbook never changes."""
        with self._guard:
            known = self._legs.get(number)
        if known is None:
            known = self._recorded(lambda: self.runs.leg(self.run.id, number))
            with self._guard:
                self._legs[number] = known
        return known

    def idle(self) -> bool:
        """Whether nothing is under way in this process."""
        with self._guard:
            return self._under_way == 0

    def permit(self, number: int, first: str) -> dict[str, Any]:
        """Wait until the batch that begins with the step `first` may begin: ``{"go": true}``, or false for an abort."""
        return self._piece(lambda: self._permit(self.leg(number), first))

    def perform(self, number: int, step: str) -> dict[str, Any]:
        """Conduct a step. ``{"state": "done" | "failed" | "left", "error": …}``; left: somebody wants the way back."""
        return self._piece(lambda: self._perform(self.leg(number), self.leg(number).runbook.by_id[step]))

    def close(self, number: int, outcome: str, error: dict[str, Any]) -> str:
        """The leg is over; `outcome` is a RunState."""
        return self._piece(lambda: self._close(self.leg(number), RunState(outcome), error))

    def check(self) -> None:
        """Return while this controller holds the installation and is not to end."""
        self.lease.check()
        if self.leaving.is_set():
            raise Leaving

    def tell(self, kind: str, step: str = "", text: str = "", **data: Any) -> None:
        """Record an event, and show it; one that cannot be recorded holds nothing up."""
        self.show(kind, step, text)
        try:
            self.runs.tell(self.run.id, kind, step, text, data)
        except UpdaterError:
            if self.lease.lost.is_set():
                raise Lost from None

    # Whether to go on

    def _permit(self, leg: Leg, first: str) -> dict[str, Any]:
        batch = next(batch for batch in leg.runbook.batches if any(step.id == first for step in batch))
        told = ""
        while True:
            self.check()
            said = self.runs.said(self.run.id)
            if self._abort_wanted(leg, said):
                return {"go": False}
            progress = self._progress(leg, said)
            state, text, waits_for = self._held_up(leg, batch, progress)
            if state is RunState.RUNNING:
                if told:
                    self._state(leg, "")
                self._opens_phase(leg, batch)
                return {"go": True}
            if told != (told := f"{state} {text}"):
                self.runs.set_state(self.lease, self.run.id, state, text, waits_for)
                self.tell(str(state), first, text)
                if waits_for:
                    self.notifier.tell(NotifyEvent.APPROVAL, text, step=first, waits_for=waits_for)
            time.sleep(LISTEN)

    def _held_up(self, leg: Leg, batch: tuple[Step, ...], progress: Progress) -> tuple[RunState, str, str]:
        """What holds the batch up: state, text, and what has to be approved; RUNNING when nothing does."""
        if progress.paused:
            return RunState.PAUSED, f"paused before {batch[0].id}", ""
        wanted = wants_approval(progress)
        if wanted:
            opening = next((phase for phase in leg.runbook.phases if phase.name == wanted), None)
            what = f"phase {wanted}: {opening.title}" if opening else f"{wanted}: {batch[0].what}"
            return RunState.WAITING, f"waits for the approval of {what}", wanted
        fresh = not any(takes_out([leg.runbook.by_id[name]]) for name in progress.states if name in leg.runbook.by_id)
        if not leg.runbook.back and fresh and takes_out(batch):
            windows = self.sites.windows
            if not window_open(windows, datetime.now()):
                return RunState.WAITING, f"waits for a window: {', '.join(each.hours for each in windows)}", ""
        return RunState.RUNNING, "", ""

    def _progress(self, leg: Leg, said: list[Said]) -> Progress:
        states = dict.fromkeys(leg.passed, StepState.DONE)
        states |= {r.step: r.state for r in self.runs.steps(self.run.id) if r.leg == leg.number}
        last = next((one.word for one in reversed(said) if one.word in (Word.PAUSE, Word.RESUME)), None)
        return Progress(
            runbook=leg.runbook,
            states=states,
            approve=Approve.NONE if leg.runbook.back else self.run.approve,  # whoever wanted it has decided
            approved=frozenset(one.what for one in said if one.word is Word.APPROVE),
            paused=last is Word.PAUSE,
        )

    def _abort_wanted(self, leg: Leg, said: list[Said]) -> bool:
        """Whether somebody wants the way back, and there is one."""
        wanted = [one for one in said if one.word is Word.ABORT and not one.taken]
        if not wanted or leg.runbook.back:
            return False
        try:
            back(self.sites, self.runs, self.run.id)
        except (RollbackRefused, WrongState) as error:
            for one in wanted:
                self.runs.hear(self.lease, one)
            self.tell("refused", text=f"abort, wanted by {wanted[0].who}: {error.message}")
            return False
        return True

    def _opens_phase(self, leg: Leg, batch: tuple[Step, ...]) -> None:
        phase = phase_opened(leg.runbook, batch)
        if phase is not None:
            self.tell("phase", batch[0].id, f"phase {phase.name}: {phase.title}")
            self.notifier.tell(NotifyEvent.PHASE, f"phase {phase.name}: {phase.title}", phase=phase.name)

    def _state(self, leg: Leg, text: str) -> None:
        state = RunState.ABORTING if leg.runbook.back else RunState.RUNNING
        self.runs.set_state(self.lease, self.run.id, state, text)

    # Steps

    def _perform(self, leg: Leg, step: Step) -> dict[str, Any]:
        self.check()
        if self.wanted_back(leg):  # before a crash this was permitted, and now it is not wanted any more
            return {"state": "left", "error": {}}
        evidence = Evidence()
        self.runs.step_begun(self.lease, self.run.id, leg.number, step.id)
        self.tell("started", step.id, step.what)
        began = time.monotonic()
        point(f"{step.action}:begun")
        try:
            pace = replace(self.pace, alert=lambda text: self._alert(step, text))
            text = conduct(self.world, step, _Talk(self, leg, step, evidence), pace, evidence)
        except AbortWanted:
            self.tell("left", step.id, "left: the way back is wanted")
            return {"state": "left", "error": {}}
        except FencedOff as error:
            self.fault = error
            self.lease.lost.set()
            raise Lost from error
        except Exception as caught:
            fault = caught if isinstance(caught, UpdaterError) else unexpected(caught)
            evidence.did(f"failed: {fault.message}")
            self._ended(leg, step, fault.message, evidence, fault)
            self.tell("failed", step.id, fault.message.removeprefix(f"{step.id}: "), error=fault.as_json())
            return {"state": "failed", "error": fault.as_json() | {"step": step.id}}
        point(f"{step.action}:verified")
        self._ended(leg, step, text, evidence, None)
        self.tell("finished", step.id, text, seconds=round(time.monotonic() - began, 3))
        point(f"{step.action}:recorded")
        return {"state": "done", "error": {}}

    def _alert(self, step: Step, text: str) -> None:
        """A step waits for long: somebody should know. It is waited for all the same."""
        self.tell("alert", step.id, text)
        event = NotifyEvent.DRAIN if step.action is Action.DRAIN_WAIT else NotifyEvent.WAITING
        self.notifier.tell(event, text, step=step.id)

    def _ended(self, leg: Leg, step: Step, text: str, evidence: Evidence, error: UpdaterError | None) -> None:
        self.runs.step_ended(
            self.lease, self.run.id, leg.number, step.id, text=text, evidence=evidence.lines, error=error
        )

    def wanted_back(self, leg: Leg) -> bool:
        """As `_abort_wanted`, asked not more often than `LISTEN`. On the way back there is no other one."""
        if leg.runbook.back:
            return False
        with self._guard:
            asked, wanted = self._heard
            if wanted or time.monotonic() - asked < LISTEN:
                return wanted
            self._heard = (time.monotonic(), False)
        wanted = self._abort_wanted(leg, self.runs.said(self.run.id))
        with self._guard:
            self._heard = (time.monotonic(), wanted)
        return wanted

    # The end

    def _close(self, leg: Leg, outcome: RunState, error: dict[str, Any]) -> str:
        known = self.runs.leg(self.run.id, leg.number).outcome
        if known:  # a controller died when it had closed it: the run has gone on since, and is in another leg
            return known
        point("leg:close")
        fault = rebuilt(error) if error else None
        self.runs.end_leg(self.lease, self.run.id, leg.number, outcome, fault)
        if outcome is RunState.ABORTING:
            for one in self.runs.said(self.run.id):
                if one.word is Word.ABORT and not one.taken:
                    self.runs.hear(self.lease, one)
        point("leg:closed")
        self.tell(str(outcome), text=fault.message if fault else "")
        words = {
            RunState.DONE: (NotifyEvent.FINISHED, f"{self.run.start} → {self.run.target}: done"),
            RunState.ABORTED: (NotifyEvent.ABORTED, f"aborted: back in service on {self.run.start}"),
            RunState.ABORTING: (NotifyEvent.ABORTED, "the way back begins"),
            RunState.STOPPED: (NotifyEvent.FAILED, f"stopped: {fault.message if fault else ''}"),
        }
        event, text = words[outcome]
        self.notifier.tell(event, text, step=error.get("step", ""), next=error.get("next", []))
        self.ended.set()
        return str(outcome)

    def _piece(self, work: Callable[[], T]) -> T:
        with self._guard:
            self._under_way += 1
        try:
            return self._recorded(work)
        finally:
            with self._guard:
                self._under_way -= 1

    def _recorded(self, work: Callable[[], T]) -> T:
        """What cannot be recorded is not done: the controller leaves, and the run stays as it is."""
        try:
            return work()
        except UpdaterError as error:
            self.fault = self.fault or error
            self.leaving.set()
            raise Leaving from error


class _Talk:
    """A step's way to its controller."""

    def __init__(self, engine: Engine, leg: Leg, step: Step, evidence: Evidence) -> None:
        self._engine = engine
        self._leg = leg
        self._evidence = evidence
        self._step = step
        self.fence = engine.lease.fence
        self.run = engine.run.id
        self.job = f"{engine.run.id}.{leg.number}.{leg.runbook.steps.index(step) + 1}"

    def check(self) -> None:
        self._engine.check()
        if self._engine.wanted_back(self._leg):
            raise AbortWanted

    def note(self, text: str) -> None:
        self._evidence.did(text)
        self._engine.tell("note", self._step.id, text)
