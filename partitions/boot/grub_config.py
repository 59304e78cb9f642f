"""What GRUB is given: grub.cfg, a small file per slot, and the image that grub-mkimage makes. Pure."""

from __future__ import annotations

from core.image import BootFiles
from partitions.boot.contract import DIRECTORY, BootLayout, SlotPlace
from partitions.boot.state import MAX_TRIES, SLOTS, Slot

CONFIG = f"{DIRECTORY}/grub.cfg"
ENVIRONMENT = f"{DIRECTORY}/grubenv"

#: A slot's file has this many bytes for ever, so that it is overwritten in its own blocks.
SLOT_FILE_SIZE = 4096

#: Run by the loader before it reads grub.cfg. The partition it was loaded from is asked first.
EARLY_CONFIG = f"""\
search --no-floppy --file --set=root --hint=$root /{CONFIG}
set prefix=($root)/{DIRECTORY}
"""

_MODULES = """
normal configfile echo test true regexp loadenv search search_fs_file search_label part_gpt part_msdos fat ext2 xfs
linux boot serial terminal minicmd sleep reboot halt ls cat help
""".split()  # noqa: SIM905 (one name per line would be a page)
_TARGET_MODULES = {
    "x86_64-efi": ["efi_gop", "efi_uga", "all_video", "efifwsetup"],
    "i386-pc": ["biosdisk", "all_video"],
}
TARGETS = tuple(_TARGET_MODULES)


def slot_file(slot: Slot) -> str:
    """Path of the slot's file, relative to the ESP."""
    return f"{DIRECTORY}/slot-{slot}.cfg"


def render_slot_file(files: BootFiles | None) -> bytes:
    """The slot's file: what grub.cfg reads when it starts the slot. None: nothing to start. Always 4096 bytes."""
    lines = ["# Written by `updater stage`; read by grub.cfg when it starts this slot."]
    if files is not None:
        lines += [
            f"set updater_kernel='{files.kernel}'",
            f"set updater_initrd='{files.initrd or ''}'",
            f"set updater_arguments='{files.cmdline}'",
        ]
    raw = "\n".join([*lines, ""]).encode("ascii")
    if len(raw) >= SLOT_FILE_SIZE:
        raise ValueError(f"the boot entry needs {len(raw)} bytes, and only {SLOT_FILE_SIZE} fit")
    return raw + b"#" * (SLOT_FILE_SIZE - 1 - len(raw)) + b"\n"


def render_config(layout: BootLayout) -> bytes:
    """grub.cfg for a disk layout. It depends on neither the state nor what the slots hold, so it is written once."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(loader=PackageLoader("partitions.boot", "."), undefined=StrictUndefined, autoescape=False)
    text = environment.get_template("grub.cfg.j2").render(
        cmdline=layout.cmdline,
        device={slot: _device(layout[slot]) for slot in SLOTS},
        directory=DIRECTORY,
        environment=ENVIRONMENT,
        max_tries=MAX_TRIES,
        root={slot: layout[slot].root for slot in SLOTS},
        serial=layout.serial,
        serial_unit=layout.serial_unit,
        timeout=layout.timeout,
    )
    return text.encode("ascii")


def mkimage_arguments(target: str, *, output: str, early_config: str) -> list[str]:
    """The command that makes GRUB's image for `target` (``x86_64-efi`` or ``i386-pc``) at path `output`. The file
    `early_config` must hold `EARLY_CONFIG`. For EFI the image is EFI/BOOT/BOOTX64.EFI; for BIOS it is the core image
    that boot.img starts.
    """
    modules = [*_MODULES, *_TARGET_MODULES[target]]
    return ["grub-mkimage", "-O", target, "-o", output, "-c", early_config, "-p", f"/{DIRECTORY}", *modules]


def _device(place: SlotPlace) -> str:
    if place.grub_device:
        return place.grub_device
    if place.partition is None:
        raise ValueError("a slot needs the number of its partition, or GRUB's name of its device")
    return f"$updater_disk,gpt{place.partition}"
