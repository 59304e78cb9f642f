"""The boot state of a node and every change that is allowed to it. Pure: nothing here touches a disk.

Each slot is *good* (confirmed), *trying* (installed, not confirmed; counted by the boot loader) or *bad* (not to be
booted: being written, failed, or empty). The primary slot is the one the boot loader looks at first.

Only a trying slot is counted and can lose to the other one by itself. A confirmed slot never falls back on its own,
because the data may have moved on since. So in every state that these functions make:

- at least one slot is good, and the primary slot is not bad;
- a trying slot is primary, and the other slot is good.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from core.errors import WrongState

Slot = Literal["a", "b"]
SLOTS: tuple[Slot, Slot] = ("a", "b")

#: Tries are one digit, because the boot loader's script counts with a chain of comparisons.
MAX_TRIES = 9


class SlotState(StrEnum):
    """What a slot is worth. The words stand in boot environments that other releases read."""

    GOOD = "good"
    TRYING = "trying"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotBoot:
    """One slot's record. `tries`: boots left before the loader gives up on it; 0 unless the slot is trying."""

    state: SlotState
    tries: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.tries <= MAX_TRIES:
            raise ValueError(f"tries must be 0 to {MAX_TRIES}, not {self.tries}")
        if self.tries and self.state is not SlotState.TRYING:
            raise ValueError(f"a {self.state} slot has no tries")


