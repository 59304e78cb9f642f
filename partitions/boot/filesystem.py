"""Is a file where a boot loader can write it? GRUB's `save_env` writes raw sectors, past the filesystem: that works on
FAT and ext on a plain partition, and quietly does not on LVM, software RAID, btrfs, or in a sparse file.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from partitions.boot.contract import Fault

_PLAIN = {"vfat", "msdos", "ext2", "ext3", "ext4"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A line of mountinfo. `device`: its number as ``major:minor``."""

    point: Path
    filesystem: str
    source: str
    device: str
    read_only: bool


def mount_of(path: Path, mountinfo: str | None = None) -> Mount | None:
    """The mount that holds the path; None where nothing says so. `mountinfo`: text in the form of
    /proc/self/mountinfo, which is read when it is None.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    real = path.resolve()
    found: Mount | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        fields, rest = left.split(), right.split()
        point = Path(_unescape(fields[4]))
        # Of mounts over one another the last is seen.
        if real.is_relative_to(point) and (found is None or len(point.parts) >= len(found.point.parts)):
            options = {*fields[5].split(","), *(rest[2].split(",") if len(rest) > 2 else ())}
            found = Mount(
                point=point, filesystem=rest[0], source=_unescape(rest[1]), device=fields[2], read_only="ro" in options
            )
    return found


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
    if mount.filesystem not in _PLAIN:
        faults.append(
            Fault(
                message=f"{esp} is {mount.filesystem}, which the boot loader cannot write to",
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


def _unescape(field: str) -> str:
    for code, char in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(code, char)
    return field
