"""The operator's files in a slot: copied when it is staged, and again by `activate` where they were edited since."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import UpdaterError
from core.faults import point
from core.journal import Facts, StepRecord
from core.release import Release
from core.report import Report
from partitions import mounts
from partitions.boot.state import Slot, other
from patches import keep
from patches.carried import base_of, choose_keeps, earlier_of, named, stage_keeps, take_out
from patches.kept_record import changed_since
from patches.registry import Kind, Registry
from updater.layout import running_root
from updater.node import Node
from updater.staging import seal_holds, seal_now


def _book(node: Node, slot: Slot) -> Path:
    return node.config.data / f"kept-{slot}.zst"


def copy_kept(node: Node, slot: Slot, release: Release, without: Collection[str]) -> str:
    """Copy the kept files of the running system into the slot, and write down what was copied."""
    with Registry.of(node.config.data) as registry, mounts.mounted(node.device(slot), read_only=False) as root:
        chosen = choose_keeps(registry, release, named(registry, Kind.FILE, without))
        counts = stage_keeps(
            registry,
            chosen.keeps,
            running_root(node.config),
            root,
            old_slot=other(slot),
            slot=slot,
            book=_book(node, slot),
        )
    return _fates(counts)


def _fates(counts: dict[keep.Fate, int]) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in counts.items()) or "none found"


def copy_again(node: Node, slot: Slot, release: Release, without: Collection[str]) -> str:
    """Copy the kept files into the slot that has them from staging, and take out those that are gone since.

    Raises ModificationConflict before anything is written.
    """
    source, device = running_root(node.config), node.device(slot)
    with Registry.of(node.config.data) as registry:
        keeps = choose_keeps(registry, release, named(registry, Kind.FILE, without)).keeps
        edited = list(changed_since(_book(node, slot), keeps, source))
        earlier = earlier_of(registry, slot, edited)
        with mounts.mounted(device, read_only=True) as root:
            weighed = keep.check(keeps, source, root, base_of(registry, other(slot)), earlier)
            conflicts = [kept for kept in weighed if kept.fate is keep.Fate.CONFLICT]
        if conflicts:
            raise keep.conflict(conflicts, str(release))
        with mounts.mounted(device, read_only=False) as root:
            take_out(edited, earlier, root)
            book, old = _book(node, slot), other(slot)
            counts = stage_keeps(registry, keeps, source, root, old_slot=old, slot=slot, book=book, earlier=earlier)
    return _fates(counts)


def edited_since(node: Node, slot: Slot) -> list[str]:
    """The kept files that were edited after they were staged in the slot, a line each."""
    record: dict[str, Any] = node.journal.slot(slot)
    if "seal" not in record or not _book(node, slot).exists() or "files" not in record.get("carried", ()):
        return []
    with Registry.of(node.config.data) as registry:
        without = named(registry, Kind.FILE, record.get("without", ()))  # some may have been removed since
        keeps = choose_keeps(registry, Release.parse(record["release"]), without).keeps
        return [
            f"{each.path} {each.how}" for each in changed_since(_book(node, slot), keeps, running_root(node.config))
        ]


@dataclass(frozen=True, kw_only=True)
class CopyAgain:
    """Kept files that were edited after staging go into the staged slot once more, before it is flipped to."""

    node: Node
    slot: Slot
    name: str = "files-again"

    def describe(self) -> str:
        """Which."""
        edited = edited_since(self.node, self.slot)
        which = f": {', '.join(edited[:5])}{' …' if len(edited) > 5 else ''}" if edited else ""
        return f"copy kept files that were edited since{which}"

    def is_done(self, record: StepRecord | None) -> bool:
        """Nothing differs, and the slot is sealed as it is; or the slot runs, and is past that."""
        if self.node.booted == self.slot or "seal" not in self.node.journal.slot(self.slot):
            return True
        return not edited_since(self.node, self.slot) and seal_holds(self.node, self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Copy, and seal anew."""
        record = self.node.journal.slot(self.slot)
        said = copy_again(self.node, self.slot, Release.parse(record["release"]), record.get("without", ()))
        point("files-again:copied")
        self.node.journal.set_slot(self.slot, record | seal_now(self.node, self.slot, record["seal_size"]))
        return said

    def undo(self, facts: Facts) -> None:
        """The copies are right in any case; a slot that was left between copying and sealing gets its seal."""
        record = self.node.journal.slot(self.slot)
        if self.node.booted == self.slot or "seal" not in record or seal_holds(self.node, self.slot):
            return
        try:
            self.apply(facts, Report())
        except UpdaterError:  # then it has to be staged again
            self.node.journal.set_slot(self.slot, {key: record[key] for key in record if key != "seal"})
