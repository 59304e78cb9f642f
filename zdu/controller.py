"""The controller: takes an installation, and brings its run to an end, to a stop, or back.

It may be killed at any instant. What it was doing is on record, and `resume`, here or on another controller, goes on:
with the same runbook, from the same step, under a greater fencing token.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from core.errors import Busy, UpdaterError, WrongState
from zdu.conduct import Pace
from zdu.engine import Engine
from zdu.lease import LEASE, Lease, holder, take
from zdu.limits import NotifyEvent
from zdu.notify import Notifier
from zdu.records import Approve, Leg, Run, RunState, StepState, Word, now
from zdu.runbook import Runbook
from zdu.runs import Runs, already_open
from zdu.sampling import EVERY, Sampler
from zdu.sites import Sites
from zdu.standing import back, rebuilt, states
from zdu.tables import Tables
from zdu.world import World

#: Seconds that are waited for what is under way when the controller is told to end.
_LEAVE: Final = 15.0

#: Seconds between two looks at whether another controller is gone.
_STAND_BY: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How far the controller brought a run. `error`: why it stopped, if it did."""

    run: Run
    error: UpdaterError | None = None


class Controller:
    """A controller of one installation. `world`: made of the run and the fencing token when work begins. `pace`: None
    for the usual one. `show` is called with each event: kind, step, text.
    """

    def __init__(
        self,
        sites: Sites,
        tables: Tables,
        world: Callable[[Run, int], World],
        *,
        pace: Pace | None = None,
        lease: float = LEASE,
        samples: float = EVERY,
        show: Callable[[str, str, str], None] = lambda *_: None,
    ) -> None:
        self.sites = sites
        self.tables = tables
        self.runs = Runs(tables)
        self._world = world
        self._pace = pace
        self._lease = lease
        self._samples = samples
        self._show = show

    def start(self, runbook: Runbook, *, bundle: str, approve: Approve, who: str) -> Ended:
        """Begin a run and go on with it. Raises Busy, or WrongState when a run is open."""
        with self._held("start a run") as lease:
            known = self.runs.open_run(self.sites.name)
            if known is not None:
                raise already_open(known.id)
            run = Run(
                id=self._new_id(),
                installation=self.sites.name,
                start=runbook.start,
                target=runbook.target,
                bundle=bundle,
                approve=approve,
                who=who,
                began=now(),
                ended="",
                state=RunState.RUNNING,
                text="",
                leg=1,
                waits_for="",
            )
            self.runs.begin(lease, run, runbook)
            return self._go(lease, run, NotifyEvent.STARTED)

    def resume(self, who: str, *, stand_by: bool = False) -> Ended:
        """Go on with the open run. A step that failed is tried again.

        `stand_by`: wait until the controller that has it is gone, and take over then; a pause stays one. Raises
        WrongState when no run is open, Busy when somebody else has it.
        """
        run = self.open_run()
        with self._held("resume", stand_by=stand_by) as lease:
            run = self.open_run()
            if not stand_by:
                self.runs.say(run.id, Word.RESUME, "", who)
            leg = self.runs.leg(run.id, run.leg)
            if leg.outcome == RunState.STOPPED:
                run = self._next(lease, run, leg.runbook, self._done(run))
            return self._go(lease, run)

    def abort(self, who: str) -> Ended:
        """Go the way back of the open run, from wherever it stands. Raises RollbackRefused past the point of no return,
        WrongState when it is on its way back or none is open, Busy when another controller has it: `say` reaches that.
        """
        with self._held("abort") as lease:
            run = self.open_run()
            way = back(self.sites, self.runs, run.id)
            self.runs.say(run.id, Word.ABORT, "", who)
            if self.runs.leg(run.id, run.leg).outcome == RunState.STOPPED:
                for one in self.runs.said(run.id):
                    if one.word is Word.ABORT:
                        self.runs.hear(lease, one)
                run = self._next(lease, run, way, ())
            return self._go(lease, run)

    def open_run(self) -> Run:
        """The run that is open. Raises WrongState when none is."""
        run = self.runs.open_run(self.sites.name)
        if run is None:
            last = self.runs.last(self.sites.name)
            raise WrongState(
                "no run is open",
                what=f"the last one, {last.id}, is {last.state}" if last else "there never was one",
                state="this command changed nothing",
                next=["updater zdu plan RELEASE", "updater zdu history"],
            )
        return run

    @contextmanager
    def _held(self, purpose: str, *, stand_by: bool = False) -> Iterator[Lease]:
        lease = self._take(purpose, stand_by)
        try:
            yield lease
        finally:
            lease.release()

    def _take(self, purpose: str, stand_by: bool) -> Lease:
        while True:
            try:
                return take(self.tables, self.sites.name, purpose=purpose, seconds=self._lease)
            except Busy:
                if not stand_by:
                    raise
            time.sleep(_STAND_BY)
            self.open_run()  # it may have come to its end meanwhile

    def _go(self, lease: Lease, run: Run, event: NotifyEvent | None = None) -> Ended:
        """Execute leg after leg until the run has ended or stopped."""
        from zdu import workflow  # costs a second, so only those pay who work

        context = {"run": run.id, "installation": run.installation, "from": run.start, "to": run.target}
        notifier = Notifier(self.sites.notify, context, lambda text: self.runs.tell(run.id, "untold", "", text))
        world = self._world(run, lease.fence)
        pace = self._pace or Pace(drain=self.sites.drain)
        engine = Engine(
            sites=self.sites,
            runs=self.runs,
            lease=lease,
            world=world,
            notifier=notifier,
            pace=pace,
            run=run,
            show=self._show,
        )
        engine.tell("held", text=f"{lease.holder} has the run, token {lease.fence}", fence=lease.fence)
        if event is not None:
            notifier.tell(event, f"{run.start} → {run.target}: begun by {run.who}")
        try:
            with Sampler(self.runs, run.id, world, self._samples), workflow.launched(self.tables.database, engine):
                try:
                    while True:
                        leg = self._leg(engine, run)
                        run = self.runs.run(run.id) or run
                        if leg.outcome != RunState.ABORTING:
                            break
                        run = self._next(lease, run, back(self.sites, self.runs, run.id), ())
                except BaseException:
                    _leave(engine, lease)
                    raise
        finally:
            notifier.close()
        ended = self.runs.run(run.id) or run
        return Ended(run=ended, error=rebuilt(leg.error) if leg.error else None)

    def _leg(self, engine: Engine, run: Run) -> Leg:
        """Execute the current leg to its end."""
        from zdu import workflow

        leg = self.runs.leg(run.id, run.leg)
        if leg.outcome:
            return leg
        engine.ended.clear()
        if not workflow.begin(run.id, leg.number):  # ended, and the records do not say so: on from the records
            run = self._next(engine.lease, run, leg.runbook, self._done(run))
            leg = self.runs.leg(run.id, run.leg)
            workflow.begin(run.id, leg.number)
        look = time.monotonic() + 5
        while not engine.ended.wait(0.05):
            if engine.fault is not None:
                raise engine.fault
            if engine.lease.lost.is_set():
                raise engine.lease.fenced_off()
            if time.monotonic() > look:
                look = time.monotonic() + 5
                if workflow.over(run.id, leg.number) and not engine.ended.is_set():
                    raise _broken(run)
        return self.runs.leg(run.id, leg.number)

    def _next(self, lease: Lease, run: Run, runbook: Runbook, passed: tuple[str, ...]) -> Run:
        self.runs.next_leg(lease, run, runbook, passed)
        return self.runs.run(run.id) or run

    def _done(self, run: Run) -> tuple[str, ...]:
        known = states(self.runs.legs(run.id), self.runs.steps(run.id))
        return tuple(step for step, state in known.items() if state is StepState.DONE)

    def _new_id(self) -> str:
        """The date, and a letter for each run of that day."""
        day = now()[:10]
        number = sum(run.id.startswith(f"{day}-") for run in self.runs.all(self.sites.name))
        return f"{day}-{chr(ord('a') + number) if number < 26 else number}"


def say(tables: Tables, sites: Sites, word: Word, who: str) -> bool:
    """Leave a word for the controller that has the installation. False: no controller lives to hear it."""
    runs = Runs(tables)
    run = runs.open_run(sites.name)
    now_held = holder(tables, sites.name)
    if run is None or now_held is None or not now_held.alive:
        return False
    if word is Word.ABORT:
        back(sites, runs, run.id)  # refused here, where somebody reads it
    runs.say(run.id, word, "", who)
    return True


def _leave(engine: Engine, lease: Lease) -> None:
    """Have what is under way come to its next stop, so that nothing of ours goes on behind our back."""
    engine.leaving.set()
    until = time.monotonic() + _LEAVE
    while not engine.idle() and time.monotonic() < until:
        time.sleep(0.05)
    if not engine.idle():
        lease.keep()


def _broken(run: Run) -> UpdaterError:
    return UpdaterError(
        f"the run {run.id} cannot go on by itself",
        what="its workflow has ended, and its records have not",
        state="servers and sites are left as they are",
        next=[
            "updater zdu status",
            "updater zdu resume    goes on from the records",
            "updater zdu abort    goes the way back",
        ],
    )
