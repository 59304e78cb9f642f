"""The live view of a run: sites, servers, calls, what is under way, and whether there is a way back. On a terminal it
is drawn again and again; elsewhere each event is a line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any, Final

from zdu.overview import Overview, overview
from zdu.records import Run, RunState, Told
from zdu.runs import Runs
from zdu.screens import line_of, picture, text
from zdu.sites import Sites
from zdu.tables import Tables

#: Seconds between two drawings.
EVERY: Final = 1.0

#: Events that are shown below the view at most, as far as there is room.
_EVENTS: Final = 12

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


def _live(tables: Tables, sites: Sites, run: Run, say: Callable[[str], None]) -> Run:
    from rich.console import Console
    from rich.live import Live

    runs = Runs(tables)
    console = Console()
    said = ""
    with _Keys() as keys, Live(console=console, auto_refresh=False, screen=True) as live:
        while True:
            view = overview(tables, sites, runs.run(run.id) or run)
            recent = runs.events(run.id)[-_EVENTS:]
            live.update(_picture(view, recent, said, console.size), refresh=True)
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
    console.print(text(view, console.width), highlight=False, markup=False, no_wrap=True)
    return view.run


def _passed_on(say: Callable[[str], None], word: str) -> str:
    from core.errors import UpdaterError

    try:
        say(word)
    except UpdaterError as error:
        return error.message
    return f"{word} is passed on"


def _picture(view: Overview, recent: list[Told], said: str, size: tuple[int, int]) -> Any:
    from rich.console import Group
    from rich.text import Text

    colour = "red" if view.stale else _COLOURS[view.run.state]
    styles = {"head": f"bold {colour}"}
    made = [
        Text(line, style=styles.get(style, style), no_wrap=True) for line, style in picture(view, recent, said, size)
    ]
    return Group(*made)


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
