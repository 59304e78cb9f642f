"""GRUB's environment block: the one file in which we and the boot loader write to each other.

Exactly 1024 bytes, written over in place, with all variables in the first 512: a sector reaches the disk whole or not
at all, so after a power cut either the old record or the new one is there. (`grub-editenv set` truncates and rewrites
the file, and a rename needs a journal, which GRUB does not replay.)
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from core import faults
from core.errors import BootEnvironment
from core.files import overwrite_in_place, write_atomic
from partitions.boot.filesystem import sparse

SIZE = 1024
SECTOR = 512
_HEADER = b"# GRUB Environment Block\n"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def parse(raw: bytes) -> dict[str, str]:
    """The variables of an environment block. Stricter than GRUB, which would take a torn or foreign block for an
    environment with fewer variables. Raises ValueError saying what is wrong.
    """
    if len(raw) != SIZE:
        raise ValueError(f"it is {len(raw)} bytes long, not {SIZE}")
    if not raw.startswith(_HEADER):
        raise ValueError("it does not begin with the header of a GRUB environment block")
    found: dict[str, str] = {}
    at = len(_HEADER)
    while raw[at:].strip(b"#"):  # until only padding is left
        line, at = _line(raw, at)
        if line.startswith(b"#"):
            continue
        name, equals, value = line.decode("ascii", errors="replace").partition("=")
        if not equals or not _NAME.match(name):
            raise ValueError(f"{line[:40]!r} is no variable")
        if name in found:
            raise ValueError(f"{name} is there twice")
        if at > SECTOR:
            raise ValueError(f"{name} lies beyond the first {SECTOR} bytes, so a power cut could tear the block")
        found[name] = re.sub(r"\\(.)", r"\1", value, flags=re.DOTALL)
    return found


def render(variables: Mapping[str, str]) -> bytes:
    """The block that holds the variables, as grub-editenv would write it. Raises ValueError where they do not fit into
    the first 512 bytes or could not be read back.
    """
    raw = _HEADER
    for name, value in variables.items():
        if not _NAME.match(name):
            raise ValueError(f"{name!r} is no name for a variable")
        escaped = re.sub(r"[\n\\]", lambda found: "\\" + found[0], value)
        raw += f"{name}={escaped}\n".encode("ascii")
    if len(raw) > SECTOR:
        raise ValueError(f"the variables need {len(raw)} bytes, and only {SECTOR} are written in one piece")
    return raw.ljust(SIZE, b"#")


class GrubEnvironment:
    """The environment block in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> dict[str, str]:
        """All variables. Raises BootEnvironment where it is missing, unreadable, or no sound block."""
        try:
            return parse(self.path.read_bytes())
        except FileNotFoundError as error:
            raise self._error("is missing", "is the boot partition mounted?") from error
        except OSError as error:
            raise self._error("cannot be read", str(error)) from error
        except ValueError as error:
            raise self._error("is corrupt", str(error)) from error

    def store(self, variables: Mapping[str, str]) -> None:
        """Set these variables and keep the others, durably and in one piece. Raises BootEnvironment."""
        raw = self._render({**self.load(), **variables})
        faults.point("boot-environment:before")
        try:
            if sparse(self.path):
                raise self._error("is sparse", "the boot loader writes to its blocks, and it has holes")
            overwrite_in_place(self.path, raw)
        except (OSError, ValueError) as error:
            raise BootEnvironment(
                f"the boot environment {self.path} cannot be written",
                what=str(error),
                state="it is one sector, which is written whole or not at all: what it says now is what counts",
                next=[
                    "updater status    shows what boots next",
                    "updater doctor",
                    "dmesg | tail    errors of the disk?",
                ],
            ) from error
        faults.point("boot-environment:after")

    def create(self, variables: Mapping[str, str]) -> None:
        """Make the file, with blocks of its own. An existing one stays as it is. Raises BootEnvironment."""
        if self.path.exists():
            return
        try:
            write_atomic(self.path, self._render(variables))
        except OSError as error:
            raise self._error("cannot be created", str(error)) from error

    def writable(self) -> bool:
        """May we open the file for writing? (Nothing is written: a running upgrade may be writing right now.)"""
        try:
            os.close(os.open(self.path, os.O_RDWR | os.O_CLOEXEC))
        except OSError:
            return False
        return True

    def _render(self, variables: Mapping[str, str]) -> bytes:
        try:
            return render(variables)
        except ValueError as error:
            raise self._error("cannot hold the boot state", str(error)) from error

    def _error(self, message: str, what: str) -> BootEnvironment:
        return BootEnvironment(
            f"the boot environment {self.path} {message}",
            what=what,
            state="without a sound environment the boot loader starts nothing by itself: its menu waits for a person",
            next=mend(self.path),
        )


def mend(path: Path) -> list[str]:
    """What a person does about a broken environment, one line each."""
    return [
        f"grub-editenv {path} create    once its partition is mounted and writable; then, if slot a runs:",
        f"grub-editenv {path} set primary=a a_state=good a_tries=0 b_state=bad b_tries=0",
    ]


def _line(raw: bytes, at: int) -> tuple[bytes, int]:
    """The line that begins at `at` (without its newline) and where the next one begins."""
    end = at
    while end < len(raw) and raw[end : end + 1] != b"\n":
        end += 2 if raw[end : end + 1] == b"\\" else 1
    if end >= len(raw):
        raise ValueError("its last line has no end")
    return raw[at:end], end + 1
