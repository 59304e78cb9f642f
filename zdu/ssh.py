"""How servers are reached over SSH: what sites.toml says at three levels, and what comes of it for one server."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.schema import SchemaError


@dataclass(frozen=True, slots=True, kw_only=True)
class SshConfig:
    """What is said at one level (the file, a site, a server); what is not said is taken from the level above.

    `jump`: hosts on the way, ``[user@]host[:port]``, the first one nearest to the controller. `key`: without one, the
    agent of the user who starts the controller. `known_hosts`: whose key is not in it is not spoken to; the jump hosts
    too. `sudo`: the user is not root and may run `command` with sudo, without a password. `command`: the program that
    is started there. `connect`: seconds until a server counts as down; `answer`: for its agent to say how it stands.
    """

    user: str | None = None
    port: int | None = None
    jump: tuple[str, ...] | None = None
    key: Path | None = None
    known_hosts: Path | None = None
    sudo: bool | None = None
    command: str | None = None
    connect: float | None = None
    answer: float | None = None

    def __post_init__(self) -> None:
        faults = []
        if self.port is not None and not 1 <= self.port <= 65535:
            faults.append("port: must be from 1 to 65535")
        for key in ("key", "known_hosts"):
            path = getattr(self, key)
            if path is not None and not path.is_absolute():
                faults.append(f"{key}: {path} must be absolute")
        for key in ("connect", "answer"):
            seconds = getattr(self, key)
            if seconds is not None and seconds <= 0:
                faults.append(f"{key}: must be more than 0")
        faults += [f"{key}: must not be empty" for key in ("user", "command") if getattr(self, key) == ""]
        for number, host in enumerate(self.jump or ()):
            port = host.rpartition("@")[2].rpartition(":")[2] if ":" in host else "22"
            if not host or any(c.isspace() for c in host) or not (port.isascii() and port.isdigit()):
                faults.append(f"jump[{number}]: {host!r} is not [user@]host[:port]")
        if faults:
            raise SchemaError(faults)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """How one server is reached."""

    host: str
    user: str = "root"
    port: int = 22
    jump: tuple[str, ...] = ()
    key: Path | None = None
    known_hosts: Path = Path("/etc/ssh/ssh_known_hosts")
    sudo: bool = False
    command: str = "updater"
    connect: float = 10.0
    answer: float = 60.0

    @classmethod
    def of(cls, host: str, *levels: SshConfig) -> Reach:
        """Put together from the levels, the nearest one first."""
        told = {}
        for key in SshConfig.__dataclass_fields__:
            said = next((value for level in levels if (value := getattr(level, key)) is not None), None)
            if said is not None:
                told[key] = said
        return cls(host=host, **told)

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.port}"
