"""The controller as its users start it: a process of its own, on a host of its own, over SSH to all others."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

from tests.zdu.lab import OWN, Process, until
from tests.zdu.whole.installation import NEW, Installation


@dataclass(frozen=True)
class Event:
    """A line of a run, as ``updater --json zdu run`` prints it. `at`: time of day."""

    at: float
    kind: str
    step: str
    text: str

    @property
    def action(self) -> str:
        """Of its step."""
        return self.step.split("/")[1] if "/" in self.step else ""


class Controller:
    """`on_event` is called with every event of every command, soon after it was printed."""

    def __init__(self, made: Installation, on_event: Callable[[Event], None] = lambda _: None) -> None:
        self.made = made
        self.host = made.controller
        self.events: list[Event] = []
        self.process: Process | None = None
        self.errors: list[dict[str, Any]] = []
        self._on_event = on_event
        self._numbers = count(1)

    def command(self, *words: str) -> list[str]:
        """``updater --json zdu …``."""
        return [str(OWN / "updater"), "--json", "zdu", *words, "--sites", str(OWN / "sites.toml")]

    def begin(self, *words: str) -> Process:
        """Start a command, and read what it prints while it goes on."""
        process = self.host.start(*self.command(*words), log=f"zdu-{next(self._numbers)}")
        self.process = process
        threading.Thread(target=self._read, args=(process,), daemon=True).start()
        return process

    def run(self, *more: str) -> Process:
        """Begin the upgrade."""
        return self.begin("run", NEW, "--bundle", str(self.made.bundle), "--approve", "none", *more)

    def ask(self, *words: str, check: bool = True) -> Any:
        """The answer of a command that only looks."""
        said = self.host.run(*self.command(*words), check=check, timeout=60)
        lines = [line for line in said.splitlines() if line.strip()]
        try:
            return json.loads(said)
        except ValueError:
            return json.loads(lines[-1]) if lines else None

    def wait(self, timeout: float = 300) -> int:
        """Until the command has ended; its exit code."""
        assert self.process is not None
        return self.process.wait(timeout)

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.stop(signal.SIGKILL)

    def reaches(self, action: str, kind: str = "started", *, timeout: float = 120) -> Event:
        """Wait for the first event of that kind in a step with this action (or whose id begins so)."""

        def found() -> Event | None:
            fits = (each for each in self.events if each.kind == kind and action in (each.action, each.step))
            event = next(fits, None)
            assert event is not None or self.process is None or self.process.running, self.said()
            return event

        event: Event = until(found, f"{kind} {action}\n{self.said()}", timeout)
        return event

    def has(self, kind: str, step: str) -> bool:
        """Whether there was such an event."""
        return any(each.kind == kind and step in (each.step, each.action) for each in self.events)

    def said(self) -> str:
        """The last lines of the command."""
        return self.process.said(12) if self.process else ""

    def at(self, kind: str, step: str) -> float:
        """When the last such event was (time of day)."""
        return next(each.at for each in reversed(self.events) if each.kind == kind and step in (each.step, each.action))

    def report(self) -> dict[str, Any]:
        """Everything on record of the last run."""
        found: dict[str, Any] = self.ask("report")
        return found

    def _read(self, process: Process) -> None:
        rest, at = b"", 0
        while True:
            over = not process.running
            with process.log.open("rb") as log:
                log.seek(at)
                new = log.read()
            at += len(new)
            *lines, rest = (rest + new).split(b"\n")
            for line in lines:
                self._take(line)
            if over:
                return
            threading.Event().wait(0.01)

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            return
        if found.get("kind") == "error":
            self.errors.append(found["error"])
        elif "at" in found and "step" in found:
            at = datetime.fromisoformat(found["at"]).timestamp()
            event = Event(at, found["kind"], found["step"], found["text"])
            self.events.append(event)
            self._on_event(event)
