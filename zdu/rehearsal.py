"""Rehearsals: what was rehearsed, how it went against how it should go, and what that says of the night. Pure.

A rehearsal counts for one bundle, with one set of modifications and one configuration: their fingerprint. The node that
is to be upgraded and the machine on which that was rehearsed compute it alike.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from blake3 import blake3

from core.schema import structure

FORMAT: Final = 1

#: How far the clocks of a node and of the machine where it was rehearsed may differ.
CLOCKS: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """What a rehearsal is a rehearsal of; each a BLAKE3 in hex. `bundle`: its manifest, which has the hashes of all in
    it. `carried`: packages, patches and what is kept, with their lifetimes. `kept`: content and rights of the kept
    files. `configuration`: without the values of secrets; empty where none was applied.
    """

    bundle: str
    carried: str
    kept: str
    configuration: str

    @property
    def short(self) -> str:
        """Twelve digits of a hash over all four, for people."""
        return hashed(asdict(self))[:12]

    def differences(self, other: Fingerprint) -> list[str]:
        """What differs, in words."""
        return [_WORDS[each.name] for each in fields(self) if getattr(self, each.name) != getattr(other, each.name)]


_WORDS: Final = {
    "bundle": "the bundle is another one",
    "carried": "packages, patches or what is kept were changed since",
    "kept": "kept files were edited since",
    "configuration": "another configuration was applied since",
}


def hashed(data: Any) -> str:
    """BLAKE3, in hex, of plain data; the same for equal data."""
    return blake3(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Grade(StrEnum):
    """How much a finding weighs."""

    FAILS = "fails"  # on the night this would go wrong
    NOTE = "note"  # to know, and to go on


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """Something that is not as it should be, or that nobody looked at. `phase`: where it was seen."""

    grade: Grade
    phase: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a node stands: the booted slot, and of each slot its release and state, such as ("MR96-1", "good")."""

    booted: str
    slots: dict[str, tuple[str, str]]

    def __str__(self) -> str:
        parts = (f"{name}{'*' if name == self.booted else ''}={' '.join(each)}" for name, each in self.slots.items())
        return ", ".join(sorted(parts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """A phase of a rehearsal. `expected`, `found`: how the node should stand after it, and does (None: not known).
    `failed`: why it did not end, in lines. `limits`: what took how long, and how long it may take (seconds).
    `undeclared`: files that differ from the release and are not declared. `configured`: whether the configuration is
    the one that it was. `steps`: seconds of each step that was executed.
    """

    name: str
    seconds: float
    expected: Standing | None = None
    found: Standing | None = None
    failed: tuple[str, ...] = ()
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    undeclared: tuple[str, ...] = ()
    configured: bool = True
    steps: dict[str, float] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


#: A phase that used more of what it may take is told of: machines differ.
NEARLY: Final = 0.7


def judge(phases: Sequence[Phase], wanted: Sequence[str], not_rehearsed: Sequence[str] = ()) -> list[Finding]:
    """All that is to be said, what fails first. `wanted`: the phases that there should have been, in their order.
    `not_rehearsed`: what could not be taken to the rehearsal.
    """
    found: list[Finding] = []
    for phase in phases:
        found += _of(phase)
    done = {phase.name for phase in phases}
    missing = [name for name in wanted if name not in done]
    if missing:
        text = f"not reached: {', '.join(missing)}"
        found.append(Finding(grade=Grade.FAILS, phase=missing[0], text=text))
    found += [Finding(grade=Grade.NOTE, phase="export", text=f"not rehearsed: {each}") for each in not_rehearsed]
    return sorted(found, key=lambda each: list(Grade).index(each.grade))


def passed(findings: Sequence[Finding]) -> bool:
    """Whether nothing would go wrong on the night."""
    return all(each.grade is not Grade.FAILS for each in findings)


def _of(phase: Phase) -> list[Finding]:
    def told(grade: Grade, text: str) -> Finding:
        return Finding(grade=grade, phase=phase.name, text=text)

    found = []
    if phase.failed:
        found.append(told(Grade.FAILS, "; ".join(phase.failed)))
    elif phase.expected is not None and phase.found != phase.expected:
        found.append(told(Grade.FAILS, f"the node should stand at {phase.expected}, and stands at {phase.found}"))
    if phase.undeclared:
        more = f" and {len(phase.undeclared) - 3} more" if len(phase.undeclared) > 3 else ""
        text = f"files that are neither the release's nor declared: {', '.join(phase.undeclared[:3])}{more}"
        found.append(told(Grade.FAILS, text))
    if not phase.configured:
        found.append(told(Grade.FAILS, "the active configuration is not the one that it was"))
    for what, (took, allowed) in phase.limits.items():
        if took > allowed:
            found.append(told(Grade.FAILS, f"{what} took {took:.0f} s, {allowed:.0f} s are allowed"))
        elif took > NEARLY * allowed:
            found.append(told(Grade.NOTE, f"{what} took {took:.0f} s of the {allowed:.0f} s that are allowed"))
    found += [told(Grade.NOTE, each) for each in phase.remarks]
    return found


# -- records


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a rehearsal leaves for the node. `release`, `start`: where to and where from. `made`: ISO 8601, UTC.
    `seconds`: how long it took. `machine`: what it ran on. `faults`: those that were tried. `what`: node or custom.
    """

    format: int
    what: str
    node: str
    release: str
    start: str
    fingerprint: Fingerprint
    passed: bool
    made: str
    seconds: float
    machine: str
    faults: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: {self.format} is not {FORMAT}, the one that this program reads")
        made = datetime.fromisoformat(self.made)
        if made.utcoffset() is None:
            raise ValueError("made: has no time zone")

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {**asdict(self), "faults": list(self.faults), "findings": list(self.findings)}


def read_record(data: Any) -> Record:
    """A record from plain data. Raises SchemaError."""
    return structure(data, Record)


def unfit(record: Record, wanted: Fingerprint, now: datetime, longest: timedelta) -> str:
    """Why a record does not allow to activate what `wanted` is the fingerprint of; empty if it does. `now` has a time
    zone; a record may be `longest` old.
    """
    if not record.passed:
        return f"the rehearsal of {record.made} failed: {'; '.join(record.findings[:2]) or 'no reason is on record'}"
    if differs := record.fingerprint.differences(wanted):
        return f"it was a rehearsal of something else: {', '.join(differs)}"
    made = datetime.fromisoformat(record.made)
    if made > now + CLOCKS:
        return f"it was made in the future ({record.made}): one of the clocks is wrong"
    if now - made > longest:
        return f"it is {(now - made).days} days old, and {longest.days} days are allowed"
    return ""
