"""How traffic and databases are spoken to: the driver tables of sites.toml (docs/sites-toml.md). Data only; the code of
the drivers is in `zdu.traffic` and `zdu.standalone`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_interface
from pathlib import Path

from core.schema import SchemaError
from core.sql import Database, Engine


class DispatcherKind(StrEnum):
    """What chooses a site for each new call, registration or request."""

    KAMAILIO = "kamailio"
    HAPROXY = "haproxy"
    COMMAND = "command"


class VipKind(StrEnum):
    """What holds the virtual IP of the dispatchers."""

    KEEPALIVED = "keepalived"
    COMMAND = "command"


class ProbeKind(StrEnum):
    """How a virtual IP is asked for an answer."""

    SIP = "sip"  # OPTIONS over UDP
    TCP = "tcp"
    COMMAND = "command"


class CallsKind(StrEnum):
    """Who counts the live calls of a site."""

    KAMAILIO = "kamailio"  # dialog counters of the site's own SIP servers
    SQL = "sql"
    HTTP = "http"  # JSON
    COMMAND = "command"


class StandaloneKind(StrEnum):
    """How a secondary site is made to stand alone, and how its replica is held and joined again."""

    MARIADB = "mariadb"
    COMMAND = "command"


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetConfig:
    """The destinations of a dispatcher that belong to a site: SIP URIs as in Kamailio's list, or names of HAProxy
    servers as ``backend/server``.
    """

    site: str
    destinations: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.destinations:
            raise ValueError("destinations: must not be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherConfig:
    """One program on the dispatchers that sends traffic to sites; it runs on each of them in the same way.

    `control`: where it listens on its own host. Kamailio: ``unixgram:PATH`` or ``fifo:PATH`` (jsonrpcs), ``http://…``,
    or ``kamcmd:ADDRESS`` (binrpc); HAProxy: the path of its admin socket. `group`: Kamailio's set of destinations;
    `profile`: its profile of dialogs, with destinations as values, if it has one: the cross-check of a site's calls.
    `state_file`: Kamailio's dispatcher list, HAProxy's server-state file; kept in step, so that a reload or a restart
    changes nothing. `command`: the operator's program, called with ``targets``, ``send-to SITE…`` or ``restore``.
    """

    kind: DispatcherKind
    targets: tuple[TargetConfig, ...]
    name: str = ""
    control: str = ""
    group: int = 1
    profile: str = ""
    state_file: Path | None = None
    command: tuple[str, ...] = ()
    timeout: float = 10.0

    def __post_init__(self) -> None:
        faults = _needs_command(self.kind, self.command)
        if self.kind is not DispatcherKind.COMMAND:
            faults += [] if self.control else [f"control: a dispatcher of kind {self.kind} needs it"]
            faults += [] if self.state_file else [f"state_file: a dispatcher of kind {self.kind} needs it"]
        faults += _absolute("state_file", self.state_file) + _positive("timeout", self.timeout)
        sites = [target.site for target in self.targets]
        faults += [
            f"targets: the site {name!r} stands there twice" for name in sorted(set(sites)) if sites.count(name) > 1
        ]
        _raise(faults)

    def destinations(self, site: str) -> tuple[str, ...]:
        """Those of one site; empty if it has none."""
        return next((target.destinations for target in self.targets if target.site == site), ())


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig:
    """What proves that a virtual IP answers. `host`: who asks, by the name of a server; empty: the controller. `every`:
    seconds between two questions while it moves, to know how long it was silent; 0: it is not asked meanwhile.
    """

    kind: ProbeKind = ProbeKind.SIP
    port: int = 5060
    command: tuple[str, ...] = ()
    host: str = ""
    timeout: float = 2.0
    every: float = 0.02

    def __post_init__(self) -> None:
        faults = _needs_command(self.kind, self.command) + _positive("timeout", self.timeout)
        if not (self.every == 0 or 0.001 <= self.every <= 1):
            faults.append("every: must be 0, or from 0.001 to 1")
        if not 1 <= self.port <= 65535:
            faults.append("port: must be from 1 to 65535")
        _raise(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class VipConfig:
    """A virtual IP of the dispatchers. `address`: with or without the length of its prefix. `track_file`: keepalived's,
    on each dispatcher; −`weight` in it makes the host give the address away, `weight` makes it keep it. `command`: the
    operator's program, called with ``holds``, ``ready`` (exit 0: yes, 1: no), ``give``, ``take``, ``keep`` or
    ``join``. `patience`: seconds until a move that does not end is an error.
    """

    address: str
    kind: VipKind = VipKind.KEEPALIVED
    interface: str = ""
    track_file: Path = Path("/data/updater/vip")
    weight: int = 100
    command: tuple[str, ...] = ()
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    patience: float = 10.0

    def __post_init__(self) -> None:
        faults = _needs_command(self.kind, self.command) + _absolute("track_file", self.track_file)
        faults += _positive("patience", self.patience)
        if not 1 <= self.weight <= 254:
            faults.append("weight: must be from 1 to 254")
        try:
            ip_interface(self.address)
        except ValueError:
            faults.append(f"address: {self.address!r} is no IP address")
        _raise(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallsConfig:
    """Who counts the live calls of a site. What cannot be read never counts as 0.

    `hosts`: names of the servers that are asked, whose counts are added; empty: all of the site with the role sip.
    `control`: Kamailio's, as in a dispatcher. `query`: one row, one number. `pointer`: where in the JSON the number is
    (RFC 6901); ``{host}`` in `url` is the server's address. `command`: prints a number.
    """

    kind: CallsKind
    hosts: tuple[str, ...] = ()
    control: str = ""
    database: Database | None = None
    query: str = ""
    url: str = ""
    pointer: str = ""
    command: tuple[str, ...] = ()
    timeout: float = 2.0

    def __post_init__(self) -> None:
        faults = _needs_command(self.kind, self.command) + _positive("timeout", self.timeout)
        wanted = {
            CallsKind.KAMAILIO: ("control",),
            CallsKind.SQL: ("database", "query"),
            CallsKind.HTTP: ("url",),
            CallsKind.COMMAND: (),
        }[self.kind]
        faults += [f"{key}: a count of kind {self.kind} needs it" for key in wanted if not getattr(self, key)]
        if self.url and not self.url.startswith(("http://", "https://")):
            faults.append("url: must begin with http:// or https://")
        if self.pointer and not self.pointer.startswith("/"):
            faults.append("pointer: must begin with /")
        _raise(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class StandaloneConfig:
    """How a secondary site stands alone. `delta`: the database that balance changes and call records go to meanwhile.
    `gtid_domain`: of the writes to it (MariaDB), so that the replica can be joined again. `lag`: seconds that the
    replica may be behind when it begins. `command`: the operator's program that switches the services of the site,
    called with ``enter``, ``leave`` or ``status``; of kind command also with ``hold`` and ``join`` for the replica.
    """

    command: tuple[str, ...]
    kind: StandaloneKind = StandaloneKind.MARIADB
    delta: Database | None = None
    gtid_domain: int = 7
    lag: float = 1.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        faults = [] if self.command else ["command: must not be empty"]
        faults += _positive("timeout", self.timeout)
        if self.kind is StandaloneKind.MARIADB and self.delta is None:
            faults.append("delta: a site of kind mariadb needs it")
        if self.delta is not None and self.delta.engine is Engine.POSTGRESQL:
            faults.append("delta: must be mariadb or sqlite")
        if not 1 <= self.gtid_domain < 2**32:
            faults.append("gtid_domain: must be from 1 to 4294967295")
        if self.lag < 0:
            faults.append("lag: must not be negative")
        _raise(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchConfig:
    """A program of the operator that switches something of a site and says how it stands; its last argument is the
    verb. It runs on `host` (a server of the site; empty: the controller) and is safe to repeat.
    """

    command: tuple[str, ...]
    host: str = ""
    timeout: float = 60.0

    def __post_init__(self) -> None:
        _raise(([] if self.command else ["command: must not be empty"]) + _positive("timeout", self.timeout))


def _needs_command(kind: StrEnum, command: tuple[str, ...]) -> list[str]:
    return ["command: kind command needs it"] if kind == "command" and not command else []


def _absolute(key: str, path: Path | None) -> list[str]:
    return [f"{key}: {path} must be absolute"] if path is not None and not path.is_absolute() else []


def _positive(key: str, number: float) -> list[str]:
    return [] if number > 0 else [f"{key}: must be more than 0"]


def _raise(faults: list[str]) -> None:
    if faults:
        raise SchemaError(faults)
