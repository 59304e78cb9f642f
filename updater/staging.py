"""The steps of `stage`: make the inactive slot hold a release, complete and verified, and let nothing boot it before.

All of them work on a slot that the boot loader never picks. So undoing them means to leave the slot marked bad; and
going on with them after a cut means to compare the slot with the image and write what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from core.journal import Facts, StepRecord, StepState
from core.report import Report
from images.read import Bundle
from partitions import disks, mounts, slots, write
from partitions.boot.backend import open_backend
from partitions.boot.state import Slot, SlotState, mark_bad
from partitions.filesystems import filesystem_size, free_space
from patches.files import copy_into
from updater import catalogues, configuring, pristine
from updater.layout import boot_layout
from updater.node import Node
from updater.progress import note_progress
from updater.unpacking import keep_section

#: What a slot's record says of its seal. `seal_of`: of which of the first `seal_size` bytes; not there: of all.
SEAL = ("seal", "seal_size", "seal_of")
_USED = "what the filesystem uses"


def seal_now(node: Node, slot: Slot, image_size: int, rate_limit: int = 0) -> Facts:
    """The slot's seal as it is now: of all that its filesystem uses, which is more than the image where it was grown.
    Raises DeviceFailed.
    """
    device = node.device(slot)
    size = max(image_size, filesystem_size(device) or 0)
    seal = write.seal(device, size, free=free_space(device), rate_limit=rate_limit)
    return {"seal": seal, "seal_size": size, "seal_of": _USED}


def seal_holds(node: Node, slot: Slot, rate_limit: int = 0) -> bool:
    """Whether the bytes that staging sealed are still the ones on the slot's device. Raises DeviceFailed."""
    record, device = node.journal.slot(slot), node.device(slot)
    free = free_space(device) if record.get("seal_of") == _USED else ()
    return bool(write.seal(device, record["seal_size"], free=free, rate_limit=rate_limit) == record["seal"])


@dataclass(frozen=True, kw_only=True)
class Target:
    """The slot being written, with what is to be in it."""

    node: Node
    bundle: Bundle
    slot: Slot
    source: str
    rate_limit: int = 0
    carry: tuple[Path, ...] = ()
    carried: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    fingerprint: str = ""
    _held: set[str] = field(default_factory=set, compare=False, repr=False)

    @cached_property
    def device(self) -> Path:
        """The slot's device."""
        return self.node.device(self.slot)

    def sealed(self) -> bool:
        """Whether the slot holds this release, staged to the end, and is byte for byte as staging left it."""
        record = self.node.journal.slot(self.slot)
        if record.get("content") != self.bundle.manifest.image.content or "seal" not in record:
            return False
        if record["seal"] not in self._held:  # each step asks, and only they write to the slot
            if not seal_holds(self.node, self.slot, self.rate_limit):
                return False
            self._held.add(record["seal"])
        return True


@dataclass(frozen=True, kw_only=True)
class _SlotStep:
    """What the steps inside the slot share: nothing to remember, nothing to undo but the slot's good name."""

    target: Target

    def is_done(self, record: StepRecord | None) -> bool:
        """Never asked to be skipped: repeating it is cheap and ends in the same place."""
        return False

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def undo(self, facts: Facts) -> None:
        """The slot stays bad; what is in it does not matter."""


@dataclass(frozen=True, kw_only=True)
class MarkBad(_SlotStep):
    """From here on the boot loader leaves the slot alone, whatever happens while it is written."""

    name: str = "mark"

    def describe(self) -> str:
        """What is about to be lost."""
        held = self.target.node.journal.slot(self.target.slot).get("release")
        return f"slot {self.target.slot} bad: not bootable while it changes{f' (it held {held})' if held else ''}"

    def is_done(self, record: StepRecord | None) -> bool:
        """The boot environment says so, and the journal no longer claims that the slot holds anything complete."""
        held = self.target.node.journal.slot(self.target.slot)
        mine = held.get("content") == self.target.bundle.manifest.image.content
        mine = mine and ("partial" in held or (record is not None and record.state is StepState.DONE))
        # Always once in a run: what was staged and sealed here before is about to change.
        return record is not None and self.target.node.boot.read()[self.target.slot].state is SlotState.BAD and mine

    def before(self) -> Facts:
        """What the slot held."""
        return {"held": self.target.node.journal.slot(self.target.slot)}

    def apply(self, facts: Facts, report: Report) -> str:
        """Boot environment first: the journal never claims less than is true of a slot that could boot."""
        node, slot = self.target.node, self.target.slot
        node.boot.write(mark_bad(node.boot.read(), slot))
        manifest = self.target.bundle.manifest
        node.journal.set_slot(slot, {"release": manifest.release, "content": manifest.image.content, "partial": True})
        return f"slot {slot} is bad"


@dataclass(frozen=True, kw_only=True)
class Write(_SlotStep):
    """The image onto the slot's device."""

    name: str = "write"
    _began: list[bool] = field(default_factory=list)

    def describe(self) -> str:
        """Sizes."""
        image = self.target.bundle.image
        return f"slot {self.target.slot}: {size(image.size)} image, {size(image.stored_bytes())} to fetch"

    def is_done(self, record: StepRecord | None) -> bool:
        """On resume: the device holds the image, or all that staging makes of it."""
        if record is None:
            return False
        self._began.append(True)
        return self.target.sealed() or write.matches_image(self.target.bundle.image, self.target.device)

    def apply(self, facts: Facts, report: Report) -> str:
        """Write what differs; after a cut, chunks that the device holds already are kept."""
        noted = Report(*report.sinks, note_progress(self.target.node.config, self.name))
        done = write.write_image(
            self.target.bundle.image,
            self.target.device,
            report=noted,
            step=self.name,
            rate_limit=self.target.rate_limit,
            keep_verified=bool(self._began),
        )
        rate = done.bytes_written / done.seconds if done.seconds else 0
        kept = f", {size(done.kept)} kept from before" if done.kept else ""
        return f"{size(done.bytes_written)} written{kept}, {size(done.holes)} of holes, {size(round(rate))}/s"


