"""Block devices as the machine knows them: found by stable names, described, and who uses them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import CommandFailed, DeviceFailed, NotReady
from core.run import run
from partitions.filesystems import identify
from partitions.mounts import loops_over, mounts_of

#: Directories of stable names that udev makes, with the property that each is made of.
_STABLE = {
    "/dev/disk/by-partlabel": "ID_PART_ENTRY_NAME",
    "/dev/disk/by-partuuid": "ID_PART_ENTRY_UUID",
    "/dev/disk/by-label": "ID_FS_LABEL",
    "/dev/disk/by-uuid": "ID_FS_UUID",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A disk, a partition, or a plain file in place of one. `size` in bytes; empty texts: not known.

    `kind`: disk, partition, loop, file, or what the kernel calls it otherwise. `parent`: the disk of a partition.
    """

    path: Path
    kind: str
    size: int
    read_only: bool = False
    partlabel: str = ""
    partuuid: str = ""
    parttype: str = ""
    fstype: str = ""
    fsuuid: str = ""
    label: str = ""
    parent: Path | None = None


def find(name: Path) -> Path:
    """The device that a stable name such as /dev/disk/by-partlabel/slot-a stands for; plain files stand for themselves.
    Works without udevd too. Raises NotReady when there is none, or more than one.
    """
    with suppress(OSError):
        return name.resolve(strict=True)
    wanted = _STABLE.get(str(name.parent))
    found = [path for path in _block_devices() if wanted and _properties(path).get(wanted) == name.name]
    if len(found) == 1:
        return found[0]
    raise NotReady(
        f"the device {name} does not exist" if not found else f"the name {name} is not unique",
        what=[str(path) for path in found],
        next=["updater init    shows the devices that there are", "lsblk -o NAME,SIZE,PARTLABEL,FSTYPE"],
    )


def describe(path: Path) -> Device:
    """All we know about a device, a stable name of one, or a plain file. Raises NotReady, DeviceFailed."""
    real = find(path)
    if not real.is_block_device():
        return _describe_file(real)
    node = _sysfs(real)
    found = _properties(real)
    filesystem = None if found.get("ID_FS_TYPE") else _look(real)
    is_partition = (node / "partition").exists()
    return Device(
        path=real,
        kind="loop" if real.name.startswith("loop") else "partition" if is_partition else "disk",
        size=size_of(real),
        read_only=_read(node / "ro") == "1",
        partlabel=found.get("ID_PART_ENTRY_NAME", "") or found.get("PARTNAME", ""),
        partuuid=found.get("ID_PART_ENTRY_UUID", "") or found.get("PARTUUID", ""),
        parttype=found.get("ID_PART_ENTRY_TYPE", "").lower(),
        fstype=found.get("ID_FS_TYPE", "") or (filesystem.type.value if filesystem else ""),
        fsuuid=found.get("ID_FS_UUID", "") or (filesystem.uuid if filesystem else ""),
        label=found.get("ID_FS_LABEL", "") or (filesystem.label if filesystem else ""),
        parent=Path("/dev") / node.resolve().parent.name if is_partition else None,
    )


def devices() -> list[Device]:
    """Every block device that holds something (empty loop devices and RAM disks left out), sorted by path."""
    found = []
    for path in _block_devices():
        with suppress(NotReady, DeviceFailed):  # gone meanwhile, or a drive without a medium
            device = describe(path)
            if device.size > 0 and not path.name.startswith(("ram", "zram", "sr", "fd")):
                found.append(device)
    return found


def size_of(path: Path) -> int:
    """Bytes of a block device or a file. Raises DeviceFailed when it is neither or cannot be asked."""
    try:
        found = path.stat()
        if stat.S_ISREG(found.st_mode):
            return found.st_size
        if not stat.S_ISBLK(found.st_mode):
            raise OSError("neither a block device nor a file")
        sectors = _read(_sysfs(path) / "size")
        if sectors:
            return int(sectors) * 512  # sysfs counts in 512 bytes, whatever the device's sectors are
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return os.lseek(fd, 0, os.SEEK_END)
        finally:
            os.close(fd)
    except OSError as error:
        raise DeviceFailed(f"cannot tell the size of {path}", what=str(error), next="updater doctor") from error


