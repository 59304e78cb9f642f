"""The controller of a rehearsal, as its users start it: ``updater zdu …``, a process of its own in the sites' network;
and the power cuts that happen to machines meanwhile.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from vagrant.rehearsal.sites_machines import Installation, RehearsalError
from vagrant.rehearsal.sites_places import PLACES, Place
from vagrant.rehearsal.sites_release import NEW
from zdu.runbook import Action

UPDATER = Path(sys.executable).with_name("updater")

#: How often an upgrade that stops is begun or resumed again.
TRIES = 3

#: Seconds that a machine stays without power.
DARK = 5.0


@dataclass(frozen=True, slots=True)
class Cut:
    """A power cut: this machine goes dark when a step with this action begins (the machine's own, where servers have
    steps of their own)."""

    place: Place
    action: str

    @classmethod
    def parse(cls, text: str) -> Cut:
        """``power:SITE/SERVER@STEP``, such as power:A/a1@activate-node or power:dispatchers/d1@vip-move."""
        found = re.fullmatch(r"power:([^/@]+/[^/@]+)@([a-z-]+)", text)
        place = next((each for each in PLACES if found and each.label == found[1]), None)
        if found is None or place is None:
            servers = ", ".join(each.label for each in PLACES)
            raise ValueError(f"{text!r} is not power:SITE/SERVER@STEP with one of {servers}")
        if found[2] not in list(Action):
            raise ValueError(f"{text!r}: there is no such step, but {', '.join(Action)}")
        return cls(place, found[2])

    def falls(self, step: str) -> bool:
        """Whether the beginning of a step brings it, such as 4/activate-node/a1."""
        _, action, *who = step.split("/")
        others = {each.name for each in PLACES} - {self.place.name}
        return action == self.action and not (who and who[0] in others and "node" in action)

    def __str__(self) -> str:
        return f"power:{self.place.label}@{self.action}"


@dataclass(frozen=True, slots=True)
class Event:
    """A line of a run. `at`: time of day."""

    at: float
    kind: str
    step: str
    text: str


@dataclass
class Controller:
    """Runs the commands. `show` is called with each event; `cuts` happen once each."""

    made: Installation
    show: Callable[[Event], None]
    cuts: list[Cut] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    error: dict[str, Any] = field(default_factory=dict)
    happened: list[str] = field(default_factory=list)
    stops: list[str] = field(default_factory=list)
    _excused: bool = False
    _threads: list[threading.Thread] = field(default_factory=list)

    def command(self, *words: str) -> list[str]:
        """``updater --json zdu …``, in the network of the sites."""
        return self.made.lan.command(
            [str(UPDATER), "--json", "zdu", *words, "--sites", str(self.made.work / "sites.toml")]
        )

    def ask(self, *words: str, timeout: float = 120) -> Any:
        """The answer of a command that only looks."""
        done = subprocess.run(self.command(*words), capture_output=True, text=True, timeout=timeout, check=False)
        if done.returncode:
            raise RehearsalError(f"updater zdu {' '.join(words)} exits with {done.returncode}: {done.stderr[-2000:]}")
        return json.loads(done.stdout)

    def upgrade(self, bundle: str) -> int:
        """Run it to its end; the exit code of the last command.

        It is begun again when it was refused before anything was touched, as when a machine was too slow to answer, and
        resumed when it stopped: after each power cut, and a few times else. What stopped it is in `stops`.
        """
        code, tries = 1, TRIES
        while code and tries:
            begins = not self.events
            code = self._do(*(("run", NEW, "--bundle", bundle, "--approve", "none") if begins else ("resume",)))
            for thread in self._threads:
                thread.join()
            if code and self.happened and not self._excused:
                self._excused = True
            elif code:
                tries -= 1
                what = "; ".join(self.error.get("what", []))
                self.stops.append(f"{self.error.get('message', f'exit code {code}')} ({what})")
                self.show(Event(time.time(), "failed", "", f"stopped: {self.stops[-1]}"))
        return code

    def _do(self, *words: str) -> int:
        self.error = {}
        log = self.made.work / "controller.log"
        with log.open("ab") as errors:
            process = subprocess.Popen(
                self.command(*words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                with log.open("ab") as file:
                    file.write(line)
                self._take(line)
            return process.wait()
        finally:
            process.kill()
            process.wait()

    def _take(self, line: bytes) -> None:
        try:
            found = json.loads(line)
        except ValueError:
            return
        if found.get("kind") == "error":
            self.error = found["error"]
        elif "at" in found and "step" in found:
            at = datetime.fromisoformat(found["at"]).timestamp()
            event = Event(at, found["kind"], found["step"], found["text"])
            self.events.append(event)
            self.show(event)
            if event.kind == "started":
                self._cut(event.step)

    def _cut(self, step: str) -> None:
        for cut in [each for each in self.cuts if each.falls(step)]:
            self.cuts.remove(cut)
            self.happened.append(str(cut))
            thread = threading.Thread(target=self._dark, args=(cut.place,))
            self._threads.append(thread)
            thread.start()

    def _dark(self, place: Place) -> None:
        machine = self.made.machine(place)
        machine.kill()
        self.show(Event(time.time(), "cut", "", f"{place.label} has no power"))
        time.sleep(DARK)
        machine.start()
        machine.wait_for_boot(timeout=600)
        self.show(Event(time.time(), "cut", "", f"{place.label} has booted again"))
