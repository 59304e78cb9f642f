"""Is a disk that a power cut left one with which the machine comes up, loses nothing, and can go on?

What the boot loader reads is read here by own means: FAT, environment, and the model of GRUB's script. A slot that GRUB
would boot must be whole: byte for byte as staging left it as long as it was never booted, later a sound filesystem in
which no byte of the release's own files has changed. The agent's own words (`journal`) come last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from partitions.boot import grub_environment, model
from partitions.boot.grub_config import CONFIG, ENVIRONMENT, SLOT_FILE_SIZE, slot_file
from partitions.boot.state import SLOTS, Slot, from_variables
from vagrant.cuts.disks import CutDisk
from vagrant.cuts.fat import Fat, FatError
from vagrant.cuts.journal import Standing, stand
from vagrant.cuts.log import WriteLog
from vagrant.cuts.points import Point
from vagrant.cuts.record import Mark, Recording
from vagrant.cuts.regions import MENDED, Region, extract

_LOADER = "EFI/BOOT/BOOTX64.EFI"

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Boot:
    """What the boot loader finds: `slot` is what it picks (None: its menu waits for a person), `counted` whether that
    takes one of its tries; `able`: the slots that it would boot now or after tries have run out."""

    faults: tuple[str, ...]
    slot: Slot | None = None
    counted: bool = False
    able: tuple[Slot, ...] = ()
    after: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the check says of one point. `faults`: none, when all is well. `mended`: what the fsck at boot mends."""

    point: Point
    phase: str
    faults: tuple[str, ...]
    mended: tuple[str, ...]
    slot: Slot | None
    counted: bool
    standing: Standing | None