@dataclass(frozen=True, kw_only=True)
class ReadBack(_SlotStep):
    """Every byte of the image, holes included, is read from the device again."""

    name: str = "verify"

    def describe(self) -> str:
        """What it is for."""
        return "read the slot back and compare it with the signed hashes"

    def is_done(self, record: StepRecord | None) -> bool:
        """On resume: later steps have changed the slot since, and sealed it."""
        return record is not None and self.target.sealed()

    def apply(self, facts: Facts, report: Report) -> str:
        """Compare."""
        write.read_back(
            self.target.bundle.image,
            self.target.device,
            report=report,
            step=self.name,
            rate_limit=self.target.rate_limit,
        )
        return "identical"


@dataclass(frozen=True, kw_only=True)
class Grow(_SlotStep):
    """The filesystem is made as large as the slot."""

    name: str = "grow"

    def describe(self) -> str:
        """What it is for."""
        return f"grow the {self.target.bundle.manifest.image.filesystem} filesystem to the size of the slot"

    def is_done(self, record: StepRecord | None) -> bool:
        """On resume: sealed since."""
        return record is not None and self.target.sealed()

    def apply(self, facts: Facts, report: Report) -> str:
        """Check and grow."""
        grown = slots.grow(slots.Slot(name=self.target.slot, device=self.target.device), report)
        return f"to {size(disks.size_of(self.target.device))}" if grown else "it fills the slot"


@dataclass(frozen=True, kw_only=True)
class Carry(_SlotStep):
    """The node's own files go into the slot: without them the next release would not know who it is."""

    name: str = "carry"

    def describe(self) -> str:
        """The paths."""
        return f"copy {', '.join(map(str, self.target.carry))}" if self.target.carry else "nothing to carry"

    def is_done(self, record: StepRecord | None) -> bool:
        """Nothing to carry, or on resume: sealed since."""
        return not self.target.carry or (record is not None and self.target.sealed())

    def apply(self, facts: Facts, report: Report) -> str:
        """Copy them, from the running root."""
        with mounts.mounted(self.target.device, read_only=False) as root:
            copied = copy_into(self.target.carry, Path("/"), root)
        return f"{len(copied)} of {len(self.target.carry)} paths"


@dataclass(frozen=True, kw_only=True)
class BootEntry(_SlotStep):
    """The boot loader learns how to start what is in the slot; it will only do so after a flip."""

    name: str = "entry"

    def describe(self) -> str:
        """Kernel and initrd."""
        boot = self.target.bundle.manifest.boot
        return f"boot entry for slot {self.target.slot}: {boot.kernel}{f' + {boot.initrd}' if boot.initrd else ''}"

    def apply(self, facts: Facts, report: Report) -> str:
        """Write it, unless it is there."""
        target = self.target
        if target.node.boot.kind == "grub":  # GRUB reads the kernel from the slot itself
            target.node.boot.prepare(target.slot, target.bundle.manifest.boot)
            return "written"
        with mounts.mounted(target.device, read_only=True) as root:
            config = target.node.config
            loader = open_backend(config.boot.backend, config.boot.esp, layout=boot_layout(config))
            loader.prepare(target.slot, target.bundle.manifest.boot, root)
        return "kernel copied, entry written"


@dataclass(frozen=True, kw_only=True)
class Seal(_SlotStep):
    """The last one: the journal says that the slot is complete, and which bytes it has."""

    name: str = "seal"

    def describe(self) -> str:
        """What it is for."""
        return f"slot {self.target.slot} is staged: record what it holds"

    def is_done(self, record: StepRecord | None) -> bool:
        """The record is there and true."""
        return record is not None and self.target.sealed()

    def apply(self, facts: Facts, report: Report) -> str:
        """Read the slot once more and record its identity; keep what later verbs need of the bundle."""
        manifest = self.target.bundle.manifest
        pristine.keep(self.target.node.config, self.target.slot, self.target.bundle)
        catalogues.keep(self.target.node, self.target.slot, self.target.bundle)
        templates = configuring.templates_of(self.target.node.config, self.target.slot)
        keep_section(self.target.bundle, configuring.SECTION, templates)
        seal = seal_now(self.target.node, self.target.slot, manifest.image.size, self.target.rate_limit)
        held = self.target.node.journal.slot(self.target.slot)
        self.target.node.journal.set_slot(
            self.target.slot,
            {
                "release": manifest.release,
                "lts": manifest.lts,
                "content": manifest.image.content,
                "manifest": manifest.identity,
                "filesystem": manifest.image.filesystem,
                **seal,
                "written": datetime.now(UTC).isoformat(timespec="seconds"),
                "signers": list(self.target.bundle.signers),
                "source": self.target.source,
                "carried": list(self.target.carried),
                "without": list(self.target.without),
                "fingerprint": self.target.fingerprint,
                "rendered": held.get("rendered", {}),
            },
        )
        return f"{manifest.release} is staged in slot {self.target.slot}"


def size(count: float) -> str:
    """Bytes for people: 573 MB, 1.5 GB (decimal units)."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
