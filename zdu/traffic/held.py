"""Dispatchers whose destinations are held and let go one by one, with a record of what was held beside the file that
the program reads when it starts.

The record makes it safe to be stopped anywhere: it is written before anything is held, and removed after everything was
let go. What stands in it is ours; what an operator has switched off does not, and stays off.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core import faults
from core.errors import CommandFailed, GateNotPassed, UpdaterError, ZduRefused
from zdu.drivers import DispatcherConfig
from zdu.traffic.drain import Reading
from zdu.traffic.shell import ENDING, Shell
from zdu.traffic.targets import State, Target, count_live, from_all, gaps, on_each, require, require_known

#: Seconds between two looks at a destination that is to come back.
LOOK = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """A destination as the program on a host has it. `off_at_start`: held by the file that it reads when it starts."""

    state: State
    off_at_start: bool
    live: int | None = None


class Host(Protocol):
    """The program on one dispatcher host; what a new driver of this family brings."""

    @property
    def shell(self) -> Shell:
        """The way to it."""

    @property
    def name(self) -> str:
        """The host's name."""

    def see(self) -> dict[str, Seen]:
        """Its destinations, those of no site included. Raises CommandFailed when it does not tell."""

    def live(self, destination: str) -> int | None:
        """Calls that go through this host to it now; None where they are not counted."""

    def hold(self, destination: str) -> None:
        """Nothing new to it, as long as the program runs."""

    def let_go(self, destination: str) -> None:
        """It gets its share again as soon as it answers."""

    def at_start(self, off: Mapping[str, bool]) -> None:
        """Have the file for the next start hold these destinations (True), or not (False), durably."""


