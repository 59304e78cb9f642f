"""What people see: steps as they end, a bar for the one under way, tables, errors."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from core.errors import UpdaterError
from core.report import Event, Kind

if TYPE_CHECKING:
    from updater.execution import Plan
    from updater.status import Status

_COLOURS = {"OK": "32", "WARNING": "33", "CRITICAL": "31", "good": "32", "trying": "33", "staged": "36", "bad": "31"}
_QUIET_SECONDS = 10.0


def coloured(word: str, padded: str | None = None) -> str:
    """The word in its colour, on a terminal."""
    text = word if padded is None else padded
    if not sys.stdout.isatty() or word not in _COLOURS:
        return text
    return f"\033[{_COLOURS[word]}m{text}\033[0m"


class Screen:
    """A sink for people. On a terminal with a live bar; in a log, a line every ten seconds of a long step."""

    def __init__(self, title: str = "") -> None:
        self._title = title
        self._bar: Any = None
        self._task: Any = None
        self._spoke = time.monotonic()

    def __enter__(self) -> Self:
        if self._title:
            print(self._title)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._end_bar()

    def sink(self, event: Event) -> None:
        """Show one event."""
        if event.kind is Kind.PROGRESS:
            self._progress(event)
            return
        if event.kind is not Kind.STARTED:
            self._end_bar()
        match event.kind:
            case Kind.FINISHED:
                print(f" ✓ {event.step:<16}{event.data.get('seconds', 0):>7.1f} s   {event.text}".rstrip(), flush=True)
            case Kind.SKIPPED:
                print(f" · {event.step:<16}            {event.text}", flush=True)
            case Kind.FAILED:
                print(f" ✗ {event.step:<16}            {event.text}", flush=True)
            case Kind.UNDONE:
                print(f" ↶ {event.step:<16}            undone", flush=True)
            case Kind.NOTE:
                print(f"   {event.text}", flush=True)
            case Kind.WARNING:
                print(f" ! {event.text}", flush=True)
        self._spoke = time.monotonic()

    def _progress(self, event: Event) -> None:
        done, total = event.data["done"], event.data["total"]
        if sys.stdout.isatty():
            self._show_bar(event.step, done, total, event.data["unit"])
        elif time.monotonic() - self._spoke >= _QUIET_SECONDS and total:
            self._spoke = time.monotonic()
            print(f"   {event.step:<16}{100 * done // total:>3} %, {event.data['left']:.0f} s left", flush=True)

    def _show_bar(self, step: str, done: int, total: int, unit: str) -> None:
        from rich import progress

        if self._bar is None:
            figures: Sequence[progress.ProgressColumn] = (
                (progress.DownloadColumn(), progress.TransferSpeedColumn())
                if unit == "bytes"
                else (progress.MofNCompleteColumn(),)
            )
            self._bar = progress.Progress(
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description:<16}"),
                progress.BarColumn(),
                *figures,
                progress.TimeRemainingColumn(),
                transient=True,
            )
            self._bar.start()
            self._task = self._bar.add_task(step, total=total)
        self._bar.update(self._task, completed=done, total=total)

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def print_error(error: UpdaterError) -> None:
    """What happened, on what, the state of things, and what to do next."""
    out = sys.stderr
    print(f"error: {_plain(error.message)}", file=out)
    for label, lines in (("what", error.what), ("state", (error.state,) if error.state else ()), ("next", error.next)):
        for number, line in enumerate(lines):
            print(f"  {label if number == 0 else '':<8} {_plain(line)}", file=out)
    print(f"  exit {error.exit_code} ({error.kind})", file=out)


def _plain(line: str) -> str:
    """Names of files and words of other programs stand in errors: nothing in them may steer the terminal."""
    return "".join(letter if letter.isprintable() or letter == "\t" else repr(letter)[1:-1] for letter in line)


def print_plan(plan: Plan) -> None:
    """A plan as people read it: checks, steps, way back."""
    print(plan.title)
    for number, check in enumerate(plan.checks):
        mark = "✗" if check.error is not None else "!" if check.warning else "✓"
        print(f"  {'checks' if number == 0 else '':<10}{mark} {check.name:<18}{check.found}")
    for number, step in enumerate(plan.steps, 1):
        print(f"  {number:>3} {step['step']:<17}{step['what']}")
    for number, decision in enumerate(plan.decisions):
        print(f"  {'details' if number == 0 else '':<10}{decision.kind:<10}{decision.name:<28}{decision}")
    print(f"  way back  {plan.way_back}")


def print_status(status: Status) -> None:
    """The node at a glance."""
    place = ", ".join(
        part for part in (status.site and f"site {status.site}", status.role, status.sandbox and "a sandbox") if part
    )
    print(f"node    {status.node}{f' ({place})' if place else ''}   {coloured(status.indicator)}")
    for slot in status.slots:
        marks = " · ".join(text for flag, text in ((slot.booted, "booted"), (slot.next_boot, "next boot")) if flag)
        state = f"{slot.state}{f' ({slot.tries} left)' if slot.state == 'trying' else ''}"
        written = f"written {local(slot.written)}" if slot.written else ""
        content = f" · {slot.content[:4]}…{slot.content[-2:]}" if slot.content and slot.written else ""
        print(
            f"        slot {slot.slot}   {slot.release or '–':<10} {coloured(slot.state, f'{state:<16}')} "
            f"{marks:<20}  {written}{content}".rstrip()
        )
        if slot.note:
            print(f"                 {slot.note}")
    print(f"        way back: {'yes' if status.way_back else 'no'} ({status.way_back_reason})")
    if status.data_release:
        print(f"        data: {status.data_release}")
    if status.upgrade is None:
        print(f"upgrade none in progress{f'; last: {status.last_run}' if status.last_run else ''}")
    else:
        run = status.upgrade
        what = f"{run.verb} {run.release}".strip()
        print(f"upgrade {what}, step {run.number} of {run.of} “{run.step}”, {run.state}   (run {run.run})")
        if run.next:
            print(f"        → {'   |   '.join(run.next)}")
    for problem in status.problems:
        print(f"      ! {problem}")


def local(moment: str) -> str:
    """A UTC time of the records in local time, to the minute."""
    return f"{datetime.fromisoformat(moment).astimezone():%Y-%m-%d %H:%M}" if moment else ""
