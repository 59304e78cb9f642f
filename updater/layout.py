"""Where the boot loader finds the slots of this machine, by the numbers and ids of their partitions."""

from __future__ import annotations

from pathlib import Path

from core.errors import NotReady
from partitions import disks
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.state import Slot
from updater.node_toml import NodeConfig


def boot_layout(config: NodeConfig) -> BootLayout:
    """Ask the disks. Raises NotReady where a slot is no partition of a GPT."""

    def place(slot: Slot) -> SlotPlace:
        about = disks.describe(disks.find(config.slots[slot].device))
        number = _partition_number(about.path)
        if not about.partuuid or number is None:
            raise NotReady(f"slot {slot} is no partition with a PARTUUID", what=str(about.path))
        return SlotPlace(root=f"PARTUUID={about.partuuid}", partition=number)

    return BootLayout(a=place("a"), b=place("b"), cmdline=config.boot.cmdline)


def _partition_number(device: Path) -> int | None:
    number = Path(f"/sys/class/block/{device.resolve().name}/partition")
    return int(number.read_text()) if number.exists() else None


def running_root(config: NodeConfig) -> Path:
    """The root of the system that runs: in a sandbox a directory beside its data."""
    return config.data.parent / "root" if config.machine == "sandbox" else Path("/")
