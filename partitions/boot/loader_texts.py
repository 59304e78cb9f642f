"""The texts that systemd-boot reads: loader.conf and its entries. Pure."""

from __future__ import annotations

from core.image import BootFiles
from partitions.boot.contract import DIRECTORY, BootLayout
from partitions.boot.state import Slot

#: What loader.conf must say, whoever made it: entries of others are not booted by themselves, and no one at the console
#: becomes root by the kernel's command line.
SETTINGS = {"default": "updater-*", "editor": "no"}


def entry_text(layout: BootLayout, slot: Slot, files: BootFiles) -> str:
    """A loader entry, except for its `version` line."""
    lines = [f"title updater slot {slot}", "sort-key updater"]
    lines += [f"{'linux' if name == 'linux' else 'initrd'} /{DIRECTORY}/{slot}/{name}" for name, _ in copies(files)]
    return "\n".join([*lines, *_options(layout, slot, files.cmdline), ""])


def loader_text(layout: BootLayout, before: str) -> str:
    """loader.conf with our settings in it. `before`: what it says now; settings that are not ours stay."""
    ours = {"timeout": str(layout.timeout), **SETTINGS}
    if settings(before).items() >= ours.items():
        return before
    kept = [line for line in before.splitlines() if not settings(line).keys() & ours.keys()]
    return "\n".join([*kept, *(f"{key} {value}" for key, value in ours.items()), ""])


def settings(text: str) -> dict[str, str]:
    """The settings in loader.conf; of several by one name the last counts, as for systemd-boot."""
    pairs = (line.strip().partition(" ") for line in text.replace("\t", " ").splitlines())
    return {key: value.strip() for key, _, value in pairs if key and not key.startswith("#")}


def _options(layout: BootLayout, slot: Slot, release: str) -> list[str]:
    """The kernel's arguments, in two lines that the loader joins: those of the node, then those of the release. So the
    former can be renewed by one who knows the latter only from the entry.
    """
    words = f"root={layout[slot].root} panic=30 {layout.cmdline}".split(), f"{release} updater.slot={slot}".split()
    return [f"options {' '.join(each)}" for each in words]


def release_arguments(text: str, slot: Slot) -> str | None:
    """The release's arguments in the text of an entry; None where it does not tell them from the node's."""
    options = [line.removeprefix("options ") for line in text.splitlines() if line.startswith("options ")]
    return options[1].removesuffix(f"updater.slot={slot}").strip() if len(options) == 2 else None


def with_arguments(text: str, layout: BootLayout, slot: Slot) -> str:
    """The text of an entry with the node's arguments as the layout has them now."""
    release = release_arguments(text, slot)
    if release is None:
        return text
    kept = [line for line in text.splitlines() if not line.startswith("options ")]
    return "\n".join([*kept, *_options(layout, slot, release), ""])


def copies(files: BootFiles) -> list[tuple[str, str]]:
    """What is copied to the ESP: name there, path in the slot."""
    return [("linux", files.kernel), *([("initrd", files.initrd)] if files.initrd is not None else [])]
