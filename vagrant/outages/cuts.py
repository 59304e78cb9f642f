"""The power goes at random instants of a machine's life, again and again, and each time everything is looked at."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from vagrant.outages import guest
from vagrant.outages.driver import Operator, PowerCut, Wrong
from vagrant.outages.power import Loss
from vagrant.qemu import Boot, MachineError

#: How often the power goes during a verb (with the restart and the confirmation that follow it), and how many seconds
#: the verb takes as long as nobody has measured it here.
CHANCE = {"stage": 0.7, "activate": 0.9, "rollback": 0.9, "resume": 0.6, "abort": 0.5}
SECONDS = {"stage": 80.0, "activate": 80.0, "rollback": 70.0, "resume": 50.0, "abort": 10.0}

#: How often the power goes again while the machine is coming up after a cut, and within how many seconds.
AGAIN, AGAIN_SPAN = 0.4, 30.0


@dataclass(slots=True, kw_only=True)
class Cut:
    """One cut. `instant`: seconds after the verb was begun, or the machine switched on; `phase`: what was under way;
    `step`: of the run that was found open; `came_up`, `said`: the next boot, and what status said in it; `finished`:
    what brought it to an end; `wrong`: everything that should not be, empty for a good cut."""

    number: int
    instant: float
    phase: str
    loss: Loss
    came_up: str = ""
    said: str = ""
    step: str = ""
    finished: str = ""
    wrong: list[str] = field(default_factory=list)

    def line(self) -> str:
        """For the screen, when it is finished."""
        verdict = f"BAD: {'; '.join(self.wrong)}" if self.wrong else "ok"
        at = f"{self.phase}{f' ({self.step})' if self.step else ''}"
        return (
            f"cut {self.number:>3}  at {self.instant:5.1f} s of {at} | {self.loss} | came up: {self.came_up or '-'} | "
            f"said: {self.said or '-'} | finished by: {self.finished or '-'} | {verdict}"
        )


class Outages:
    """Cuts the power of one operator's machine. The machine runs when this begins, and the writer in it."""

    def __init__(
        self, operator: Operator, rng: Random, *, chance: Mapping[str, float] = CHANCE, again: float = AGAIN
    ) -> None:
        self.operator, self.machine, self.rng = operator, operator.machine, rng
        self.chance, self.again = chance, again
        self._seconds = dict(SECONDS)
        self.cuts: list[Cut] = []
        self._open: list[Cut] = []

    def begin(self, frozen: Path) -> None:
        """Go on where a machine was frozen, with the writer in it."""
        self.machine.thaw(frozen / "state")
        guest.install(self.machine)

    def run(self, count: int, seconds: float = float("inf")) -> list[Cut]:
        """Cut so often, or as often as fits into so many seconds; then bring the machine to an end of its story.

        Raises MachineError, Wrong only where it cannot go on.
        """
        end = time.monotonic() + seconds
        status = self.operator.settle()
        while len(self.cuts) < count and time.monotonic() < end:
            self._live_until_cut(status)
            status = self._come_back(count)
        while status["upgrade"] is not None:
            words = self.operator.choose(status)
            status = self.operator.do(words)
            self._finished(status, words.split()[0])
        return self.cuts

    def _live_until_cut(self, status: dict[str, Any]) -> None:
        """Go on with the story until the power goes."""
        while True:
            words = self.operator.choose(status)
            name = words.split()[0]
            began = time.monotonic()
            try:
                if self.rng.random() < self.chance[name]:
                    with self._power_goes(self.rng.uniform(0, self._seconds[name])):
                        status = self.operator.do(words)
                else:
                    status = self.operator.do(words)
            except PowerCut:
                self._note(began)
                return
            self._seconds[name] = time.monotonic() - began
            self._finished(status, words.split()[0])

    def _come_back(self, count: int) -> dict[str, Any]:
        """Switch on, perhaps lose the power again on the way, look at everything, and let the agent settle."""
        while True:
            began = time.monotonic()
            self.operator.restart_begins("power on")
            self.machine.start()
            again = len(self.cuts) < count and self.rng.random() < self.again
            if not again:
                return self._look()
            with self._power_goes(self.rng.uniform(0, AGAIN_SPAN)):
                try:
                    self._wait_for_cut()
                except PowerCut:
                    self._note(began)

    def _wait_for_cut(self) -> None:
        while not self.machine.was_cut:
            time.sleep(0.05)
        raise PowerCut

    def _look(self) -> dict[str, Any]:
        cut = self.cuts[-1]
        try:
            boot = self.operator.come_up()
            self.operator.doing = "confirm"
            found, cut.wrong = self.operator.inspect(boot)
            said = found["status"]
            self._say(cut, boot, said)
            self.operator.inside(guest.KEEP_WRITING)
            status = self.operator.settle()
        except (MachineError, Wrong) as error:
            cut.wrong.append(str(error))
            print(cut.line(), flush=True)
            raise
        self.operator.doing = "nothing"
        self._finished(status, "the agent" if isinstance(said, dict) and said["upgrade"] else "nothing was open")
        return status

    def _say(self, cut: Cut, boot: Boot, said: Any) -> None:
        """Write down what came up, for all cuts since the last time that something came up."""
        trial = "" if boot.trying is None else f", on trial, {boot.trying} left"
        for each in self._open:
            each.came_up = each.came_up or f"slot {boot.slot}{trial}"
            if not isinstance(said, dict):
                each.said = each.said or str(said)
            elif not each.said:
                run = said["upgrade"]
                each.said = (
                    f"{run['verb']} {run['state']}, step {run['step']}" if run else said["last_run"] or "nothing open"
                )
                each.step = run["step"] if run else ""

    def _finished(self, status: dict[str, Any], by: str) -> None:
        """If nothing is open any more, that is what finished it."""
        if status["upgrade"] is None:
            for cut in self._open:
                cut.finished = by
                print(cut.line(), flush=True)
            self._open.clear()

    def _note(self, began: float) -> None:
        phase = self.operator.where()
        instant = time.monotonic() - began
        loss = self.machine.come_to_rest()
        cut = Cut(number=len(self.cuts) + 1, instant=instant, phase=phase, loss=loss)
        self.cuts.append(cut)
        self._open.append(cut)
        print(f"          cut {cut.number} at {instant:.1f} s: {phase}; {loss}", flush=True)

    @contextmanager
    def _power_goes(self, seconds: float) -> Iterator[None]:
        timer = threading.Timer(seconds, self.machine.cut)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def table(cuts: list[Cut]) -> list[str]:
    """The cuts by phase, as lines of a table: how many, what came up, what was said, what finished it."""
    rows: dict[str, list[Cut]] = {}
    for cut in cuts:
        rows.setdefault(cut.phase, []).append(cut)
    lines = ["| cut during | cuts | came up | status said | finished by |", "|---|---|---|---|---|"]
    for phase, those in sorted(rows.items()):
        columns = (sorted({getattr(cut, name) for cut in those}) for name in ("came_up", "said", "finished"))
        lines.append(f"| {phase} | {len(those)} | {' | '.join('; '.join(each) for each in columns)} |")
    return lines
