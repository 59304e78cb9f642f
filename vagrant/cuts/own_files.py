"""Where on the disk the files of a release lie that nothing may ever change in a running system: its own programs."""

from __future__ import annotations

import array
import fcntl
import os
import struct
import subprocess
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_FIEMAP = 0xC020660B
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQ2QL3L")
_MOST = 512

#: Directories in which a release's own files lie.
DIRECTORIES = ("usr", "boot")


@dataclass(frozen=True, slots=True)
class Ranges:
    """Ranges of bytes (offset, length), in order, which do not overlap."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, ranges: Iterable[tuple[int, int]]) -> Ranges:
        """In any order; neighbours become one."""
        found: list[tuple[int, int]] = []
        for offset, length in sorted(ranges):
            if found and found[-1][0] + found[-1][1] >= offset:
                start = found[-1][0]
                found[-1] = (start, max(found[-1][1], offset + length - start))
            else:
                found.append((offset, length))
        return cls(tuple(found))

    def meeting(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts of the ranges that lie in these bytes."""
        index = max(bisect_right(self.ranges, (offset, 0)) - 1, 0)
        while index < len(self.ranges) and self.ranges[index][0] < offset + length:
            start = max(self.ranges[index][0], offset)
            end = min(sum(self.ranges[index]), offset + length)
            if start < end:
                yield start, end - start
            index += 1


def find(image: Path, mount_at: Path) -> Ranges:
    """Bytes of an ext4 image in which the own files of the release lie. `mount_at`: an empty directory. Needs root."""
    subprocess.run(["mount", "-o", "ro,noload,loop", str(image), str(mount_at)], check=True, timeout=60)
    try:
        found: list[tuple[int, int]] = []
        for top in DIRECTORIES:
            for directory, _, names in os.walk(mount_at / top):
                for name in names:
                    path = os.path.join(directory, name)  # noqa: PTH118 (ten thousand files)
                    if os.path.isfile(path) and not os.path.islink(path):  # noqa: PTH113, PTH114
                        found += _extents(path)
        return Ranges.of(found)
    finally:
        subprocess.run(["umount", str(mount_at)], check=True, timeout=60)


def _extents(path: str) -> Iterator[tuple[int, int]]:
    fd = os.open(path, os.O_RDONLY)
    try:
        room = array.array("B", bytes(_HEAD.size + _MOST * _EXTENT.size))
        _HEAD.pack_into(room, 0, 0, 1 << 62, 0, 0, _MOST, 0)
        fcntl.ioctl(fd, _FIEMAP, room, True)
        count = _HEAD.unpack_from(room)[3]
        for number in range(count):
            _, physical, length, *_ = _EXTENT.unpack_from(room, _HEAD.size + number * _EXTENT.size)
            yield physical, length
    finally:
        os.close(fd)
