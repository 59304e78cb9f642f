"""What is mounted where, and mounting something for a while."""

from __future__ import annotations

import ctypes
import os
import re
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from core.errors import CommandFailed, DeviceFailed, NotPermitted
from core.run import run
from partitions.filesystems import filesystem_of

_NEW_MOUNT_NAMESPACE = 0x00020000  # CLONE_NEWNS
_SLAVE = 0x4000 | 0x80000  # MS_REC | MS_SLAVE

#: Reading must not write: without these, the journal of an uncleanly left filesystem would be replayed.
#: XFS refuses a second filesystem of the same identity, which two slots of the same release are.
_READ_ONLY = {"ext4": ["noload"], "xfs": ["norecovery", "nouuid"], "btrfs": ["rescue=nologreplay"]}
_WRITABLE = {"xfs": ["nouuid"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line of /proc/self/mountinfo. `device` is major:minor; btrfs and the like give a number of their own.
    `options` are those of this mount, `super_options` those of the filesystem, wherever it is mounted.
    """

    device: str
    root: str
    point: Path
    options: tuple[str, ...]
    fstype: str
    source: str
    super_options: tuple[str, ...] = ()

    @property
    def read_only(self) -> bool:
        """Whether nothing can be written here."""
        return "ro" in self.options or "ro" in self.super_options


def parse_mountinfo(text: str) -> list[Mount]:
    """The lines of a mountinfo file (proc_pid_mountinfo(5)); lines that make no sense are left out."""
    mounts = []
    for line in text.splitlines():
        before, found, after = line.partition(" - ")
        fields, tail = before.split(" "), after.split(" ")
        if not found or len(fields) < 6 or len(tail) < 2:
            continue
        mounts.append(
            Mount(
                device=fields[2],
                root=_unescape(fields[3]),
                point=Path(_unescape(fields[4])),
                options=tuple(fields[5].split(",")),
                fstype=tail[0],
                source=_unescape(tail[1]),
                super_options=tuple(tail[2].split(",")) if len(tail) > 2 else (),
            )
        )
    return mounts


def _unescape(field: str) -> str:
    """The kernel writes space, tab, newline and backslash as octal."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), field)


def mounts() -> list[Mount]:
    """All that is mounted, as this process sees it."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text(errors="surrogateescape"))


def mounts_of(device: Path) -> list[Mount]:
    """Where the block device is mounted, as this process sees it."""
    number = device.stat().st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    return [mount for mount in mounts() if mount.device == wanted or _is_device(mount.source, number)]


def _is_device(source: str, number: int) -> bool:
    if not source.startswith("/dev/"):
        return False
    try:
        found = Path(source).stat()
    except OSError:
        return False
    return stat.S_ISBLK(found.st_mode) and found.st_rdev == number


def loops_over(file: Path) -> list[Path]:
    """The loop devices that have the file behind them."""
    try:
        wanted = file.stat()
    except OSError:
        return []
    found = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        try:
            behind = Path(backing.read_text().rstrip("\n")).stat()
        except OSError:  # let go meanwhile, or the file is deleted
            continue
        if (behind.st_dev, behind.st_ino) == (wanted.st_dev, wanted.st_ino):
            found.append(Path("/dev") / backing.parts[3])
    return sorted(found)


@contextmanager
def mounted(device: Path, *, read_only: bool) -> Iterator[Path]:
    """Mount a block device, or a file with a filesystem, in a private temporary directory while in the context.

    Nobody outside this process and its children sees the mount, and it ends with them, even by kill -9. `read_only`
    means that not a byte of the device changes. On leaving, everything written is on the medium.
    Raises DeviceFailed, CommandFailed, NotPermitted.
    """
    _enter_private_namespace()
    kind = filesystem_of(device)
    fstype = kind.type.value if kind else ""
    options = ["nodev", "nosuid", *(_READ_ONLY if read_only else _WRITABLE).get(fstype, [])]
    is_block = device.is_block_device()
    if not is_block:
        options.append("loop")
        if not Path("/dev/loop-control").exists():  # where nothing has asked for loop devices since the boot
            run("modprobe", "loop", check=False)
    base = Path("/run")
    point = Path(
        tempfile.mkdtemp(prefix=f"updater-mount-{os.getpid()}-", dir=base if os.access(base, os.W_OK) else None)
    )
    try:
        try:
            # Without -w, mount(8) is content with a read-only mount where the device is write-protected.
            way = "-r" if read_only else "-w"
            run("mount", way, *(["-t", fstype] if fstype else []), "-o", ",".join(options), device, point)
        except CommandFailed as error:
            raise DeviceFailed(
                f"cannot mount {device}",
                what=[*error.what, f"filesystem: {fstype or 'none known'}"],
                next="dmesg | tail",
            ) from error
        try:
            if is_block:
                _require_ours(device, point)
            yield point
        finally:
            _unmount(device, point, written=not read_only)
    finally:
        if not os.path.ismount(point):
            point.rmdir()


_private = threading.local()


def _enter_private_namespace() -> None:
    """Give this thread a mount namespace of its own, once (again after a fork, whose mounts must die with the child).
    What others mount and unmount still arrives here.
    """
    if getattr(_private, "process", 0) == os.getpid():
        return
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNT_NAMESPACE) or libc.mount(b"none", b"/", None, ctypes.c_ulong(_SLAVE), None):
        reason = os.strerror(ctypes.get_errno())
        raise NotPermitted("no permission to mount filesystems", what=reason, next="run it as root (sudo)")
    _private.process = os.getpid()


def _require_ours(device: Path, point: Path) -> None:
    """Two btrfs devices of one identity can stand in for each other: never work on the wrong slot."""
    if not any(mount.point == point for mount in mounts_of(device)):
        raise DeviceFailed(
            f"the kernel mounted another device in place of {device}",
            what="both hold a filesystem of the same identity",
            state="the mount was taken back",
        )


def _unmount(device: Path, point: Path, *, written: bool) -> None:
    """Unmount and wait until the device is free. Raises DeviceFailed when something could not be written."""
    failure = _sync_filesystem(point) if written else None
    deadline = time.monotonic() + 10
    while run("umount", point, check=False).code != 0 and os.path.ismount(point):
        if time.monotonic() > deadline:
            run("umount", "-l", point, check=False)
            raise DeviceFailed(
                f"{device} cannot be unmounted", what=f"something still uses {point}", next=f"fuser -vm {point}"
            )
        time.sleep(0.05)
    _wait_until_free(device, deadline)
    if written and failure is None:
        failure = _sync_device(device)
    if failure is not None:
        raise DeviceFailed(f"{device} did not take all that was written", what=failure, next="dmesg | tail")


def _wait_until_free(device: Path, deadline: float) -> None:
    """A loop device under a file is let go a moment after the unmount."""
    while not device.is_block_device() and loops_over(device) and time.monotonic() < deadline:
        time.sleep(0.01)


def _sync_filesystem(point: Path) -> str | None:
    """syncfs(2), the only call that tells of a write that failed earlier. Returns the failure."""
    libc = ctypes.CDLL(None, use_errno=True)
    fd = os.open(point, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return os.strerror(ctypes.get_errno()) if libc.syncfs(fd) else None
    finally:
        os.close(fd)


def _sync_device(device: Path) -> str | None:
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as error:
        return str(error)
    return None
