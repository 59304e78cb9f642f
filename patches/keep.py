"""The operator's own files, carried into a new release: what becomes of each, known before anything is copied."""

from __future__ import annotations

import filecmp
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from itertools import islice
from pathlib import Path

from core.errors import ModificationConflict
from core.faults import point
from core.files import inside
from patches.files import copy_file, copy_identity, copy_times, link_file, make_directory, make_parents
from patches.kept_paths import Found, Keep, Policy, walk
from patches.merge import is_binary, merge

#: Larger files are not merged, and the release's version of them is not kept as a base.
LARGEST = 4 << 20

#: The content of a file (path absolute within the root) as the old release shipped it; None where nobody knows.
Base = Callable[[str], bytes | None]

#: Of a file (path as above) that a copy before this one came to: whether ours is in the target, and the content that
#: the release shipped in its place (None: none, or none that could be merged).
Earlier = Callable[[str], tuple[bool, bytes | None]]


class Fate(StrEnum):
    """What becomes of a file in the new release."""

    KEPT = "kept"  # the release has no such file, or the same
    OURS = "ours"  # the release's is replaced
    THEIRS = "theirs"  # the release's stays
    MERGED = "merged"
    CONFLICT = "conflict"
    REFUSED = "refused"  # devices, sockets, pipes


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """What becomes of one file, why, and (`lines`) what is in the way. `shipped`: the release's content, the base of a
    merge into the release after it; None where it ships none, or none that could be merged. `content`: a merge.
    `seen`: change time (ns) and size of the file when it was copied.
    """

    path: str
    policy: Policy
    fate: Fate
    why: str = ""
    lines: tuple[str, ...] = ()
    shipped: bytes | None = None
    content: bytes | None = None
    directory: bool = False
    seen: tuple[int, int] | None = None

    def __str__(self) -> str:
        return f"{self.path}: {self.fate}{f', {self.why}' if self.why else ''}"


def check(
    keeps: Iterable[Keep], source: Path, target: Path, base: Base, earlier: Earlier | None = None
) -> Iterator[Kept]:
    """What would become of each file of `source` that the entries mean in `target`, in order; nothing is changed.
    Directories are left out unless they conflict. `earlier`: where they were copied once already. Raises OSError.
    """
    for _, kept in _weighed(keeps, source, target, base, earlier):
        if not kept.directory or kept.fate is Fate.CONFLICT:
            yield kept


def carry(
    keeps: Iterable[Keep], source: Path, target: Path, base: Base, earlier: Earlier | None = None
) -> Iterator[Kept]:
    """Copy the files that the entries mean from one root into the other, as they are asked for; yields what became of
    each, directories too. Hard links among them stay links, holes stay holes.

    Safe to run again after a crash. Raises ModificationConflict at the first conflict (`check` tells all of them
    before anything is copied), OSError.
    """
    places = _Places(target)
    links: dict[tuple[int, int], Path] = {}
    open_directories: list[tuple[str, Path, os.stat_result]] = []
    for found, kept in _weighed(keeps, source, target, base, earlier):
        while open_directories and not found.path.startswith(f"{open_directories[-1][0]}/"):
            _close(open_directories.pop())
        if kept.fate is Fate.CONFLICT:
            raise conflict([kept])
        if kept.fate in (Fate.THEIRS, Fate.REFUSED):
            yield kept
            continue
        try:
            place = places.make(found.path, source)
            if kept.directory:
                make_directory(place)
                copy_identity(found.at, place)
                open_directories.append((found.path, place, found.stat))
                yield kept
                continue
            seen = _copy(found, kept, place, links)
        except FileNotFoundError:  # it was removed meanwhile: then there is nothing to keep
            if os.path.lexists(found.at):
                raise
            continue
        point("keep:copied")
        yield replace(kept, seen=(seen.st_ctime_ns, seen.st_size))
    while open_directories:
        _close(open_directories.pop())


def conflict(conflicts: Iterable[Kept], target: str = "the release") -> ModificationConflict:
    """The error that names kept files that need a decision, and how to give it."""
    bad = list(islice(conflicts, 21))
    what = [f"{each.path}: {line}" for each in bad[:20] for line in (each.lines or (each.why,))]
    path = bad[0].path
    count = f"{len(bad)} kept files need" if len(bad) > 1 else f"the kept file {path} needs"
    return ModificationConflict(
        f"{count} a decision before {target}",
        what=what + (["… and more"] if len(bad) > 20 else []),
        state="no file of yours was changed",
        next=[
            "updater keep diff BUNDLE    see both sides",
            f"updater keep add {path} --policy ours    keeps yours",
            f"updater keep add {path} --policy theirs    takes the release's",
            f"updater keep add {path} --policy merge    merges them",
        ],
    )


def _weighed(
    keeps: Iterable[Keep], source: Path, target: Path, base: Base, earlier: Earlier | None
) -> Iterator[tuple[Found, Kept]]:
    places = _Places(target)
    left: str | None = None  # below this directory the release's is taken
    for found in walk(keeps, source):
        if left is not None and found.path.startswith(left):
            continue
        left = None
        kept = _weigh(found, places, base, earlier)
        if kept.directory and kept.fate in (Fate.THEIRS, Fate.CONFLICT):
            left = f"{found.path}/"
        yield found, kept


