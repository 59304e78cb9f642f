"""What was staged of the kept files, so that `activate` can find what was edited since; a zstd file of JSON lines.

Both sides are read in the order of the walk, side by side: memory does not grow with the number of files.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from patches import lines
from patches.keep import Fate, Kept
from patches.kept_paths import Found, Keep, walk

#: path, change time (ns), size; both 0 for a directory
_Line = tuple[str, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Edited:
    """A kept file that is not as it was when it was staged. `how`: changed, added or removed."""

    path: str
    how: str


def record(kepts: Iterable[Kept], path: Path) -> Iterator[Kept]:
    """Pass on what becomes of each file while writing it down; the file is in place, durably, when all was taken."""
    with lines.writer(path) as add:
        for kept in kepts:
            if kept.fate is not Fate.REFUSED:
                add([kept.path, *(kept.seen or (0, 0))])
            yield kept


def changed_since(path: Path, keeps: Iterable[Keep], source: Path) -> Iterator[Edited]:
    """The kept files of `source` that were changed, added or removed since `record` wrote the file, in order.

    A file is taken as changed when its change time or size is another: that catches owner, mode and attributes as
    well as content. Files of which the release's version was taken are told only when removed or added.
    Raises NotReady where the record cannot be read, OSError.
    """
    read = lines.read(path, what="which kept files were staged", next="updater stage …    stages again")
    staged: Iterator[_Line] = ((line[0], line[1], line[2]) for line in read)
    before = next(staged, None)
    for found in walk(keeps, source):
        now = _line(found)
        if now is None:
            continue
        while before is not None and _key(before[0]) < _key(now[0]):
            yield Edited(path=before[0], how="removed")
            before = next(staged, None)
        if before is None or before[0] != now[0]:
            yield Edited(path=now[0], how="added")
            continue
        if before[1:] != now[1:] and before[1:] != (0, 0):
            yield Edited(path=now[0], how="changed")
        before = next(staged, None)
    while before is not None:
        yield Edited(path=before[0], how="removed")
        before = next(staged, None)


def _line(found: Found) -> _Line | None:
    mode = found.stat.st_mode
    if stat.S_ISDIR(mode):
        return (found.path, 0, 0)
    if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
        return (found.path, found.stat.st_ctime_ns, found.stat.st_size)
    return None


def _key(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts
