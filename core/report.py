"""Events: what a run tells the world while it goes on. Screens, JSON lines, the node's history and the system journal
all receive the same ones.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TextIO


class Kind(StrEnum):
    """What an event tells. The words are stable: they stand in histories and JSON streams."""

    STARTED = "started"  # a step (or a phase outside of steps) begins
    PROGRESS = "progress"  # data: done, total, unit, rate (per second), left (seconds)
    FINISHED = "finished"  # data: seconds, and what the step has to say
    SKIPPED = "skipped"  # found to be done already
    FAILED = "failed"
    UNDONE = "undone"
    NOTE = "note"
    WARNING = "warning"
    RESULT = "result"  # the verb's outcome as data; last line of a JSON stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that happened. `at` is UTC."""

    kind: Kind
    step: str = ""
    text: str = ""
    data: dict[str, Any] = field(default_factory=dict)
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    def as_json(self) -> dict[str, Any]:
        """JSON-ready: at, kind, step, text, data; empty ones left out, except at and kind."""
        whole = {"at": self.at.isoformat(timespec="milliseconds"), "kind": self.kind.value, "step": self.step}
        whole |= {"text": self.text}
        return {key: value for key, value in whole.items() if value} | ({"data": self.data} if self.data else {})


Sink = Callable[[Event], None]


class Report:
    """Hands each event to every sink. Progress is thinned to at most ten events a second and step."""

    def __init__(self, *sinks: Sink) -> None:
        self.sinks = sinks
        self._next_progress = 0.0
        self._begun: dict[str, float] = {}

    def emit(self, kind: Kind, step: str = "", text: str = "", **data: Any) -> None:
        """Send one event now."""
        event = Event(kind=kind, step=step, text=text, data=data)
        for sink in self.sinks:
            sink(event)

    def note(self, text: str, **data: Any) -> None:
        """Something worth knowing that is no fault."""
        self.emit(Kind.NOTE, text=text, **data)

    def warning(self, text: str, **data: Any) -> None:
        """Something that wants attention but does not stop the run."""
        self.emit(Kind.WARNING, text=text, **data)

    def progress(self, step: str, done: int, total: int, unit: str = "bytes") -> None:
        """How far a step is. Cheap enough to be called per chunk, from any thread."""
        now = time.monotonic()
        begun = self._begun.setdefault(step, now)
        if now < self._next_progress and done < total:
            return
        self._next_progress = now + 0.1
        rate = done / (now - begun) if now > begun else 0.0
        left = (total - done) / rate if rate else 0.0
        self.emit(Kind.PROGRESS, step, done=done, total=total, unit=unit, rate=round(rate), left=round(left, 1))

    @contextmanager
    def phase(self, step: str, text: str = "") -> Iterator[dict[str, Any]]:
        """Report a piece of work from its start to its end; what is put into the yielded dict goes with the end."""
        self.emit(Kind.STARTED, step, text)
        started = self._begun[step] = time.monotonic()
        said: dict[str, Any] = {}
        try:
            yield said
        except BaseException as error:
            self.emit(Kind.FAILED, step, str(error) or type(error).__name__)
            raise
        seconds = round(time.monotonic() - started, 3)
        self.emit(Kind.FINISHED, step, str(said.pop("text", "")), seconds=seconds, **said)


def json_lines(stream: TextIO | None = None) -> Sink:
    """A sink that writes one JSON object a line, flushed at once (for machines that follow along)."""
    target = stream or sys.stdout

    def sink(event: Event) -> None:
        target.write(json.dumps(event.as_json(), separators=(",", ":"), default=str) + "\n")
        target.flush()

    return sink
