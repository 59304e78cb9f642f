"""A node, as the controller sees it: how it stands, and the verbs of an upgrade."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Final

from core.errors import GateNotPassed, HealthFailed, NotReady, WrongState
from zdu import node_answers as answers
from zdu.agent import AWAY, TRIES, Agent, Events
from zdu.gates import NodeFacts
from zdu.node_answers import CheckSeen, JobState, MigrationSeen, NodeJob, NodePlan, NodeStatus

#: Seconds for what asks more than a look: a plan opens the bundle and tries what is carried, health checks have their
#: own deadline.
LONG: Final = 900.0

News = Callable[[str], None]


class Node(Agent):
    """A node and its agent."""

    # -- looking

    def status(self) -> NodeStatus:
        """Where it stands."""
        asked = datetime.now(UTC)
        data = self._answer(self._ask("status"))
        return answers.status(data, self.name, asked=asked, answered=datetime.now(UTC))

    def doctor(self) -> tuple[CheckSeen, ...]:
        """Everything that an upgrade relies on, checked there; the faults have `ok` False."""
        result = self._ask("doctor")
        if result.code not in (0, NotReady.exit_code):
            self._answer(result)
        return answers.checks(answers.last_object(result.stdout, self.name), self.name)

    def plan(self, source: str, *options: str) -> NodePlan:
        """What staging and activating a bundle would do there, with every check made; what stands against it is in
        `error`. `source`: a path on the node, or a URL.
        """
        result = self._ask("plan", source, *options, timeout=LONG)
        said = answers.objects(result.stdout)
        told = next((found for found in said if isinstance(found, dict) and "steps" in found), None)
        error = self._error(result) if result.code != 0 else None
        if told is None:
            raise error or self._speechless(result)
        return answers.plan(told, self.name, error)

    def migrations(self) -> tuple[MigrationSeen, ...]:
        """The data migrations of the newest release there, and how far each database is with them."""
        return answers.migrations(self._answer(self._ask("migrate", "status", timeout=LONG)), self.name)

    def health(self) -> str:
        """Why its health checks do not pass; empty when they do. For a node at rest: nothing changes there."""
        try:
            self._answer(self._ask("confirm", timeout=LONG))
        except HealthFailed as error:
            return "; ".join((error.message, *error.what))
        return ""

    def facts(self, *, fit: bool = False, health: bool = False) -> NodeFacts:
        """What gates ask about a node. `fit`: ask its doctor too; `health`: have it check its health, which may take as
        long as its deadline. What was not asked is None.
        """
        seen = self.status()
        problems = list(seen.problems)
        well: bool | None = None
        if fit:
            faults = [f"{each.name}: {each.found}" for each in self.doctor() if not each.ok]
            problems += faults
            if seen.upgrade is not None:
                problems.append(f"{seen.upgrade.verb} {seen.upgrade.run} is open")
            well = not faults and seen.upgrade is None and seen.indicator != "CRITICAL"
        healthy: bool | None = None
        if health and seen.good and seen.upgrade is None:
            why = self.health()
            healthy = not why
            problems += [why] if why else []
        return NodeFacts(
            runs=seen.runs or None,
            good=seen.good if seen.running else None,
            other=seen.complete or None,
            booting=seen.booting or None,
            fit=well,
            healthy=healthy,
            problems=tuple(problems),
        )

    # -- verbs

    def stage(self, job: str, source: str, within: float, *options: str, on_event: Events | None = None) -> NodeJob:
        """Install a release on its inactive slot, non-blocking migrations included; it serves on. What is staged
        already is only verified; what was interrupted goes on.
        """
        return self.done(job, within, "stage", source, *options, on_event=on_event)

    def activate(
        self, job: str, release: str, within: float, *options: str, on_event: Events | None = None
    ) -> NodeStatus:
        """Have it boot the staged release, blocking migrations before that. Returns when it is on its way (or there):
        `confirmed` waits for the rest. Safe to repeat: it asks first where the node stands.
        """
        return self._switch("activate", job, release, within, options, on_event)

    def rollback(
        self, job: str, release: str, within: float, *options: str, on_event: Events | None = None
    ) -> NodeStatus:
        """Have it boot its other slot again, which holds `release`. As `activate`."""
        self._idle(within)
        return self._switch("rollback", job, release, within, options, on_event)

    def resume(self, job: str, within: float) -> NodeJob:
        """Go on with what is open there."""
        return self.done(job, within, "resume")

    def abort(self, job: str, within: float) -> NodeStatus:
        """Undo what is open there; nothing when nothing is. It may reboot into its old slot: see `confirmed`."""
        if self._idle(within).upgrade is not None:
            self.done(job, within, "abort")
        return self._through(within, self.status)

    def migrate(self, job: str, phase: str, within: float, *options: str) -> NodeJob:
        """Run one phase of the data migrations by itself: non-blocking, blocking or cleanup."""
        return self.done(job, within, "migrate", "run", "--phase", phase, *options)

    def confirmed(self, release: str, within: float, *, on_news: News | None = None) -> NodeStatus:
        """Wait until it runs the release, confirmed; through the time when it is down.

        Raises HealthFailed when it fell back, WrongState when it runs something else and is not on its way, Unreachable
        when its host key is wrong, GateNotPassed after `within` seconds: what it does then is not known, ask again.
        """
        until = time.monotonic() + within
        told = ""
        while True:
            try:
                seen = self.status()
            except AWAY as error:
                news = f"{self.name} does not answer: {self._awaited(error)}"
            else:
                if seen.runs == release and seen.good and seen.upgrade is None:
                    return seen
                self._lost_its_way(seen, release)
                news = f"{self.name} runs {seen.runs or 'an unknown release'}, {_doing(seen)}"
            if news != told and on_news is not None:
                on_news(news)
            told = news
            if time.monotonic() > until:
                raise GateNotPassed(
                    f"{self.name} is not confirmed on {release} within {within:g} s",
                    what=told,
                    state="it was not given up: it may still get there, or fall back by itself",
                    next=[f"on {self.name}: updater status", f"the console of {self.name}, if it stays away"],
                )
            self._rest()

    # -- inside

    def _switch(
        self, verb: str, job: str, release: str, within: float, options: Sequence[str], on_event: Events | None
    ) -> NodeStatus:
        for attempt in range(TRIES + 1):
            seen = self._through(within, self.status)
            open_run = seen.upgrade
            if open_run is None and (seen.runs == release or (attempt and seen.fell_back(release))):
                return seen  # it is there, or was there and came back: `confirmed` says so
            if open_run is not None and open_run.state == "under way" and seen.booting == release:
                return seen  # on its way
            resumes = open_run is not None and open_run.verb == verb and open_run.state != "under way"
            words = ("resume",) if resumes else (verb, *options)
            found = self.once(job, within, *words, on_event=on_event)
            if found.state is JobState.DONE:
                break
        return self._through(within, self.status)

    def _idle(self, within: float) -> NodeStatus:
        """Wait until no process works on an open run there."""
        until = time.monotonic() + within
        while True:
            seen = self._through(within, self.status)
            if seen.upgrade is None or seen.upgrade.state != "under way":
                return seen
            if time.monotonic() > until:
                raise GateNotPassed(
                    f"{self.name} is busy: {_doing(seen)}",
                    state="nothing was changed there by this",
                    next=f"on {self.name}: updater status",
                )
            self._rest()

    def _lost_its_way(self, seen: NodeStatus, release: str) -> None:
        if seen.upgrade is not None or seen.booting == release:
            return
        if why := seen.fell_back(release):
            raise HealthFailed(
                f"{self.name} tried {release} and went back to {seen.runs}",
                what=why.removeprefix("fell back: "),
                state=f"it runs {seen.runs}, {'confirmed' if seen.good else 'not confirmed'}",
                next=[f"on {self.name}: updater history", "mend what its health checks found, and stage again"],
            )
        if seen.runs and seen.runs != release:
            raise WrongState(
                f"{self.name} runs {seen.runs}, and is not on its way to {release}",
                what=seen.last_run,
                state="nothing is under way there",
                next=[f"on {self.name}: updater status", f"on {self.name}: updater history"],
            )


def _doing(seen: NodeStatus) -> str:
    if seen.upgrade is not None:
        return f"{seen.upgrade.verb} in step {seen.upgrade.step}, {seen.upgrade.state}"
    return "on trial" if seen.booting else "confirmed" if seen.good else "not confirmed"
