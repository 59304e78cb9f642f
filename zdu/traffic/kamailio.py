"""Kamailio's dispatcher module. A destination is held by the state ``d`` (disabled): no ping brings that back, unlike
the inactive states. It comes back by ``ip``: active after the next good ping.

State ``d`` is lost in ``dispatcher.reload`` and in a restart, so it is written to the list file as well (flag 4).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from core.errors import CommandFailed
from zdu.drivers import DispatcherConfig
from zdu.traffic.asking import Kamailio, every, flat
from zdu.traffic.held import Seen
from zdu.traffic.shell import Shell
from zdu.traffic.targets import State

#: The bit of a destination's flags in the list file that disables it.
DISABLED = 4

#: A line of the list: set, destination, flags if any, the rest.
_LINE = re.compile(r"(?P<set>\s*\d+)(?P<gap>\s+)(?P<uri>\S+)(?:(?P<gap2>\s+)(?P<flags>\d+))?(?P<rest>.*)", re.DOTALL)

_STATES = {"A": State.ACTIVE, "T": State.ACTIVE, "D": State.DRAINING, "I": State.DOWN}


class KamailioHost:
    """See `zdu.traffic.held.Host`."""

    def __init__(self, config: DispatcherConfig, shell: Shell) -> None:
        assert config.state_file is not None
        self.config = config
        self.shell = shell
        self.name = shell.name
        self.list = config.state_file
        self.rpc = Kamailio(shell, config.control, config.timeout)

    def see(self) -> dict[str, Seen]:
        """The destinations of our set."""
        flags = list_flags(self._read(), self.config.group)
        running: dict[str, State] = {}
        for one in every(self.rpc.call("dispatcher.list"), "SET"):
            if str(flat(one).get("ID")) == str(self.config.group):
                for destination in every(one, "DEST"):
                    said = flat(destination)
                    running[str(said["URI"])] = _STATES.get(str(said["FLAGS"])[:1], State.DOWN)
        if strange := sorted(set(flags) ^ set(running)):
            raise CommandFailed(
                f"Kamailio on {self.name} and {self.list} have different destinations",
                what=strange,
                next="kamcmd dispatcher.reload    if the file is right",
            )
        return {
            uri: Seen(state=state, off_at_start=bool(flags[uri] & DISABLED), live=self.live(uri))
            for uri, state in running.items()
        }

    def live(self, destination: str) -> int | None:
        """Its dialogs, where the configuration puts them into a profile."""
        if not self.config.profile:
            return None
        return int(self.rpc.call("dlg.profile_get_size", self.config.profile, destination))

    def hold(self, destination: str) -> None:
        """State d."""
        self.rpc.call("dispatcher.set_state", "d", self.config.group, destination)

    def let_go(self, destination: str) -> None:
        """State ip, unless it is active."""
        self.rpc.call("dispatcher.set_state", "ip", self.config.group, destination)

    def at_start(self, off: Mapping[str, bool]) -> None:
        """Set or clear flag 4 in the list file; everything else in it stays as it is."""
        self.shell.write(self.list, with_flags(self._read(), self.config.group, off).encode(errors="surrogateescape"))

    def _read(self) -> str:
        return self.shell.read(self.list).decode(errors="surrogateescape")


def list_flags(text: str, group: int) -> dict[str, int]:
    """Destination → flags, of one set of a list file."""
    found = {}
    for line in text.splitlines():
        if (parts := _parts(line, group)) is not None:
            found[parts["uri"]] = int(parts["flags"] or 0)
    return found


def with_flags(text: str, group: int, off: Mapping[str, bool]) -> str:
    """The list file with some destinations of a set disabled or not."""
    lines = []
    for line in text.splitlines(keepends=True):
        parts = _parts(line, group)
        if parts is not None and parts["uri"] in off:
            flags = int(parts["flags"] or 0)
            flags = flags | DISABLED if off[parts["uri"]] else flags & ~DISABLED
            line = f"{parts['set']}{parts['gap']}{parts['uri']}{parts['gap2'] or ' '}{flags}{parts['rest']}"
        lines.append(line)
    return "".join(lines)


def _parts(line: str, group: int) -> dict[str, str] | None:
    """The parts of a line of this set; None for a comment, another set, or no destination at all."""
    found = _LINE.fullmatch(line)
    return found.groupdict("") if found and int(found["set"]) == group else None