class Checker:
    """Checks points of one recording; fastest when they come in rising order. Use as a context."""

    def __init__(self, recording: Recording, work: Path, seed: str) -> None:
        """`work`: an empty directory for files of the size of partitions (sparse); best in memory."""
        self.recording, self.seed, self._work = recording, seed, work
        self.marks = recording.marks
        self._log = WriteLog(recording.log)
        self.disk = CutDisk(recording.base, self._log)
        parts = recording.lab.disk.partitions()
        self._esp = Region(self.disk, parts["esp"], work, whole=True)
        self._data = Region(self.disk, parts["data"], work, whole=True)
        self._slots = {slot: Region(self.disk, parts[f"slot-{slot}"], work, whole=False) for slot in SLOTS}
        self._known: dict[str, tuple[Any, Any]] = {}
        self._references: dict[int, CutDisk] = {}
        self._own: dict[tuple[Slot, int], list[tuple[int, int]]] = {}
        self._loader = self._fat().file(_LOADER), self._fat().file(CONFIG)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for disk in (self.disk, *self._references.values()):
            disk.close()
        self._log.close()

    def check(self, point: Point) -> Verdict:
        """Cut there, and look at what is left."""
        self.disk.cut(point.index, point.how, point.seed(self.seed))
        mark = self.phase(point.index)
        boot = self._same("esp", self._esp.version, self._boot)
        faults = list(boot.faults)
        for slot in boot.able:
            region = self._slots[slot]
            faults += self._same(f"slot {slot}", (region.version, mark), partial(self._whole, slot, point.index))
        now: Slot = boot.slot or ("a" if mark.runs == "a" else "b")
        standing, lost = self._same("data", (self._data.version, now, boot.after), partial(self._agent, now, boot))
        found = (*faults, *lost)
        return Verdict(
            point=point,
            phase=mark.name,
            faults=tuple(line for line in found if MENDED not in line),
            mended=tuple(line for line in found if MENDED in line),
            slot=boot.slot,
            counted=boot.counted,
            standing=standing,
        )

    def phase(self, index: int) -> Mark:
        """The phase in which the entry before this index was written."""
        return next((mark for mark in reversed(self.marks) if mark.entry < index), self.marks[0])

    # --- how

    def _same(self, what: str, version: Any, look: Callable[[], T]) -> T:
        """What `look` found the last time, where nothing has changed since."""
        if what not in self._known or self._known[what][0] != version:
            self._known[what] = (version, look())
        found: T = self._known[what][1]
        return found

    def _fat(self) -> Fat:
        return Fat(self._esp.read)

    def _boot(self) -> Boot:
        faults: list[str] = []
        try:
            fat = self._fat()
            for name, wanted in zip((_LOADER, CONFIG), self._loader, strict=True):
                if fat.file(name) != wanted:
                    faults.append(f"{name} on the ESP is damaged")
            raw = fat.file(ENVIRONMENT)
        except FatError as error:
            return Boot(faults=(f"the ESP: {error}",))
        try:
            variables = grub_environment.parse(raw)
            state = from_variables(variables)
        except ValueError as error:
            return Boot(faults=(*faults, f"the boot environment: {error}; GRUB asks the operator"))
        picked = model.boot(variables)
        if picked.slot is None:
            faults.append("GRUB picks no slot and asks the operator")
        able = tuple(slot for slot in SLOTS if state[slot].state != "bad")
        for slot in able:
            faults += self._entry(fat, slot)
        after = grub_environment.render(picked.environment or variables)
        return Boot(faults=tuple(faults), slot=picked.slot, counted=picked.counted, able=able, after=after)

    def _entry(self, fat: Fat, slot: Slot) -> list[str]:
        """Faults of the slot's file, which names its kernel."""
        try:
            text = fat.file(slot_file(slot))
        except FatError as error:
            return [f"the ESP: {error}"]
        if len(text) != SLOT_FILE_SIZE or b"set updater_kernel='/boot/vmlinuz'" not in text:
            return [f"slot {slot} can be booted, and its file {slot_file(slot)} names no kernel"]
        return []

    def _whole(self, slot: Slot, index: int) -> list[str]:
        """Faults of a slot that can be booted."""
        region, mark, whole = self._slots[slot], self.phase(index), self._complete_since(slot, index)
        if whole is None:
            return [f"slot {slot} can be booted, and there is no complete image in it"]
        if mark.writes == slot and self._touched(region, mark.entry):
            return [f"slot {slot} can be booted, and the image in it is half-written"]
        missing = [(each.offset, each.length) for each in region.between(self.disk.durable, whole)]
        if wrong := self._differing(region, missing, whole):
            return [f"slot {slot} can be booted, and {wrong} bytes of it differ from what staging left"]
        if whole and not self._touched(region, whole):
            return []  # never booted, and as it was staged
        with region.checked() as faults:
            found = [f"slot {slot}: {line}" for line in faults]
            # their content is not in the file, only their names and places
            kernel = {name: self._work / Path(name).name for name in ("/boot/vmlinuz", "/boot/initrd.img")}
            found += [f"slot {slot}: {name} is missing" for name in sorted({*kernel} - extract(region.path, kernel))]
            for copy in kernel.values():
                copy.unlink(missing_ok=True)
        if wrong := self._differing(region, self._own_files(slot, whole), whole):
            found.append(f"slot {slot}: {wrong} bytes of the release's own files have changed")
        return found

    def _complete_since(self, slot: Slot, index: int) -> int | None:
        """The entry since which the slot is complete; 0 for the one that runs at the beginning."""
        found = [mark.entry for mark in self.marks if mark.whole == slot and mark.entry < index]
        return found[-1] if found else 0 if slot == self.marks[0].runs else self._first_whole(slot)

    def _first_whole(self, slot: Slot) -> int | None:
        """A recording may begin with a complete slot: then that is its first mark."""
        return self.marks[0].entry if self.marks[0].whole == slot else None

    def _touched(self, region: Region, since: int) -> bool:
        """Has anything been written to the slot from this entry on, of what is on the disk?"""
        late = (piece.entry.index for piece in self.disk.pieces if region.overlaps(piece.offset, piece.length))
        return bool(region.between(since, self.disk.durable)) or any(index >= since for index in late)

    def _differing(self, region: Region, ranges: list[tuple[int, int]], whole: int) -> int:
        """How many bytes of the ranges of the disk differ from the slot when it was complete."""
        wrong = 0
        for offset, length in ranges:
            first, end = max(offset, region.start), min(offset + length, region.end)
            for at in range(first, end, 1 << 20):
                count = min(1 << 20, end - at)
                now, then = self.disk.read(at, count), self._reference(whole).read(at, count)
                if now != then:
                    wrong += sum(now[i] != then[i] for i in range(count))
        return wrong

    def _reference(self, whole: int) -> CutDisk:
        """The disk when a slot was complete."""
        if whole not in self._references:
            self._references[whole] = CutDisk(self.recording.base, self._log, self.disk.entries)
            self._references[whole].leave(whole, ())
        return self._references[whole]

    def _own_files(self, slot: Slot, whole: int) -> list[tuple[int, int]]:
        """Ranges of the release's own files to which anything is written from when the slot is complete until the next
        image is written into it. It takes long to find them, and there should be none."""
        if (slot, whole) not in self._own:
            next_image = (mark.entry for mark in self.marks if mark.writes == slot and mark.entry >= whole)
            entries = self._slots[slot].between(whole, next(next_image, len(self.disk.entries)))
            own = self.recording.own_files(slot, whole)
            self._own[slot, whole] = [each for entry in entries for each in own.meeting(entry.offset, entry.length)]
        return self._own[slot, whole]

    def _agent(self, slot: Slot, boot: Boot) -> tuple[Standing | None, list[str]]:
        """Data partition: its filesystem, the application's data, and what the agent will say and do."""
        with self._data.checked() as faults:
            found = [f"data: {line}" for line in faults]
            return stand(self._data.path, self._work, self.recording.lab, slot, boot.after, found)
