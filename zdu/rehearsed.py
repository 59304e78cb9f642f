"""Whether a plan has been rehearsed: by the JSON report of a run that took the same steps, somewhere else. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zdu.records import RunState
from zdu.runbook import Runbook

Shape = list[tuple[str, str]]


def differs(report: Mapping[str, Any], runbook: Runbook) -> str:
    """Why a report (`zdu.report.as_json`) is not that of a rehearsal of this runbook; empty if it is. The number of
    servers may differ: rehearsals are smaller.
    """
    run = report.get("run")
    legs = report.get("legs")
    if not isinstance(run, Mapping) or not isinstance(legs, list) or not legs:
        return "it is no report of a run"
    if run.get("state") != RunState.DONE:
        return f"that run is {run.get('state')}, not done"
    ends = (run.get("start"), run.get("target"))
    if ends != (runbook.start, runbook.target):
        return f"it went from {ends[0]} to {ends[1]}, not from {runbook.start} to {runbook.target}"
    try:
        phases = legs[0]["runbook"]["phases"]
        there = _shape([(phase["name"], step["action"]) for phase in phases for step in phase["steps"]])
    except (KeyError, TypeError, IndexError):
        return "it is no report of a run"
    here = _shape([(runbook.phase_of[step.id], str(step.action)) for step in runbook.steps])
    if there != here:
        missing = next((each for each in here if each not in there), None)
        return f"it had no {missing[1]} in phase {missing[0]}" if missing else "its steps came in another order"
    return ""


def _shape(steps: Shape) -> Shape:
    """Each action of a phase once, in the order in which they begin."""
    return list(dict.fromkeys(steps))
