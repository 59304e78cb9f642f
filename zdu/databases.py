"""The replica of a secondary site: how it stands, holding it, joining it again (docs/zdu-databases.md)."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Protocol

from core.errors import CommandFailed, ConfigError
from core.sql import Engine
from zdu.drivers import StandaloneConfig, StandaloneKind
from zdu.mariadb import MariaReplica, ReplicaStatus
from zdu.sites import Site, Sites
from zdu.traffic.shell import Shell


class Replica(Protocol):
    """The replica of one site. Every call may raise DatabaseFailed, CommandFailed or SiteUnreachable."""

    def status(self) -> ReplicaStatus:
        """How it stands. Only looks."""

    def hold(self) -> str:
        """Have it apply all that the main database has written, and stop there; a line on what was done. Safe to
        repeat.

        Raises GateNotPassed when it does not get there: it runs on then.
        """

    def join(self) -> str:
        """Have it follow the main database again; a line on how far it is. Safe to repeat.

        Raises ZduRefused when it has changes that the main database does not know, DatabaseFailed when it breaks.
        """


def replica(
    sites: Sites, site: Site, shell: Callable[[str], Shell], check: Callable[[], None] = lambda: None
) -> Replica:
    """The driver that the sites file asks for. `check`: does not return when the work has to end. Raises ConfigError
    where something is missing in the file.
    """
    config = site.standalone
    if config is not None and config.kind is StandaloneKind.COMMAND:
        return CommandReplica(site.name, config, shell(site.billing.host if site.billing else ""))
    for each in (site, sites.main):
        if each.database is None or each.database.engine is not Engine.MARIADB:
            raise ConfigError(
                f"the database of {each.name} is not in the sites file, or is not MariaDB",
                state="nothing was changed",
                next=f'describe it under `database`, or use standalone.kind = "command" for {site.name}',
            )
    assert site.database is not None
    assert sites.main.database is not None
    domain, limit, timeout = (config.gtid_domain, config.lag, config.timeout) if config else (7, 1.0, 60.0)
    return MariaReplica(
        site.name, site.database, sites.main.database, domain=domain, limit=limit, timeout=timeout, check=check
    )


class CommandReplica:
    """By the program of the operator that switches the site to stand-alone: called with ``hold`` or ``join``, and with
    ``replica``, which prints a JSON object: read_only, replicates, applied (true, false or null), lag (seconds or null)
    and problems (a list of texts).
    """

    def __init__(self, name: str, config: StandaloneConfig, shell: Shell) -> None:
        self.name = name
        self._config = config
        self._shell = shell

    def status(self) -> ReplicaStatus:
        said = self._run("replica")
        try:
            found = json.loads(said)
            flags = {key: found.get(key) for key in ("read_only", "replicates", "applied")}
            lag = found.get("lag")
            if any(value not in (True, False, None) for value in flags.values()):
                raise ValueError(f"true, false or null are wanted: {flags}")
            if isinstance(lag, bool) or not (lag is None or (isinstance(lag, (int, float)) and lag >= 0)):
                raise ValueError(f"lag: {lag!r} is no number of seconds")
            problems = tuple(str(each) for each in found.get("problems") or ())
        except (ValueError, AttributeError, TypeError) as error:
            raise CommandFailed(
                f"{self._config.command[0]} replica does not say how the replica of {self.name} stands",
                what=[str(error), said[:200]],
                state="nothing was changed",
            ) from error
        return ReplicaStatus(**flags, lag=None if lag is None else float(lag), problems=problems)

    def hold(self) -> str:
        return self._run("hold") or f"the replica of {self.name} is held"

    def join(self) -> str:
        return self._run("join") or f"the replica of {self.name} was told to follow"

    def _run(self, verb: str) -> str:
        argv = [*self._config.command, verb]
        done = self._shell.run(argv, timeout=self._config.timeout)
        if done.code != 0:
            raise CommandFailed(
                f"{' '.join(argv)} fails with exit code {done.code}",
                what=(done.stderr or done.stdout).strip().splitlines()[-3:],
                state="what it did is seen by its `replica`",
            )
        return done.stdout.strip()
