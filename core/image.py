"""What one who writes a slot needs to know of an image, whoever reads it and from wherever; and how it is started."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

#: Characters with a meaning of their own to one boot loader or the other: none of them takes a kernel argument with it.
_REFUSED = set("\"'\\$`;&|<>{}#\x7f")
_PATH = re.compile(r"(/[A-Za-z0-9_+~:.@-]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFiles:
    """How the system in a slot is started. `kernel`, `initrd`: absolute paths inside the slot. `cmdline`: arguments
    that this release wants, beside those of the node.
    """

    kernel: str
    initrd: str | None = None
    cmdline: str = ""

    def __post_init__(self) -> None:
        for name, path in (("kernel", self.kernel), ("initrd", self.initrd)):
            if path is not None and (not _PATH.fullmatch(path) or "/../" in f"{path}/"):
                raise ValueError(f"{name} {path!r} is not a plain absolute path inside the slot")
        if len(self.cmdline) > 1024:
            raise ValueError("cmdline is longer than 1024 characters")
        check_words(self.cmdline)


def check_words(text: str) -> None:
    """Raise ValueError unless the text can stand in a boot loader's configuration as it is."""
    bad = sorted({c for c in text if c in _REFUSED or not 0x20 <= ord(c) < 0x7F})
    if bad:
        raise ValueError(f"{text!r} holds characters that boot loaders take for something else: {' '.join(bad)}")


class Image(Protocol):
    """A filesystem image in chunks of equal size (the last may be shorter), each with its hash.

    Methods are safe to call from several threads at once.
    """

    @property
    def size(self) -> int:
        """Bytes of the whole image, holes included."""
        ...

    @property
    def chunk_size(self) -> int:
        """Bytes per chunk; a multiple of 4096."""
        ...

    @property
    def count(self) -> int:
        """Number of chunks."""
        ...

    def is_zero(self, chunk: int) -> bool:
        """Whether the chunk is nothing but zero bytes (then `load` need not be called)."""
        ...

    def digest(self, chunk: int) -> bytes:
        """BLAKE3 (32 bytes) of the chunk's plain bytes."""
        ...

    def load(self, chunk: int, out: memoryview) -> int:
        """Put the chunk's plain bytes into `out`, verified, and return how many.

        Raises BundleInvalid or SourceUnreachable. Nothing unverified is ever put there without an error following.
        """
        ...
