"""The machine of a rehearsal, spoken to as a release engineer would: `updater VERB` over SSH, and its power switch.

It reaches nothing: its network ends at this host, so hooks and programs of the operator's meet nobody they could harm.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from core.journal import Facts, RunState
from vagrant.qemu import Machine, MachineError, Result
from zdu.rehearsal import Standing

T = TypeVar("T")

#: Seconds for a boot, in emulation, of a system that is larger than the lab's.
BOOT: Final = 600.0

#: Seconds for a verb that may move a whole image.
LONG: Final = 3600.0

_ENDED = "$(systemctl show -P ExecMainExitTimestampMonotonic updater-confirm)"
_CONFIRMED = f"[ {_ENDED} != 0 ] && [ $(systemctl show -P ActiveState updater-confirm) != activating ]"

_WATCH = """
import sqlite3, sys, time
until = time.monotonic() + {seconds}
while time.monotonic() < until:
    try:
        db = sqlite3.connect("file:{journal}?mode=ro", uri=True, timeout=1)
        run = db.execute("SELECT state FROM runs WHERE rowid > {after} ORDER BY rowid DESC LIMIT 1").fetchone()
        row = db.execute("SELECT s.state FROM steps s JOIN runs r ON r.id = s.run "
                         "WHERE s.name = '{step}' AND r.rowid > {after}").fetchone()
        db.close()
    except sqlite3.Error:
        run = row = None
    if row:
        print(row[0])
        sys.exit()
    if run and run[0] != "{open}":
        break
    time.sleep(0.01)
sys.exit(1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a verb answered: its exit code, its result, and its error where there is one."""

    code: int
    data: Any
    error: Facts
    seconds: float

    @property
    def lines(self) -> tuple[str, ...]:
        """The error in lines; none where it went well."""
        if self.code == 0:
            return ()
        return (f"{self.error.get('message', 'no word of it')} (exit {self.code})", *self.error.get("what", [])[:8])


class Guest(Machine):
    """The machine. `booted` is known from inside: the identity of the running kernel."""

    boot_id = ""

    def arrive(self, timeout: float = BOOT) -> str:
        """Wait until a boot that was not seen before answers by SSH; returns its slot. Raises MachineError."""

        def look() -> str | None:
            if not self._banner():
                return None
            self._hang_up()
            said = self._ask("cat /proc/sys/kernel/random/boot_id /proc/cmdline", timeout=30)
            boot_id, _, cmdline = said.stdout.partition("\n") if said else ("", "", "")
            if not boot_id or boot_id == self.boot_id:
                return None
            self.boot_id = boot_id
            words = dict(word.partition("=")[::2] for word in cmdline.split())
            return words.get("updater.slot", "?")

        return self.until(look, timeout, "a boot that answers by SSH")

    def ssh_words(self) -> list[str]:
        """The command line that gets into the machine as root; a command may follow it."""
        return ["ssh", *self._ssh_options(), "-p", str(self.ssh_port), "root@node"]

    def updater(self, words: str, timeout: float = LONG) -> Said:
        """Run a verb and wait for its end. Raises MachineError when the machine does not answer at all."""
        done = self.run(f"updater --json {words}", timeout=timeout, check=False)
        return read(done)

    def status(self) -> Facts | None:
        """`updater status`, or None while the machine does not answer."""
        if not self._banner():
            return None
        done = self._ask("updater --json status", timeout=30)
        if done is None or done.code == 255:
            self._hang_up()
            return None
        try:
            found: Facts = json.loads(done.stdout)
        except ValueError:
            return None
        return found

    def standing(self) -> Standing | None:
        """How the node stands."""
        found = self.status()
        return standing(found) if found else None

    def settled(self, timeout: float = BOOT) -> Facts:
        """The status once the agent is through: its unit has ended, and its verb, if any, is over or left alone. A slot
        on trial that is not confirmed is not left alone: the machine boots again. Raises MachineError."""

        def look() -> Facts | None:
            if not self._banner() or self._ask(_CONFIRMED, timeout=30, code=0) is None:
                return None  # asked first: it costs the machine much less
            found = self.status()
            if found is None or found["upgrade"] is None:
                return found
            states = {each["slot"]: each["state"] for each in found["slots"]}
            left = found["upgrade"]["state"] == "interrupted" and states[found["booted"]] != "trying"
            return found if left else None

        return self.until(look, timeout, "the agent to settle")

    def confirmed_after(self) -> float:
        """Seconds from the kernel's start until the agent had confirmed the slot, or found nothing to confirm."""
        return int(self.run(f"echo {_ENDED}").stdout.strip() or 0) / 1e6

    def begin(self, words: str, unit: str) -> None:
        """Start a verb that goes on by itself."""
        self.run(f"systemd-run --quiet --unit={shlex.quote(unit)} /usr/bin/updater --json {words}")

    def watch(self, journal: str, step: str, after: int, seconds: float = LONG) -> str:
        """Wait until a step is begun, and return what the journal says of it ("intent": it runs); empty when it does
        not come, or the run ends without it. `after`: number of the last run that does not count.
        """
        program = _WATCH.format(journal=journal, step=step, after=after, seconds=seconds, open=RunState.OPEN)
        done = self.run("python3 -I -", input=program.encode(), check=False, timeout=seconds + 60)
        return done.stdout.strip() if done.code == 0 else ""

    def until(self, look: Callable[[], T | None], timeout: float, what: str) -> T:
        """Ask again and again. Raises MachineError when the time is up, or there is no power."""
        deadline = time.monotonic() + timeout
        while True:
            found = look()
            if found is not None:
                return found
            if not self.running:
                raise MachineError(f"the machine went off while waiting for {what}")
            if time.monotonic() > deadline:
                raise MachineError(f"{what}: not within {timeout:g} s\n{self.serial_tail(15)}")
            time.sleep(0.5)

    def _ask(self, command: str, *, timeout: float, code: int | None = None) -> Result | None:
        """A command's answer; None when there is none, or (with `code`) it exits otherwise."""
        try:
            done = self.run(command, timeout=timeout, check=False)
        except MachineError:
            self._hang_up()
            return None
        return done if code is None or done.code == code else None

    def _command(self) -> list[str]:
        return [word.replace("user,id=net,", "user,id=net,restrict=on,") for word in super()._command()]


def read(done: Result) -> Said:
    """Take the JSON lines of a verb apart."""
    data: Any = None
    error: Facts = {}
    for line in done.stdout.splitlines():
        try:
            found = json.loads(line)
        except ValueError:
            continue
        if isinstance(found, dict) and found.get("kind") == "error":
            error = found["error"]
        elif isinstance(found, dict) and found.get("kind") == "result":
            data = found["data"]
        elif not (isinstance(found, dict) and "at" in found and "kind" in found):
            data = found
    if done.code and not error:
        error = {"message": (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no word of it"]}
        error["message"] = error["message"][0]
    return Said(code=done.code, data=data, error=error, seconds=done.seconds)


def standing(status: Facts) -> Standing:
    """From `updater status`."""
    slots = {each["slot"]: (each["release"], each["state"]) for each in status["slots"]}
    return Standing(booted=status["booted"] or "?", slots=slots)


def told(lines: Sequence[str]) -> str:
    """For the screen."""
    return "\n".join(f"      {line}" for line in lines)