class HeldDispatcher:
    """See `zdu.traffic.dispatcher.Dispatcher`."""

    def __init__(self, config: DispatcherConfig, hosts: Sequence[Host]) -> None:
        assert config.state_file is not None
        self.config = config
        self.hosts = hosts
        self.name = config.name or str(config.kind)
        self.site_of = {name: target.site for target in config.targets for name in target.destinations}
        self.record = config.state_file.with_name(config.state_file.name + ".held")

    def check(self) -> list[str]:
        """Do all hosts tell, and do they know each destination of each site, and no other?"""
        found: list[str] = []
        for host in self.hosts:
            try:
                found += self._strange(host, host.see())
                self._held(host)
            except ENDING:
                raise
            except UpdaterError as error:
                found.append("; ".join((error.message, *error.what)))
        return found

    def targets(self) -> list[Target]:
        """All destinations on all hosts."""
        return from_all(self.hosts, self._targets)

    def live(self, site: str) -> list[Reading]:
        """What each host counts at the destinations of the site."""
        names = self.config.destinations(site)
        return from_all(self.hosts, lambda host: count_live(host.name, lambda: [host.live(name) for name in names]))

    def send_to(self, sites: Sequence[str]) -> list[Target]:
        """Let go those of `sites` that we hold, see that each host can send to each site, then hold the others."""
        require_known(self.name, list(dict.fromkeys(self.site_of.values())), sites)
        if faults_found := self.check():
            raise ZduRefused(
                f"{self.name} cannot send to {', '.join(sites)}",
                what=faults_found,
                state="nothing was changed",
                next="updater zdu check",
            )
        wanted = [name for name, site in self.site_of.items() if site in sites]
        others = [name for name, site in self.site_of.items() if site not in sites]
        doing = f"send to {', '.join(sites)}"
        on_each(self.hosts, lambda host: self._let_go(host, wanted), doing)
        self._await(sites)
        on_each(self.hosts, lambda host: self._hold(host, others), doing)
        found = self.targets()
        require(found, sites, self.name)
        return found

    def restore(self) -> list[Target]:
        """Let go all that we hold, everywhere, and wait until it is active."""
        ours = {(target.host, target.destination) for target in self.targets() if target.ours}
        on_each(self.hosts, lambda host: self._let_go(host, list(self.site_of)), "restore the dispatcher")

        def missing(found: Sequence[Target]) -> list[str]:
            down = [t for t in found if (t.host, t.destination) in ours and t.state is State.DOWN]
            return [f"{target.destination} ({target.site}) does not answer {target.host}" for target in down]

        found = self._until(lambda found: not missing(found))
        if faults_found := missing(found):
            raise GateNotPassed(
                f"{self.name} is restored, but not all of it answers",
                what=faults_found,
                state="nothing is held any more; a destination gets calls as soon as it answers",
                next="see why it does not answer the dispatcher's pings, then resume",
            )
        return found

    def _let_go(self, host: Host, destinations: Sequence[str]) -> None:
        held = self._held(host)
        ours = {name: False for name in destinations if name in held}
        if not ours:
            return
        seen = host.see()
        for name in ours:
            if held[name] == "active" and name in seen and seen[name].state is State.DRAINING:
                host.let_go(name)
        faults.point("dispatcher:let-go")
        host.at_start(ours)
        faults.point("dispatcher:let-go-file")
        self._write(host, {name: was for name, was in held.items() if name not in ours})

    def _hold(self, host: Host, destinations: Sequence[str]) -> None:
        held, seen = self._held(host), host.see()
        # One that was off before, but would come back with a restart, is ours only in the file.
        new = {
            name: "draining" if seen[name].state is State.DRAINING else "active"
            for name in destinations
            if name not in held and not (seen[name].state is State.DRAINING and seen[name].off_at_start)
        }
        if new:
            self._write(host, held | new)
        faults.point("dispatcher:record")
        if any(not seen[name].off_at_start for name in destinations):
            host.at_start(dict.fromkeys(destinations, True))
        faults.point("dispatcher:file")
        for name in destinations:
            if seen[name].state is not State.DRAINING:
                host.hold(name)

    def _await(self, sites: Sequence[str]) -> None:
        """Until every host can send to each of the sites."""
        if faults_found := gaps(self._until(lambda found: not gaps(found, sites)), sites):
            raise GateNotPassed(
                f"{self.name} cannot send to {', '.join(sites)}: no answer within {self.config.timeout:g} s",
                what=faults_found,
                state="nothing more was held: calls go where they went before",
                next="see why the site does not answer the dispatcher's pings, then resume",
            )

    def _until(self, true: Callable[[Sequence[Target]], bool]) -> list[Target]:
        """Look until it is so, or the time is over; what was seen last."""
        deadline = time.monotonic() + self.config.timeout
        while not true(found := self.targets()) and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(LOOK, left))
        return found

    def _targets(self, host: Host) -> list[Target]:
        held = self._held(host)
        return [
            Target(
                host=host.name,
                site=self.site_of.get(name, ""),
                destination=name,
                state=one.state,
                kept=one.off_at_start == (one.state is State.DRAINING),
                ours=name in held,
                live=one.live,
            )
            for name, one in host.see().items()
        ]

    def _strange(self, host: Host, seen: Mapping[str, Seen]) -> list[str]:
        missing = [
            f"{host.name} has no destination {name} ({site})" for name, site in self.site_of.items() if name not in seen
        ]
        return missing + [
            f"{host.name} sends to {name} too, which belongs to no site in the sites file"
            for name in seen
            if name not in self.site_of
        ]

    def _held(self, host: Host) -> dict[str, str]:
        """What we hold there → what it was before: active, or draining (by somebody else, until the next start)."""
        if not host.shell.exists(self.record):
            return {}
        raw = host.shell.read(self.record)
        try:
            held = json.loads(raw)["held"]
            if isinstance(held, dict) and set(held.values()) <= {"active", "draining"}:
                return held
        except (ValueError, KeyError, TypeError):
            pass
        raise CommandFailed(
            f"{self.record} on {host.name} is damaged",
            what=raw[:200].decode(errors="replace"),
            next='write {"held": {DESTINATION: "active"}} into it for each that is held, or remove it when none is',
        )

    def _write(self, host: Host, held: Mapping[str, str]) -> None:
        host.shell.write(self.record, (json.dumps({"held": held}, indent=1) + "\n").encode())
