"""sites.toml: the sites of an installation, their servers, and how far an upgrade may go (docs/sites-toml.md)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path

from core.release import Policy
from core.schema import SchemaError, load_toml
from core.sql import Database, Engine
from zdu.drivers import (
    CallsConfig,
    CallsKind,
    DispatcherConfig,
    StandaloneConfig,
    SwitchConfig,
    VipConfig,
)
from zdu.limits import (
    ControllerConfig,
    DrainConfig,
    ExpectConfig,
    LimitsConfig,
    NotifyConfig,
    Role,
    WindowConfig,
)
from zdu.ssh import Reach, SshConfig

DEFAULT_SITES = Path("/etc/updater/sites.toml")


class SiteKind(StrEnum):
    """What a site is in the ordinary course of things."""

    MAIN = "main"  # holds the books: its database is the one that is written to
    SECONDARY = "secondary"  # its database is a replica; it asks the main site for authorization


class SiteCheckKind(StrEnum):
    """What a health check of a site looks at."""

    TCP = "tcp"
    HTTP = "http"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteCheck:
    """One health check of a site as a whole, made before it gets traffic. A command runs on `on`, the name of a server
    (empty: the controller).
    """

    name: str
    kind: SiteCheckKind
    required: bool = True
    on: str = ""
    host: str = ""
    port: int = 0
    url: str = ""
    status: int = 200
    command: tuple[str, ...] = ()
    timeout: float = 10.0

    def __post_init__(self) -> None:
        wanted = {
            SiteCheckKind.TCP: ("host", "port"),
            SiteCheckKind.HTTP: ("url",),
            SiteCheckKind.COMMAND: ("command",),
        }[self.kind]
        faults = [f"{key}: a check of kind {self.kind} needs it" for key in wanted if not getattr(self, key)]
        if not 0 <= self.port <= 65535:
            faults.append("port: must be from 1 to 65535")
        if self.url and not self.url.startswith(("http://", "https://")):
            faults.append("url: must begin with http:// or https://")
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server. `name`: as in its node.toml. `host`: where it is reached; empty: by its name."""

    name: str
    roles: tuple[Role, ...]
    host: str = ""
    ssh: SshConfig = field(default_factory=SshConfig)

    def __post_init__(self) -> None:
        faults = [f"roles: {role} stands there twice" for role, times in Counter(self.roles).items() if times > 1]
        if not self.roles:
            faults.append("roles: must not be empty")
        if not _is_name(self.name):
            faults.append(f"name: {self.name!r} must be made of letters, digits, dots, dashes and underscores")
        if faults:
            raise SchemaError(faults)

    @property
    def address(self) -> str:
        """Where it is reached."""
        return self.host or self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A site: servers that share a private network, and how they are switched as one.

    `capacity`: calls that it can carry at a time (0: not known). `database`: the one that it holds (main) or a
    replica of that (secondary). `maintenance` is called with ``enter``, ``leave`` or ``status``, `billing` with
    ``standby``, ``active`` or ``status``.
    """

    name: str
    kind: SiteKind
    servers: tuple[Server, ...]
    calls: CallsConfig
    maintenance: SwitchConfig
    capacity: int = 0
    database: Database | None = None
    standalone: StandaloneConfig | None = None
    billing: SwitchConfig | None = None
    checks: tuple[SiteCheck, ...] = ()
    ssh: SshConfig = field(default_factory=SshConfig)

    def __post_init__(self) -> None:
        faults = list(_site_faults(self))
        if faults:
            raise SchemaError(faults)

    def with_role(self, *roles: Role) -> list[Server]:
        """Its servers that have one of these roles."""
        return [server for server in self.servers if any(role in server.roles for role in roles)]


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchersConfig:
    """The dispatchers: they stand in front of all sites. `servers`: the first one usually holds the virtual IPs.
    `programs`: what runs on each of them. `normally`: sites that new calls go to in the ordinary course of things;
    empty: to all.
    """

    servers: tuple[Server, ...]
    programs: tuple[DispatcherConfig, ...]
    vips: tuple[VipConfig, ...]
    normally: tuple[str, ...] = ()
    ssh: SshConfig = field(default_factory=SshConfig)

    def __post_init__(self) -> None:
        faults = [f"{key}: must not be empty" for key in ("servers", "programs", "vips") if not getattr(self, key)]
        faults += [
            f"servers[{number}].roles: a dispatcher has the role dispatcher and no other"
            for number, server in enumerate(self.servers)
            if server.roles != (Role.DISPATCHER,)
        ]
        faults += _twice("vips", "address", (vip.address.partition("/")[0] for vip in self.vips))
        faults += _twice("programs", "name", (program.name or program.kind for program in self.programs))
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, kw_only=True)
class Sites:
    """The whole of sites.toml."""

    name: str
    sites: tuple[Site, ...]
    dispatchers: DispatchersConfig
    controller: ControllerConfig
    ssh: SshConfig = field(default_factory=SshConfig)
    stand_in: str = ""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    drain: DrainConfig = field(default_factory=DrainConfig)
    expect: ExpectConfig = field(default_factory=ExpectConfig)
    windows: tuple[WindowConfig, ...] = ()
    notify: tuple[NotifyConfig, ...] = ()
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        faults = list(_faults(self))
        if faults:
            raise SchemaError(faults)

    @cached_property
    def main(self) -> Site:
        """The main site."""
        return next(site for site in self.sites if site.kind is SiteKind.MAIN)

    @cached_property
    def secondaries(self) -> tuple[Site, ...]:
        """The others, as they stand in the file."""
        return tuple(site for site in self.sites if site.kind is SiteKind.SECONDARY)

    @cached_property
    def normally(self) -> tuple[str, ...]:
        """Names of the sites that new calls go to in the ordinary course of things."""
        return self.dispatchers.normally or tuple(site.name for site in self.sites)

    @cached_property
    def by_name(self) -> dict[str, Site]:
        """Sites by name."""
        return {site.name: site for site in self.sites}

    @cached_property
    def servers(self) -> dict[str, Server]:
        """All servers by name, the dispatchers last."""
        everywhere = [*(server for site in self.sites for server in site.servers), *self.dispatchers.servers]
        return {server.name: server for server in everywhere}

    @cached_property
    def site_of(self) -> dict[str, str]:
        """Name of a server → name of its site; empty for a dispatcher."""
        placed = {server.name: site.name for site in self.sites for server in site.servers}
        return placed | {server.name: "" for server in self.dispatchers.servers}

    def reach(self, server: str) -> Reach:
        """How a server is reached: its own words, then its site's, then the file's."""
        site = self.by_name.get(self.site_of[server])
        return Reach.of(
            self.servers[server].address, self.servers[server].ssh, site.ssh if site else self.dispatchers.ssh, self.ssh
        )


def load_sites(path: Path) -> Sites:
    """Read sites.toml. Raises ConfigError with every fault in it."""
    return load_toml(path, Sites, what="the sites file")


def _site_faults(site: Site) -> Iterator[str]:
    if not _is_name(site.name):
        yield f"name: {site.name!r} must be made of letters, digits, dots, dashes and underscores"
    if site.capacity < 0:
        yield "capacity: must not be negative"
    if not site.servers:
        yield "servers: must not be empty"
    for number, server in enumerate(site.servers):
        if Role.DISPATCHER in server.roles:
            yield f"servers[{number}].roles: dispatchers stand in front of the sites, under dispatchers.servers"
    if site.database is not None and site.database.engine is Engine.POSTGRESQL:
        yield "database: must be mariadb or sqlite"
    yield from _twice("checks", "name", (check.name for check in site.checks))
    masters = len(site.with_role(Role.DB_PRIMARY))
    if site.kind is SiteKind.MAIN:
        if masters != 1:
            yield f"servers: a main site has one server with the role db-primary, not {masters}"
        if site.standalone is not None:
            yield "standalone: only a secondary site stands alone"
    elif masters:
        yield "servers: a secondary site has no server with the role db-primary; its database is a db-replica"
    here = {server.name for server in site.servers}
    told = [("maintenance.host", site.maintenance.host), ("billing.host", site.billing.host if site.billing else "")]
    told += [(f"calls.hosts[{number}]", name) for number, name in enumerate(site.calls.hosts)]
    told += [(f"checks[{number}].on", check.on) for number, check in enumerate(site.checks)]
    for key, name in told:
        if name and name not in here:
            yield f"{key}: {name!r} is no server of this site"
    asks_servers = site.calls.kind in (CallsKind.KAMAILIO, CallsKind.COMMAND)
    if asks_servers and not site.calls.hosts and not site.with_role(Role.SIP):
        yield "calls.hosts: missing, and no server of this site has the role sip"


def _faults(sites: Sites) -> Iterator[str]:
    names = {site.name for site in sites.sites}
    mains = sum(site.kind is SiteKind.MAIN for site in sites.sites)
    if mains != 1:
        yield f"sites: one of them is the main site, not {mains}"
    yield from _twice("sites", "name", (site.name for site in sites.sites))
    everywhere = [(f"sites[{n}].servers", site.servers) for n, site in enumerate(sites.sites)]
    everywhere.append(("dispatchers.servers", sites.dispatchers.servers))
    seen: dict[str, str] = {}
    reached: dict[tuple[object, ...], str] = {}
    for n, (path, servers) in enumerate(everywhere):
        level = sites.sites[n].ssh if n < len(sites.sites) else sites.dispatchers.ssh
        for number, server in enumerate(servers):
            here = f"{path}[{number}]"
            if server.name in seen:
                yield f"{here}.name: {server.name!r} is the name of {seen[server.name]} too"
            seen.setdefault(server.name, here)
            reach = Reach.of(server.address, server.ssh, level, sites.ssh)
            other = reached.setdefault((reach.host, reach.port, reach.jump), here)
            if other != here:
                yield f"{here}.host: {reach.host} port {reach.port} is {other} too"
    if sites.stand_in and sites.stand_in not in {s.name for s in sites.sites if s.kind is SiteKind.SECONDARY}:
        yield f"stand_in: {sites.stand_in!r} is no secondary site"
    for number, name in enumerate(sites.dispatchers.normally):
        if name not in names:
            yield f"dispatchers.normally[{number}]: there is no site {name!r}"
    for number, program in enumerate(sites.dispatchers.programs):
        place = f"dispatchers.programs[{number}].targets"
        told = [target.site for target in program.targets]
        yield from (f"{place}: there is no site {name!r}" for name in told if name not in names)
        yield from (f"{place}: the site {name!r} has none" for name in sorted(names - set(told)))
    for number, vip in enumerate(sites.dispatchers.vips):
        if vip.probe.host and vip.probe.host not in seen:
            yield f"dispatchers.vips[{number}].probe.host: there is no server {vip.probe.host!r}"


def _twice(key: str, what: str, names: Iterable[str]) -> list[str]:
    return [f"{key}: the {what} {name!r} is used twice" for name, times in Counter(names).items() if times > 1]


def _is_name(text: str) -> bool:
    return bool(text) and text[0] not in ".-" and all(c.isascii() and (c.isalnum() or c in "._-") for c in text)
