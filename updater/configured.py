"""The configuration in the staged slot: rendered again by `activate` where another one was applied after staging, and
by the operator's `render --slot inactive`. The slot is sealed anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import DeviceFailed, UpdaterError, WrongState
from core.faults import point
from core.journal import Facts, StepRecord
from core.report import Report
from partitions import mounts
from partitions.boot.state import Slot
from templates.store import Saved, Store
from updater import configuring
from updater.checks import Check, examine, none_open
from updater.execution import locked
from updater.node import Node
from updater.staging import seal_holds, seal_now


def applied_since(node: Node, slot: Slot) -> Saved | None:
    """The active configuration, if it is not the one that was rendered into the slot when it was staged."""
    record, path = node.journal.slot(slot), configuring.store_path(node.config)
    if "seal" not in record or not path.exists():
        return None
    with Store.open(path) as store:
        active = store.active()
    # A slot that an older agent staged has nothing on record: what is in it may be right, and is rendered again.
    rendered = {"version": active.version, "digest": active.digest} if active else None
    return active if record.get("rendered") != rendered else None


def configuration_checks(node: Node, slot: Slot) -> list[Check]:
    """Whether what was applied since fits the release in the slot; no check where nothing was."""
    if applied_since(node, slot) is None:
        return []
    return examine({"configuration": lambda: _look(node, slot).summary()})


def render_staged(node: Node, *, undo: bool = False, dry_run: bool = False) -> configuring.Report:
    """Render the active configuration into the staged slot, or (`undo`) take the latest rendering there back.

    Raises WrongState when no slot is staged, Busy, DeviceFailed when something else wrote to the slot,
    ModificationConflict when something does not fit: then nothing was written.
    """
    slot = node.inactive
    with locked(node, f"render into slot {slot}"):
        none_open(node, f"render into slot {slot}")
        record = node.journal.slot(slot)
        if not node.staged(slot, node.boot.read()):
            raise WrongState(
                f"slot {slot} holds nothing that is staged",
                what="what was booted once keeps the files that it had",
                state="nothing was changed",
                next="updater stage BUNDLE    renders the active configuration into it",
            )
        if not _is_under_way(record) and not seal_holds(node, slot):
            raise DeviceFailed(
                f"slot {slot} is no longer what was staged",
                what="its bytes differ from the ones that were sealed: something wrote to it",
                state="nothing was changed",
                next="updater stage --again BUNDLE",
            )
        return _look(node, slot, undo=undo) if dry_run else _write(node, slot, undo=undo)


def _is_under_way(record: Facts) -> bool:
    """Whether files in the slot were being replaced when the process died: the seal is broken by us."""
    return "rendered" in record and record["rendered"] is None


def _look(node: Node, slot: Slot, *, undo: bool = False) -> configuring.Report:
    """What would become of the files; the slot is not written to."""
    record = node.journal.slot(slot)
    if "rendered" not in record and "configuration" not in record.get("carried", ()):
        raise WrongState(
            f"a configuration was applied after slot {slot} was staged, and the release's templates were not kept",
            what="it was staged by an older agent, when none was applied yet",
            state="nothing was changed",
            next="updater stage BUNDLE    stages it with the configuration",
        )
    with mounts.mounted(node.device(slot), read_only=True) as root:
        return _do(node, slot, configuring.in_slot(node.config, slot, root), undo=undo, dry_run=True)


def _write(node: Node, slot: Slot, *, undo: bool = False) -> configuring.Report:
    """Replace the files, and seal the slot as it is then. A conflict is found before the slot is written to."""
    record = node.journal.slot(slot)
    if not _is_under_way(record):
        _look(node, slot, undo=undo)
    node.journal.set_slot(slot, record | {"rendered": None})
    with mounts.mounted(node.device(slot), read_only=False) as root:
        done = _do(node, slot, configuring.in_slot(node.config, slot, root), undo=undo)
    point("configuration-again:rendered")
    # What was taken back stays so: the operator has seen what the configuration makes of these files.
    rendered = (record.get("rendered") or {}) if undo else done.rendered
    node.journal.set_slot(slot, record | {"rendered": rendered} | seal_now(node, slot, record["seal_size"]))
    return done


def _do(node: Node, slot: Slot, place: configuring.Place, *, undo: bool, dry_run: bool = False) -> configuring.Report:
    with Store.open(configuring.store_path(node.config)) as store:
        if undo:
            return configuring.undo_in(node.config, place, store, dry_run=dry_run)
        release = str(node.release(slot) or "")
        return configuring.render_into(node.config, place, store, release=release, dry_run=dry_run)


@dataclass(frozen=True, kw_only=True)
class RenderAgain:
    """A configuration that was applied after staging is rendered into the staged slot, before it is flipped to."""

    node: Node
    slot: Slot
    name: str = "configuration-again"

    def describe(self) -> str:
        """Which."""
        active = applied_since(self.node, self.slot)
        return f"render the configuration that was applied since{f': {active.name}' if active else ''}"

    def is_done(self, record: StepRecord | None) -> bool:
        """The slot has the active configuration, and is sealed as it is; or the slot runs, and is past that."""
        if self.node.booted == self.slot or "seal" not in self.node.journal.slot(self.slot):
            return True
        return applied_since(self.node, self.slot) is None and seal_holds(self.node, self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Render, and seal anew."""
        return _write(self.node, self.slot).summary()

    def undo(self, facts: Facts) -> None:
        """What is active is right in any case; a slot that was left between rendering and sealing gets its seal."""
        record = self.node.journal.slot(self.slot)
        if self.node.booted == self.slot or "seal" not in record or seal_holds(self.node, self.slot):
            return
        try:
            self.apply(facts, Report())
        except UpdaterError:  # then it has to be staged again
            self.node.journal.set_slot(self.slot, {key: record[key] for key in record if key != "seal"})
