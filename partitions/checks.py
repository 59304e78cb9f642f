"""What `updater doctor` asks of the slots' devices. Each check returns what it found, or raises NotReady or
DeviceFailed with the way to mend it.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import NotReady
from partitions.disks import Device, describe, devices, refuse_if_used, stable_name
from partitions.mounts import mounts_of


def usable(name: Path) -> str:
    """The device is there, writable, and named in a way that outlives the next boot."""
    device = describe(name)
    if device.read_only:
        raise NotReady(
            f"{name} is write-protected", what=str(device.path), next=f"blockdev --setrw {device.path}, or fix the disk"
        )
    if device.kind == "partition" and name == device.path:
        better = stable_name(device, devices())
        if better != name:
            raise NotReady(
                f"{name} may be another device after the next boot",
                what="the kernel numbers disks in the order in which it finds them",
                next=f'set device = "{better}" in node.toml',
            )
    return _say(device)


def equal(first: Path, second: Path) -> str:
    """The two slots are different devices of the same size, so that each release that fits one fits the other."""
    a, b = describe(first), describe(second)
    if a.path == b.path:
        raise NotReady(
            "both slots are the same device", what=f"{first} and {second} are {a.path}", next="edit node.toml"
        )
    if a.size != b.size:
        raise NotReady(
            "the slots differ in size",
            what=[_say(a), _say(b)],
            next="give both partitions the size of the smaller one (the inactive one first)",
        )
    return f"{a.size >> 20} MiB each"


def unused(name: Path) -> str:
    """Nothing is mounted from the inactive slot, and nothing else holds it."""
    refuse_if_used(describe(name).path)
    return "nothing uses it"


def runs_from(name: Path) -> str:
    """The running system's root is on the active slot's device."""
    device = describe(name)
    if device.kind != "file" and any(str(mount.point) == "/" for mount in mounts_of(device.path)):
        return f"/ is on {device.path}"
    raise NotReady(
        f"the running system is not on {name}",
        what=f"/ is mounted from something else than {device.path}",
        next=["findmnt /", "see that node.toml names the devices of slot a and b in the right order"],
    )


def _say(device: Device) -> str:
    return ", ".join(part for part in (str(device.path), f"{device.size >> 20} MiB", device.fstype) if part)
