"""How far an upgrade may go: limits, windows, the drain policy, expected times, who is told (docs/sites-toml.md)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from core.schema import SchemaError
from core.sql import Database, Engine
from core.window import Window


class Role(StrEnum):
    """What a server does."""

    DB_PRIMARY = "db-primary"
    DB_REPLICA = "db-replica"
    BILLING = "billing"
    WEB = "web"
    SIP = "sip"
    CONFIG = "config"
    DISPATCHER = "dispatcher"


class Day(StrEnum):
    """Days of the week, by their local dates."""

    MONDAY = "mon"
    TUESDAY = "tue"
    WEDNESDAY = "wed"
    THURSDAY = "thu"
    FRIDAY = "fri"
    SATURDAY = "sat"
    SUNDAY = "sun"


class NotifyKind(StrEnum):
    """How somebody is told."""

    COMMAND = "command"
    WEBHOOK = "webhook"
    EMAIL = "email"


class NotifyEvent(StrEnum):
    """What somebody is told of."""

    STARTED = "started"
    PHASE = "phase"
    APPROVAL = "approval"  # somebody has to approve
    DRAIN = "drain"  # calls that do not end
    WAITING = "waiting"  # something else that a step waits for does not come
    FAILED = "failed"
    ABORTED = "aborted"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitsConfig:
    """Limits that no run goes over. `parallel_servers`: restarted at a time, in all; `parallel_stages`: staged at a
    time; `parallel_sites`: secondary sites in one wave. `max_unavailable`: of servers of one role and site, while they
    are restarted. `minimum_capacity`: calls at a time that the sites in service must always be able to carry.
    """

    parallel_servers: int = 4
    parallel_stages: int = 16
    parallel_sites: int = 1
    max_unavailable: dict[Role, int] = field(default_factory=dict)
    minimum_capacity: int = 0

    def __post_init__(self) -> None:
        numbers = ("parallel_servers", "parallel_stages", "parallel_sites")
        faults = [f"{key}: must be at least 1" for key in numbers if getattr(self, key) < 1]
        faults += [f"max_unavailable.{role}: must be at least 1" for role, n in self.max_unavailable.items() if n < 1]
        if self.max_unavailable.get(Role.DISPATCHER, 1) > 1:
            faults.append("max_unavailable.dispatcher: never more than one dispatcher is out of service")
        if self.minimum_capacity < 0:
            faults.append("minimum_capacity: must not be negative")
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainConfig:
    """How long calls may take to end by themselves; seconds. After `alert_after` people are told, and again each
    `alert_every`; the run goes on waiting. No setting ends a call. A site is empty after `readings` successive counts
    of 0, `interval` apart.
    """

    alert_after: float = 3600.0
    alert_every: float = 900.0
    readings: int = 3
    interval: float = 0.5

    def __post_init__(self) -> None:
        faults = [f"{key}: must be more than 0" for key in ("alert_after", "alert_every") if getattr(self, key) <= 0]
        if self.readings < 2:
            faults.append("readings: must be at least 2")
        if not 0 < self.interval <= 60:
            faults.append("interval: must be more than 0 and at most 60")
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectConfig:
    """How long things take here, in seconds: for plans and for windows, never a deadline. Take the figures from a
    rehearsal. `activate`: until the node is confirmed; `migrate`: the blocking changes of the database.
    """

    check: float = 5.0
    stage: float = 300.0
    dispatch: float = 5.0
    standalone: float = 30.0
    drain: float = 1800.0
    maintenance: float = 15.0
    replica: float = 60.0
    migrate: float = 60.0
    activate: float = 240.0
    vip: float = 5.0
    verify: float = 60.0
    sync: float = 300.0

    def __post_init__(self) -> None:
        faults = [f"{key}: must not be negative" for key in self.__dataclass_fields__ if getattr(self, key) < 0]
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowConfig:
    """When sites may be taken out of service: `hours` such as ``01:00-05:00``, in the controller's local time; a window
    over midnight belongs to the day on which it opens. `days`: empty: every day.
    """

    hours: str
    days: tuple[Day, ...] = ()

    def __post_init__(self) -> None:
        try:
            Window.parse(self.hours)
        except ValueError as error:
            raise ValueError(f"hours: {error}") from error

    @property
    def window(self) -> Window:
        """The hours."""
        return Window.parse(self.hours)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotifyConfig:
    """Somebody who is told. `command` gets the event as JSON on its standard input; `url` by POST; `to` by e-mail from
    `sender` over `smtp` (``host:port``). `events`: empty: all.
    """

    kind: NotifyKind
    events: tuple[NotifyEvent, ...] = ()
    command: tuple[str, ...] = ()
    url: str = ""
    to: tuple[str, ...] = ()
    sender: str = ""
    smtp: str = "localhost:25"
    timeout: float = 10.0

    def __post_init__(self) -> None:
        wanted = {
            NotifyKind.COMMAND: ("command",),
            NotifyKind.WEBHOOK: ("url",),
            NotifyKind.EMAIL: ("to", "sender"),
        }[self.kind]
        faults = [f"{key}: kind {self.kind} needs it" for key in wanted if not getattr(self, key)]
        if self.url and not self.url.startswith(("http://", "https://")):
            faults.append("url: must begin with http:// or https://")
        faults += [f"to[{n}]: {who!r} is no address" for n, who in enumerate(self.to) if "@" not in who.strip("@")]
        if self.timeout <= 0:
            faults.append("timeout: must be more than 0")
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControllerConfig:
    """The controller. `database`: where it keeps its runs: SQLite, or PostgreSQL when several controllers share the
    work. `require_rehearsal`: a run is refused unless the same plan has been rehearsed.
    """

    database: Database
    require_rehearsal: bool = True

    def __post_init__(self) -> None:
        if self.database.engine is Engine.MARIADB:
            raise ValueError("database: must be sqlite or postgresql")
