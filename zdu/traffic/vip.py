"""The virtual IP of the dispatchers, and how it moves. It has moved when it is there, gone from everywhere else, and
answers.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

from core import faults
from core.errors import GateNotPassed, UpdaterError, ZduRefused
from zdu.drivers import VipConfig, VipKind
from zdu.traffic.probe import Probe, probe
from zdu.traffic.shell import ENDING, Shell
from zdu.traffic.silence import Silence
from zdu.traffic.targets import from_all
from zdu.traffic.vip_hosts import CommandVipHost, KeepalivedHost

#: Seconds between two looks while it moves.
LOOK = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A move that ended well. `before`: who held it; empty when `to` held it already. `seconds`: until it was there,
    gone elsewhere, and answering (not the gap: the old holder keeps it until the new one has it). `silence`: what was
    heard from it meanwhile; None: that is not known, or nothing moved.
    """

    to: str
    before: str
    seconds: float
    silence: Silence | None = None


class VipHost(Protocol):
    """One host that can hold the address; what a new driver brings. Each call is safe to repeat."""

    @property
    def name(self) -> str:
        """The host's name."""

    def holds(self) -> bool:
        """Is the address here? Raises CommandFailed when that cannot be told."""

    def give(self) -> None:
        """Stand by: leave it to the other host, now and after a restart. Goes on holding it where there is none."""

    def take(self) -> None:
        """Be the one that gets it as soon as its holder gives it."""

    def keep(self) -> None:
        """As the one that holds it: go on holding it, although a host that is preferred stands by no longer."""

    def join(self) -> None:
        """Stand by no longer, and leave the address where it is: its holder was told to `keep` it, or is preferred."""

    def ready(self) -> bool:
        """Could it hold the address: does it not stand by? Raises CommandFailed when that cannot be told."""


