"""Which files the entries of `updater keep` mean, walked in the order of their names without following symlinks.

Memory grows with the largest directory, not with the tree.
"""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from core.errors import UpdaterError
from core.files import inside

#: Deeper trees are nobody's configuration, and each level holds a descriptor.
_DEEPEST = 200


class Policy(StrEnum):
    """What happens when the release ships the same file with another content."""

    OURS = "ours"
    THEIRS = "theirs"
    MERGE = "merge"
    ASK = "ask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """An entry: an absolute path (a directory means all below it), or a pattern in which `*`, `?` and `[…]` stand for
    characters of one name, hidden ones too, and `**` for any number of directories.
    """

    pattern: str
    policy: Policy = Policy.OURS

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.pattern).parts
        if not self.pattern.startswith("/") or ".." in parts or len(parts) < 2 or "\0" in self.pattern:
            raise ValueError(f"{self.pattern!r} is no absolute path below / without '..'")

    @property
    def is_glob(self) -> bool:
        """Whether it is a pattern."""
        return any(letter in self.pattern for letter in "*?[")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A file or directory that is kept. `at` is where it can be read, only until the next one is asked for."""

    path: str
    keep: Keep
    at: Path
    stat: os.stat_result


def walk(keeps: Iterable[Keep], source: Path) -> Iterator[Found]:
    """All that the entries mean in the root `source`: a directory before what is in it, names in their order, each
    once. What is mounted in a directory is not entered. Of several entries that mean a file, the nearest one holds:
    its own path, then the closest directory's. Raises OSError, UpdaterError.
    """
    tops = _tops(keeps, source)
    covered: tuple[str, ...] | None = None
    for path in sorted(tops, key=_parts):
        parts = _parts(path)
        if covered is not None and parts[: len(covered)] == covered:
            continue
        parent = inside(source, str(PurePosixPath(path).parent))
        try:
            fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            with suppress(FileNotFoundError):
                if stat.S_ISDIR(os.lstat(_at(fd, parts[-1])).st_mode):
                    covered = parts
            yield from _descend(fd, parts[-1], path, tops[path], tops, ())
        finally:
            os.close(fd)


def _descend(
    fd: int, name: str, path: str, keep: Keep, tops: dict[str, Keep], above: tuple[int, ...]
) -> Iterator[Found]:
    place = _at(fd, name)
    try:
        found = place.lstat()
    except FileNotFoundError:  # gone since it was listed
        return
    yield Found(path=path, keep=keep, at=place, stat=found)
    if not stat.S_ISDIR(found.st_mode) or (above and above[-1] != found.st_dev):
        return
    if len(above) >= _DEEPEST:
        raise UpdaterError(f"{path[:200]} is more than {_DEEPEST} directories deep", next="keep less of it")
    try:
        inner = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        if place.is_symlink():  # somebody put it there just now
            return
        raise error
    try:
        for child in sorted(os.listdir(inner)):  # noqa: PTH208  (of a descriptor)
            below = f"{path}/{child}"
            yield from _descend(inner, child, below, tops.get(below, keep), tops, (*above, found.st_dev))
    finally:
        os.close(inner)


def _at(fd: int, name: str) -> Path:
    """A path that goes through the open directory: whatever is swapped above it meanwhile, it stays there."""
    return Path(f"/proc/self/fd/{fd}/{name}")


def _tops(keeps: Iterable[Keep], source: Path) -> dict[str, Keep]:
    """What the entries name themselves. A path beats a pattern, a later entry an earlier one."""
    tops: dict[str, Keep] = {}
    for keep in sorted(keeps, key=lambda keep: not keep.is_glob):
        if keep.is_glob:
            tops |= dict.fromkeys(_glob(source, "/", PurePosixPath(keep.pattern).parts[1:]), keep)
        else:
            tops[str(PurePosixPath(keep.pattern))] = keep
    return tops


def _glob(source: Path, base: str, parts: tuple[str, ...]) -> Iterator[str]:
    first, rest = parts[0], parts[1:]
    if first == "**":
        if not rest:
            yield base
            return
        yield from _glob(source, base, rest)
        for name, is_directory in _listed(source, base):
            if is_directory:
                yield from _glob(source, _join(base, name), parts)
        return
    if not any(letter in first for letter in "*?["):
        path = _join(base, first)
        if rest:
            yield from _glob(source, path, rest)
        elif os.path.lexists(inside(source, base) / first):
            yield path
        return
    for name, is_directory in _listed(source, base):
        if fnmatch.fnmatchcase(name, first) and (is_directory or not rest):
            path = _join(base, name)
            if rest:
                yield from _glob(source, path, rest)
            else:
                yield path


def _listed(source: Path, base: str) -> list[tuple[str, bool]]:
    try:
        with os.scandir(inside(source, base)) as entries:
            return [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    except (FileNotFoundError, NotADirectoryError):
        return []


def _join(base: str, name: str) -> str:
    return f"{base.rstrip('/')}/{name}"


def _parts(path: str) -> tuple[str, ...]:
    return PurePosixPath(path).parts