GOOD = SlotBoot(state=SlotState.GOOD)
BAD = SlotBoot(state=SlotState.BAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class BootState:
    """The whole record, always read and written as one."""

    primary: Slot
    a: SlotBoot
    b: SlotBoot

    def __getitem__(self, slot: Slot) -> SlotBoot:
        return self.a if slot == "a" else self.b


def other(slot: Slot) -> Slot:
    """The slot that `slot` is not."""
    return "b" if slot == "a" else "a"


def is_good(state: BootState, slot: Slot) -> bool:
    """Is the slot confirmed?"""
    return state[slot].state is SlotState.GOOD


def fresh(slot: Slot) -> BootState:
    """A new node: one slot holds a system that runs, the other one holds nothing."""
    return _with(BootState(primary=slot, a=BAD, b=BAD), slot, GOOD)


def broken(state: BootState) -> list[str]:
    """The rules (see the module) that the state breaks, one line each; none in a state made here."""
    faults = []
    if not any(is_good(state, slot) for slot in SLOTS):
        faults.append("no slot is good")
    if state[state.primary].state is SlotState.BAD:
        faults.append(f"slot {state.primary} is primary but bad")
    faults += [
        f"slot {slot} is trying but not primary"
        for slot in SLOTS
        if state[slot].state is SlotState.TRYING and state.primary != slot
    ]
    return faults


def require_sound(state: BootState) -> None:
    """Raises ValueError on a state that breaks the rules."""
    if faults := broken(state):
        raise ValueError(f"no boot state to write: {'; '.join(faults)}")


def next_boot(state: BootState) -> Slot | None:
    """The slot that the boot loader picks next, as things stand; None where it asks the operator."""
    record = state[state.primary]
    if record.state is SlotState.GOOD or (record.state is SlotState.TRYING and record.tries > 0):
        return state.primary
    return other(state.primary) if is_good(state, other(state.primary)) else None


def mark_bad(state: BootState, slot: Slot) -> BootState:
    """Declare the slot unfit to boot (before it is overwritten, or since it failed). If it was primary, the other one
    is from now on. Raises WrongState when the other slot is not good: nothing would be left to boot.
    """
    if state[slot] == BAD and state.primary != slot:
        return state
    _require_good(state, other(slot), f"cannot mark slot {slot} bad")
    return replace(_with(state, slot, BAD), primary=other(slot))


def flip(state: BootState, slot: Slot, tries: int) -> BootState:
    """Try the slot from the next boot on, `tries` (1 to 9) times at most. It must hold a complete system.

    Raises WrongState when the other slot is not good: there would be nothing to fall back to; ValueError on tries.
    """
    if tries < 1:
        raise ValueError(f"tries must be 1 to {MAX_TRIES}, not {tries}")
    _require_good(state, other(slot), f"cannot try slot {slot}")
    return replace(_with(state, slot, SlotBoot(state=SlotState.TRYING, tries=tries)), primary=slot)


def confirm(state: BootState, slot: Slot) -> BootState:
    """The slot has proved itself: trying becomes good. A good slot stays as it is. Raises WrongState on a bad one, or
    on one that is not primary.
    """
    if is_good(state, slot):
        return state
    if state[slot].state is not SlotState.TRYING or state.primary != slot:
        raise WrongState(f"cannot confirm slot {slot}: it is {_describe(state, slot)}", state=_SAME)
    return _with(state, slot, GOOD)


def roll_back(state: BootState, to: Slot) -> BootState:
    """Boot the slot `to` from now on. The one left behind keeps its word if it was good, and is bad if it was still
    trying. Raises WrongState when `to` is not good.
    """
    _require_good(state, to, f"cannot roll back to slot {to}")
    left = other(to)
    if state[left].state is SlotState.TRYING:
        state = _with(state, left, BAD)
    return replace(state, primary=to)


def fell_back(state: BootState, booted: Slot) -> bool:
    """Did the loader give up on the primary slot and boot this one instead?"""
    return booted != state.primary and state[state.primary] == SlotBoot(state=SlotState.TRYING, tries=0)


def settle_fallback(state: BootState, booted: Slot) -> BootState:
    """What the old slot's agent records when it finds itself booted because the tries of the other one ran out: that
    one is bad, this one is primary. Raises WrongState when this is not what happened.
    """
    if not fell_back(state, booted):
        failed = other(booted)
        raise WrongState(f"slot {booted} was not booted by a fallback: slot {failed} is {_describe(state, failed)}")
    return roll_back(state, booted)


def variables(state: BootState) -> dict[str, str]:
    """The record as the five variables of a boot environment: primary, a_state, a_tries, b_state, b_tries."""
    found: dict[str, str] = {"primary": state.primary}
    for slot in SLOTS:
        found[f"{slot}_state"] = state[slot].state.value
        found[f"{slot}_tries"] = str(state[slot].tries)
    return found


def from_variables(found: Mapping[str, str]) -> BootState:
    """The record from the variables of a boot environment; others are ignored. Raises ValueError naming every fault,
    separated by ``; ``.
    """
    faults: list[str] = []
    records: dict[Slot, SlotBoot] = {}
    if found.get("primary") not in SLOTS:
        faults.append(_bad_value("primary", found, "a or b"))
    for slot in SLOTS:
        name, tries = f"{slot}_state", found.get(f"{slot}_tries", "")
        if found.get(name) not in list(SlotState):
            faults.append(_bad_value(name, found, "good, trying or bad"))
        elif not (len(tries) == 1 and tries in "0123456789"):
            faults.append(_bad_value(f"{slot}_tries", found, f"0 to {MAX_TRIES}"))
        else:
            state = SlotState(found[name])
            # The loader looks at the tries of a trying slot only, so elsewhere a stray number means nothing.
            records[slot] = SlotBoot(state=state, tries=int(tries) if state is SlotState.TRYING else 0)
    if faults:
        raise ValueError("; ".join(faults))
    return BootState(primary="a" if found["primary"] == "a" else "b", a=records["a"], b=records["b"])


_SAME = "the boot state is as it was"


def _with(state: BootState, slot: Slot, record: SlotBoot) -> BootState:
    return replace(state, a=record) if slot == "a" else replace(state, b=record)


def _require_good(state: BootState, slot: Slot, message: str) -> None:
    if not is_good(state, slot):
        raise WrongState(f"{message}: slot {slot} is {_describe(state, slot)}", state=_SAME)


def _describe(state: BootState, slot: Slot) -> str:
    record = state[slot]
    if record.state is not SlotState.TRYING:
        return record.state.value
    return f"trying, {record.tries} {'try' if record.tries == 1 else 'tries'} left"


def _bad_value(name: str, found: Mapping[str, str], expected: str) -> str:
    return f"{name} is {found[name]!r}, not {expected}" if name in found else f"{name} is missing"
