"""Is a file where a boot loader can write it? GRUB's `save_env` writes raw sectors, past the filesystem: that works on
FAT and ext on a plain partition, and quietly does not on LVM, software RAID, btrfs, or in a sparse file.
"""

from __future__ import annotations

from pathlib import Path

from partitions.boot.contract import Fault
from partitions.mounts import Mount, mounts, parse_mountinfo

_PLAIN = {"vfat", "msdos", "ext2", "ext3", "ext4"}


def mount_of(path: Path, mountinfo: str | None = None) -> Mount | None:
    """The mount that holds the path; None where nothing says so. `mountinfo`: text in the form of
    /proc/self/mountinfo, which is read when it is None.
    """
    real = path.resolve()
    holding = [
        mount
        for mount in (mounts() if mountinfo is None else parse_mountinfo(mountinfo))
        if real.is_relative_to(mount.point)
    ]
    # Of mounts over one another the last is seen.
    return max(reversed(holding), key=lambda mount: len(mount.point.parts), default=None)


def mount_faults(esp: Path, mountinfo: str | None = None, sys: Path = Path("/sys")) -> list[Fault]:
    """What keeps the boot loader from using files on the partition mounted at `esp`. `sys`: where sysfs is."""
    mount = mount_of(esp, mountinfo)
    if mount is None or mount.point != esp.resolve():
        return [
            Fault(
                message=f"no partition is mounted at {esp}", mend=f"add the boot partition to /etc/fstab; mount {esp}"
            )
        ]
    faults = []
    if mount.fstype not in _PLAIN:
        faults.append(
            Fault(
                message=f"{esp} is {mount.fstype}, which the boot loader cannot write to",
                mend="keep it on a small FAT or ext4 partition of its own",
            )
        )
    below = sys / "dev/block" / mount.device
    for marker, name in (("dm", "the device mapper (LVM, encryption)"), ("md", "software RAID"), ("bcache", "bcache")):
        if (below / marker).exists() or (below.resolve().parent / marker).is_dir():
            faults.append(
                Fault(
                    message=f"{esp} lies on {name}, past which the boot loader cannot write",
                    mend="keep it on a plain partition",
                )
            )
    if mount.read_only:
        faults.append(Fault(message=f"{esp} is mounted read-only", mend=f"mount -o remount,rw {esp}"))
    return faults


def sparse(path: Path) -> bool:
    """Has the file holes, so that it owns fewer blocks than its size needs? Raises OSError."""
    found = path.stat()
    return found.st_blocks * 512 < found.st_size
