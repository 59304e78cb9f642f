"""A slot opened for I/O that goes past the page cache: block devices, and plain files that stand in for one."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from core.errors import DeviceFailed, NoSpace, NotPermitted, NotReady, UpdaterError

#: Offsets, lengths and memory of direct I/O are multiples of this: enough for 512 and 4096 byte sectors alike.
ALIGNMENT = 4096

_HUGE_PAGE = 2 << 20

_BLKZEROOUT = 0x127F  # linux/fs.h: zero a range, without giving up its blocks
_PUNCH_HOLE = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE

_INCOMPLETE = "the slot is incomplete and must not be booted"


def aligned_buffer(size: int) -> memoryview:
    """`size` zero bytes (rounded up to whole pages), aligned as direct I/O wants them, in huge pages where possible:
    pinning one page in place of hundreds saves a third of what a direct write costs.
    """
    whole = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
    # Room to begin at a huge page and to end with one; what is not touched takes no memory.
    room = mmap.mmap(-1, -(-whole // _HUGE_PAGE) * _HUGE_PAGE + _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    begin = -ctypes.addressof(ctypes.c_char.from_buffer(room)) % _HUGE_PAGE
    return memoryview(room)[begin : begin + whole]


class Direct:
    """An open device or file. Methods are safe to call from several threads at once, and raise only our errors,
    which name the device and the offset.

    For writing, a block device is opened exclusively: the kernel refuses while it is mounted, swapped to, or held.
    """

    def __init__(self, path: Path, *, write: bool) -> None:
        self.path = path
        self.is_block = False
        self._write = write
        mode = os.O_RDWR if write else os.O_RDONLY
        try:
            self.is_block = stat.S_ISBLK(path.stat().st_mode)
            self._plain = os.open(path, mode | os.O_CLOEXEC | (os.O_EXCL if write and self.is_block else 0))
        except OSError as error:
            raise self._cannot_open(error) from error
        try:
            try:
                self._fd = os.open(path, mode | os.O_CLOEXEC | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                self._fd = os.dup(self._plain)  # a filesystem without direct I/O: slower, but as good
            self.size = os.lseek(self._plain, 0, os.SEEK_END)
        except OSError as error:
            os.close(self._plain)
            raise self._cannot_open(error) from error

    def __enter__(self) -> Direct:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        os.close(self._fd)
        os.close(self._plain)

    def read_into(self, buffer: memoryview, length: int, offset: int) -> memoryview:
        """The device's `length` bytes at `offset`, as the beginning of `buffer` (aligned, and long enough for whole
        blocks). Raises DeviceFailed, also where the device ends too early.
        """
        wanted = min(-(-length // ALIGNMENT) * ALIGNMENT, len(buffer))
        got = 0
        try:
            while got < length:
                count = os.preadv(self._fd, [buffer[got:wanted]], offset + got)
                if count == 0:
                    raise OSError(errno.ENXIO, "the device ends here")
                got += count
        except OSError as error:
            raise self._failed("read", offset + got, error) from error
        return buffer[:length]

    def write(self, data: memoryview, offset: int) -> None:
        """Write `data` (aligned in memory) at `offset` (aligned). Raises DeviceFailed or NoSpace."""
        direct = len(data) - len(data) % ALIGNMENT
        written = 0
        try:
            while written < len(data):
                # The odd bytes at the end of an image go through the page cache, which `flush` empties.
                fd, end = (self._fd, direct) if written < direct else (self._plain, len(data))
                count = os.pwrite(fd, data[written:end], offset + written)
                if count == 0:
                    raise OSError(errno.ENXIO, "the device takes no more")
                written += count
        except OSError as error:
            raise self._failed("write", offset + written, error) from error

    def zero(self, offset: int, length: int) -> None:
        """Make `length` bytes at `offset` read as zeros, in the cheapest way that the device knows."""
        whole = length - length % ALIGNMENT
        try:
            if whole and not self._zero_quickly(offset, whole):
                zeros = aligned_buffer(1 << 20)
                for at in range(offset, offset + whole, len(zeros)):
                    self.write(zeros[: min(len(zeros), offset + whole - at)], at)
        except OSError as error:
            raise self._failed("write", offset, error) from error
        if length > whole:
            self.write(aligned_buffer(ALIGNMENT)[: length - whole], offset + whole)

    def _zero_quickly(self, offset: int, length: int) -> bool:
        """Whether the device or the filesystem could zero the range by itself. Raises OSError."""
        try:
            if self.is_block:
                fcntl.ioctl(self._plain, _BLKZEROOUT, struct.pack("QQ", offset, length))
            else:
                _fallocate(self._plain, _PUNCH_HOLE, offset, length)
        except OSError as error:
            if error.errno in (errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL):
                return False
            raise
        return True

    def flush(self) -> None:
        """Return when everything written is on the medium. Raises DeviceFailed or NoSpace."""
        try:
            os.fsync(self._plain)
            os.fsync(self._fd)
        except OSError as error:
            raise self._failed("flush", None, error) from error

    def _cannot_open(self, error: OSError) -> UpdaterError:
        what = f"{self.path}: {error.strerror}"
        if error.errno == errno.EBUSY:
            return NotReady(
                f"{self.path} is in use and cannot be written",
                what="the kernel refuses exclusive access: it is mounted, swapped to, or part of another device",
                state="this command wrote nothing to it",
                next=[f"findmnt --source {self.path}    see where it is mounted", f"lsblk {self.path}"],
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return NotPermitted(f"no permission to open {self.path}", what=what, next="run it as root (sudo)")
        return DeviceFailed(
            f"cannot open {self.path}", what=what, state="nothing was written to it", next="updater doctor"
        )

    def _failed(self, verb: str, offset: int | None, error: OSError) -> UpdaterError:
        place = "" if offset is None else f" at byte {offset}"
        what = f"{self.path}{place}: {error.strerror or error}"
        state = _INCOMPLETE if self._write else ""
        # Beyond the end of a device that was pulled the kernel says "no space" too, but then it shrank meanwhile.
        vanished = self.is_block and os.lseek(self._plain, 0, os.SEEK_END) < self.size
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) and not vanished:
            return NoSpace(f"no room left on {self.path}", what=what, state=state, next="updater doctor")
        return DeviceFailed(
            f"{self.path} failed to {verb}{place}",
            what=[what, "the device vanished or shrank"] if vanished else what,
            state=state,
            next=["dmesg | tail    see what the kernel says of the device", "updater doctor"],
        )


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    """fallocate(2) with a mode, which `os` does not offer. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(length)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
