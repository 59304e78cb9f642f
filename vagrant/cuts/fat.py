"""A small reader of FAT16 and FAT32, as firmware and boot loaders read: the first FAT, short names, nothing mended."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath

_ENTRY = 32
_LONG_NAME = 0x0F
_DIRECTORY = 0x10
_VOLUME = 0x08


class FatError(ValueError):
    """The filesystem, or the file asked for, cannot be read."""


class Fat:
    """A filesystem, of which `read(offset, length)` gives the bytes."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """Raises FatError when there is none."""
        self._read = read
        boot = read(0, 512)
        if len(boot) < 512 or boot[510:] != b"\x55\xaa":
            raise FatError("no boot sector")
        sector, cluster, reserved, fats, entries, total16 = struct.unpack_from("<HBHBHH", boot, 11)
        fat16, total32, fat32, root = struct.unpack_from("<22xH8xLL4xL", boot, 0)
        if sector != 512 or not cluster or not fats or not (fat16 or fat32):
            raise FatError("its boot sector makes no sense")
        self.wide = not fat16
        fat_sectors = fat16 or fat32
        self._fat_at = reserved * sector
        self._root_at = (reserved + fats * fat_sectors) * sector
        self._root_size = entries * _ENTRY
        self._data_at = self._root_at + -(-self._root_size // sector) * sector
        self._cluster = cluster * sector
        self._count = ((total16 or total32) * sector - self._data_at) // self._cluster
        self._root = root
        self._table = read(self._fat_at, fat_sectors * sector)

    def file(self, path: str) -> bytes:
        """The content of a file. Raises FatError saying what is wrong with it."""
        return self.look_up(path)[0]

    def look_up(self, path: str) -> tuple[bytes, list[int]]:
        """The content of a file, and the clusters that it owns. Raises FatError."""
        directory = self._root_directory()
        *above, name = PurePosixPath(path).parts
        for part in above:
            attributes, first, _ = _find(directory, part, path)
            if not attributes & _DIRECTORY:
                raise FatError(f"{path}: {part} is no directory")
            directory = self._bytes(self.chain(first, path))
        attributes, first, size = _find(directory, name, path)
        if attributes & _DIRECTORY:
            raise FatError(f"{path} is a directory")
        clusters = self.chain(first, path) if first else []
        if len(clusters) * self._cluster < size:
            raise FatError(f"{path} has {size} bytes and {len(clusters)} clusters")
        return self._bytes(clusters[: -(-size // self._cluster)])[:size], clusters

    def chain(self, first: int, what: str) -> list[int]:
        """The clusters of a file from its first one on. Raises FatError."""
        found: list[int] = []
        seen: set[int] = set()
        at, end = first, (0x0FFFFFF8 if self.wide else 0xFFF8)
        while at < end:
            if not 2 <= at < self._count + 2:
                raise FatError(f"{what}: its chain leads to cluster {at}")
            if at in seen:
                raise FatError(f"{what}: its chain goes round in a circle")
            found.append(at)
            seen.add(at)
            at = self._next(at)
        return found

    def _next(self, cluster: int) -> int:
        if self.wide:
            return int(struct.unpack_from("<L", self._table, cluster * 4)[0]) & 0x0FFFFFFF
        return int(struct.unpack_from("<H", self._table, cluster * 2)[0])

    def _root_directory(self) -> bytes:
        if self.wide:
            return self._bytes(self.chain(self._root, "the root directory"))
        return self._read(self._root_at, self._root_size)

    def _bytes(self, clusters: list[int]) -> bytes:
        return b"".join(self._read(self._data_at + (first - 2) * self._cluster, count * self._cluster)
                        for first, count in _runs(clusters))  # fmt: skip


def _runs(clusters: list[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together: first, count."""
    start = 0
    for at in range(1, len(clusters) + 1):
        if at == len(clusters) or clusters[at] != clusters[at - 1] + 1:
            yield clusters[start], at - start
            start = at


def _find(directory: bytes, name: str, path: str) -> tuple[int, int, int]:
    """Attributes, first cluster and size of an entry. Raises FatError."""
    stem, _, suffix = name.upper().partition(".")
    wanted = (stem.ljust(8) + suffix.ljust(3)).encode("ascii")
    for at in range(0, len(directory) - _ENTRY + 1, _ENTRY):
        raw = directory[at : at + _ENTRY]
        if raw[0] == 0:
            break
        attributes = raw[11]
        if raw[0] == 0xE5 or attributes & 0x3F == _LONG_NAME or attributes & _VOLUME:
            continue
        if raw[:11] == wanted:
            high, low, size = struct.unpack_from("<H4xHL", raw, 20)
            return attributes, high << 16 | low, size
    raise FatError(f"{path} is missing")
