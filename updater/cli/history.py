"""What was done on the node, as text or JSON."""

from __future__ import annotations

from dataclasses import asdict

from core.journal import Journal, Run
from updater.cli.context import print_json, settings
from updater.cli.screen import local


def print_runs(journal: Journal) -> None:
    """The latest runs, newest first."""
    runs = journal.runs()
    if settings.json:
        print_json([asdict(run) for run in runs])
        return
    if not runs:
        print("nothing was done here yet")
    for run in runs:
        print(f"{run.id:<16}{local(run.started.isoformat()):<18}{run.verb:<10}{run.state:<10}{run.outcome}")


def print_run(journal: Journal, run: Run) -> None:
    """One run: its steps, then its events."""
    steps = journal.steps(run)
    if settings.json:
        print_json({**asdict(run), "steps": [asdict(step) for step in steps.values()], "events": journal.events(run)})
        return
    print(f"{run.verb} {run.id}: {run.state}{f', {run.outcome}' if run.outcome else ''}")
    print(f"  begun {local(run.started.isoformat())} by agent {run.agent}")
    for step in steps.values():
        seconds = f"{(step.ended - step.started).total_seconds():>7.1f} s" if step.ended else "        –"
        print(f"  {step.name:<16}{step.state:<8}{seconds}  {step.detail}")
    for event in journal.events(run):
        if event["kind"] in ("note", "warning", "failed"):
            print(f"  {local(event['at'])}  {event['kind']:<8} {event['step']} {event['text']}")
