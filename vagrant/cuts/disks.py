"""A disk as a power cut left it: a base, all writes up to the last flush before the cut, and some of those after it.

A drive may keep what it was given since the last flush in its cache, and write it out in any order, each 512-byte
sector whole or not at all. So of every sector the cut leaves one of the versions that it had since that flush: this is
what `survive` draws. A write with FUA is durable by itself.
"""

from __future__ import annotations

import os
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Self

from core.run import run
from vagrant.cuts.log import SECTOR, Entry, Kind, WriteLog
from vagrant.disk import copy_sparse, image_format

#: Source of bytes that are zeros, where others are offsets in the log.
_ZEROS = -1

#: Writes of up to this many sectors are torn sector by sector, longer ones in runs of sectors.
_FINE = 16

_COPY = 1 << 20


class How(StrEnum):
    """What survives of the writes since the last flush."""

    NONE = "none"
    ALL = "all"
    SOME = "some"


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a write that reached the disk: `length` bytes at `offset` of the disk, in whole sectors."""

    entry: Entry
    offset: int
    length: int


def survive(pending: Sequence[Entry], how: How, seed: str) -> tuple[Piece, ...]:
    """What of `pending` (the entries since the last flush, in order) is on the disk after the cut, in the order of the
    log. The same arguments always give the same answer.

    In that order a later write covers an earlier one, as in a drive's cache; leaving out any part of any write then
    gives every state that writing out in any order could be stopped in.
    """
    draw = random.Random(seed)
    # A coin of its own for each cut: in some of them nearly all is lost, in others nearly nothing.
    lost, torn = draw.random(), draw.random() / 2
    found: list[Piece] = []
    for entry in pending:
        if not entry.length:
            continue
        if entry.fua or how is How.ALL:
            found.append(Piece(entry, entry.offset, entry.length))
        elif how is How.SOME:
            if draw.random() < torn and entry.length > SECTOR:
                found += (Piece(entry, start, length) for start, length in _tear(entry, draw))
            elif draw.random() >= lost:
                found.append(Piece(entry, entry.offset, entry.length))
    return tuple(found)


def _tear(entry: Entry, draw: random.Random) -> Iterator[tuple[int, int]]:
    """Runs of sectors of the write, some and not all."""
    sectors = entry.length // SECTOR
    count = sectors - 1 if sectors <= _FINE else draw.randint(1, 4)
    edges = [0, *sorted(draw.sample(range(1, sectors), count)), sectors]
    runs = list(pairwise(edges))
    for first, end in sorted(draw.sample(runs, draw.randint(1, len(runs) - 1))):
        yield entry.offset + first * SECTOR, (end - first) * SECTOR


class Extents:
    """Which bytes of a disk come from where: ranges that do not overlap, in order; the latest `put` covers."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._sources: list[int] = []

    def put(self, start: int, end: int, source: int) -> None:
        """Bytes `start` to `end` come from `source`, an offset in the log, or are zeros (-1)."""
        first = bisect_right(self._ends, start)
        after = bisect_left(self._starts, end)
        new: list[tuple[int, int, int]] = []
        if first < after:
            if self._starts[first] < start:
                new.append((self._starts[first], start, self._sources[first]))
            new.append((start, end, source))
            last = after - 1
            if self._ends[last] > end:
                new.append((end, self._ends[last], _later(self._sources[last], end - self._starts[last])))
        else:
            new.append((start, end, source))
        self._starts[first:after] = [each[0] for each in new]
        self._ends[first:after] = [each[1] for each in new]
        self._sources[first:after] = [each[2] for each in new]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int, int | None]]:
        """The range from `start` to `end` in parts: start, end, source; None where it was never put."""
        at = start
        index = bisect_right(self._ends, start)
        while at < end:
            if index >= len(self._starts) or self._starts[index] >= end:
                yield at, end, None
                return
            if self._starts[index] > at:
                yield at, self._starts[index], None
                at = self._starts[index]
            stop = min(self._ends[index], end)
            yield at, stop, _later(self._sources[index], at - self._starts[index])
            at, index = stop, index + 1

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        return iter(list(zip(self._starts, self._ends, self._sources, strict=True)))


def _later(source: int, by: int) -> int:
    return source if source == _ZEROS else source + by


