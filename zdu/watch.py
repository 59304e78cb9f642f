"""The live view of a run: sites, servers, calls, what is under way, and whether there is a way back. On a terminal it
is drawn again and again; elsewhere each event is a line.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from zdu.overview import Overview, SiteRow, minutes, overview
from zdu.records import Run, RunState, Told
from zdu.runs import Runs
from zdu.sites import Sites
from zdu.tables import Tables

#: Seconds between two drawings.
EVERY: Final = 1.0

#: Servers of a site that are named one by one; of more they are counted.
_NAMED: Final = 8

_COLOURS: Final = {
    RunState.RUNNING: "green",
    RunState.DONE: "green",
    RunState.WAITING: "yellow",
    RunState.PAUSED: "yellow",
    RunState.ABORTING: "yellow",
    RunState.ABORTED: "yellow",
    RunState.STOPPED: "red",
}


def watch(tables: Tables, sites: Sites, run: Run, *, say: Callable[[str], None]) -> Run:
    """Show the run until it has ended or nobody works on it any more; the run as it was then. Keys on a terminal: p
    pauses or goes on, a aborts (asked twice), q leaves the view. `say` is called with one of "pause", "resume",
    "abort".
    """
    if sys.stdout.isatty() and sys.stdin.isatty():
        return _live(tables, sites, run, say)
    return _lines(tables, sites, run)


def text(view: Overview) -> str:
    """The view as plain lines."""
    return "\n".join(line for line in _rows(view) if line is not None)


def _rows(view: Overview) -> list[str]:
    run = view.run
    head = f"ZDU {run.start} → {run.target}   run {run.id}   {_where(view)}"
    times = f"begun {_clock(run.began)} · {minutes(view.seconds_run)}"
    if not run.ended:
        times += f" · about {minutes(view.seconds_left)} left"
    lines = [f"{head}   {times}", f"{'':<14}{'calls':>8}  {'state':<24}servers"]
    lines += [_site_line(site) for site in view.sites]
    names = "   ".join(f"{name} {word}".strip() for name, word in view.dispatchers.items())
    lines.append(f" {'dispatchers':<13}{'':>8}  {'→ ' + ' and '.join(view.sends_to):<24}{names}")
    for site in view.sites:
        if site.lag is not None or site.delta is not None:
            lag = "not replicating" if site.lag is None else f"{site.lag:g} s behind"
            delta = f" · delta {site.delta:,} call records to synchronise" if site.delta else ""
            lines.append(f" replica of {site.name}: {lag}{delta}")
    for record in view.under_way:
        again = f", attempt {record.attempts}" if record.attempts > 1 else ""
        lines.append(f" under way: {record.step} since {_clock(record.began)}{again}")
    if view.leg.error and run.state is RunState.STOPPED:
        lines.append(f" stopped: {view.leg.error['message']}")
        lines += [f"     {label:<6}{line}" for label, line in _details(view.leg.error)]
    elif run.text:
        lines.append(f" {run.state}: {run.text}")
    if view.stale:
        who = view.holder.who if view.holder and view.holder.who else "the controller"
        lines.append(f" {who} is gone; nothing goes on by itself → updater zdu resume")
    if not run.ended:
        lines += _way_back(view)
    if run.waits_for:
        lines.append(f" → updater zdu approve {run.waits_for}")
    return lines


def _site_line(site: SiteRow) -> str:
    calls = "–" if site.calls is None else f"{site.calls:,}"
    nodes = "  ".join(f"{name} {word}".strip() for name, word in site.nodes.items())
    if len(site.nodes) > _NAMED:
        counted = Counter(word or "as before" for word in site.nodes.values())
        nodes = "  ".join(f"{number} {word}" for word, number in counted.items())
    label = f"site {site.name}{'  main' if site.kind == 'main' else ''}"
    return f" {label:<13}{calls:>8}  {site.state:<24}{nodes}".rstrip()


def _where(view: Overview) -> str:
    if view.run.ended or not view.title:
        return str(view.run.state)
    way = "way back, " if view.leg.runbook.back else ""
    return f"{way}phase {view.phase_number} of {view.phases}: {view.title}"


def _way_back(view: Overview) -> list[str]:
    lines = []
    if view.way_back:
        first = "; ".join(view.way_back[:2])
        more = f"; and {len(view.way_back) - 2} more" if len(view.way_back) > 2 else ""
        lines.append(f" way back now: {first}{more}; about {minutes(view.way_back_seconds)}")
    if view.no_return:
        lines.append(f" point of no return: {view.no_return}")
    if view.next:
        lines.append(f" next: {view.next}")
    return lines


def _details(error: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [("what", line) for line in error.get("what", ())]
    parts += [("state", error["state"])] if error.get("state") else []
    return parts + [("next", line) for line in error.get("next", ())]


def _clock(moment: str) -> str:
    from datetime import datetime

    return f"{datetime.fromisoformat(moment).astimezone():%H:%M:%S}" if moment else ""


def _over(view: Overview) -> bool:
    return bool(view.run.ended) or view.run.state is RunState.STOPPED or view.stale


def _lines(tables: Tables, sites: Sites, run: Run) -> Run:
    """Events as they come, for a log."""
    runs = Runs(tables)
    last = 0
    print(text(overview(tables, sites, run)), flush=True)
    while True:
        view = overview(tables, sites, runs.run(run.id) or run)
        for event in runs.events(run.id, last):
            last = event.id
            print(line_of(event), flush=True)
        if _over(view):
            print(text(view), flush=True)
            return view.run
        time.sleep(EVERY)


def line_of(event: Told) -> str:
    """An event as a line of a log."""
    marks = {"finished": "✓", "failed": "✗", "started": "▸", "alert": "!", "untold": "!", "refused": "!"}
    seconds = f" ({event.data['seconds']:.1f} s)" if "seconds" in event.data else ""
    return f"{_clock(event.at)} {marks.get(event.kind, '·')} {event.step or event.kind}  {event.text}{seconds}".rstrip()


def _live(tables: Tables, sites: Sites, run: Run, say: Callable[[str], None]) -> Run:
    from rich.console import Console
    from rich.live import Live

    runs = Runs(tables)
    console = Console()
    said = ""
    with _Keys() as keys, Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            view = overview(tables, sites, runs.run(run.id) or run)
            recent = runs.events(run.id)[-8:]
            live.update(_picture(view, recent, said), refresh=True)
            if _over(view):
                break
            key = keys.next(EVERY)
            if key == "q":
                break
            if key == "p":
                word = "resume" if view.run.state is RunState.PAUSED else "pause"
                said = _passed_on(say, word)
            elif key == "a":
                said = "abort? press A (shift) to go the way back now"
            elif key == "A" and said.startswith("abort?"):
                said = _passed_on(say, "abort")
    console.print(text(view))
    return view.run


def _passed_on(say: Callable[[str], None], word: str) -> str:
    from core.errors import UpdaterError

    try:
        say(word)
    except UpdaterError as error:
        return error.message
    return f"{word} is passed on"


def _picture(view: Overview, recent: list[Told], said: str) -> Any:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.text import Text

    lines = _rows(view)
    colour = "red" if view.stale else _COLOURS[view.run.state]
    parts: list[Any] = [
        Text(lines[0], style=f"bold {colour}"),
        ProgressBar(total=view.total, completed=view.done, width=60),
    ]
    parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in lines[1:]]
    parts += [Text(""), *(Text(line_of(event), style="dim", no_wrap=True, overflow="ellipsis") for event in recent)]
    parts.append(Text(said or "[p]ause or go on   [a]bort   [q]uit the view", style="bold"))
    return Group(*parts)


class _Keys:
    """Single keys of the terminal, without waiting for a line."""

    def __enter__(self) -> _Keys:
        import termios
        import tty

        self._descriptor = sys.stdin.fileno()
        self._before = termios.tcgetattr(self._descriptor)
        tty.setcbreak(self._descriptor)
        return self

    def __exit__(self, *_: object) -> None:
        import termios

        termios.tcsetattr(self._descriptor, termios.TCSADRAIN, self._before)

    def next(self, seconds: float) -> str:
        """The next key within so many seconds; empty: none came."""
        import select

        ready, _, _ = select.select([sys.stdin], [], [], seconds)
        return sys.stdin.read(1) if ready else ""
