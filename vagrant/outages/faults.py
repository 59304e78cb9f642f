"""Disks that can be made to fail, and be mended, while they are used: of a machine, or of a mounted filesystem."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, Protocol

from vagrant.outages.volume import Volume
from vagrant.qemu import Machine

_FIBMAP, _FIGETBSZ = 1, 2
_numbers = count(1)

#: Prints the place of a file on the disk, in sectors, from inside the guest.
_WHERE = f"""\
import fcntl, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
block = struct.unpack("i", fcntl.ioctl(fd, {_FIBMAP}, struct.pack("i", 0)))[0]
size = struct.unpack("i", fcntl.ioctl(fd, {_FIGETBSZ}, struct.pack("i", 0)))[0]
number = os.fstat(fd).st_dev
part = f"/sys/dev/block/{{os.major(number)}}:{{os.minor(number)}}/start"
print(block * size // 512 + int(open(part).read()))
"""


class _Monitored(Protocol):
    def qmp(self, command: str, **arguments: Any) -> Any: ...


@contextmanager
def _failing(disk: _Monitored, kind: str, sector: int | None) -> Iterator[None]:
    """Put a `blkdebug` node between the nodes `disk` and `image` for a while."""
    name = f"fault-{next(_numbers)}"
    rule: dict[str, object] = {"event": "none", "iotype": kind, "errno": errno.EIO, "once": kind == "flush"}
    if sector is not None:
        rule["sector"] = sector

    def go_through(node: str) -> None:
        disk.qmp("blockdev-reopen", options=[{"driver": "raw", "node-name": "disk", "file": node}])

    disk.qmp("blockdev-add", **{"node-name": name, "driver": "blkdebug", "image": "image", "inject-error": [rule]})
    go_through(name)
    try:
        yield
    finally:
        go_through("image")
        disk.qmp("blockdev-del", **{"node-name": name})


def _with_room_for_faults(nodes: list[Mapping[str, object]]) -> list[Mapping[str, object]]:
    *before, disk = nodes
    return [*before, {**disk, "node-name": "image"}, {"driver": "raw", "node-name": "disk", "file": "image"}]


class FaultyMachine(Machine):
    """A machine whose disk can fail."""

    def failing(self, kind: str, *, sector: int | None = None) -> Any:
        """While in the context, requests of this kind (read, write) fail with EIO: those that touch the sector of the
        disk, or all of them. Of flushes, one fails. The machine has to be running at its end.
        """
        return _failing(self, kind, sector)

    def sector_of(self, file: str) -> int:
        """The first sector of a file of the guest, on the disk. Raises MachineError."""
        return int(self.run(f"python3 -I - {file}", input=_WHERE.encode()).stdout)

    def _blockdevs(self) -> list[Mapping[str, object]]:
        return _with_room_for_faults(super()._blockdevs())


class FaultyVolume(Volume):
    """A filesystem whose disk can fail."""

    def failing(self, kind: str, *, file: Path | None = None) -> Any:
        """While in the context, requests of this kind (read, write) fail with EIO: those that touch the beginning of
        this file, or all of them. Of flushes, one fails.
        """
        return _failing(self, kind, None if file is None else _sector_of(file))

    def _blockdevs(self) -> list[Mapping[str, object]]:
        return _with_room_for_faults(super()._blockdevs())


def _sector_of(file: Path) -> int:
    fd = os.open(file, os.O_RDONLY)
    try:
        os.fsync(fd)
        block = struct.unpack("i", fcntl.ioctl(fd, _FIBMAP, struct.pack("i", 0)))[0]
        size = struct.unpack("i", fcntl.ioctl(fd, _FIGETBSZ, struct.pack("i", 0)))[0]
        return int(block) * int(size) // 512
    finally:
        os.close(fd)
