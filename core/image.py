"""What one who writes a slot needs to know of an image, whoever reads it and from wherever."""

from __future__ import annotations

from typing import Protocol


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
