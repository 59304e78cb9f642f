"""The drivers of an installation, put together from its sites file: shells, nodes, dispatchers, virtual IPs, counters
of calls, the operator's switches, ledgers. Nothing is asked of anybody before it is used.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Final

from core.errors import CommandFailed, ConfigError, UpdaterError
from core.run import Result
from core.sql import Engine
from zdu.databases import Replica, replica
from zdu.drivers import SwitchConfig
from zdu.limits import Role
from zdu.nodes import Node
from zdu.remote import RemoteShell
from zdu.sites import Site, SiteCheck, SiteCheckKind, Sites
from zdu.standalone.session import Binlog, Session
from zdu.traffic.calls import Calls, calls
from zdu.traffic.dispatcher import dispatcher
from zdu.traffic.shell import LocalShell, Shell
from zdu.traffic.targets import Dispatcher
from zdu.traffic.vip import Vip, vip

#: What an operator's switch prints on ``status`` → whether it is on.
WORDS: Final[Mapping[str, Mapping[str, bool]]] = {
    "maintenance": {"maintenance": True, "open": False},
    "standalone": {"alone": True, "normal": False},
    "billing": {"active": True, "standby": False},
}


class Hands:
    """The drivers. `check` is called before anything is asked of a server: it does not return when the work has to end.
    `line`: the way to a server; SSH unless told otherwise. Several threads may use it.
    """

    def __init__(
        self,
        sites: Sites,
        fence: int,
        *,
        check: Callable[[], None] = lambda: None,
        line: Callable[[str], Shell] | None = None,
    ) -> None:
        self.sites = sites
        self.fence = fence
        self._check = check
        self._make = line or (lambda name: RemoteShell(name, sites.reach(name)))
        self._shells: dict[str, Shell] = {}
        self._counted: dict[str, Calls] = {}
        self._guard = threading.Lock()

    def watched(self, check: Callable[[], None]) -> Hands:
        """The same lines to servers, with somebody else's `check`."""
        return Hands(self.sites, self.fence, check=check, line=self._line)

    def close(self) -> None:
        """Hang up all lines."""
        with self._guard:
            for shell in self._shells.values():
                hang_up = getattr(shell, "close", None)  # a line has one, this machine has none
                if hang_up is not None:
                    hang_up()
            self._shells.clear()

    def shell(self, name: str) -> Shell:
        """The shell of a server; empty: of the controller."""
        return _Watched(self._line(name), self._check) if name else LocalShell("the controller")

    def node(self, name: str) -> Node:
        """The node on a server."""
        reach = self.sites.reach(name)
        return Node(self.shell(name), fence=self.fence, command=reach.command, answer=reach.answer)

    @cached_property
    def dispatchers(self) -> list[Dispatcher]:
        """Each program that runs on the dispatchers, on all of them."""
        return self.dispatchers_on(*(server.name for server in self.sites.dispatchers.servers))

    def dispatchers_on(self, *names: str) -> list[Dispatcher]:
        """Each program, on these dispatchers only."""
        shells = [self.shell(name) for name in names]
        return [dispatcher(program, shells) for program in self.sites.dispatchers.programs]

    @cached_property
    def vips(self) -> list[Vip]:
        """The virtual IPs."""
        shells = [self.shell(server.name) for server in self.sites.dispatchers.servers]
        asking = {config.probe.host: self.shell(config.probe.host) for config in self.sites.dispatchers.vips}
        everywhere = asking | {shell.name: shell for shell in shells}
        return [vip(config, shells, everywhere) for config in self.sites.dispatchers.vips]

    def calls(self, site: Site) -> Calls:
        """Who counts the calls of a site: always the same, which knows whom it has asked and got no answer from."""
        with self._guard:
            if site.name in self._counted:
                return self._counted[site.name]
        names = site.calls.hosts or tuple(server.name for server in site.with_role(Role.SIP))
        addresses = {server.name: server.address for server in site.servers}
        made = calls(site.name, site.calls, [self.shell(name) for name in names], addresses)
        with self._guard:
            return self._counted.setdefault(site.name, made)

    def replica(self, site: Site) -> Replica:
        """The replica of a secondary site."""
        return replica(self.sites, site, self.shell, self._check)

    # -- the operator's switches

    def switch(self, what: str, config: SwitchConfig, verb: str) -> None:
        """Have a switch obey. Raises CommandFailed with its last words."""
        self._switched(what, config, verb)

    def stands(self, what: str, config: SwitchConfig) -> bool:
        """How a switch stands: `WORDS` of its kind. Raises CommandFailed when it does not tell."""
        said = self._switched(what, config, "status")
        word = said.split()[0] if said.split() else ""
        if word not in WORDS[what]:
            known = " or ".join(WORDS[what])
            raise CommandFailed(
                f"{config.command[0]} does not say how {what} stands",
                what=f"it prints {said[:100]!r}; wanted: {known}",
                state="nothing was changed",
            )
        return WORDS[what][word]

    def standalone(self, site: Site) -> SwitchConfig:
        """The switch of the services of a site that can stand alone."""
        assert site.standalone is not None
        billing = site.billing.host if site.billing else ""
        return SwitchConfig(command=site.standalone.command, host=billing, timeout=site.standalone.timeout)

    def healthy(self, check: SiteCheck) -> str:
        """What is wrong by one health check of a site; empty when it passes."""
        try:
            return _CHECKS[check.kind](self, check)
        except UpdaterError as error:
            return f"{check.name}: {error.message}"

    # -- the ledgers

    def main_ledger(self) -> Session:
        """The ledger on the main database. One for each piece of work: close it."""
        database = self.sites.main.database
        if database is None:
            raise ConfigError(f"the database of {self.sites.main.name} is not in the sites file", next="describe it")
        return Session(database)

    def delta_ledger(self, site: Site) -> Session:
        """The delta database of a site."""
        config = site.standalone
        if config is None or config.delta is None:
            raise ConfigError(
                f"the delta database of {site.name} is not in the sites file",
                what="without it nothing can be synchronised",
                state="nothing was changed",
                next=f"describe standalone.delta of {site.name}",
            )
        binlog = Binlog.DOMAIN if config.delta.engine is Engine.MARIADB else Binlog.SERVER
        return Session(config.delta, binlog=binlog, domain=config.gtid_domain)

    def replica_ledger(self, site: Site) -> Session:
        """The replica of the ledger on a site, which is only read."""
        if site.database is None:
            raise ConfigError(f"the database of {site.name} is not in the sites file", next="describe it")
        return Session(site.database, read_only=True)

    # -- inside

    def _line(self, name: str) -> Shell:
        with self._guard:
            if name not in self._shells:
                self._shells[name] = self._make(name)
            return self._shells[name]

    def _switched(self, what: str, config: SwitchConfig, verb: str) -> str:
        argv = [*config.command, verb]
        result = self.shell(config.host).run(argv, timeout=config.timeout)
        if result.code != 0:
            raise CommandFailed(
                f"{what}: {' '.join(argv)} fails with exit code {result.code}",
                what=(result.stderr or result.stdout).strip().splitlines()[-3:],
                state="what it did is seen by its status",
            )
        return result.stdout


