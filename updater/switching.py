"""The steps that change what boots: flip, reboot, prove healthy, confirm; and the way back."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import RollbackRefused, WrongState
from core.journal import Facts, StepRecord
from core.release import Release
from core.report import Report
from core.steps import Handover
from partitions.boot.state import Slot, SlotState, confirm, flip, is_good, other, roll_back
from updater.health import wait_healthy
from updater.node import Node


@dataclass(frozen=True, kw_only=True)
class Flip:
    """The next boot tries the slot."""

    node: Node
    slot: Slot
    name: str = "flip"

    def describe(self) -> str:
        """How often it is tried."""
        return f"slot {self.slot} becomes trying, {self.node.config.boot.tries} tries"

    def is_done(self, record: StepRecord | None) -> bool:
        """The boot environment has it on trial."""
        state = self.node.boot.read()
        return state.primary == self.slot and state[self.slot].state is not SlotState.BAD

    def before(self) -> Facts:
        """The newest release that has run on the data so far, and whether the slot was confirmed once."""
        return {"data": str(self.node.ran_release or ""), "good": is_good(self.node.boot.read(), self.slot)}

    def apply(self, facts: Facts, report: Report) -> str:
        """First the journal: from the next boot on, the data counts as touched by this release."""
        release, data = self.node.release(self.slot), self.node.ran_release
        if release is not None and (data is None or release > data):
            self.node.journal.set_fact("data-release", str(release))
        note_flip(self.node)
        self.node.boot.write(flip(self.node.boot.read(), self.slot, self.node.config.boot.tries))
        return f"next boot: slot {self.slot}"

    def undo(self, facts: Facts) -> None:
        """The next boot is the old slot again; this one keeps its content, and its good name if it was not tried."""
        state = self.node.boot.read()
        if state.primary == self.slot:
            if facts.get("good") and flipped_in_this_boot(self.node):
                state = confirm(state, self.slot)
            self.node.boot.write(roll_back(state, other(self.slot)))
        restore_data(self.node, facts)


@dataclass(frozen=True, kw_only=True)
class FlipBack:
    """The next boot is the other slot, which was confirmed once: not counted, and it never falls back by itself."""

    node: Node
    slot: Slot
    name: str = "flip-back"

    def describe(self) -> str:
        """Where to."""
        return f"next boot: slot {self.slot} ({self.node.release(self.slot) or 'release unknown'})"

    def is_done(self, record: StepRecord | None) -> bool:
        """The boot environment has it as primary and good."""
        state = self.node.boot.read()
        return state.primary == self.slot and is_good(state, self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """One write."""
        note_flip(self.node)
        self.node.boot.write(roll_back(self.node.boot.read(), self.slot))
        return self.describe()

    def undo(self, facts: Facts) -> None:
        """Stay where we came from, if that slot was confirmed."""
        state, left = self.node.boot.read(), other(self.slot)
        if not is_good(state, left):
            raise RollbackRefused(
                f"slot {left} was never confirmed, so the way leads on to slot {self.slot}",
                next="updater resume    boots it",
            )
        self.node.boot.write(roll_back(state, left))


@dataclass(frozen=True, kw_only=True)
class Reboot:
    """Into the slot. Another process, perhaps another version of this program, sees its end."""

    node: Node
    slot: Slot
    by_hand: bool = False
    name: str = "reboot"

    def describe(self) -> str:
        """Who does it."""
        return f"{'you reboot' if self.by_hand else 'reboot'} into slot {self.slot}"

    def is_done(self, record: StepRecord | None) -> bool:
        """The slot runs. (When the run began it did not: it was the inactive one.)"""
        return self.node.booted == self.slot

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Reboot, unless the operator wants to do it."""
        if not self.by_hand:
            self.node.machine.reboot()
        raise Handover

    def undo(self, facts: Facts) -> None:
        """The flip's undo decides what boots next."""


@dataclass(frozen=True, kw_only=True)
class Healthy:
    """The new release does its work."""

    node: Node
    slot: Slot
    name: str = "health"

    def describe(self) -> str:
        """How much is asked, and how long."""
        from updater.health import checks_of

        health = self.node.config.health
        count = len(checks_of(health))
        return f"{count} health check{'s' * (count != 1)} within {health.deadline:g} s"

    def is_done(self, record: StepRecord | None) -> bool:
        """It was confirmed."""
        return is_good(self.node.boot.read(), self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Wait until they pass. Raises HealthFailed."""
        verdicts = wait_healthy(self.node.config.health, health_environment(self.node), report, step=self.name)
        passed = sum(not verdict.reason for verdict in verdicts)
        return f"{passed} of {len(verdicts)} pass"

    def undo(self, facts: Facts) -> None:
        """Looking changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """Trying becomes good."""

    node: Node
    slot: Slot
    name: str = "confirm"

    def describe(self) -> str:
        """What it means."""
        return f"slot {self.slot} becomes good; it never falls back by itself any more"

    def is_done(self, record: StepRecord | None) -> bool:
        """The boot environment says so."""
        return is_good(self.node.boot.read(), self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """One write."""
        if self.node.booted != self.slot:
            raise WrongState(f"slot {self.slot} is not the one that runs")
        self.node.boot.write(confirm(self.node.boot.read(), self.slot))
        self.node.machine.confirmed()
        return f"slot {self.slot} is good"

    def undo(self, facts: Facts) -> None:
        """The flip's undo decides what boots next."""


def note_flip(node: Node) -> None:
    """Remember in which boot the flip was made: until the next boot, nothing can have been tried."""
    node.journal.set_fact("flip-boot", node.machine.boot_id())


def flipped_in_this_boot(node: Node) -> bool:
    """Whether the reboot that a flip is waiting for has not come yet."""
    return bool(node.journal.fact("flip-boot") == node.machine.boot_id())


def restore_data(node: Node, facts: Facts) -> None:
    """The release that was flipped to does not stay: the data counts as what it was before the flip."""
    if facts.get("data"):
        node.journal.set_fact("data-release", facts["data"])


def way_back(node: Node) -> tuple[bool, str]:
    """Whether `rollback` is possible now, and why (not)."""
    booted = node.booted
    slot = other(booted)
    state = node.boot.read()
    record = node.journal.slot(slot)
    release = node.release(slot)
    if not is_good(state, slot):
        if state[slot].state is SlotState.TRYING:
            why = f"slot {slot} is on trial and was never confirmed"
        elif record.get("partial"):
            why = f"slot {slot} is being written"
        elif node.staged(slot, state):
            why = f"slot {slot} holds {release}, staged and never booted"
        elif record.get("failed"):
            why = f"slot {slot} is bad: {record['failed']}"
        else:
            why = f"slot {slot} is bad: it holds no release that was ever confirmed"
        return False, why
    data = node.data_release
    if release is not None and data is not None:
        forbidden = node.cannot_read(release)
        if forbidden:
            return False, forbidden
        return True, f"{release} in slot {slot}, {relation(release, data)}"
    return True, f"slot {slot}, release unknown"


def relation(release: Release, data: Release) -> str:
    """How a release stands to the data, for the screen."""
    return f"reads data MR{data.number}" + (" (adjoining)" if release.number != data.number else "")


def health_environment(node: Node) -> dict[str, str]:
    """What health commands see of the node."""
    booted = node.booted
    return {
        "UPDATER_NODE": node.config.name,
        "UPDATER_SLOT": booted,
        "UPDATER_RELEASE": str(node.release(booted) or ""),
    }
