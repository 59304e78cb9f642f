"""What is recorded of a run. Times are UTC, ISO 8601; empty: not yet.

A run has legs: each one executes one runbook, from where the leg before it stopped; an abort is a leg of its own, with
the way back as its runbook.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from zdu.runbook import Runbook
from zdu.words import Approve as Approve
from zdu.words import Word as Word


class RunState(StrEnum):
    """How a run stands. The words are stable: they stand in records and in JSON."""

    RUNNING = "running"
    WAITING = "waiting"  # for an approval
    PAUSED = "paused"
    STOPPED = "stopped"  # a step failed; somebody has to decide: resume or abort
    ABORTING = "aborting"  # the way back is being gone
    DONE = "done"
    ABORTED = "aborted"  # back in service on the release that it began with


class StepState(StrEnum):
    """How a step stands."""

    BEGUN = "begun"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A run. `leg`: number of the current one. `waits_for`: the phase or the step that has to be approved."""

    id: str
    installation: str
    start: str
    target: str
    bundle: str
    approve: Approve
    who: str
    began: str
    ended: str
    state: RunState
    text: str
    leg: int
    waits_for: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One runbook of a run, executed once. `passed`: ids of steps that a leg before it had done. `outcome`: empty while
    it goes on, else the state that it left the run in.
    """

    number: int
    runbook: Runbook
    passed: tuple[str, ...]
    began: str
    ended: str
    outcome: str
    error: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What is known of a step in a leg. `evidence`: what was seen, and when. `error`: as `UpdaterError.as_json`."""

    leg: int
    step: str
    state: StepState
    attempts: int
    fence: int
    began: str
    ended: str
    text: str
    evidence: list[dict[str, Any]]
    error: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What somebody said. `what`: the step or phase that an approval is for. `taken`: when the controller heard it."""

    id: int
    word: Word
    what: str
    who: str
    at: str
    taken: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """An event of a run."""

    id: int
    at: str
    kind: str
    step: str
    text: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """How traffic stood at a moment; what could not be read is None. `calls`: live calls of each site; `lag`: seconds
    that each replica is behind; `delta`: call records that only the delta database of a site has.
    """

    at: str = ""
    calls: dict[str, int | None] = field(default_factory=dict)
    lag: dict[str, float | None] = field(default_factory=dict)
    delta: dict[str, int | None] = field(default_factory=dict)


def now() -> str:
    """This moment, as it stands in records."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")
