"""The virtual IP of the dispatchers, and how it moves. It has moved when it is there, gone from everywhere else, and
answers.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from core import faults
from core.errors import CommandFailed, GateNotPassed, UpdaterError, ZduRefused
from zdu.drivers import VipConfig, VipKind
from zdu.traffic.probe import Probe, probe
from zdu.traffic.shell import ENDING, Shell

#: Seconds between two looks while it moves.
LOOK = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A move that ended well. `before`: who held it; empty when `to` held it already. `seconds`: until it was there,
    gone elsewhere, and answering (not the gap: the old holder keeps it until the new one has it).
    """

    to: str
    before: str
    seconds: float


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
        """Be ready to hold it."""

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
        return [host.name for host in self.hosts if host.holds()]

    def holder(self) -> str:
        """The one that holds it. Raises GateNotPassed when it is none or more than one, with what to do."""
        held = self.holders()
        if len(held) == 1:
            return held[0]
        raise self._wrong_number(held)

    def check(self) -> list[str]:
        """What is not well with it now, one line each. Changes nothing."""
        try:
            self.holder()
        except ENDING:
            raise
        except UpdaterError as error:
            return ["; ".join((error.message, *error.what))]
        said = self.asking.ask(self.address)
        return [said] if said else []

    def move(self, to: str) -> Moved:
        """Have `to` hold it and all others stand by, and see it answer there. Safe to repeat.

        Raises ZduRefused, or GateNotPassed when none or several hold it (nothing was changed); GateNotPassed when it
        does not come, or does not answer there: then the one that held it holds it again, and `to` stands by.
        """
        began = time.monotonic()
        if to not in [host.name for host in self.hosts]:
            raise ZduRefused(f"{self.address} cannot move to {to}", what="it is none of its hosts", state=_UNCHANGED)
        before = self.holder()
        target = next(host for host in self.hosts if host.name == to)
        others = [host for host in self.hosts if host is not target]
        target.take()
        faults.point("vip:taken")
        for host in others:
            host.give()
        faults.point("vip:given")
        wrong = self._wait(to)
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
        return Moved(to=to, before="" if before == to else before, seconds=time.monotonic() - began)

    def restore(self) -> None:
        """No host stands by any more: they settle among themselves who holds it, as without an upgrade."""
        for host in self.hosts:
            host.take()

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
        """Let the one that held it hold it again, as far as the hosts can be told."""
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
        while self._where() != f"held by {before}" and time.monotonic() < deadline:
            time.sleep(LOOK)

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


class KeepalivedHost:
    """keepalived with a track file: −`weight` in it lowers the host's priority below the other one's, so that one takes
    the address over, and only then this one lets it go. A stopped or killed keepalived is no way to move it.
    """

    def __init__(self, config: VipConfig, shell: Shell) -> None:
        self.config = config
        self.shell = shell
        self.name = shell.name
        self.address = config.address.partition("/")[0]

    def holds(self) -> bool:
        """Is the address on an interface (`interface`, if it is given)?"""
        only = ["dev", self.config.interface] if self.config.interface else []
        result = self.shell.run(["ip", "-json", "addr", "show", *only], timeout=self.config.patience)
        try:
            links = json.loads(result.stdout)
            return any(a.get("local") == self.address for link in links for a in link.get("addr_info", ()))
        except (ValueError, AttributeError, TypeError) as error:
            raise CommandFailed(
                f"the addresses of {self.name} are not known", what=(result.stderr or result.stdout).strip()[:300]
            ) from error

    def give(self) -> None:
        """−weight."""
        self._write(-self.config.weight)

    def take(self) -> None:
        """0."""
        self._write(0)

    def ready(self) -> bool:
        """Is the number not negative? Without a file nobody has asked it to stand by."""
        if not self.shell.exists(self.config.track_file):
            return True
        said = self.shell.read(self.config.track_file).decode(errors="replace").strip()
        try:
            return int(said or "0") >= 0
        except ValueError as error:
            raise CommandFailed(f"{self.config.track_file} on {self.name} holds no number", what=said[:60]) from error

    def _write(self, value: int) -> None:
        self.shell.write(self.config.track_file, f"{value}\n".encode())


class CommandVipHost:
    """The operator's program on each host: ``holds``, ``ready`` (exit code 0: yes, 1: no), ``give``, ``take``."""

    def __init__(self, config: VipConfig, shell: Shell) -> None:
        self.config = config
        self.shell = shell
        self.name = shell.name

    def holds(self) -> bool:
        """Ask it."""
        return self._run("holds", (0, 1)) == 0

    def give(self) -> None:
        """Tell it."""
        self._run("give", (0,))

    def take(self) -> None:
        """Tell it."""
        self._run("take", (0,))

    def ready(self) -> bool:
        """Ask it."""
        return self._run("ready", (0, 1)) == 0

    def _run(self, verb: str, good: tuple[int, ...]) -> int:
        result = self.shell.run([*self.config.command, verb], timeout=self.config.patience)
        if result.code not in good:
            raise CommandFailed(
                f"{' '.join([*self.config.command, verb])} fails on {self.name} with exit code {result.code}",
                what=(result.stderr or result.stdout).strip().splitlines()[-3:],
            )
        return result.code