class Vip:
    """A virtual IP, and the hosts that hold it in turn, the usual one first."""

    def __init__(self, config: VipConfig, hosts: Sequence[VipHost], asking: Probe) -> None:
        self.config = config
        self.address = config.address.partition("/")[0]
        self.hosts = list(hosts)
        self.asking = asking

    def holders(self) -> list[str]:
        """Names of the hosts that have it now: one, when all is well. Raises the error of a host that does not tell."""
        return from_all(self.hosts, lambda host: [host.name] if host.holds() else [])

    def holder(self) -> str:
        """The one that holds it. Raises GateNotPassed when it is none or more than one, with what to do."""
        held = self.holders()
        if len(held) == 1:
            return held[0]
        raise self._wrong_number(held)

    def check(self) -> list[str]:
        """What is not well with it in the ordinary course of things, one line each. Changes nothing."""
        try:
            holder = self.holder()
            aside = [host.name for host in self.hosts if not host.ready()]
        except ENDING:
            raise
        except UpdaterError as error:
            return ["; ".join((error.message, *error.what))]
        wrong = [f"{name} stands by: after the upgrade before, or by somebody's hand" for name in aside]
        if self.config.kind is VipKind.KEEPALIVED and holder != self.hosts[0].name and not aside:
            wrong.append(f"{holder} is preferred: the sites file has to name it first among the dispatchers")
        said = self.asking.ask(self.address)
        return [*wrong, said] if said else wrong

    def move(self, to: str) -> Moved:
        """Have `to` hold it, and see it answer there. Safe to repeat. The others stand by meanwhile, and are ready
        again at the end.

        Raises ZduRefused, or GateNotPassed when none or several hold it (nothing was changed); GateNotPassed when it
        does not come, or does not answer there: then the one that held it holds it again, and the others are ready, as
        far as they can be told; GateNotPassed when it moved, and one of the others cannot be told to be ready again.
        """
        if to not in [host.name for host in self.hosts]:
            raise ZduRefused(f"{self.address} cannot move to {to}", what="it is none of its hosts", state=_UNCHANGED)
        before = self.holder()
        target = next(host for host in self.hosts if host.name == to)
        if before == to:
            wrong, seconds, silence = self._wait(to), 0.0, None
        else:
            listener = self.asking.listen(self.address)
            with listener or nullcontext():
                began, wrong = time.monotonic(), self._change(target)
                seconds = time.monotonic() - began
            silence = listener.silence if listener else None
        if wrong and before != to:
            self._back(before, target)
            raise GateNotPassed(
                f"{self.address} did not move from {before} to {to} within {self.config.patience:g} s",
                what=wrong,
                state=self._where(),
                next=[f"see that {to} is well: its dispatcher, what holds its virtual IP, its network", "then resume"],
            )
        if wrong:
            raise GateNotPassed(
                f"{self.address} is on {to}, but does not answer",
                what=wrong,
                state=self._where(),
                next=[f"see that the dispatcher on {to} is well", "then resume"],
            )
        faults.point("vip:moved")
        self._settle(target)
        return Moved(to=to, before="" if before == to else before, seconds=seconds, silence=silence)

    def admit(self, name: str) -> None:
        """Have a host that stood by be ready to hold it, in case that the one that holds it fails. It does not move."""
        holding = [host for host in self.hosts if host.holds()]
        for host in holding:
            if host.name == name:
                host.take()  # it stands by with it, where nobody took it
            host.keep()
        faults.point("vip:kept")
        for host in self.hosts:
            if host.name == name and host not in holding:
                host.join()

    def _change(self, target: VipHost) -> list[str]:
        """Have it move; what is wrong in the end."""
        target.take()
        faults.point("vip:taken")
        for host in self.hosts:
            if host is not target:
                host.give()
        faults.point("vip:given")
        return self._wait(target.name)

    def _settle(self, target: VipHost) -> None:
        """The others are ready again, and it stays where it is: at the usual host as without an upgrade, elsewhere
        because that one keeps it. Raises GateNotPassed when a host cannot be told.
        """
        try:
            if target is self.hosts[0]:
                target.take()
            else:
                target.keep()
            for host in self.hosts:
                if host is not target:
                    host.join()
        except ENDING:
            raise
        except UpdaterError as error:  # its own kind would have the step's gate asked, which is about `target` only
            raise GateNotPassed(
                f"{self.address} is on {target.name}, but not every host was told that it may stay",
                what=[error.message, *error.what],
                state=self._where(),
                next=["see that every dispatcher can be reached", "then resume"],
            ) from error

    def _wait(self, to: str) -> list[str]:
        """Until it has moved; what is wrong when the time is over. An answer must come soon after it is there."""
        deadline = time.monotonic() + self.config.patience
        while (held := self.holders()) != [to]:
            if time.monotonic() > deadline:
                return [f"held by {', '.join(held) or 'none'}"]
            time.sleep(LOOK)
        deadline = time.monotonic() + self.config.probe.timeout
        while said := self.asking.ask(self.address):
            if time.monotonic() > deadline:
                return [said]
            time.sleep(LOOK)
        # Two that hold it in turn would have passed until here.
        return [] if (held := self.holders()) == [to] else [f"held by {', '.join(held) or 'none'}"]

    def _back(self, before: str, target: VipHost) -> None:
        """Let the one that held it hold it again, and all be as before, as far as the hosts can be told."""
        for host in self.hosts:
            try:
                if host.name == before:
                    host.take()
                elif host is target:
                    host.give()
            except ENDING:
                raise
            except UpdaterError:
                continue  # the error that is on its way says more
        deadline = time.monotonic() + self.config.patience
        while self._where() != f"held by {before}":
            if time.monotonic() > deadline:
                return
            time.sleep(LOOK)
        try:
            self._settle(next(host for host in self.hosts if host.name == before))
        except ENDING:
            raise
        except UpdaterError:
            return  # as above

    def _where(self) -> str:
        try:
            return f"held by {', '.join(self.holders()) or 'none'}"
        except ENDING:
            raise
        except UpdaterError as error:
            return f"who holds it is not known: {error.message}"

    def _wrong_number(self, held: Sequence[str]) -> GateNotPassed:
        names = ", ".join(held)
        if held:
            return GateNotPassed(
                f"{self.address} is held by {len(held)} hosts at once: {names}",
                what="what holds it was killed on one of them, or the hosts do not hear each other",
                state=_UNCHANGED,
                next=[
                    "systemctl status keepalived    on both: start it where it does not run; it lets the address go",
                    f"ip addr del {self.address}/… dev …    on the one that should not have it",
                ],
            )
        return GateNotPassed(
            f"{self.address} is held by no host",
            what=f"looked on {', '.join(host.name for host in self.hosts)}",
            state=_UNCHANGED,
            next="systemctl status keepalived    on each of them; start it, and see what it says",
        )


_UNCHANGED = "nothing was changed"


def vip(config: VipConfig, shells: Sequence[Shell], everywhere: Mapping[str, Shell] | None = None) -> Vip:
    """The driver for a virtual IP that these hosts hold. `everywhere`: all servers, for a probe from one of them."""
    of_host = KeepalivedHost if config.kind is VipKind.KEEPALIVED else CommandVipHost
    asking = probe(config.probe, everywhere or {shell.name: shell for shell in shells})
    return Vip(config, [of_host(config, shell) for shell in shells], asking)