class _Watched:
    """A shell whose every use asks first whether the work is to go on."""

    def __init__(self, shell: Shell, check: Callable[[], None]) -> None:
        self._shell = shell
        self._check = check
        self.name = shell.name

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        self._check()
        return self._shell.run(argv, input=input, timeout=timeout)

    def exists(self, path: Path) -> bool:
        self._check()
        return self._shell.exists(path)

    def read(self, path: Path) -> bytes:
        self._check()
        return self._shell.read(path)

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        self._check()
        self._shell.write(path, data, mode)


def _tcp(_: Hands, check: SiteCheck) -> str:
    import socket

    try:
        socket.create_connection((check.host, check.port), timeout=check.timeout).close()
    except OSError as error:
        return f"{check.name}: {check.host} port {check.port}: {error.strerror or error}"
    return ""


def _http(_: Hands, check: SiteCheck) -> str:
    import urllib3

    try:
        answer = urllib3.PoolManager().request("GET", check.url, timeout=check.timeout, retries=False)
    except urllib3.exceptions.HTTPError as error:
        return f"{check.name}: {check.url}: {type(error).__name__}"
    return "" if answer.status == check.status else f"{check.name}: {check.url} answers {answer.status}"


def _command(hands: Hands, check: SiteCheck) -> str:
    result = hands.shell(check.on).run(list(check.command), timeout=check.timeout)
    said = (result.stderr or result.stdout).strip().splitlines()
    return "" if result.code == 0 else f"{check.name}: exit {result.code}{': ' + said[-1][:200] if said else ''}"


_CHECKS: Final = {SiteCheckKind.TCP: _tcp, SiteCheckKind.HTTP: _http, SiteCheckKind.COMMAND: _command}
