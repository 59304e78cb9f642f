"""How drivers act on a host: the same code runs on this machine, over SSH, and in tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from core.errors import CommandFailed, FencedOff, Interrupted
from core.files import write_atomic
from core.run import Result, run

#: Errors that are not about a host: the work has to end, here and now.
ENDING: Final = (FencedOff, Interrupted)


class Shell(Protocol):
    """A host that programs can be run on. Each call raises SiteUnreachable when the host does not answer."""

    @property
    def name(self) -> str:
        """The server's name, for people."""

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        """Run a program to its end, whatever its exit code. Raises CommandFailed when it is missing or overruns
        `timeout` seconds.
        """

    def exists(self, path: Path) -> bool:
        """Is there such a file?"""

    def read(self, path: Path) -> bytes:
        """A whole file. Raises CommandFailed when it cannot be read."""

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        """Replace a file durably: after a power cut either the old or the new content is there, whole. `mode`: None
        keeps that of the old one (0644 for a new one); its owner is kept. Raises CommandFailed.
        """


class LocalShell:
    """This machine."""

    def __init__(self, name: str = "this host") -> None:
        self.name = name

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        return run(*argv, check=False, input=input, timeout=timeout)

    def exists(self, path: Path) -> bool:
        return path.exists()

    def read(self, path: Path) -> bytes:
        try:
            return path.read_bytes()
        except OSError as error:
            raise CommandFailed(f"{path} on {self.name} cannot be read", what=str(error)) from error

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        try:
            old = path.stat() if path.exists() else None
            write_atomic(
                path,
                data,
                mode=mode if mode is not None else (old.st_mode & 0o7777 if old else 0o644),
                owner=(old.st_uid, old.st_gid) if old else None,
            )
        except OSError as error:
            raise CommandFailed(
                f"{path} on {self.name} cannot be written", what=str(error), state="it is as it was"
            ) from error
