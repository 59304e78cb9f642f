"""Which partitions could be the slots, the boot partition and the data partition: a proposal for a first node.toml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from partitions.disks import Device

_ESP_TYPE = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"  # UEFI specification, table 5.7
_ESP_TYPE_MBR = "0xef"
_SMALLEST_SLOT = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Candidates, the likeliest first: pairs for the slots a and b, boot partitions, data partitions."""

    slots: tuple[tuple[Device, Device], ...]
    esp: tuple[Device, ...]
    data: tuple[Device, ...]


def propose(devices: Sequence[Device], *, smallest_slot: int = _SMALLEST_SLOT) -> Layout:
    """Sort out the devices. Pure.

    Slots are two writable devices of equal size on one disk, neither of them another candidate's; the partition labels
    slot-a and slot-b win.
    """
    esp = [device for device in devices if is_esp(device)]
    data = [device for device in devices if "data" in (device.partlabel.lower(), device.label.lower())]
    usable = [device for device in devices if device not in esp and device not in data and _could_be_slot(device)]
    pairs = [
        (first, second)
        for first, second in combinations(sorted(usable, key=_order), 2)
        if first.size == second.size >= smallest_slot and first.parent == second.parent
    ]
    taken = set(pairs[0]) if pairs and _labelled(pairs[0]) else set()
    if not data:
        rest = [d for d in devices if d not in esp and d not in taken and d.fstype in ("ext4", "xfs", "btrfs")]
        data = sorted(rest, key=lambda device: -device.size)
    return Layout(
        slots=tuple(sorted(pairs, key=lambda pair: not _labelled(pair))),
        esp=tuple(sorted(esp, key=lambda device: (device.partlabel.lower() != "esp", str(device.path)))),
        data=tuple(data),
    )


def is_esp(device: Device) -> bool:
    """Whether the device is an EFI system partition, by its partition type, or by labels where that is not known."""
    if device.parttype:
        return device.parttype in (_ESP_TYPE, _ESP_TYPE_MBR)
    return device.fstype == "vfat" and "esp" in (device.partlabel.lower(), device.label.lower())


def _could_be_slot(device: Device) -> bool:
    return device.kind in ("partition", "loop", "file") and not device.read_only and device.fstype != "swap"


def _labelled(pair: tuple[Device, Device]) -> bool:
    return (pair[0].partlabel, pair[1].partlabel) == ("slot-a", "slot-b")


def _order(device: Device) -> tuple[bool, str, str]:
    return (not device.partlabel.startswith("slot-"), device.partlabel, str(device.path))
