"""Executes runbooks on a `World` as a controller would: what comes next it asks `zdu.progress`, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace

from tests.zdu.world import Harm, World
from zdu.gates import judge
from zdu.progress import Progress, next_steps, way_back_from
from zdu.records import StepState
from zdu.runbook import Action, Runbook, Step
from zdu.sites import Sites


class Rehearsal:
    """A world, a run, and the steps under way in this life of the controller."""

    def __init__(self, sites: Sites, world: World, runbook: Runbook) -> None:
        self.sites = sites
        self.world = world
        self.progress = Progress(runbook=runbook)
        self.under_way: dict[str, Iterator[object]] = {}

    def fork(self) -> Rehearsal:
        """The same run in a world of its own, in the hands of another controller."""
        made = Rehearsal(self.sites, copy.deepcopy(self.world, {id(self.sites): self.sites}), self.progress.runbook)
        made.progress = self.progress
        return made

    def begin(self, step: Step) -> None:
        """Write down the intent, look whether it may begin, begin."""
        self._record(step, StepState.BEGUN)
        facts = self.world.facts()
        for gate in step.needs:
            verdict = judge(gate, facts)
            if not verdict.open:
                raise Harm(f"{step.id} cannot begin: {verdict.found}")
        self.under_way[step.id] = self.world.effects(step)

    def advance(self, step: Step) -> bool:
        """One small effect, or the gates. False: there is nothing to do but to wait."""
        effect = next(self.under_way[step.id], None)
        if effect is not None:
            effect()  # type: ignore[operator]
            self.world.check()
            return True
        facts = self.world.facts()
        if not all(judge(gate, facts).open for gate in step.gates):
            if step.action in (Action.DRAIN_WAIT, Action.SYNC_CLOSE):
                return False
            del self.under_way[step.id]
            self._record(step, StepState.FAILED)
            return True
        del self.under_way[step.id]
        self._record(step, StepState.DONE)
        return True

    def crash(self) -> None:
        """The controller dies, and another one takes over with what is on record."""
        self.under_way.clear()

    def abort(self) -> None:
        """Go back. Raises RollbackRefused past the point of no return."""
        back = way_back_from(self.sites, self.progress)
        self.under_way.clear()
        self.progress = Progress(runbook=back)

    def ready(self) -> tuple[Step, ...]:
        """Steps that may be begun."""
        return next_steps(self.progress, frozenset(self.under_way))

    def active(self) -> list[Step]:
        return [self.progress.runbook.by_id[name] for name in self.under_way]

    def to_the_end(self) -> None:
        """Go on until all is done; calls end when they are waited for. Every step must be possible in turn."""
        self.world.falls_back.clear()
        for _ in range(20_000):
            steps = [*self.active(), *self.ready()]
            if not steps:
                break
            step = steps[0]
            if step.id not in self.under_way:
                self.begin(step)
            elif not self.advance(step):
                if not self.world.calls:
                    raise Harm(f"{step.id} waits for nothing")
                self.world.hang_up(next(iter(self.world.calls)), 1)
                self.world.check()
        if not self.progress.finished:
            raise Harm(f"stuck in {self.progress.phase}")

    def _record(self, step: Step, state: StepState) -> None:
        self.progress = replace(self.progress, states={**self.progress.states, step.id: state})


def in_service(rehearsal: Rehearsal, releases: dict[str, str]) -> None:
    """Everybody is served in the ordinary way, each server runs what it should, and the books are one."""
    world = rehearsal.world
    assert {name: node.runs for name, node in world.nodes.items()} == releases
    assert all(node.up for node in world.nodes.values())
    assert not world.closed and not world.alone and not world.held and not world.delta.xdrs
    assert not any(world.book.locked.values()) and not world.delta.reserved and not world.billing
    assert set(world.book.reserved) == set(world.calls)
    assert world.book.xdrs == world.ended
    assert set(world.takers()) == set(rehearsal.sites.normally)
    assert all(each.ready and each.sends_to == world.takers() for each in world.dispatchers.values())
    world.check()
