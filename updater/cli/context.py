"""What every command shares: the global options, the opened node, and how an interruption is told."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from core.errors import HungUp, Interrupted, Terminated, UpdaterError
from core.stopping import Stopped, stoppable

if TYPE_CHECKING:
    from core.report import Event, Report, Sink
    from updater.execution import Outcome
    from updater.node import Node


@dataclass(slots=True)
class Settings:
    """The global options."""

    config: Path | None = None
    json: bool = False
    debug: bool = False


settings = Settings()

AFTER_INTERRUPT = ["updater status    shows where things stand", "updater resume", "updater abort"]


def config_path() -> Path:
    """--config, or the usual place."""
    from updater.node_toml import DEFAULT_CONFIG

    return settings.config or DEFAULT_CONFIG


@contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, SIGTERM and SIGHUP become errors that say what to do next; what runs gets to clean up first."""
    try:
        with stoppable():
            yield
    except Stopped as stopped:
        kind = {signal.SIGTERM: Terminated, signal.SIGHUP: HungUp}.get(stopped.signal, Interrupted)
        raise kind(kind.kind, state="the step under way was stopped cleanly", next=AFTER_INTERRUPT) from stopped


def unread() -> None:
    """Nobody reads the output any more (``| head``, a lost terminal): what is still printed goes nowhere."""
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 1)


def is_unread(error: OSError) -> bool:
    """Whether this is how the system says so: of a pipe, or of a terminal."""
    return error.errno in (errno.EPIPE, errno.EIO)


def unexpected(error: OSError) -> UpdaterError:
    """What the system refused and no room has a better word for."""
    return UpdaterError(
        f"the system refused: {error.strerror or error}",
        what=[str(each) for each in (error.filename, error.filename2) if each],
        state="the command stopped where it was",
        next=["updater status    shows where things stand", "the same command with --debug    shows what was called"],
    )


@contextmanager
def _state_told(node: Node) -> Iterator[None]:
    """An error that could not know the state of the node gets it from the journal."""
    try:
        yield
    except UpdaterError as error:
        error.next = error.next or ("updater status    shows where things stand",)
        if not error.state:
            try:
                run = node.journal.open_run()
            except UpdaterError:
                error.state = "the journal cannot be read"
            else:
                error.state = f"{run.verb} {run.id} is open" if run else "no upgrade is in progress"
        raise


def _courtesy(sink: Sink) -> Sink:
    """An upgrade does not stop because nobody watches it any more."""

    def shown(event: Event) -> None:
        try:
            sink(event)
        except OSError as error:
            if not is_unread(error):
                raise
            unread()

    return shown


@contextmanager
def opened(title: str = "") -> Iterator[tuple[Node, Report]]:
    """The node, and a report to the screen (or as JSON lines)."""
    from core.report import Report, json_lines
    from updater.node import open_node

    with interruptible(), open_node(config_path()) as node, _state_told(node):
        if settings.json:
            yield node, Report(_courtesy(json_lines()))
            return
        from updater.cli.screen import Screen

        with Screen(title) as screen:
            yield node, Report(_courtesy(screen.sink))


def finish(outcome: Outcome) -> None:
    """Print how a verb ended."""
    if settings.json:
        print_json({"kind": "result", "data": {"state": outcome.state, "text": outcome.text, "run": outcome.run}})
    else:
        print(outcome.text)


def print_json(data: Any) -> None:
    """One JSON value on one line."""
    import json

    print(json.dumps(data, default=str, separators=(",", ":")), flush=True)
