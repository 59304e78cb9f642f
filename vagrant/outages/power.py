"""A machine whose disk forgets, in a power cut, what was not flushed: as a drive with a volatile cache does.

QEMU writes through its `blklogwrites` filter into an overlay. The overlay is thrown away after the cut; the log of
writes says what reached the disk before the last flush. That is kept. Of each write after it, chance keeps all,
nothing, or some of its sectors, in any order.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random

from core.run import run
from vagrant.cuts.disks import How, Piece, as_raw, survive
from vagrant.cuts.log import SECTOR, Entry, Kind, LogError, WriteLog
from vagrant.disk import Layout, Partition, image_format, overlay
from vagrant.qemu import Machine

_CHUNK = 1 << 20

#: A feature of ext4: the filesystem is mounted, or was when the power went.
_NEEDS_RECOVERY = 0x4


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What a cut did to the disk, in writes: `durable` were flushed; of those after the last flush, `kept` are there
    whole, `torn` in part, and `lost` not at all."""

    durable: int
    kept: int
    torn: int
    lost: int

    def __str__(self) -> str:
        return f"{self.durable} writes flushed; then {self.kept} kept, {self.torn} torn, {self.lost} lost"


class VolatileMachine(Machine):
    """A machine on a raw disk image, with a volatile cache under it. Use `cut` in place of `kill`, then `come_to_rest`
    before the next `start`."""

    def __init__(self, disk: Path, work: Path, rng: Random, *, memory: int = 1024, cpus: int = 2) -> None:
        """`disk`: a raw image, changed by `come_to_rest` only; or a frozen machine's overlay, for the first `thaw`,
        in whose place `come_to_rest` puts a raw image under the same name."""
        super().__init__(disk, work, memory=memory, cpus=cpus)
        self.rng = rng
        self._cache, self._log = work / "cache.qcow2", work / "writes.log"
        self._cut = False

    def start(self, incoming: str = "") -> None:
        """Switch it on, with an empty cache and an empty log."""
        for path in (self._cache, self._log):
            path.unlink(missing_ok=True)
        overlay(self.disk, self._cache)
        self._log.touch()
        self._cut = False
        super().start(incoming)

    def cut(self) -> None:
        """Cut the power; safe to call from another thread, whatever this one waits for."""
        process = self._process
        if process is not None and process.poll() is None:
            self._cut = True
            os.kill(process.pid, signal.SIGKILL)

    @property
    def was_cut(self) -> bool:
        """Whether the power went since the last `start`."""
        return self._cut

    def come_to_rest(self) -> Loss:
        """After a cut: make the disk what the cut left of it."""
        self.kill()
        if image_format(self.disk) != "raw":
            as_raw(self.disk, raw := self.work / "disk.raw")
            raw.replace(self.disk)
        loss = settle(self.disk, self._log, self.rng)
        self._cache.unlink(missing_ok=True)
        for label in ("slot-a", "slot-b", "data"):
            recover(self.disk, Layout().partitions()[label])
        return loss

    def _blockdevs(self) -> list[Mapping[str, object]]:
        file = {"driver": "file", "filename": str(self._cache)}
        return [
            {"driver": "qcow2", "node-name": "cache", "file": file, "discard": "unmap"},
            {"driver": "file", "node-name": "log", "filename": str(self._log)},
            {
                "driver": "blklogwrites",
                "node-name": "disk",
                "file": "cache",
                "log": "log",
                "log-sector-size": SECTOR,
                "log-super-update-interval": 1,
            },
        ]


def recover(disk: Path, part: Partition) -> bool:
    """Have e2fsck replay the journal of a partition's ext4 filesystem, if it was mounted when the power went.

    Any other one is not touched: e2fsck writes to a clean one too, and a staged slot is sealed.
    """
    with disk.open("rb") as file:
        file.seek(part.start + 1024)
        superblock = file.read(1024)
    magic, incompatible = struct.unpack_from("<H", superblock, 0x38)[0], struct.unpack_from("<I", superblock, 0x60)[0]
    if magic != 0xEF53 or not incompatible & _NEEDS_RECOVERY:
        return False
    place = ("--offset", str(part.start), "--sizelimit", str(part.size))
    device = run("losetup", "--find", "--show", *place, disk).stdout.strip()
    try:
        run("e2fsck", "-p", device, check=False, timeout=120)  # half a slot may be beyond repair
    finally:
        run("losetup", "--detach", device)
    return True


class _CutOff(WriteLog):
    """A log whose writer was killed: entries since the last flush are there, and not counted."""

    def __len__(self) -> int:
        return 1 << 40


def settle(disk: Path, log: Path, rng: Random) -> Loss:
    """Write into a raw image what a power cut leaves of the writes in a log."""
    try:
        opened = _CutOff(log)
    except LogError:  # cut before the first flush
        return Loss(durable=0, kept=0, torn=0, lost=0)
    fd = os.open(disk, os.O_WRONLY | os.O_CLOEXEC)
    try:
        with opened:
            entries = _complete(opened)
            flushed = max((n for n, entry in enumerate(entries) if entry.flush), default=-1) + 1
            durable = [entry for entry in entries[:flushed] if entry.length]
            pending = [entry for entry in entries[flushed:] if entry.length]
            pieces = survive(pending, How.SOME, f"{rng.random()}")
            for piece in (*(Piece(entry, entry.offset, entry.length) for entry in durable), *pieces):
                _put(fd, opened, piece)
            whole = sum(piece.length == piece.entry.length for piece in pieces)
            touched = len({piece.entry.index for piece in pieces})
            return Loss(durable=len(durable), kept=whole, torn=touched - whole, lost=len(pending) - touched)
    finally:
        os.close(fd)


def _complete(log: WriteLog) -> list[Entry]:
    """The entries up to the one that was being logged in the instant of the cut: its writer was never answered."""
    found: list[Entry] = []
    with contextlib.suppress(LogError):  # the end of the file
        for entry in log:
            if entry.kind is Kind.FLUSH and not entry.flush:  # its place was taken, and nothing written there yet
                break
            found.append(entry)
    return found


def _put(fd: int, log: WriteLog, piece: Piece) -> None:
    """Write a piece to where it belongs on the disk."""
    offset, end, entry = piece.offset, piece.offset + piece.length, piece.entry
    while offset < end:
        size = min(end - offset, _CHUNK)
        data = bytes(size) if entry.data_at < 0 else log.read_at(entry.data_at + offset - entry.offset, size)
        os.pwrite(fd, data, offset)
        offset += size
