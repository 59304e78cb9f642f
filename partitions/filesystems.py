"""Which filesystem the first bytes of a device belong to, how large it says it is, and what of that it uses."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from uuid import UUID

from core.errors import DeviceFailed
from core.run import run

#: How much of a device `identify` wants to see: btrfs keeps its superblock at 64 KiB.
HEAD = 0x10000 + 0x1000


class FsType(StrEnum):
    """Filesystems we know, by the names that mount(8) uses. EXT4 stands for ext2 and ext3 too."""

    EXT4 = "ext4"
    XFS = "xfs"
    BTRFS = "btrfs"
    SQUASHFS = "squashfs"
    EROFS = "erofs"
    VFAT = "vfat"


@dataclass(frozen=True, slots=True, kw_only=True)
class Filesystem:
    """What a superblock says: type, size in bytes, UUID and label (empty where it has none)."""

    type: FsType
    size: int
    uuid: str
    label: str


def identify(head: bytes) -> Filesystem | None:
    """The filesystem whose first `HEAD` bytes these are (fewer are allowed), or None. Pure; never raises."""
    for look in (_ext4, _xfs, _btrfs, _squashfs, _erofs, _vfat):
        try:
            found = look(head)
        except struct.error:  # too short to hold that superblock
            continue
        if found is not None:
            return found
    return None


def filesystem_of(device: Path) -> Filesystem | None:
    """The filesystem on a device or in a file, or None. Raises DeviceFailed when it cannot be read."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return identify(os.pread(fd, HEAD, 0))
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceFailed(f"cannot read {device}", what=str(error), next="updater doctor") from error


def filesystem_size(device: Path) -> int | None:
    """Bytes that the filesystem on the device says it has; None where there is none that we know."""
    found = filesystem_of(device)
    return found.size if found else None


def free_space(device: Path) -> list[range]:
    """The bytes that an ext4 filesystem on the device does not use, as ranges in order. None of another filesystem, nor
    of one that is too damaged to tell: all of it counts as used. Raises DeviceFailed, CommandFailed.
    """
    found = filesystem_of(device)
    if found is None or found.type is not FsType.EXT4:
        return []
    told = run("dumpe2fs", device, check=False, timeout=600)
    block = re.search(r"^Block size: +([0-9]+)$", told.stdout, re.MULTILINE)
    if told.code != 0 or block is None:
        return []
    size = int(block[1])
    free = []
    for line in re.findall(r"^  Free blocks: (.+)$", told.stdout, re.MULTILINE):
        for span in line.split(", "):
            first, _, last = span.partition("-")
            free.append(range(int(first) * size, (int(last or first) + 1) * size))
    return free


def _text(raw: bytes) -> str:
    return raw.split(b"\0")[0].decode("utf-8", errors="replace").rstrip(" ")


def _uuid(raw: bytes) -> str:
    return str(UUID(bytes=raw)) if len(raw) == 16 and any(raw) else ""


# Sources: linux/Documentation/filesystems/ext4/super.rst, fs/xfs/libxfs/xfs_format.h, include/uapi/linux/btrfs_tree.h,
# fs/squashfs/squashfs_fs.h, fs/erofs/erofs_fs.h, and Microsoft's FAT specification (fatgen103).


def _ext4(head: bytes) -> Filesystem | None:
    block = head[1024:2048]
    if struct.unpack_from("<H", block, 0x38)[0] != 0xEF53:
        return None
    (blocks,) = struct.unpack_from("<I", block, 4)
    (shift,) = struct.unpack_from("<I", block, 0x18)
    (incompatible,) = struct.unpack_from("<I", block, 0x60)
    if shift > 6:  # blocks are at most 64 KiB: this is no superblock
        return None
    if incompatible & 0x80:  # 64bit
        blocks |= struct.unpack_from("<I", block, 0x150)[0] << 32
    return Filesystem(
        type=FsType.EXT4, size=blocks * (1024 << shift), uuid=_uuid(block[0x68:0x78]), label=_text(block[0x78:0x88])
    )


def _xfs(head: bytes) -> Filesystem | None:
    if head[:4] != b"XFSB":
        return None
    size, blocks = struct.unpack_from(">IQ", head, 4)
    return Filesystem(type=FsType.XFS, size=size * blocks, uuid=_uuid(head[32:48]), label=_text(head[108:120]))


def _btrfs(head: bytes) -> Filesystem | None:
    block = head[0x10000:]
    if block[0x40:0x48] != b"_BHRfS_M":
        return None
    (size,) = struct.unpack_from("<Q", block, 0x70)
    return Filesystem(type=FsType.BTRFS, size=size, uuid=_uuid(block[0x20:0x30]), label=_text(block[0x12B:0x22B]))


def _squashfs(head: bytes) -> Filesystem | None:
    if head[:4] != b"hsqs":
        return None
    return Filesystem(type=FsType.SQUASHFS, size=struct.unpack_from("<Q", head, 40)[0], uuid="", label="")


def _erofs(head: bytes) -> Filesystem | None:
    block = head[1024:1152]
    if struct.unpack_from("<I", block, 0)[0] != 0xE0F5E1E2:
        return None
    (shift,) = struct.unpack_from("<B", block, 12)
    (blocks,) = struct.unpack_from("<I", block, 36)
    if shift > 16:
        return None
    return Filesystem(type=FsType.EROFS, size=blocks << shift, uuid=_uuid(block[48:64]), label=_text(block[64:80]))


def _vfat(head: bytes) -> Filesystem | None:
    # What starts like a FAT may also be a partition table: only the type's name tells them apart.
    if head[510:512] != b"\x55\xaa":
        return None
    at = 67 if head[82:87] == b"FAT32" else 39 if head[54:57] == b"FAT" else 0
    if not at:
        return None
    (bytes_per_sector,) = struct.unpack_from("<H", head, 11)
    sectors = struct.unpack_from("<H", head, 19)[0] or struct.unpack_from("<I", head, 32)[0]
    serial = struct.unpack_from("<I", head, at)[0]
    label = _text(head[at + 4 : at + 15])
    return Filesystem(
        type=FsType.VFAT,
        size=sectors * bytes_per_sector,
        uuid=f"{serial >> 16:04X}-{serial & 0xFFFF:04X}",
        label="" if label == "NO NAME" else label,
    )