class CutDisk:
    """The disk that recorded writes and a power cut leave of `base` (a raw file, which is only read).

    Make the cut with `cut`; going forward to a later one costs as much as what lies between them. Use as a context.
    """

    def __init__(self, base: Path, log: WriteLog, entries: Sequence[Entry] | None = None) -> None:
        """`entries`: those of the log, where they were read before."""
        self.log = log
        self.entries: Sequence[Entry] = list(log) if entries is None else entries
        self.base = base
        #: Entries before this index are on the disk.
        self.durable = 0
        self.pieces: tuple[Piece, ...] = ()
        self._extents = Extents()
        self._late = Extents()
        self._fd = os.open(base, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size
        # an entry that is a flush, and perhaps a write too, makes durable what came before it
        self._flushes = [entry.index for entry in self.entries if entry.flush]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the base. The log stays open."""
        os.close(self._fd)

    @property
    def flushes(self) -> Sequence[int]:
        """The indices of all entries that flush."""
        return self._flushes

    def flushed(self, point: int) -> int:
        """A cut comes when the entries before `point` are completed: before which index is all of it durable?"""
        found = bisect_left(self._flushes, point)
        return self._flushes[found - 1] if found else 0

    def pending(self, point: int) -> Sequence[Entry]:
        """The entries of which nobody knows what a cut at `point` leaves."""
        return self.entries[self.flushed(point) : point]

    def cut(self, point: int, how: How = How.NONE, seed: str = "") -> list[tuple[int, int]]:
        """Cut the power when the entries before `point` (0 to the number of entries) are completed. Returns the ranges
        (offset, length) that may differ from the cut before."""
        return self.leave(self.flushed(point), survive(self.pending(point), how, seed))

    def leave(self, durable: int, pieces: tuple[Piece, ...]) -> list[tuple[int, int]]:
        """As `cut`, with what survives given: the entries before `durable`, and then these pieces."""
        changed = [(piece.offset, piece.length) for piece in (*self.pieces, *pieces)]
        if durable < self.durable:
            changed += [(start, end - start) for start, end, _ in self._extents]
            self._extents, self.durable = Extents(), 0
        for entry in self.entries[self.durable : durable]:
            if entry.length:
                self._extents.put(entry.offset, entry.offset + entry.length, entry.data_at)
                changed.append((entry.offset, entry.length))
        self.durable, self.pieces, self._late = durable, pieces, Extents()
        for piece in pieces:
            source = _later(piece.entry.data_at, piece.offset - piece.entry.offset)
            self._late.put(piece.offset, piece.offset + piece.length, source)
        return changed

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the disk. Short at its end, as with a file."""
        end = min(offset + length, self.size)
        found: list[bytes] = []
        for start, stop, source in self._late.within(offset, end):
            if source is not None:
                found.append(self._from_log(source, stop - start))
                continue
            for first, last, below in self._extents.within(start, stop):
                found.append(
                    os.pread(self._fd, last - first, first) if below is None else self._from_log(below, last - first)
                )
        return b"".join(found)

    def write_changes(self, into: int, ranges: Sequence[tuple[int, int]], *, start: int = 0, end: int = -1) -> None:
        """Bring a copy of the disk's bytes `start` to `end` (default: all), the open file `into`, up to date in the
        ranges that `cut` returned; zeros become holes where they are large."""
        end = self.size if end < 0 else end
        for offset, length in ranges:
            at, stop = max(offset, start), min(offset + length, end)
            while at < stop:
                count = min(_COPY, stop - at)
                os.pwrite(into, self.read(at, count), at - start)
                at += count

    def materialise(self, into: Path, *, start: int = 0, end: int = -1) -> Path:
        """Write the disk, or its bytes `start` to `end`, as a new sparse raw file."""
        end = self.size if end < 0 else end
        with into.open("xb") as file:
            file.truncate(end - start)
            if (start, end) == (0, self.size):
                copy_sparse(self.base, into, at=0, room=self.size)
            else:
                copy_range(self._fd, file.fileno(), start, end)
            ranges = [(first, last - first) for layer in (self._extents, self._late) for first, last, _ in layer]
            self.write_changes(file.fileno(), ranges, start=start, end=end)
        return into

    def _from_log(self, source: int, length: int) -> bytes:
        return bytes(length) if source == _ZEROS else self.log.read_at(source, length)


def as_raw(disk: Path, into: Path) -> Path:
    """A sparse raw file with what the disk (raw or qcow2, backing files and all) holds now."""
    run("qemu-img", "convert", "-f", image_format(disk), "-O", "raw", disk, into, timeout=300)
    return into


def changes(entries: Sequence[Entry]) -> list[Entry]:
    """Those entries that change bytes."""
    return [entry for entry in entries if entry.kind in (Kind.WRITE, Kind.DISCARD)]


def copy_range(source: int, target: int, start: int, end: int) -> None:
    """Bytes `start` to `end` of a file to the beginning of another one, without its holes."""
    at = start
    while at < end:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:  # no data after this
            return
        stop = min(os.lseek(source, at, os.SEEK_HOLE), end)
        os.lseek(target, at - start, os.SEEK_SET)
        while at < stop:
            at += os.sendfile(target, source, at, stop - at)
