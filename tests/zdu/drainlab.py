"""A site whose calls a test counts, as a controller sees it: with the drain gate of its own, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any, cast

from zdu import sightings
from zdu.conduct import Evidence, Pace, conduct
from zdu.gates import Facts
from zdu.hands import Hands
from zdu.limits import DrainConfig
from zdu.records import Sample
from zdu.runbook import Action, Gate, GateKind, Step
from zdu.traffic.drain import Reading
from zdu.traffic.targets import Dispatcher
from zdu.world import Talk

EMPTY = Gate(kind=GateKind.NO_CALLS, site="A")

#: The step that waits for it.
WAIT = Step(
    id="3/drain-wait/A", action=Action.DRAIN_WAIT, what="", needs=(), gates=(EMPTY,), seconds=1, batch=1, site="A"
)


class Counted:
    """`read`: the site's own count. `dispatchers`: who else counts its calls."""

    def __init__(self, read: Callable[[], Reading], drain: DrainConfig, dispatchers: Sequence[Dispatcher] = ()) -> None:
        self.drain = drain
        sites = SimpleNamespace(
            drain=drain, by_name={"A": SimpleNamespace(name="A")}, dispatchers=SimpleNamespace(servers=())
        )
        counter = SimpleNamespace(read=read)
        hands = SimpleNamespace(sites=sites, calls=lambda _: counter, dispatchers=list(dispatchers), vips=())
        self._hands = cast(Hands, hands)

    def look(self, gate: Gate) -> Facts:
        return sightings.look(self._hands, gate)

    def act(self, step: Step, talk: Talk) -> str:
        return "waited"

    def sample(self) -> Sample:
        return Sample()

    def wait(self, talk: Talk) -> list[dict[str, Any]]:
        """Until it is empty; the evidence of the step."""
        evidence = Evidence()
        conduct(self, WAIT, talk, Pace(drain=self.drain), evidence)
        return evidence.lines


class Patient:
    """A controller that wants nothing of a step."""

    fence = 1
    job = "job"

    def check(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass
