"""A filesystem under which the power can be cut at every write, for the SQLite files and the other durable files of the
agent and of the controller; no machine is booted for it.

What works on the mounted filesystem does its real fsyncs; they arrive as flushes in a log of all writes to the disk
(`blklogwrites`). Afterwards the disk of any cut is put together from the log, and mounted as after a reboot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any, Self

from core.run import run
from vagrant.cuts.disks import CutDisk, How
from vagrant.cuts.log import SECTOR, WriteLog
from vagrant.outages.volume import Volume, unmount


@dataclass(frozen=True, slots=True, kw_only=True)
class Acknowledged:
    """Something that was said to be durable when the log had `entries` entries, the last of them a flush."""

    entries: int
    what: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class AfterCut:
    """A disk as a cut left it, mounted. `point`: so many entries were completed; `how`: what survived of those since
    the last flush; `said`: what had been acknowledged before."""

    point: int
    how: How
    root: Path
    said: tuple[Any, ...]


class CutVolume(Volume):
    """A volume with a log; after its context, `after_cuts` gives it as cuts left it. `acknowledged` is what was said to
    be durable so far.
    """

    def __init__(self, work: Path) -> None:
        super().__init__(work)
        self._log, self._base = work / "writes", work / "base"
        self.acknowledged: list[Acknowledged] = []

    def __enter__(self) -> Self:
        self._log.touch()
        return super().__enter__()

    def acknowledge(self, what: Any) -> None:
        """Note that `what` is durable from now on: the call that made it so has returned."""
        self.acknowledged.append(Acknowledged(entries=self.entries, what=what))

    @property
    def entries(self) -> int:
        """How many entries the log has, up to the last flush."""
        with WriteLog(self._log) as log:
            return len(log)

    def after_cuts(self, rng: Random, *, flushes: int, torn: int) -> Iterator[AfterCut]:
        """The filesystem after cuts at `flushes` of the flush boundaries (or at all of them), and at `torn` points
        between them, drawn at random: there some of the writes since the last flush are lost, and some torn.

        Only cuts after the first acknowledgement. Changes made to it are for that one cut. Not within the context.
        """
        with WriteLog(self._log) as log, CutDisk(self._base, log) as disk:
            begin = self.acknowledged[0].entries
            boundaries = [flush + 1 for flush in disk.flushes if flush >= begin]
            if len(boundaries) > flushes > 0:
                boundaries = rng.sample(boundaries, flushes)
            between = [point for point in range(begin, len(disk.entries)) if disk.pending(point)]
            points = [(point, How.NONE) for point in (begin, *boundaries)]
            points += [(rng.choice(between), How.SOME) for _ in range(torn)]
            for point, how in sorted(points, key=lambda each: each[0]):
                disk.cut(point, how, f"{rng.random()}")
                image = disk.materialise(self.work / "cut")
                try:
                    if how is How.SOME:  # a commit of the filesystem's own journal may be torn: see docs/power-cuts.md
                        run("e2fsck", "-p", image, check=False)
                    run("mount", "-o", "loop,noatime", image, self.root)
                    try:
                        said = tuple(each.what for each in self.acknowledged if each.entries <= point)
                        yield AfterCut(point=point, how=how, root=self.root, said=said)
                    finally:
                        unmount(self.root)
                finally:
                    image.unlink()

    def _blockdevs(self) -> list[Mapping[str, object]]:
        run("cp", "--sparse=always", self.disk, self._base)
        return [
            {"driver": "file", "node-name": "bare", "filename": str(self.disk)},
            {"driver": "file", "node-name": "log", "filename": str(self._log)},
            {"driver": "blklogwrites", "node-name": "disk", "file": "bare", "log": "log", "log-sector-size": SECTOR},
        ]
