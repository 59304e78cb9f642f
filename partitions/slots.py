"""The two slots as devices: what is in them, and making a freshly written filesystem as large as its slot."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core import faults
from core.errors import CommandFailed, DeviceFailed, NoSpace
from core.report import Report
from core.run import run
from partitions.disks import refuse_if_used, size_of
from partitions.filesystems import Filesystem, FsType, filesystem_of
from partitions.mounts import mounted

#: Room that a filesystem may leave at its end without being worth growing: less than any allocation unit of theirs.
_SLACK = 1 << 20

#: Checking and growing read and write metadata only, but on a large slow disk that takes its time.
_PATIENCE = 1800


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """A root partition: `name` is a or b, `device` a block device or a plain file."""

    name: str
    device: Path


def grow(slot: Slot, report: Report) -> bool:
    """Make the filesystem fill the slot; returns whether there was anything to do.

    ext4, XFS and btrfs grow, read-only filesystems stay as they are. Safe to run again after dying half-way, once the
    image was written again. Raises NotReady when the slot is in use, NoSpace, DeviceFailed.
    """
    filesystem = filesystem_of(slot.device)
    if filesystem is None:
        raise DeviceFailed(
            f"slot {slot.name} holds no filesystem that we know",
            what=str(slot.device),
            next="stage the release again",
        )
    room = size_of(slot.device)
    if filesystem.size > room:
        raise NoSpace(
            f"the filesystem is larger than slot {slot.name}",
            what=f"filesystem {filesystem.size} bytes, {slot.device} {room} bytes",
            next="make a smaller image, or give the slots more room",
        )
    if filesystem.type not in _GROW or room - filesystem.size < _SLACK:
        return False
    refuse_if_used(slot.device)
    faults.point("grow:before")
    try:
        _GROW[filesystem.type](slot.device)
    except CommandFailed as error:
        raise DeviceFailed(
            f"the filesystem in slot {slot.name} cannot grow",
            what=[error.message, *error.what],
            state="the slot must be written again before it can be booted",
            next="stage the release again",
        ) from error
    faults.point("grow:after")
    _tell(slot, filesystem, report)
    return True


def _tell(slot: Slot, before: Filesystem, report: Report) -> None:
    after = filesystem_of(slot.device)
    size = after.size if after else 0
    report.note(f"{before.type} in slot {slot.name} grew", slot=slot.name, before=before.size, after=size)


def _grow_ext4(device: Path) -> None:
    # resize2fs refuses a filesystem that was mounted since its last check. 1: faults were found and mended.
    checked = run("e2fsck", "-f", "-p", device, check=False, timeout=_PATIENCE)
    if checked.code not in (0, 1):
        raise CommandFailed(
            f"e2fsck finds faults that it does not mend by itself (exit code {checked.code})",
            what=[*checked.stdout.splitlines()[-8:], *checked.stderr.splitlines()[-4:]],
        )
    faults.point("grow:checked")
    run("resize2fs", device, timeout=_PATIENCE)


def _grow_xfs(device: Path) -> None:
    with mounted(device, read_only=False) as point:
        run("xfs_growfs", "-d", point, timeout=_PATIENCE)


def _grow_btrfs(device: Path) -> None:
    with mounted(device, read_only=False) as point:
        run("btrfs", "filesystem", "resize", "max", point, timeout=_PATIENCE)


_GROW = {FsType.EXT4: _grow_ext4, FsType.XFS: _grow_xfs, FsType.BTRFS: _grow_btrfs}
