"""node.toml: what this node is, where its slots, its data and its boot environment are (docs/node-toml.md)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Literal

from core.release import Policy
from core.schema import load_toml
from core.sql import Database

DEFAULT_CONFIG = Path("/etc/updater/node.toml")


class CheckKind(StrEnum):
    """What a health check looks at."""

    UNIT = "unit"  # a systemd unit is active
    TCP = "tcp"  # a port accepts connections
    HTTP = "http"  # a URL answers with the expected status
    COMMAND = "command"  # a program exits with 0


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotConfig:
    """Where a slot is: a stable device name (/dev/disk/by-partlabel/…), or a file in a sandbox."""

    device: Path

    def __post_init__(self) -> None:
        _absolute("device", self.device)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootConfig:
    """How the boot loader is spoken to. `deadline`: seconds from power on until the slot must be confirmed."""

    esp: Path
    backend: Literal["grub", "systemd-boot"] = "grub"
    tries: int = 3
    deadline: int = 300
    cmdline: str = ""

    def __post_init__(self) -> None:
        _absolute("esp", self.esp)
        if not 1 <= self.tries <= 9:
            raise ValueError("tries: must be from 1 to 9")
        if self.deadline < 30:
            raise ValueError("deadline: must be at least 30 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustConfig:
    """Whose signatures are accepted: public keys (PEM), and how many of them must have signed."""

    keys: tuple[Path, ...]
    threshold: int = 1

    def __post_init__(self) -> None:
        _absolute("keys", *self.keys)
        if not 1 <= self.threshold <= len(self.keys):
            raise ValueError(f"threshold: must be from 1 to the number of keys ({len(self.keys)})")


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthCheck:
    """One health check. A wanted check (required = false) that fails is reported and does not stop the confirmation."""

    name: str
    kind: CheckKind
    required: bool = True
    unit: str = ""
    host: str = "127.0.0.1"
    port: int = 0
    url: str = ""
    status: int = 200
    command: tuple[str, ...] = ()
    timeout: float = 10.0

    def __post_init__(self) -> None:
        needs = {
            CheckKind.UNIT: ("unit", self.unit),
            CheckKind.TCP: ("port", self.port),
            CheckKind.HTTP: ("url", self.url),
            CheckKind.COMMAND: ("command", self.command),
        }
        key, value = needs[self.kind]
        if not value:
            raise ValueError(f"{key}: a check of kind {self.kind} needs it")
        if not 0 <= self.port <= 65535:
            raise ValueError("port: must be from 1 to 65535")
        if self.kind is CheckKind.HTTP and not self.url.startswith(("http://", "https://")):
            raise ValueError("url: must begin with http:// or https://")
        _seconds(timeout=self.timeout)


@dataclass(frozen=True, slots=True, kw_only=True)
class HealthConfig:
    """The health checks; seconds. `deadline`: 0 for one look. `drop_in`: a directory of executables, each a required
    check.
    """

    deadline: float = 180.0
    interval: float = 2.0
    drop_in: Path = Path("/etc/updater/health.d")
    checks: tuple[HealthCheck, ...] = ()

    def __post_init__(self) -> None:
        names = [check.name for check in self.checks]
        doubles = sorted({name for name in names if names.count(name) > 1})
        if doubles:
            raise ValueError(f"checks: the name {doubles[0]!r} is used twice")
        _absolute("drop_in", self.drop_in)
        if not 0 <= self.deadline < math.inf:
            raise ValueError("deadline: must be a number of seconds, not negative")
        _seconds(interval=self.interval)


@dataclass(frozen=True, slots=True, kw_only=True)
class HooksConfig:
    """Where the operator's hooks are, and how long (seconds) each may take."""

    directory: Path = Path("/etc/updater/hooks")
    deadline: float = 60.0

    def __post_init__(self) -> None:
        _absolute("directory", self.directory)
        _seconds(deadline=self.deadline)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageConfig:
    """How a slot is written: at most `rate_limit` bytes a second (0: no limit). `carry`: paths of the running system
    that are copied into every new slot.
    """

    rate_limit: int = 0
    carry: tuple[Path, ...] = (Path("/etc/updater"),)

    def __post_init__(self) -> None:
        if self.rate_limit < 0:
            raise ValueError("rate_limit: must not be negative")
        for path in self.carry:
            if not path.is_absolute() or ".." in path.parts:
                raise ValueError(f"carry: {path} must be absolute and without '..'")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaConfig(Database):
    """A replica whose lag batches wait for. `of`: the name of the database that it follows."""

    of: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationsConfig:
    """How data migrations run; seconds. `lock_wait`: longest wait for a lock at each try. `deadline`: of each phase.
    `max_stall`: how long writers may be held up in all by one phase. `max_lag`, `max_running`: batches pause while a
    replica is further behind, or the server executes more statements. `backup`: before the blocking phase; a program
    of the operator's is `backup_command`. `backups`: where backups are kept (empty: in the data directory).
    `replicas`: of MariaDB servers, which do not know how far theirs are behind.
    """

    lock_wait: float = 1.0
    deadline: float = 3600.0
    max_stall: float = 60.0
    max_lag: float = 30.0
    max_running: int = 0
    backup: Literal["none", "snapshot", "command"] = "snapshot"
    backup_command: tuple[str, ...] = ()
    backups: Path | None = None
    replicas: tuple[ReplicaConfig, ...] = ()

    def __post_init__(self) -> None:
        _seconds(lock_wait=self.lock_wait, deadline=self.deadline, max_stall=self.max_stall, max_lag=self.max_lag)
        if self.max_running < 0:
            raise ValueError("max_running: must not be negative")
        if (self.backup == "command") != bool(self.backup_command):
            raise ValueError('backup_command: belongs to backup = "command"')
        _absolute("backups", self.backups)


