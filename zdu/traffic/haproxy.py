"""HAProxy: web and API traffic. A server is held by the state ``drain``: sessions that are there go on, also those
that come back with their cookie.

The state is lost in a reload and in a restart, unless the configuration reads a server-state file
(``server-state-file``, ``load-server-state-from-file global``). Only held servers stand in ours: lines of others would
pin addresses that the configuration may change.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping

from core.errors import CommandFailed
from zdu.drivers import DispatcherConfig
from zdu.traffic.asking import haproxy
from zdu.traffic.held import Seen
from zdu.traffic.shell import Shell
from zdu.traffic.targets import State

#: Bits of srv_admin_state: forced or inherited drain; maintenance by somebody's will (not for want of an address).
DRAIN, MAINTENANCE = 0x18, 0x07

#: srv_op_state of a server that answers.
RUNNING = 2


class HaproxyHost:
    """See `zdu.traffic.held.Host`. Destinations are ``backend/server``."""

    def __init__(self, config: DispatcherConfig, shell: Shell) -> None:
        assert config.state_file is not None
        self.config = config
        self.shell = shell
        self.name = shell.name
        self.file = config.state_file
        self._backends = {name.partition("/")[0] for target in config.targets for name in target.destinations}

    def see(self) -> dict[str, Seen]:
        """The servers of the backends that the sites' destinations are in."""
        sessions = {
            f"{row['# pxname']}/{row['svname']}": row["scur"]
            for row in csv.DictReader(self._ask("show stat").splitlines())
        }
        at_start = servers(self._read())
        found = {}
        for name, row in servers(self._ask("show servers state")).items():
            if name.partition("/")[0] in self._backends:
                state = _state(row)
                off = name in at_start and _state(at_start[name]) is State.DRAINING
                live = sessions.get(name, "")
                found[name] = Seen(state=state, off_at_start=off, live=int(live) if live.isdigit() else None)
        return found

    def live(self, destination: str) -> None:
        """Sessions of web traffic are no calls: a client may keep one open for ever."""

    def hold(self, destination: str) -> None:
        """State drain."""
        self._set(destination, "drain")

    def let_go(self, destination: str) -> None:
        """State ready."""
        self._set(destination, "ready")

    def at_start(self, off: Mapping[str, bool]) -> None:
        """Lines of held servers in the server-state file, with the bit for drain; none of the others we were given."""
        running = self._ask("show servers state")
        lines = [line for line in self._read().splitlines() if _name(line) not in off]
        header = next(line for line in running.splitlines() if line.startswith("# be_id"))
        if header not in lines:
            lines = ["1", header, *(line for line in lines[1:] if not line.startswith("# be_id"))]
        place = header.removeprefix("# ").split().index("srv_admin_state")
        for line in running.splitlines():
            if off.get(_name(line)):
                words = line.split(" ")
                words[place] = str(int(words[place]) | 0x08)
                lines.append(" ".join(words))
        self.shell.write(self.file, ("\n".join(lines) + "\n").encode())

    def _set(self, destination: str, state: str) -> None:
        said = self._ask(f"set server {destination} state {state}")
        if said:  # it prints nothing when all is well, and has no other sign
            raise CommandFailed(f"HAProxy on {self.name} does not set {destination} to {state}", what=said)

    def _ask(self, command: str) -> str:
        said = haproxy(self.shell, self.config.control, command, self.config.timeout)
        if command.startswith("show") and not said.startswith(("1\n", "# ")):
            raise CommandFailed(f"HAProxy on {self.name} does not understand {command!r}", what=said[:300])
        return said

    def _read(self) -> str:
        return self.shell.read(self.file).decode() if self.shell.exists(self.file) else ""


def servers(text: str) -> dict[str, dict[str, str]]:
    """``backend/server`` → columns, of what ``show servers state`` prints and a server-state file holds."""
    found: dict[str, dict[str, str]] = {}
    columns: list[str] = []
    for line in text.splitlines():
        if line.startswith("# be_id"):
            columns = line.removeprefix("# ").split()
        elif name := _name(line):
            found[name] = dict(zip(columns, line.split(), strict=False))
    return found


def _name(line: str) -> str:
    """Whose line it is; empty for one of no server."""
    words = line.split()
    return f"{words[1]}/{words[3]}" if len(words) > 6 and not line.startswith("#") else ""


def _state(row: Mapping[str, str]) -> State:
    admin = int(row.get("srv_admin_state", "0"))
    if admin & (DRAIN | MAINTENANCE):
        return State.DRAINING
    return State.ACTIVE if int(row.get("srv_op_state", "0")) == RUNNING else State.DOWN
