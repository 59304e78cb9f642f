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
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final

from core.errors import NotReady, UpdaterError
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

#: In place of the hash of what was not changed since a moment (see `snapshot`).
AS_BEFORE: Final = "="


class Difference(StrEnum):
    """How a file differs."""

    CHANGED = "changed"
    ADDED = "added"
    MISSING = "missing"
    MODE = "mode"  # owner or mode only


@dataclass(frozen=True, slots=True, kw_only=True)
class FileState:
    """A file as it was found. `kind`: f, d, l, s (special) or m (a directory that something is mounted on). `digest`:
    BLAKE3 (hex) of a file's content, the target of a symlink. `mode`: permissions.
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
    """A file that differs. `kind`: as in `FileState`, of what is there (of what the release has, when it is missing).
    `declared`: by what it is explained (a patch, a package, a kept path), or empty.
    """

    path: str
    how: Difference
    why: str
    kind: str = "f"
    declared: str = ""


#: By what a difference is explained ("": by nothing). The second is the file as it is there; None: it is missing.
Explain = Callable[[Drift, FileState | None], str]


def snapshot(root: Path, skip: Iterable[str] = tuple(SKIPPED), *, since: float | None = None) -> Iterator[FileState]:
    """All files of the root in order, hashed on all cores; other filesystems mounted in it are left out.

    `since` (seconds since 1970): what was not changed after it is not read, and has `AS_BEFORE` for its digest.
    """
    skipped = frozenset(skip)
    waiting: deque[tuple[FileState, Future[str] | None]] = deque()
    pool = ThreadPoolExecutor(min(len(os.sched_getaffinity(0)), 8))
    try:
        for state, place, changed in _files(root, "/", skipped, root.lstat().st_dev):
            if since is not None and changed <= since:
                waiting.append((replace(state, digest=AS_BEFORE), None))
            else:
                waiting.append((state, pool.submit(_hash, place) if state.kind == "f" else None))
            if len(waiting) >= _AHEAD:
                yield from _settled(waiting.popleft())
        while waiting:
            yield from _settled(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def save(states: Iterable[FileState], path: Path) -> None:
    """Keep a snapshot in a file."""
    with lines.writer(path) as add:
        for each in states:
            add([each.path, each.kind, each.mode, each.uid, each.gid, each.size, each.digest])


def load(path: Path) -> Iterator[FileState]:
    """A snapshot from its file. Raises NotReady."""
    what, lead = "which files the release has", "updater verify --bundle BUNDLE    with the bundle of that release"
    for line in lines.read(path, what=what, next=lead):
        if [type(each) for each in line] != _LINE:
            raise NotReady(f"{what} is not known", what=f"{path}: {line!r:.100} makes no sense", next=lead)
        name, kind, mode, uid, gid, size, digest = line
        yield FileState(path=name, kind=kind, mode=mode, uid=uid, gid=gid, size=size, digest=digest)


_LINE = [str, str, int, int, int, int, str]


def compare(
    root: Path,
    pristine: Iterable[FileState],
    declared: Explain = lambda drift, now: "",
    skip: Iterable[str] = tuple(SKIPPED),
    *,
    since: float | None = None,
) -> Iterator[Drift]:
    """The files of the root that differ from the snapshot, in order. `since`: see `snapshot`; what was not changed
    after it counts as declared already, and is left out.
    """
    skipped = tuple(skip)
    below = tuple(f"{each}/" for each in skipped)
    wanted = (each for each in pristine if each.path not in skipped and not each.path.startswith(below))
    mounted_on = ""
    for was, now in _side_by_side(wanted, snapshot(root, skipped, since=since)):
        if now is not None and now.kind == "m":
            mounted_on = f"{now.path}/"
        if now is None and was is not None and mounted_on and was.path.startswith(mounted_on):
            continue  # it may be there, hidden
        told = _told(was, now)
        seen = now or was
        if told is not None and seen is not None:
            drift = Drift(path=seen.path, how=told[0], why=told[1], kind=seen.kind)
            yield replace(drift, declared=declared(drift, now))


def _told(was: FileState | None, now: FileState | None) -> tuple[Difference, str] | None:
    if now is None:
        return Difference.MISSING, "the release has it"
    if now.digest == AS_BEFORE:
        return None
    if was is None:
        return Difference.ADDED, "is not in the release"
    if now.kind == "m" and was.kind in "dm":
        return None  # owner and mode are those of what is mounted there
    if was.kind != now.kind:
        return Difference.CHANGED, f"is {_KINDS[now.kind]}, the release has {_KINDS[was.kind]}"
    if was.digest != now.digest:
        return Difference.CHANGED, "other target" if was.kind == "l" else "other content"
    if was.kind != "l" and was.mode != now.mode:
        return Difference.MODE, f"mode {now.mode:04o}, the release has {was.mode:04o}"
    if (was.uid, was.gid) != (now.uid, now.gid):
        return Difference.MODE, f"owner {now.uid}:{now.gid}, the release has {was.uid}:{was.gid}"
    return None


_KINDS = {"f": "a file", "d": "a directory", "l": "a symlink", "s": "a special file", "m": "a mount point"}


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


def _settled(waiting: tuple[FileState, Future[str] | None]) -> Iterator[FileState]:
    state, digest = waiting
    try:
        yield state if digest is None else replace(state, digest=digest.result())
    except FileNotFoundError:  # gone since it was listed
        return


def _files(root: Path, path: str, skipped: frozenset[str], device: int) -> Iterator[tuple[FileState, str, float]]:
    """Depth first, names in order, symlinks not followed; with the time of the last change (seconds since 1970)."""
    if path.count("/") > 200:
        raise UpdaterError(f"{path[:200]} is more than 200 directories deep")
    directory = f"{root}/{path.lstrip('/')}"  # text: a Path for each file would take longer than the rest
    try:
        names = sorted(os.listdir(directory))  # noqa: PTH208  (names, no paths)
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in names:
        below, place = f"{path.rstrip('/')}/{name}", f"{directory}/{name}"
        if below in skipped:
            continue
        try:
            found = os.lstat(place)
            target = str(Path(place).readlink()) if stat.S_ISLNK(found.st_mode) else ""
        except FileNotFoundError:
            continue
        mode = found.st_mode
        kind = "d" if stat.S_ISDIR(mode) else "l" if target else "f" if stat.S_ISREG(mode) else "s"
        if kind == "d" and found.st_dev != device:
            kind = "m"
        state = FileState(
            path=below,
            kind=kind,
            mode=stat.S_IMODE(mode),
            uid=found.st_uid,
            gid=found.st_gid,
            size=found.st_size if kind == "f" else 0,
            digest=target or (str(found.st_rdev) if kind == "s" else ""),
        )
        yield state, place, found.st_ctime
        if kind == "d":
            yield from _files(root, below, skipped, device)


def _hash(place: str) -> str:
    from blake3 import blake3

    hasher = blake3()
    with open(os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0) as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
