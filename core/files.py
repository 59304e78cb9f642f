"""Files that survive a power cut, locks that die with the process, and paths that cannot leave their root."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath, PurePosixPath

from core.errors import Busy, NoSpace, NotPermitted, NotReady, UpdaterError


def fsync_dir(path: Path) -> None:
    """Make names in the directory durable (rename and create are not, until then)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_tree(path: Path) -> None:
    """Make a directory durable with all that is in it: regular files and directories."""
    for directory, _, names in os.walk(path):
        for name in names:
            fd = os.open(Path(directory, name), os.O_RDONLY | os.O_NOFOLLOW)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_dir(Path(directory))


def write_atomic(path: Path, data: bytes | str, *, mode: int = 0o644, owner: tuple[int, int] | None = None) -> None:
    """Replace the file so that after any cut either the old or the new content is there, whole. `owner`: uid and gid.

    Raises OSError (ENOSPC, EROFS, ...) with the old file untouched.
    """
    raw = data.encode() if isinstance(data, str) else data
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        try:
            view = memoryview(raw)
            while view:
                view = view[os.write(fd, view) :]
            if owner is not None:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_dir(path.parent)


def overwrite_in_place(path: Path, data: bytes) -> None:
    """Overwrite the beginning of an existing file of the same size in its own blocks: no metadata of the filesystem
    changes, so a cut leaves each sector either old or new. Reads back what was written.

    Raises OSError; ValueError where the size differs (that would move blocks).
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size != len(data):
            raise ValueError(f"{path} is {os.fstat(fd).st_size} bytes long, not {len(data)}")
        if os.pwrite(fd, data, 0) != len(data):
            raise OSError(f"short write to {path}")
        os.fdatasync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if os.pread(fd, len(data), 0) != data:
            raise OSError(f"{path} does not read back what was written")
    finally:
        os.close(fd)


def read_only(path: Path) -> bool:
    """Whether the filesystem that `path` lies on is mounted read-only, as ext4 does by itself after an error."""
    try:
        return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
    except OSError:
        return False


def remount(path: Path) -> list[str]:
    """What to do where `path` lies on a filesystem that is mounted read-only."""
    return [
        "dmesg | grep -iE 'error|remount'    says why",
        f"mount -o remount,rw $(findmnt -nT {path} -o TARGET)",
    ]


@contextmanager
def exclusive_lock(path: Path, *, purpose: str) -> Iterator[None]:
    """Hold an exclusive lock on the file while in the context; it dies with the process, whatever happens.

    Raises Busy, naming who holds it, when somebody else does; NotPermitted when the file cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except PermissionError as error:
        raise NotPermitted(
            f"cannot open the lock {path}",
            what=str(error),
            state="this command changed nothing",
            next="run it as root (sudo)",
        ) from error
    except OSError as error:
        kind = NoSpace if error.errno == errno.ENOSPC else NotReady
        ways_out = remount(path.parent) if error.errno == errno.EROFS else [f"df -h {path.parent}"]
        raise kind(
            f"cannot make the lock {path}",
            what=error.strerror or str(error),
            state="this command changed nothing",
            next=[*ways_out, "updater doctor"],
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.pread(fd, 200, 0).decode(errors="replace").strip() or "another process"
            raise Busy(
                f"cannot {purpose}: the node is busy",
                what=f"held by {holder}",
                state="this command changed nothing",
                next="updater status    see what is under way",
            ) from error
        with suppress(OSError):  # on a full disk the lock holds, and only its holder's name is missing
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{purpose}, process {os.getpid()}\n".encode(errors="backslashreplace"), 0)
        yield
    finally:
        os.close(fd)


def inside(root: Path, path: str | PurePath) -> Path:
    """Where `path`, taken as absolute within `root`, lies on this machine. Symlinks are followed as a process in a
    chroot would follow them: absolute targets begin again at `root`, and `..` stops there.

    The result may not exist. Its parents, as far as they exist, are real directories inside `root`.
    Raises UpdaterError when symlinks go round in circles.
    """
    real_root = root.resolve()
    pending = list(reversed(PurePosixPath("/", str(path)).parts[1:]))
    found = real_root
    links = 0
    while pending:
        part = pending.pop()
        if part == "..":
            found = found.parent if found != real_root else found
            continue
        step = found / part
        if step.is_symlink():
            links += 1
            if links > 40:
                raise UpdaterError(f"{path} cannot be followed inside {root}", what="symlinks go round in circles")
            target = PurePosixPath(step.readlink())
            if target.is_absolute():
                found = real_root
            pending.extend(reversed([p for p in target.parts if p != "/"]))
            continue
        found = step
    return found
