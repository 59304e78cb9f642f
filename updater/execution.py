"""What all verbs share: plans, outcomes, and the execution of a run's steps with its ends."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from core.errors import UpdaterError
from core.files import exclusive_lock
from core.journal import Facts, Run, RunState, StepState
from core.report import Event, Kind, Report, Sink
from core.steps import Handover, Step, run_steps, undo_steps
from patches.lifetime import Decision
from updater.checks import Check
from updater.node import Node
from updater.syslog import system_journal


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a verb is about to do. `way_back`: one line on whether and how one can still go back afterwards."""

    verb: str
    title: str
    checks: Sequence[Check]
    steps: Sequence[Facts]
    way_back: str
    decisions: Sequence[Decision] = ()
    record: Facts = field(default_factory=dict)
    done_already: str = ""

    @property
    def feasible(self) -> bool:
        """Whether all checks pass."""
        return all(check.error is None for check in self.checks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a verb ended: `state` is a run's state, or "rebooting", "waiting" (for a reboot by hand), "nothing"."""

    state: str
    text: str
    run: str = ""


def locked(node: Node, purpose: str) -> AbstractContextManager[None]:
    """The lock that makes a changing verb the only one on this node. Raises Busy."""
    return exclusive_lock(node.config.lock, purpose=purpose)


def execute(node: Node, run: Run, steps: Sequence[Step], report: Report) -> Outcome:
    """Run what is left of a run's steps, and close it when all are done. Raises what a step raises."""
    node.remember_running()
    told = reporting(node, run, report)
    try:
        run_steps(node.journal, run, steps, told, behind=_behind(node, run, steps))
    except Handover:
        if run.plan["by_hand"]:
            text = f"ready: the next boot goes to slot {run.plan['slot']}; reboot when it suits"
            return Outcome(state="waiting", text=text, run=run.id)
        return Outcome(state="rebooting", text=f"the node reboots into slot {run.plan['slot']}", run=run.id)
    except UpdaterError as error:
        _close_if_untouched(node, run, steps, told, error)
        raise
    text = _summary(node, run)
    if run.verb == "activate":
        node.journal.set_fact("attempts", [])
    node.journal.close(run, RunState.DONE, text)
    return Outcome(state=RunState.DONE, text=text, run=run.id)


def _behind(node: Node, run: Run, steps: Sequence[Step]) -> int:
    """How many steps are behind a run that boots another slot, once that slot runs: what comes before its reboot, or
    its flip, was the other slot's to do, and was done. The hooks here are not those of there, and a database that is
    away now says nothing about the release.
    """
    if run.verb == "stage" or node.booted != run.plan["slot"]:
        return 0
    begun = {name for name, record in node.journal.steps(run).items() if record.state is not StepState.UNDONE}
    names = [step.name for step in steps]
    return next((names.index(name) for name in ("reboot", "flip", "flip-back") if name in begun), 0)


def _close_if_untouched(node: Node, run: Run, steps: Sequence[Step], report: Report, error: UpdaterError) -> None:
    """A run that failed before it changed anything that matters is over; any other stays open for resume or abort."""
    begun = node.journal.steps(run)
    if "reboot" in begun:
        return  # the new slot may run by now: only a health check or a person decides
    if "migrate-blocking" in begun:
        error.state = error.state or f"nothing was flipped: slot {node.booted} is in service and boots next"
        error.next = error.next or ("updater resume", "updater abort    stays with this release")
        return
    if run.verb == "stage" and "mark" in begun:
        if not error.next:
            error.next = ("updater resume    keeps what is written and verified", "updater abort")
        error.state = error.state or f"slot {run.plan['slot']} is bad and incomplete; slot {node.booted} runs untouched"
        return
    undo_steps(node.journal, run, steps, report)
    node.journal.close(run, RunState.FAILED, error.message)
    error.state = error.state or "nothing was changed"


def _summary(node: Node, run: Run) -> str:
    slot, release = run.plan["slot"], node.release(run.plan["slot"])
    if run.verb == "stage":
        return f"{release} is staged in slot {slot}"
    if run.verb == "activate":
        return f"{release or 'the release'} in slot {slot} is confirmed good"
    return f"rolled back to {release or 'slot ' + slot}"


def reporting(node: Node, run: Run, report: Report) -> Report:
    """The report that also goes into the node's history and the system journal."""

    def history(event: Event) -> None:
        if event.kind is not Kind.PROGRESS:
            node.journal.record(run, event)

    sinks: list[Sink] = [*report.sinks, history]
    system = system_journal(run.id, run.verb)
    return Report(*sinks, *([system] if system else []))
