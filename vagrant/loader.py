"""What the ESP of a lab disk holds: GRUB for UEFI, its configuration, and the boot state to begin with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from core.image import BootFiles
from core.run import run
from partitions.boot.backend import open_backend
from partitions.boot.contract import BootLayout, SlotPlace
from partitions.boot.grub_config import EARLY_CONFIG, mkimage_arguments
from partitions.boot.state import BAD, GOOD, BootState, Slot
from vagrant import cache
from vagrant.disk import Layout
from vagrant.qemu import QUICK_KERNEL

#: Where every release of the lab keeps its kernel.
BOOT_FILES = BootFiles(kernel="/boot/vmlinuz", initrd="/boot/initrd.img")


def boot_layout(disk: Layout, *, cmdline: str = QUICK_KERNEL) -> BootLayout:
    """Slots by partition UUID, no menu to wait for, the serial line as console."""
    parts = disk.partitions()
    places = {
        slot: SlotPlace(root=f"PARTUUID={parts[f'slot-{slot}'].uuid}", partition=parts[f"slot-{slot}"].number)
        for slot in ("a", "b")
    }
    return BootLayout(a=places["a"], b=places["b"], cmdline=cmdline, timeout=0)


def esp_files(
    disk: Layout,
    *,
    cmdline: str = QUICK_KERNEL,
    state: BootState | None = None,
    boot: Mapping[Slot, BootFiles] | None = None,
) -> dict[str, bytes]:
    """Files of the ESP by path: BOOTX64.EFI, grub.cfg, slot files and environment. By default slot a is good and
    primary, and slot b is bad (empty)."""
    backend = open_backend("grub", Path("/nowhere"))
    state = state or BootState(primary="a", a=GOOD, b=BAD)
    files = backend.files(boot_layout(disk, cmdline=cmdline), state, boot or {"a": BOOT_FILES})
    return {"EFI/BOOT/BOOTX64.EFI": _grub().read_bytes(), **files}


def _grub() -> Path:
    def build(part: Path) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".cfg") as early:
            early.write(EARLY_CONFIG)
            early.flush()
            run(*mkimage_arguments("x86_64-efi", output=str(part), early_config=early.name))

    arguments = mkimage_arguments("x86_64-efi", output="", early_config="")
    return cache.cached("grub", cache.key(EARLY_CONFIG, *arguments), build)
