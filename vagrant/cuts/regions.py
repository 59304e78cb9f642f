"""One partition of a cut disk as a file that follows the disk from point to point, for programs that look at it."""

from __future__ import annotations

import os
import re
import subprocess
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vagrant.cuts.disks import CutDisk, copy_range
from vagrant.cuts.log import Entry
from vagrant.disk import Partition

#: What `e2fsck -p` says of a filesystem that is as a kernel makes it by itself when it mounts: its journal replayed,
#: and files removed that were deleted while open. All else is a fault.
_HARMLESS = re.compile(
    r"recovering journal|Clearing orphaned inode|Truncating orphaned inode|clean, |Setting free (inodes|blocks) count|"
    r"\d+/\d+ files \(.*|^\s*$|e2undo |^To undo|Overwriting existing filesystem"
)

#: The block that commits a transaction of ext4's journal is torn: to e2fsck, and to kernels that know of it, the
#: transaction is as good as not begun. Older kernels do not mount such a filesystem before e2fsck was there.
_TORN_COMMIT = re.compile(r"Journal transaction \d+ was corrupt, replay was aborted")

#: How a line begins that is no fault as long as the machine runs e2fsck when it boots.
MENDED = "mended by the fsck at boot: "

#: What of a partition's content a version is: durable entries in it, and the pieces after them.
Version = tuple[int, tuple[tuple[int, int, int], ...]]


class Region:
    """A partition of `disk`. `whole`: is all of it needed, or are its filesystem's own structures enough?"""

    def __init__(self, disk: CutDisk, part: Partition, work: Path, *, whole: bool) -> None:
        self._disk, self.part, self._whole = disk, part, whole
        self.start, self.end = part.start, part.start + part.size
        self.path = work / part.label
        self._undo = work / f"{part.label}.undo"
        self.entries: list[Entry] = [entry for entry in disk.entries if self.overlaps(entry.offset, entry.length)]
        self._indices = [entry.index for entry in self.entries]
        self._synced: tuple[int, Sequence[tuple[int, int]]] | None = None

    def overlaps(self, offset: int, length: int) -> bool:
        """Is any of these bytes of the disk in the partition?"""
        return length > 0 and offset < self.end and offset + length > self.start

    @property
    def version(self) -> Version:
        """Equal for equal content, as long as the recording is the same."""
        pieces = self._disk.pieces
        here = tuple((p.entry.index, p.offset, p.length) for p in pieces if self.overlaps(p.offset, p.length))
        return bisect_left(self._indices, self._disk.durable), here

    def between(self, first: int, end: int) -> list[Entry]:
        """The entries with an index from `first` to `end` (exclusive) that change the partition."""
        return self.entries[bisect_left(self._indices, first) : bisect_left(self._indices, end)]

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the partition."""
        return self._disk.read(self.start + offset, min(length, self.end - self.start - offset))

    @contextmanager
    def checked(self) -> Iterator[list[str]]:
        """The partition's file (`path`) after its ext4 journal was replayed, and what is wrong with the filesystem:
        nothing, where it is well. Lines that begin with MENDED are no faults. On leaving, the file is as it was."""
        self._sync()
        self._undo.unlink(missing_ok=True)
        argv = ["e2fsck", "-f", "-p", "-z", str(self._undo), str(self.path)]
        done = subprocess.run(argv, capture_output=True, timeout=120, check=False)
        said = (done.stdout + done.stderr).decode(errors="replace")
        faults = [
            self._judge(line.strip().removeprefix(f"{self.path}: "))
            for line in said.splitlines()
            if not _HARMLESS.search(line)
        ]
        if done.returncode > 1 and not faults:
            faults = [f"e2fsck exited {done.returncode}: {said.strip()[-200:]}"]
        try:
            yield faults
        finally:
            self._restore()

    def _judge(self, line: str) -> str:
        """A line of e2fsck's; where a write to this partition was torn, a torn commit is what must be expected."""
        torn = any(p.length < p.entry.length and self.overlaps(p.offset, p.length) for p in self._disk.pieces)
        return f"{MENDED}{line}" if torn and _TORN_COMMIT.search(line) else line

    def _restore(self) -> None:
        """Take back what e2fsck and whoever else wrote has changed, by its undo file; where that fails, start anew."""
        if not self._undo.exists():
            return
        argv = ["e2undo", str(self._undo), str(self.path)]
        if subprocess.run(argv, capture_output=True, timeout=60, check=False).returncode:
            self._synced = None
        self._undo.unlink()

    def _sync(self) -> None:
        """Bring the file to where the disk is."""
        pieces = [(p.offset, p.length) for p in self._disk.pieces if self.overlaps(p.offset, p.length)]
        if self._synced is None or self._synced[0] > self._disk.durable:
            self._begin()
            before, late = 0, []
        else:
            before, late = self._synced[0], list(self._synced[1])
        new = [(entry.offset, entry.length) for entry in self.between(before, self._disk.durable)]
        fd = os.open(self.path, os.O_RDWR)
        try:
            self._disk.write_changes(fd, [*late, *new, *pieces], start=self.start, end=self.end)
        finally:
            os.close(fd)
        self._synced = (self._disk.durable, pieces)

    def _begin(self) -> None:
        """The file as the recording's base has the partition; sparse, without file contents where they don't matter."""
        self.path.unlink(missing_ok=True)
        if not self._whole:
            argv = ["e2image", "-r", "-o", str(self.start), str(self._disk.base), str(self.path)]
            if subprocess.run(argv, capture_output=True, timeout=120, check=False).returncode == 0:
                os.truncate(self.path, self.part.size)
                return
            self.path.unlink(missing_ok=True)
        with self.path.open("xb") as file:
            file.truncate(self.part.size)
            with self._disk.base.open("rb") as base:
                copy_range(base.fileno(), file.fileno(), self.start, self.end)


def extract(image: Path, files: dict[str, Path]) -> set[str]:
    """Copy files (by absolute path) out of an unmounted ext4 image. Returns those that are there."""
    commands = "".join(f'dump "{name}" {target}\n' for name, target in files.items())
    argv = ["debugfs", "-f", "-", str(image)]
    done = subprocess.run(argv, input=commands.encode(), capture_output=True, timeout=60, check=False)
    said = done.stderr.decode(errors="replace")
    missing = {name for name in files if f"{name}: File not found by ext2_lookup" in said}
    for name in missing:
        files[name].unlink(missing_ok=True)
    return set(files) - missing
