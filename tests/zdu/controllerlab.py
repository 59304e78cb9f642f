"""A controller and an installation in memory for it: sites that get calls all the while, and faults at will."""

from __future__ import annotations

import random
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from core.errors import CommandFailed, SiteUnreachable
from core.sql import Database, Engine
from tests.zdu.sitelab import installation, wish
from tests.zdu.world import ACCOUNTS
from tests.zdu.world import World as Model
from zdu.conduct import Pace
from zdu.controller import Controller
from zdu.gates import Facts
from zdu.limits import DrainConfig, ExpectConfig, LimitsConfig
from zdu.planning import plan
from zdu.records import Run, Sample
from zdu.runbook import Action, Gate, Runbook, Step
from zdu.sites import Sites
from zdu.tables import Tables
from zdu.world import Talk

#: Looks often and gives up soon.
QUICK = Pace(drain=DrainConfig(interval=0.02), interval=0.01, slowest=0.02, factor=0.02)


@contextmanager
def short_folder() -> Iterator[Path]:
    """A folder with a short path."""
    with tempfile.TemporaryDirectory(prefix="zdu-") as folder:
        yield Path(folder)


class Faults:
    """What goes wrong. Every fault is taken once."""

    def __init__(self) -> None:
        self.before: dict[str, Exception] = {}  # step → the action fails and does nothing
        self.unanswered: set[str] = set()  # steps whose action works, and whose answer is lost
        self.unreachable: dict[str, int] = {}  # gate's server or site → looks that get no answer


class MemoryWorld:
    """The model as a controller sees it. Each time it is asked, somebody calls and somebody hangs up."""

    def __init__(self, model: Model, *, seed: int = 1) -> None:
        self.model = model
        self.faults = Faults()
        self.acted: list[str] = []
        self.fences: list[int] = []
        self.on_effect: Callable[[Step, int], bool] = lambda *_: True  # False: nothing more of this step is done
        self.talking = True
        self.spare: set[int] = set()  # calls that nobody hangs up
        self._random = random.Random(seed)
        self._guard = threading.RLock()

    def look(self, gate: Gate) -> Facts:
        with self._guard:
            self._live()
            place = gate.server or gate.site
            if self.faults.unreachable.get(place, 0) > 0:
                self.faults.unreachable[place] -= 1
                raise SiteUnreachable(f"{place} does not answer")
            return self.model.facts()

    def act(self, step: Step, talk: Talk) -> str:
        with self._guard:
            self.fences.append(talk.fence)
            if step.id in self.faults.before:
                raise self.faults.before.pop(step.id)
            self.acted.append(step.id)
            for number, effect in enumerate(self.model.effects(step)):
                if not self.on_effect(step, number):
                    break
                effect()
                self.model.check()
                self._live()
            if step.id in self.faults.unanswered:
                self.faults.unanswered.discard(step.id)
                raise CommandFailed(f"{step.where}: no answer within 60 s")
        return f"{step.action} made"

    def sample(self) -> Sample:
        with self._guard:
            facts = self.model.facts().sites
            return Sample(
                calls={name: site.calls for name, site in facts.items()},
                lag={name: site.lag for name, site in facts.items() if name != self.model.main},
                delta={name: site.untransferred for name, site in facts.items() if site.alone},
            )

    def _live(self) -> None:
        """A moment of ordinary life."""
        if self.talking and len(self.model.calls) < 6:
            self.model.call(self._random.choice(ACCOUNTS), 1, self._random.randrange(9))
        for number in [each for each in self.model.calls if each not in self.spare]:
            if self._random.random() < 0.4:
                # Nothing is used of most calls, so that the accounts last for the whole test.
                self.model.hang_up(number, int(self._random.random() < 0.02))
        self.model.check()


def sites(folder: Path, **more: Any) -> Sites:
    """Two small sites and two dispatchers; the controller's database is a file in the folder."""
    made = installation(servers=4, limits=LimitsConfig(parallel_servers=2), stand_in="B", **more)
    database = Database(engine=Engine.SQLITE, path=folder / "zdu.sqlite")
    return replace(made, controller=replace(made.controller, database=database), expect=ExpectConfig())


def runbook(of: Sites, **more: Any) -> Runbook:
    return plan(of, wish(of, **more))


def model(of: Sites) -> Model:
    return Model(of, dict(wish(of).found))


@contextmanager
def controller(of: Sites, world: Any, **more: Any) -> Iterator[Controller]:
    """A controller with open tables."""

    def made(run: Run, fence: int) -> Any:
        return world

    settings: dict[str, Any] = {"pace": QUICK, "samples": 0.2} | more
    with Tables.open(of.controller.database, patience=10) as tables:
        yield Controller(of, tables, made, **settings)


def in_service(world: Model, release: str) -> None:
    """Everything is as it should be after a run: ordinary, on this release, and every call charged once."""
    assert {node.runs for node in world.nodes.values()} == {release}
    assert not world.closed and not world.alone and not world.held and not world.billing
    assert {each.sends_to for each in world.dispatchers.values()} == {world.sites.normally}
    assert all(each.ready for each in world.dispatchers.values())
    assert world.vip == world.sites.dispatchers.servers[0].name
    assert not world.delta.xdrs and not any(world.book.locked.values())
    assert world.book.xdrs == world.ended
    world.check()


def first(of: Runbook, action: Action, where: str = "") -> Step:
    """The first step with this action (there)."""
    return next(step for step in of.steps if step.action is action and where in ("", step.where))
