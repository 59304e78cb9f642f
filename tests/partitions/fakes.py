"""An image made of bytes, and a report that remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from blake3 import blake3

from core.report import Event, Kind, Report

CHUNK = 1 << 20


@dataclass
class FakeImage:
    """An image in memory. `trap` is called with a chunk's number before it is loaded."""

    data: bytes
    chunk_size: int = CHUNK
    trap: Callable[[int], None] | None = None
    loaded: list[int] = field(default_factory=list)

    @property
    def size(self) -> int:
        return len(self.data)

    @property
    def count(self) -> int:
        return -(-len(self.data) // self.chunk_size)

    def plain(self, chunk: int) -> bytes:
        return self.data[chunk * self.chunk_size : (chunk + 1) * self.chunk_size]

    def is_zero(self, chunk: int) -> bool:
        return not any(self.plain(chunk))

    def digest(self, chunk: int) -> bytes:
        return blake3(self.plain(chunk)).digest()

    def load(self, chunk: int, out: memoryview) -> int:
        if self.trap is not None:
            self.trap(chunk)
        plain = self.plain(chunk)
        out[: len(plain)] = plain
        self.loaded.append(chunk)
        return len(plain)


def pattern(chunks: str, *, chunk_size: int = CHUNK, tail: int = 0) -> bytes:
    """An image's bytes: each letter is a chunk of its own content, ``.`` a hole; `tail` more bytes at the end."""
    whole = b"".join(bytes(chunk_size) if letter == "." else filler(letter, chunk_size) for letter in chunks)
    return whole + filler("tail", tail)


def filler(seed: str, size: int) -> bytes:
    """Bytes that look random, and are always the same for the same seed."""
    return blake3(seed.encode()).digest(length=size) if size else b""


class Heard:
    """A report together with what it was told."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.report = Report(self.events.append)

    @property
    def progress(self) -> list[Event]:
        return [event for event in self.events if event.kind is Kind.PROGRESS]
