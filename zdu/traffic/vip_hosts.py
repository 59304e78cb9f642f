"""Hosts that can hold a virtual IP: with keepalived, or with a program of the operator (`zdu.traffic.vip.VipHost`)."""

from __future__ import annotations

import json

from core.errors import CommandFailed
from zdu.drivers import VipConfig
from zdu.traffic.shell import Shell


class KeepalivedHost:
    """keepalived with a track file: −`weight` in it lowers the host's priority below the others', so that one of them
    takes the address over, and only then this one lets it go; `weight` raises it above the others'. A stopped or killed
    keepalived is no way to move it.
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

    def keep(self) -> None:
        """Weight."""
        self._write(self.config.weight)

    def join(self) -> None:
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
    """The operator's program on each host: ``holds``, ``ready`` (exit code 0: yes, 1: no), ``give``, ``take``,
    ``keep``, ``join``.
    """

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

    def keep(self) -> None:
        """Tell it."""
        self._run("keep", (0,))

    def join(self) -> None:
        """Tell it."""
        self._run("join", (0,))

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