def _weigh(found: Found, places: _Places, base: Base, earlier: Earlier | None) -> Kept:
    """Decide on one file, by its entry's policy and what the release ships there."""
    kind = stat.S_IFMT(found.stat.st_mode)
    policy = found.keep.policy
    is_directory = kind == stat.S_IFDIR

    def kept(fate: Fate, why: str = "", **more: object) -> Kept:
        return Kept(path=found.path, policy=policy, fate=fate, why=why, directory=is_directory, **more)  # type: ignore[arg-type]

    if kind not in (stat.S_IFREG, stat.S_IFLNK, stat.S_IFDIR):
        return kept(Fate.REFUSED, f"{_KINDS.get(kind, 'special files')} are not carried")
    place = places.of(found.path)
    try:
        there = place.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return kept(Fate.KEPT)
    theirs, shipped = stat.S_IFMT(there.st_mode), _small(place, there)
    copied, original = earlier(found.path) if earlier else (False, None)
    if copied:  # what is there is no longer the release's
        if original is None:
            return kept(Fate.KEPT)
        theirs, shipped = stat.S_IFREG, original
    if theirs != kind:
        both = f"yours is {_KINDS[kind]}, the release has {_KINDS.get(theirs, 'something else')}"
        if policy is Policy.OURS:
            return kept(Fate.OURS, f"{both} there")
        return kept(Fate.THEIRS if policy is Policy.THEIRS else Fate.CONFLICT, both, shipped=shipped)
    same = _small(found.at, found.stat) == shipped if copied else is_directory or _same(found, place, there)
    if same:
        return kept(Fate.KEPT, shipped=shipped)
    if policy is Policy.OURS:
        return kept(Fate.OURS, "the release's is replaced", shipped=shipped)
    if policy is Policy.THEIRS:
        return kept(Fate.THEIRS, "the release's is taken", shipped=shipped)
    ours = _small(found.at, found.stat)
    if ours is None or shipped is None:
        return kept(Fate.CONFLICT, "yours and the release's differ, and they cannot be merged", shipped=shipped)
    before = base(found.path)
    if before is None:
        return kept(
            Fate.CONFLICT, "yours and the release's differ; what the old release had is not known", shipped=shipped
        )
    if ours == before:
        return kept(Fate.THEIRS, "yours was never changed, so the new release's is taken", shipped=shipped)
    if shipped == before:
        return kept(Fate.OURS, "the release did not change it", shipped=shipped)
    if policy is Policy.ASK:
        return kept(Fate.CONFLICT, "you and the release have both changed it", shipped=shipped)
    merged = merge(before, ours, shipped)
    if merged.content is None:
        return kept(
            Fate.CONFLICT, "you and the release changed the same lines", lines=merged.conflicts, shipped=shipped
        )
    return kept(Fate.MERGED, "three-way merge, clean", content=merged.content, shipped=shipped)


_KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFLNK: "a symlink",
    stat.S_IFDIR: "a directory",
    stat.S_IFBLK: "block devices",
    stat.S_IFCHR: "character devices",
    stat.S_IFIFO: "pipes",
    stat.S_IFSOCK: "sockets",
}


def _same(found: Found, place: Path, there: os.stat_result) -> bool:
    if stat.S_ISLNK(there.st_mode):
        return found.at.readlink() == place.readlink()
    if found.stat.st_size != there.st_size:
        return False
    try:
        return filecmp.cmp(found.at, place, shallow=False)
    except FileNotFoundError:
        return False


def _small(path: Path, found: os.stat_result) -> bytes | None:
    """The content, where it is text of a size that one merges."""
    if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
        return None
    try:
        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        return None
    return None if is_binary(content) or len(content) > LARGEST else content


def _copy(found: Found, kept: Kept, place: Path, links: dict[tuple[int, int], Path]) -> os.stat_result:
    identity = (found.stat.st_dev, found.stat.st_ino)
    many = found.stat.st_nlink > 1 and kept.content is None and stat.S_ISREG(found.stat.st_mode)
    if many and identity in links:
        link_file(links[identity], place)
        return found.stat
    seen = copy_file(found.at, place, content=kept.content)
    if many:
        links[identity] = place
    return seen


class _Places:
    """Where paths lie in the target, their parents followed as a chroot would. The last parent is remembered: a walk
    comes to a directory's files one after the other, and after the directory itself.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self._parent, self._place = "", target
        self._made: str | None = None

    def make(self, path: str, source: Path) -> Path:
        """As `of`, with the parents made where they are missing, as they are in the source."""
        place = self.of(path)
        if self._parent != self._made:
            if not self._place.exists():
                make_parents(source, Path(self._parent or "/"), self.target, self._place)
            self._made = self._parent
        return place

    def of(self, path: str) -> Path:
        """The place of a path; its parents may be missing."""
        parent, _, name = path.rpartition("/")
        if not self._parent or parent != self._parent:
            self._parent, self._place = parent, inside(self.target, parent or "/")
        return self._place / name


def _close(directory: tuple[str, Path, os.stat_result]) -> None:
    copy_times(directory[2], directory[1])