def users_of(path: Path) -> list[str]:
    """What uses the device or file now, one line each: mounts, swap, devices on top of it, loop devices.

    Sees the mounts of this mount namespace only; opening for writing asks the kernel as well.
    """
    real = path.resolve()
    if not real.exists():
        return []
    if not real.is_block_device():
        users: list[str] = []
        for loop in loops_over(real):
            users += [f"loop device {loop}", *users_of(loop)]
        return users + [f"swap ({line})" for line in _swaps() if line == str(real)]
    users = [f"mounted at {mount.point}" for mount in mounts_of(real)]
    number = real.stat().st_rdev
    for swap in _swaps():
        with suppress(OSError):
            if Path(swap).stat().st_rdev == number:
                users.append(f"swap ({swap})")
    with suppress(OSError):
        users += [f"part of /dev/{holder.name}" for holder in sorted((_sysfs(real) / "holders").iterdir())]
    return users


def refuse_if_used(device: Path) -> None:
    """Raises NotReady, naming the users, when anything uses the device."""
    users = users_of(device)
    if users:
        raise NotReady(
            f"{device} is in use and cannot be written",
            what=users,
            state="this command wrote nothing to it",
            next=f"unmount or stop what uses it (lsblk {device}), then run the same command again",
        )


def stable_name(device: Device, others: Iterable[Device]) -> Path:
    """A name that means the same device after every boot, for configuration files. Not by filesystem: that changes with
    each image. Where there is no such name, the path itself.
    """
    others = list(others)
    if device.partlabel and sum(other.partlabel == device.partlabel for other in others) == 1:
        return Path("/dev/disk/by-partlabel") / device.partlabel
    if device.partuuid:
        return Path("/dev/disk/by-partuuid") / device.partuuid
    return device.path


def _describe_file(path: Path) -> Device:
    if not path.is_file():
        raise NotReady(f"{path} is neither a block device nor a file", next="updater doctor")
    filesystem = _look(path)
    return Device(
        path=path,
        kind="file",
        size=size_of(path),
        read_only=not os.access(path, os.W_OK),
        fstype=filesystem.type.value if filesystem else "",
        fsuuid=filesystem.uuid if filesystem else "",
        label=filesystem.label if filesystem else "",
    )


def _look(path: Path) -> Any:
    from partitions.filesystems import HEAD

    try:
        with path.open("rb", buffering=0) as file:
            return identify(file.read(HEAD) or b"")
    except OSError:
        return None


def _block_devices() -> list[Path]:
    """Device nodes of all block devices, through udev's library where it is there, else from sysfs."""
    try:
        import pyudev

        found = [device.device_node for device in pyudev.Context().list_devices(subsystem="block")]
    except (ImportError, OSError):
        found = [f"/dev/{entry.name}" for entry in Path("/sys/class/block").iterdir()]
    return sorted(Path(node) for node in found if node and Path(node).is_block_device())


def _properties(path: Path) -> Mapping[str, str]:
    """What udev knows of the device. Where udevd never saw it (containers), blkid is asked: it uses the same names."""
    found: dict[str, str] = {}
    with suppress(ImportError, OSError):
        import pyudev

        try:
            device = pyudev.Devices.from_device_number(pyudev.Context(), "block", path.stat().st_rdev)
            found = dict(device.properties)
            if device.is_initialized:
                return found
        except pyudev.DeviceNotFoundError:
            pass
    if not _read(_sysfs(path) / "size").strip("0"):
        return found
    with suppress(CommandFailed):
        for line in run("blkid", "-p", "-o", "udev", path, check=False, timeout=10).stdout.splitlines():
            key, equals, value = line.partition("=")
            if equals:
                found[key] = value
    return found


def _sysfs(path: Path) -> Path:
    number = path.stat().st_rdev
    return Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}")


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _swaps() -> list[str]:
    return [line.split()[0] for line in _read(Path("/proc/swaps")).splitlines()[1:] if line.split()]
