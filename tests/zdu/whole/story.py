"""A rehearsal from beginning to end: the installation, calls all the time, the controller, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.zdu.lab import Host
from tests.zdu.programs import Outcome
from tests.zdu.whole import proof
from tests.zdu.whole.controller import Controller, Event
from tests.zdu.whole.installation import NEW, Installation, installation
from tests.zdu.whole.traffic import Traffic


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What came of a rehearsal. `drains_ms`: site → until the gate was open, since its last call was over and charged,
    or from the beginning of the step where that was later; `gaps_ms`: of the virtual IP, at each move of it;
    `moved_elsewhere`: steps that moved it and should not have; `slowest_charge`: seconds from the end of a call.
    """

    calls: Outcome
    books: proof.Books
    runs: dict[str, str]
    migrated: dict[str, tuple[bool, bool, bool]]
    late: dict[str, int]
    gaps_ms: list[float]
    moved_elsewhere: list[str]
    slowest_charge: float
    drains_ms: dict[str, float]
    seconds: float
    per_second: float

    def require_nothing_lost(self) -> None:
        """No call failed or was cut, each was charged once, the replica is the same, and no closed site got a call."""
        assert self.calls.perfect, self.calls
        assert self.books.exact, self.books
        assert self.books.xdrs == self.calls.made == self.books.at_a + self.books.at_b
        assert not any(self.late.values()), self.late
        assert not self.moved_elsewhere, self.moved_elsewhere

    def require_everybody_runs(self, release: str) -> None:
        """Each node has this release."""
        assert set(self.runs.values()) == {release}, self.runs


@dataclass
class Story:
    """A rehearsal under way."""

    made: Installation
    traffic: Traffic
    controller: Controller
    gaps: proof.Gaps
    _drains: dict[str, float] = field(default_factory=dict)

    def host(self, name: str) -> Host:
        """One of the hosts."""
        return self.made.lab.hosts[name]

    def drained(self, event: Event) -> None:
        """A drain that came to its end: how long after the last call."""
        if event.kind == "finished" and event.action == "drain-wait":
            site = next(each for each in (self.made.a, self.made.b) if event.step.endswith(f"/{each.name}"))
            asked = self.controller.at("started", event.step)
            self._drains[site.name] = (event.at - max(asked, proof.last_call(site, event.at))) * 1000

    def end(self) -> Ending:
        """Let the last calls end, and look at everything."""
        events = self.controller.events
        calls = self.traffic.finish()
        return Ending(
            calls=calls,
            books=proof.books(self.made, self.traffic, calls),
            runs=self.made.runs(),
            migrated=proof.migrated(self.made),
            late={site.name: proof.late(site) for site in (self.made.a, self.made.b)},
            gaps_ms=self.gaps.ms,
            moved_elsewhere=self.gaps.elsewhere,
            slowest_charge=max(proof.slowest_charge(site) for site in (self.made.a, self.made.b)),
            drains_ms=self._drains,
            seconds=events[-1].at - events[0].at,
            per_second=calls.made / self.traffic.seconds,
        )


@contextmanager
def story(
    *,
    rate: int,
    talk: float = 0.5,
    logs: Path | None = None,
    on_event: Callable[[Event], None] = lambda _: None,
    accounts: int = 100,
) -> Iterator[Story]:
    """The installation in service on the old release, with calls going on."""
    with installation(logs, accounts=accounts) as made:
        gaps = proof.Gaps(made)

        def seen(event: Event) -> None:
            gaps.seen(event)
            told.drained(event)
            on_event(event)

        traffic = Traffic(made.caller, rate=rate, talk=talk)
        told = Story(made, traffic, Controller(made, seen), gaps)
        traffic.flows(rate)
        yield told


def the_whole(told: Story, *, calls: int = 0) -> Ending:
    """The upgrade without a fault, with so many calls at least. AssertionError when it does not come to its end."""
    controller = told.controller
    controller.run()
    code = controller.wait(600)
    assert code == 0, (code, controller.errors, controller.said())
    if told.traffic.made() < calls:
        told.traffic.flows(calls - told.traffic.made(), timeout=2 * calls / told.traffic.rate)
    ending = told.end()
    ending.require_everybody_runs(NEW)
    return ending


def killed_at_every_step(told: Story) -> Ending:
    """The upgrade, with a controller that is killed in each step, as soon as it has begun it, and started again."""
    controller, killed = told.controller, set[str]()
    process = controller.run()
    while True:
        fresh = {each.step for each in controller.events if each.kind == "started"} - killed
        if fresh and process.running:
            killed |= fresh
            controller.kill()
            process = controller.begin("resume")
        elif not process.running:
            assert process.wait() == 0, (controller.errors, controller.said())
            break
        time.sleep(0.01)
    print(f"killed {len(killed)} steps under way", flush=True)
    ending = told.end()
    ending.require_everybody_runs(NEW)
    return ending
