"""Which files of a root are not as the release and the declared modifications have them.

A snapshot is made of a pristine root, and later a root is compared with it. Both are walks in the order of names, read
side by side; files are hashed on all cores.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Final

from core.errors import UpdaterError
from patches import lines

#: What a running system changes by itself, and why it is not looked at.
SKIPPED: Final[Mapping[str, str]] = {
    "/proc": "the kernel's",
    "/sys": "the kernel's",
    "/dev": "devices come and go",
    "/run": "lives until the next boot",
    "/tmp": "temporary",
    "/var/tmp": "temporary",
    "/var/log": "logs grow",
    "/var/cache": "can be made again",
    "/var/lib/systemd": "timers, random seed, catalog",
    "/var/lib/dbus": "machine id",
    "/etc/machine-id": "differs on each machine",
    "/etc/mtab": "the kernel's",
    "/etc/resolv.conf": "written by the network's services",
    "/etc/ld.so.cache": "can be made again",
    "/var/lib/rpm": "carried packages are in it; `updater rpm` looks after them",
    "/usr/lib/sysimage/rpm": "carried packages are in it; `updater rpm` looks after them",
    "/lost+found": "the filesystem's own",
}

#: So many files may wait for their hash: bounds memory.
_AHEAD = 256


class Difference(StrEnum):
    """How a file differs."""

    CHANGED = "changed"
    ADDED = "added"
    MISSING = "missing"
    MODE = "mode"  # owner or mode only


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """A file as it was found. `kind`: f, d, l or s (special). `digest`: BLAKE3 (hex) of a file's content, the target
    of a symlink. `mode`: permissions.
    """

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A file that differs. `declared`: by what it is explained (a patch, a package, a kept path), or empty."""

    path: str
    how: Difference
    why: str
    declared: str = ""


def snapshot(root: Path, skip: Iterable[str] = tuple(SKIPPED)) -> Iterator[FileState]:
    """All files of the root in order, hashed on all cores; other filesystems mounted in it are left out."""
    skipped = frozenset(skip)
    waiting: deque[tuple[FileState, Future[str] | None]] = deque()
    with ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8)) as pool:
        for state, place in _files(root, "/", skipped, root.lstat().st_dev):
            waiting.append((state, pool.submit(_hash, place) if state.kind == "f" else None))
            if len(waiting) >= _AHEAD:
                yield from _settled(waiting.popleft())
        while waiting:
            yield from _settled(waiting.popleft())


def save(states: Iterable[FileState], path: Path) -> None:
    """Keep a snapshot in a file."""
    with lines.writer(path) as add:
        for each in states:
            add([each.path, each.kind, each.mode, each.uid, each.gid, each.size, each.digest])


def load(path: Path) -> Iterator[FileState]:
    """A snapshot from its file. Raises NotReady."""
    for line in lines.read(
        path, what="which files the release has", next="updater stage …    of the next release notes it"
    ):
        name, kind, mode, uid, gid, size, digest = line
        yield FileState(path=name, kind=kind, mode=mode, uid=uid, gid=gid, size=size, digest=digest)


def compare(
    root: Path,
    pristine: Iterable[FileState],
    declared: Callable[[str, str], str] = lambda path, digest: "",
    skip: Iterable[str] = tuple(SKIPPED),
) -> Iterator[Drift]:
    """The files of the root that differ from the snapshot, in order. `declared(path, digest)` says by what a file with
    this content is explained ("" : by nothing; the digest is "" for a missing file).
    """
    skipped = tuple(skip)
    wanted = (each for each in pristine if not _is_skipped(each.path, skipped))
    for was, now in _side_by_side(wanted, snapshot(root, skipped)):
        told = _told(was, now)
        if told is not None:
            path = (now or was).path  # type: ignore[union-attr]
            how, why = told
            yield Drift(path=path, how=how, why=why, declared=declared(path, now.digest if now else ""))


def declared_by(patched: Mapping[str, str | None], kept: Iterable[str]) -> Callable[[str, str], str]:
    """For `compare`: files that patches left with exactly this BLAKE3 (None: deleted), and kept paths with
    all below.
    """
    tops = frozenset(kept)

    def explain(path: str, digest: str) -> str:
        if path in patched and (patched[path] or "") == digest:
            return "patch"
        here = PurePosixPath(path)
        return next((f"keep {each}" for each in map(str, chain([here], here.parents)) if each in tops), "")

    return explain


def _told(was: FileState | None, now: FileState | None) -> tuple[Difference, str] | None:
    if was is None:
        return Difference.ADDED, "is not in the release"
    if now is None:
        return Difference.MISSING, "the release has it"
    if was.kind != now.kind:
        return Difference.CHANGED, f"is {_KINDS[now.kind]}, the release has {_KINDS[was.kind]}"
    if was.digest != now.digest:
        return Difference.CHANGED, "other target" if was.kind == "l" else "other content"
    if was.kind != "l" and was.mode != now.mode:
        return Difference.MODE, f"mode {now.mode:04o}, the release has {was.mode:04o}"
    if (was.uid, was.gid) != (now.uid, now.gid):
        return Difference.MODE, f"owner {now.uid}:{now.gid}, the release has {was.uid}:{was.gid}"
    return None


_KINDS = {"f": "a file", "d": "a directory", "l": "a symlink", "s": "a special file"}


def _side_by_side(
    left: Iterable[FileState], right: Iterable[FileState]
) -> Iterator[tuple[FileState | None, FileState | None]]:
    lefts, rights = iter(left), iter(right)
    one, other = next(lefts, None), next(rights, None)
    while one is not None or other is not None:
        if other is None or (one is not None and _key(one.path) < _key(other.path)):
            yield one, None
            one = next(lefts, None)
        elif one is None or _key(other.path) < _key(one.path):
            yield None, other
            other = next(rights, None)
        else:
            yield one, other
            one, other = next(lefts, None), next(rights, None)


def _key(path: str) -> list[str]:
    return path.split("/")


def _is_skipped(path: str, skipped: tuple[str, ...]) -> bool:
    return any(path == each or path.startswith(f"{each}/") for each in skipped)


def _settled(waiting: tuple[FileState, Future[str] | None]) -> Iterator[FileState]:
    from dataclasses import replace

    state, digest = waiting
    try:
        yield state if digest is None else replace(state, digest=digest.result())
    except FileNotFoundError:  # gone since it was listed
        return


def _files(root: Path, path: str, skipped: frozenset[str], device: int) -> Iterator[tuple[FileState, Path]]:
    """Depth first, names in order, symlinks not followed."""
    if path.count("/") > 200:
        raise UpdaterError(f"{path[:200]} is more than 200 directories deep")
    directory = root / path.lstrip("/")
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208  (names, no paths)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        below, place = f"{path.rstrip('/')}/{name}", directory / name
        if below in skipped:
            continue
        try:
            found = place.lstat()
            target = str(place.readlink()) if stat.S_ISLNK(found.st_mode) else ""
        except FileNotFoundError:
            continue
        mode = found.st_mode
        kind = "d" if stat.S_ISDIR(mode) else "l" if target else "f" if stat.S_ISREG(mode) else "s"
        state = FileState(
            path=below,
            kind=kind,
            mode=stat.S_IMODE(mode),
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size if kind == "f" else 0,
            digest=target or (str(found.st_rdev) if kind == "s" else ""),
        )
        yield state, place
        if kind == "d" and found.st_dev == device:
            yield from _files(root, below, skipped, device)


def _hash(place: Path) -> str:
    from blake3 import blake3

    hasher = blake3()
    with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
