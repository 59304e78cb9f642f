"""Copying files from one root into another with all that belongs to them, without ever leaving that other root."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterable
from pathlib import Path

from core.files import inside

#: Errors with which kernels and filesystems decline to copy by themselves.
_DECLINED = frozenset({errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ETXTBSY})
_LABEL = "security.selinux"


def copy_into(paths: Iterable[Path], source: Path, target: Path) -> list[Path]:
    """Copy files and directories (absolute `paths` within `source`) to the same places within `target`.

    Owner, mode, times and extended attributes are kept; what is there already is replaced, other files in the same
    directories stay. Symlinks are copied as such. Parents are followed as a chroot into `target` would follow them.
    Sockets, pipes and devices are passed over. Returns the paths copied. Raises OSError.
    """
    copied: list[Path] = []
    for path in paths:
        origin = source / path.relative_to("/")
        if not os.path.lexists(origin):
            continue
        place = inside(target, path.parent)
        make_parents(source, path.parent, target, place)
        _copy(origin, place / path.name)
        copied.append(path)
    return copied


def make_parents(source: Path, path: Path, target: Path, place: Path) -> None:
    """Create the missing parents (`place` and above, for `path`) with owner, mode, ... that they have in the source."""
    missing = []
    while not place.exists():
        missing.append((inside(source, path), place))
        path, place = path.parent, place.parent
    for origin, directory in reversed(missing):
        directory.mkdir()
        if origin.is_dir():
            copy_identity(origin, directory)
            copy_times(origin.stat(), directory)


def _copy(origin: Path, place: Path) -> None:
    found = origin.lstat()
    if stat.S_ISDIR(found.st_mode):
        make_directory(place)
        copy_identity(origin, place)
        for child in sorted(origin.iterdir()):
            _copy(child, place / child.name)
        copy_times(found, place)
    elif stat.S_ISREG(found.st_mode) or stat.S_ISLNK(found.st_mode):
        copy_file(origin, place)


def make_directory(place: Path) -> None:
    """A real directory at the place; a file or symlink that is there gives way."""
    if place.is_symlink() or (place.exists() and not place.is_dir()):
        place.unlink()
    place.mkdir(exist_ok=True)


def copy_file(origin: Path, place: Path, *, content: bytes | None = None) -> os.stat_result:
    """Copy a regular file (holes stay holes) or a symlink, replacing atomically what is at the place. With `content`
    these bytes are written, and only the rest is the origin's. Returns what the origin was when it was read.

    Raises OSError; FileNotFoundError when the origin is no longer what it was taken for.
    """
    temporary = place.with_name(f".{place.name}.updater")
    temporary.unlink(missing_ok=True)
    found = origin.lstat()
    try:
        if stat.S_ISLNK(found.st_mode):
            temporary.symlink_to(origin.readlink())
            copy_identity(origin, temporary)
        else:
            found = _copy_regular(origin, temporary, content)
        copy_times(found, temporary)
        _put(temporary, place)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return found


def link_file(first: Path, place: Path) -> None:
    """Make the place one more name of `first`, a file copied before."""
    temporary = place.with_name(f".{place.name}.updater")
    temporary.unlink(missing_ok=True)
    os.link(first, temporary, follow_symlinks=False)
    _put(temporary, place)
    temporary.unlink(missing_ok=True)  # it was one already: then a rename does nothing


def _put(temporary: Path, place: Path) -> None:
    try:
        temporary.replace(place)
    except IsADirectoryError:
        shutil.rmtree(place)
        temporary.replace(place)


def _copy_regular(origin: Path, temporary: Path, content: bytes | None) -> os.stat_result:
    # Without O_NONBLOCK a pipe that took the file's place meanwhile would hold us for ever.
    source = os.open(origin, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(source)
        if not stat.S_ISREG(found.st_mode):
            raise FileNotFoundError(errno.ENOENT, "is no regular file any more", str(origin))
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        target = os.open(temporary, flags, 0o600)
        try:
            if content is None:
                copy_data(source, target, found.st_size)
            else:
                view = memoryview(content)
                while view:
                    view = view[os.write(target, view) :]
            copy_identity(Path(f"/proc/self/fd/{source}"), Path(f"/proc/self/fd/{target}"), follow=True)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return found


def copy_data(source: int, target: int, size: int) -> None:
    """Copy a file's bytes between descriptors; what is a hole in one becomes a hole in the other."""
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
            end = os.lseek(source, at, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                return
            raise
        while at < end:
            count = _copy_range(source, target, at, end - at)
            if not count:  # it has become shorter
                return
            at += count


def _copy_range(source: int, target: int, at: int, length: int) -> int:
    try:
        return os.copy_file_range(source, target, min(length, 1 << 30), at, at)
    except OSError as error:
        if error.errno not in _DECLINED:
            raise
    data = os.pread(source, min(length, 1 << 20), at)
    return os.pwrite(target, data, at)


def copy_identity(origin: Path, place: Path, *, follow: bool = False) -> None:
    """Give the place owner, mode and extended attributes (ACLs, capabilities, labels) of the origin; attributes that
    it inherited from its directory go. Raises OSError where one cannot be set: a file without its capability, say, is
    not the same file.
    """
    found = origin.stat() if follow else origin.lstat()
    os.chown(place, found.st_uid, found.st_gid, follow_symlinks=follow)  # first: it clears capabilities and setuid
    if not stat.S_ISLNK(found.st_mode):
        place.chmod(stat.S_IMODE(found.st_mode))
    wanted = {name: os.getxattr(origin, name, follow_symlinks=follow) for name in _attributes(origin, follow)}
    for name in _attributes(place, follow):
        if name not in wanted and name != _LABEL:
            os.removexattr(place, name, follow_symlinks=follow)
    for name, value in wanted.items():
        os.setxattr(place, name, value, follow_symlinks=follow)


def _attributes(path: Path, follow: bool) -> list[str]:
    try:
        return os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EOPNOTSUPP):
            return []
        raise


def copy_times(found: os.stat_result, place: Path) -> None:
    """Give the place the times of access and change."""
    os.utime(place, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)