@dataclass(frozen=True, slots=True, kw_only=True)
class RehearsalConfig:
    """Whether a release must have been rehearsed before it is activated. `records`: where records of rehearsals are
    (empty: in the data directory). `keys`: whose signature a record must have (none: nobody's). `max_age`: how many
    days it may be old.
    """

    require: bool = False
    records: Path | None = None
    keys: tuple[Path, ...] = ()
    max_age: float = 30.0

    def __post_init__(self) -> None:
        if not self.max_age > 0:
            raise ValueError("max_age: must be more than 0 days")
        _absolute("records", self.records)
        _absolute("keys", *self.keys)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotsConfig:
    """The two root slots."""

    a: SlotConfig
    b: SlotConfig

    def __post_init__(self) -> None:
        if self.a.device == self.b.device:
            raise ValueError("b.device: is the same as a.device")

    def __getitem__(self, slot: str) -> SlotConfig:
        return self.a if slot == "a" else self.b


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeConfig:
    """The whole of node.toml. `machine` is "sandbox" only in a node made of plain files (`updater sandbox`)."""

    name: str
    compatible: str
    data: Path
    slots: SlotsConfig
    boot: BootConfig
    trust: TrustConfig
    site: str = ""
    role: str = ""
    machine: Literal["host", "sandbox"] = "host"
    health: HealthConfig = field(default_factory=HealthConfig)
    hooks: HooksConfig = field(default_factory=HooksConfig)
    stage: StageConfig = field(default_factory=StageConfig)
    databases: dict[str, Database] = field(default_factory=dict)
    migrations: MigrationsConfig = field(default_factory=MigrationsConfig)
    rehearsal: RehearsalConfig = field(default_factory=RehearsalConfig)
    policy: Policy = field(default_factory=Policy)

    def __post_init__(self) -> None:
        _absolute("data", self.data)
        for name, database in self.databases.items():
            _absolute_in(f"databases.{name}", database)
        for number, replica in enumerate(self.migrations.replicas):
            _absolute_in(f"migrations.replicas[{number}]", replica)
            if replica.of not in self.databases:
                raise ValueError(f"migrations.replicas[{number}].of: there is no database {replica.of!r}")

    @property
    def journal(self) -> Path:
        """Where the journal is: on the data partition, never in a slot."""
        return self.data / "journal.sqlite"

    @property
    def lock(self) -> Path:
        """The lock that a changing verb holds."""
        return self.data / "lock"


def _absolute(key: str, *paths: Path | None) -> None:
    """A relative path would mean something else in a job and in systemd's units. Raises ValueError."""
    for path in paths:
        if path is not None and not path.is_absolute():
            raise ValueError(f"{key}: {path} must be absolute")


def _absolute_in(key: str, database: Database) -> None:
    for name in ("socket", "password_file", "tls_ca"):
        _absolute(f"{key}.{name}", getattr(database, name))


def _seconds(**values: float) -> None:
    """Neither TOML's `nan` nor its `inf` is a time to wait. Raises ValueError."""
    for key, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{key}: must be more than 0 seconds, and finite")


def load_node(path: Path) -> NodeConfig:
    """Read node.toml. Raises ConfigError with every fault in it."""
    return load_toml(path, NodeConfig, what="the node's configuration")
