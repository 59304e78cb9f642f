"""A log of every write to a disk, in the format of dm-log-writes as QEMU's `blklogwrites` writes it.

A super block (little endian: magic, version, entries, sector size) fills the first sector. Then come the entries: one
sector with the header (sector, sectors, flags, length of a mark's text), and the written bytes in whole sectors after
it, except for discards and flushes. QEMU counts an entry in the super block at the next flush only.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, IntFlag
from pathlib import Path
from types import TracebackType
from typing import Self

_MAGIC = 0x6A736677736872
_SUPER = struct.Struct("<QQQL")
_ENTRY = struct.Struct("<QQQQ")

#: Sectors of recorded disks: what a power cut writes whole or not at all.
SECTOR = 512

#: Holes of a file have multiples of this size.
_BLOCK = 4096


class LogError(ValueError):
    """The file is no write log, or a damaged one."""


class Kind(Enum):
    """What an entry did. A mark is a remark of whoever recorded; it changes nothing."""

    WRITE = "write"
    DISCARD = "discard"
    FLUSH = "flush"
    MARK = "mark"


class _Flag(IntFlag):
    FLUSH = 1
    FUA = 2
    DISCARD = 4
    MARK = 8


@dataclass(frozen=True, slots=True)
class Entry:
    """One request, as it was completed. `offset`, `length`: bytes of the disk (length 0: a flush alone). `data_at`:
    where its bytes are in the log, -1 when they are all zeros (or, for a discard, are to be read as such).

    `flush`: all entries before this one are durable. `fua`: this one is durable itself.
    """

    index: int
    kind: Kind
    offset: int
    length: int
    data_at: int
    flush: bool = False
    fua: bool = False
    text: str = ""


class WriteLog:
    """A recorded log, opened for reading: iterate for its entries in order. Use as a context, or `close` it."""

    def __init__(self, path: Path) -> None:
        """Raises LogError when it is none, OSError."""
        self.path = path
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.sector_size = self._super()[1]
        except LogError:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def __len__(self) -> int:
        """How many entries the super block counts now: of a log that still grows, those up to the last flush."""
        return self._super()[0]

    def __iter__(self) -> Iterator[Entry]:
        """The entries that the super block counts. Raises LogError where one is cut off."""
        at, end = self.sector_size, os.fstat(self._fd).st_size
        for index in range(len(self)):
            header = os.pread(self._fd, _ENTRY.size, at)
            if len(header) < _ENTRY.size:
                raise LogError(f"{self.path}: entry {index} is missing")
            sector, sectors, bits, text_length = _ENTRY.unpack(header)
            flags = _Flag(bits & 0xF)
            length, data_at = sectors * self.sector_size, at + self.sector_size
            text = ""
            if _Flag.MARK in flags:
                text = os.pread(self._fd, text_length, at + _ENTRY.size).decode("utf-8", errors="replace").rstrip("\0")
                kind, length, stored = Kind.MARK, 0, 0
            elif _Flag.DISCARD in flags:
                kind, stored = Kind.DISCARD, 0
            else:
                kind, stored = (Kind.WRITE if length else Kind.FLUSH), length
            if data_at + stored > end and stored:
                raise LogError(f"{self.path}: the data of entry {index} is cut off")
            at = data_at + stored
            yield Entry(
                index=index,
                kind=kind,
                offset=sector * self.sector_size,
                length=length,
                data_at=data_at if stored and not self._is_hole(data_at, stored) else -1,
                flush=_Flag.FLUSH in flags,
                fua=_Flag.FUA in flags,
                text=text,
            )

    def read(self, entry: Entry) -> bytes:
        """The bytes that the entry left on the disk; empty for a flush or a mark. Raises LogError."""
        if entry.data_at < 0:
            return bytes(entry.length)
        return self.read_at(entry.data_at, entry.length)

    def read_at(self, at: int, length: int) -> bytes:
        """Bytes of the log itself, for who kept `data_at`. Raises LogError when it ends too early."""
        found = os.pread(self._fd, length, at)
        if len(found) != length:
            raise LogError(f"{self.path}: it ends within an entry's data")
        return found

    def _super(self) -> tuple[int, int]:
        """The number of entries, and the size of a sector."""
        raw = os.pread(self._fd, _SUPER.size, 0)
        if len(raw) < _SUPER.size:
            raise LogError(f"{self.path} is too short for a write log")
        magic, version, entries, sector_size = _SUPER.unpack(raw)
        if magic != _MAGIC or version != 1:
            raise LogError(f"{self.path} is no write log (version {version}, magic {magic:#x})")
        if sector_size < SECTOR or sector_size & (sector_size - 1):
            raise LogError(f"{self.path}: sectors of {sector_size} bytes")
        return entries, sector_size

    def _is_hole(self, at: int, length: int) -> bool:
        """Zeros are logged as a hole of the log's file, and there may be gigabytes of them."""
        if length < 2 * _BLOCK:
            return False
        first, last = -(-at // _BLOCK) * _BLOCK, (at + length) // _BLOCK * _BLOCK
        try:
            if os.lseek(self._fd, first, os.SEEK_DATA) < last:
                return False
        except OSError:  # no data after this
            pass
        # at both ends the hole shares a block of the log's filesystem with headers
        edges = os.pread(self._fd, first - at, at) + os.pread(self._fd, at + length - last, last)
        return not edges.strip(b"\0")
