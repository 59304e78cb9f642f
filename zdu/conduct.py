"""How one step is conducted: look at the real state, act only where it is not so yet, pass only gates that are open.

What an action says of itself decides nothing. A time-out or a lost line in its middle is no failure as long as the
gates open: the state is asked, not the answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from core.errors import CommandFailed, DatabaseFailed, GateNotPassed, SiteUnreachable, UpdaterError
from core.faults import point
from zdu.gates import Verdict, judge
from zdu.limits import DrainConfig
from zdu.records import now
from zdu.runbook import Action, Gate, GateKind, Step
from zdu.world import Talk, World

#: Actions that are made even where their gates are open: what they make sure of may have changed since they were seen.
ALWAYS: Final = frozenset(
    {
        Action.CHECK_NODE,
        Action.SYNC_LOCK,
        Action.SYNC_TRANSFER,
        Action.SYNC_CLOSE,
        Action.VIP_MOVE,  # it is to stay there, too
        Action.FINISH,
    }
)

#: Seconds until a gate counts as one that does not open; nodes have shorter limits of their own for their boots.
PATIENCE: Final = {
    GateKind.RUNS: 900.0,
    GateKind.STAGED: 120.0,
    GateKind.FOLLOWS: 3600.0,
    GateKind.HELD: 900.0,
    GateKind.HEALTHY: 300.0,
}
_PATIENCE: Final = 60.0

#: Seconds of waiting for a gate that has more patience than that, until somebody is told.
_TELL: Final = 60.0

#: Seconds of waiting while those who are asked contradict each other, until somebody is told.
_AT_ODDS: Final = 60.0

#: What is waited for without end, and told when it takes long.
_ENDLESS: Final = frozenset({GateKind.NO_CALLS})

#: Errors after which the work may well go on, or be done: nobody was told.
_UNSURE: Final = (SiteUnreachable, CommandFailed, DatabaseFailed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How often gates are looked at, and how long. `alert` is called with a line when that takes long."""

    drain: DrainConfig
    alert: Callable[[str], None] = lambda _: None
    interval: float = 0.25
    slowest: float = 2.0
    factor: float = 1.0  # of patience; tests wait less

    def patience(self, gate: Gate) -> float:
        """Seconds until the gate counts as one that does not open."""
        return PATIENCE.get(gate.kind, _PATIENCE) * self.factor


class Evidence:
    """What was seen and done in a step, as it goes into its record."""

    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def seen(self, when: str, gate: Gate, seen: Verdict) -> None:
        """A gate was looked at; looking again at what has not changed adds nothing."""
        line = {"when": when, "gate": told(gate), "open": seen.open, "seen": seen.found}
        if not any({key: last[key] for key in line if key in last} == line for last in self.lines[-8:]):
            self.lines.append({"at": now()} | line)

    def did(self, text: str) -> None:
        """Something was done, or noted."""
        self.lines.append({"at": now(), "when": "act", "seen": text})


def conduct(world: World, step: Step, talk: Talk, pace: Pace, evidence: Evidence) -> str:
    """Conduct a step to its end; a line on what was done. Raises what failed, or GateNotPassed where nothing did and a
    gate stays shut all the same.
    """
    if step.action not in ALWAYS and step.gates and _all_open(world, step, evidence):
        return "found so already"
    point(f"{step.action}:needs")
    for gate in step.needs:
        _await(world, step, gate, "before", talk, pace, evidence)
    point(f"{step.action}:act")
    trouble: UpdaterError | None = None
    try:
        text = world.act(step, talk)
        evidence.did(text)
    except _UNSURE as error:
        trouble, text = error, f"not answered: {error.message}"
        evidence.did(f"{text}; the real state is asked")
    point(f"{step.action}:acted")
    try:
        for gate in step.gates:
            _await(world, step, gate, "after", talk, pace, evidence)
    except GateNotPassed as error:
        if trouble is not None:
            raise trouble from error
        raise
    return text


def told(gate: Gate) -> str:
    """A gate in words, as they stand in records."""
    of = gate.server or gate.site or " and ".join(gate.sites)
    return " ".join(part for part in (str(gate.kind), of, gate.release) if part)


def _all_open(world: World, step: Step, evidence: Evidence) -> bool:
    """Whether everything that the step is for is so already. What cannot be asked is not so."""
    for gate in step.gates:
        try:
            seen = judge(gate, world.look(gate))
        except _UNSURE as error:
            seen = Verdict(open=False, found=error.message)
        evidence.seen("first", gate, seen)
        if not seen.open:
            return False
    return True


def _await(world: World, step: Step, gate: Gate, when: str, talk: Talk, pace: Pace, evidence: Evidence) -> None:
    """Until the gate is open. Raises GateNotPassed with what was seen last."""
    began = time.monotonic()
    endless = gate.kind in _ENDLESS
    alert_after = pace.drain.alert_after if endless else _TELL * pace.factor
    told_at: float | None = None
    agreed_at = began
    pause = min(pace.interval, pace.drain.interval) if endless else pace.interval
    while True:
        try:
            seen = judge(gate, world.look(gate))
        except _UNSURE as error:
            seen = Verdict(open=False, found=error.message)
        evidence.seen(when, gate, seen)
        if seen.open:
            return
        looked = time.monotonic()
        waited = looked - began
        if not endless and waited > pace.patience(gate):
            raise shut(step, gate, seen, when, waited)
        agreed_at = agreed_at if seen.at_odds else looked
        due = waited >= alert_after or looked - agreed_at >= _AT_ODDS * pace.factor
        if due and (told_at is None or looked - told_at >= pace.drain.alert_every):
            told_at = looked
            pace.alert(f"{seen.found}, after {_minutes(waited)} of waiting{'; no call is ended' * endless}")
        talk.check()
        time.sleep(pause)
        if not endless:
            pause = min(pause * 1.5, pace.slowest)


def shut(step: Step, gate: Gate, seen: Verdict, when: str, waited: float) -> GateNotPassed:
    """The error for a gate that does not open."""
    so_far = "the step was not begun" if when == "before" else f"the step was done, and waited for {waited:.0f} s"
    return GateNotPassed(
        f"{step.id}: {seen.found}",
        what=f"wanted {'before' if when == 'before' else 'after'} it: {told(gate)}",
        state=f"{so_far}; nothing after it was begun, and calls are served as before",
        next=["updater zdu resume    looks again, and goes on", "updater zdu abort    goes the way back"],
    )


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
