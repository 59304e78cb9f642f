"""All points checked, on all cores: each process goes through a recording in rising order."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from vagrant.cuts.check import Checker, Verdict
from vagrant.cuts.points import Point
from vagrant.cuts.record import Recording

#: Points that a process is given at once. Few enough that all end at the same time, neighbours so that little changes.
_BLOCK = 25

#: In memory, if there is this much room: bytes.
_ROOM = 6 << 30

_recordings: Mapping[str, Recording] = {}
_seed = ""
_checker: tuple[Checker, Path] | None = None


def replay(
    recordings: Mapping[str, Recording], points: Sequence[Point], seed: str, *, processes: int | None = None
) -> Iterator[Verdict]:
    """Check the points (in any order, of any of the recordings), and yield the verdicts as they come."""
    ordered = sorted(points)
    blocks = []
    for act in sorted({point.act for point in ordered}):
        here = [point for point in ordered if point.act == act]
        blocks += [here[at : at + _BLOCK] for at in range(0, len(here), _BLOCK)]
    count = min(processes or len(os.sched_getaffinity(0)), len(blocks))
    work = Path(tempfile.mkdtemp(prefix="updater-cuts-", dir=_place()))
    try:
        with multiprocessing.get_context("spawn").Pool(count, _begin, (recordings, seed, work)) as pool:
            for verdicts in pool.imap_unordered(_check, blocks):
                yield from verdicts
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _place() -> str | None:
    """Where files of the size of partitions are kept: in memory if there is room."""
    memory = Path("/dev/shm")
    if memory.is_dir() and os.access(memory, os.W_OK):
        found = os.statvfs(memory)
        if found.f_bavail * found.f_frsize > _ROOM:
            return str(memory)
    return None


def _begin(recordings: Mapping[str, Recording], seed: str, work: Path) -> None:
    global _recordings, _seed
    _recordings, _seed = recordings, seed
    os.chdir(work)


def _check(points: Sequence[Point]) -> list[Verdict]:
    return [_checker_of(points[0].act).check(point) for point in points]


def _checker_of(act: str) -> Checker:
    """This process's checker; a new one when another recording begins."""
    global _checker
    if _checker is None or _checker[0].recording.name != act:
        if _checker is not None:
            _checker[0].__exit__(None, None, None)
            shutil.rmtree(_checker[1], ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=f"{act}-", dir=Path.cwd()))
        _checker = (Checker(_recordings[act], work, _seed), work)
    return _checker[0]
