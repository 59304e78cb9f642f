"""An operator at the machine, who goes on with whatever makes sense: stage, activate, roll back, resume, abort."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from random import Random
from typing import Any

from core.release import Policy, Release
from vagrant.outages import guest
from vagrant.outages.power import VolatileMachine
from vagrant.qemu import Boot, MachineError

#: Seconds that a machine may take for a boot, and a verb for its work, in emulation on a busy host.
PATIENCE = 420.0


class PowerCut(Exception):
    """The power went while something was waiting for the machine."""


class Wrong(Exception):
    """The machine or its agent did something that must not happen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundles:
    """Where the guest finds them. `sick` boots, and its application fails."""

    sound: str
    sick: str


class Operator:
    """Drives one machine. `doing` says what is under way, for whoever cuts the power."""

    def __init__(self, machine: VolatileMachine, bundles: Bundles, rng: Random) -> None:
        self.machine, self.bundles, self.rng = machine, bundles, rng
        self.doing, self.restarting = "nothing", False
        self._console_before = 0
        self.sick_chance = 0.15

    # --- the machine

    def come_up(self) -> Boot:
        """Wait until a boot answers, whichever slot it is. Raises PowerCut, MachineError."""
        try:
            boot = self.machine.wait_for_boot(PATIENCE)
        except (MachineError, OSError) as error:
            raise self._cut_or(error) from None
        self.restarting = False
        return boot

    def inside(self, command: str, *, timeout: float = PATIENCE) -> tuple[int, str]:
        """Run a command; exit code (255: the machine went away) and output. Raises PowerCut."""
        try:
            done = self.machine.run(command, timeout=timeout, check=False)
        except (MachineError, OSError) as error:
            raise self._cut_or(error) from None
        if self.machine.was_cut:
            raise PowerCut
        return done.code, done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """`updater --json status`, through a reboot if there is one. Raises PowerCut, Wrong."""
        for _ in range(3):
            code, text = self.inside("updater --json status")
            if code == 0:
                found: dict[str, Any] = json.loads(text.strip().splitlines()[-1])
                return found
            if code != 255:
                raise Wrong(f"updater status exits {code}: {text}")
            self.restart_begins("restart")
            self.come_up()
        raise Wrong("the machine goes on restarting")

    def settle(self) -> dict[str, Any]:
        """Wait until the agent is through with this boot and those that follow from it. Raises PowerCut, Wrong."""
        confirmed = (
            "while [ $(systemctl show -P ExecMainExitTimestampMonotonic updater-confirm) = 0 ]; do sleep 0.5; done; "
            "sleep 4"  # a reboot that was asked for comes two seconds later
        )
        deadline = time.monotonic() + 2 * PATIENCE
        while time.monotonic() < deadline:
            code, _ = self.inside(confirmed)
            if code == 0:
                self.inside(guest.KEEP_WRITING)
                return self.status()
            self.restart_begins("restart")
            self.come_up()
            self.doing = "confirm"
        raise Wrong("the machine goes on restarting")

    # --- what an operator does

    def choose(self, status: dict[str, Any]) -> str:
        """The words of the verb that comes next: what is open is resumed or aborted, at random."""
        return self.rng.choice(("resume", "abort")) if status["upgrade"] else self._next_move(status)

    def do(self, words: str) -> dict[str, Any]:
        """Have a verb done, the reboots and the confirmation that follow included; the status after it.

        Raises PowerCut, Wrong.
        """
        name = words.split()[0]
        self.doing = name
        code, text = self.inside(f"updater --json {words}")
        last = text.strip().splitlines()[-1] if text.strip() else ""
        if code not in (0, 255):
            raise Wrong(f"updater {words} exits {code}: {last}")
        if code == 255 or _result(last) == "rebooting":
            self.restart_begins(f"restart of {name}")
            self.come_up()
        self.doing = f"confirm after {name}"
        status = self.settle()
        self.doing = "nothing"
        return status

    # --- how

    def where(self) -> str:
        """What was under way, and how far a restart had come: from the serial console."""
        if not self.restarting:
            return self.doing
        text = _console(self.machine)[self._console_before :]
        if "BdsDxe" not in text and "LAB-BOOT" not in text:
            far = "firmware" if self.doing == "power on" else "going down"
        elif "LAB-BOOT" in text:
            slot = re.findall(r"updater\.slot=(\w)", text)
            far = f"kernel, services of slot {slot[-1] if slot else '?'}"
        else:
            far = "boot loader" if "GRUB" in text else "firmware"
        return f"{self.doing}: {far}"

    def restart_begins(self, doing: str) -> None:
        """From now on a boot is awaited."""
        self.doing, self.restarting = doing, True
        self._console_before = len(_console(self.machine))

    def inspect(self, boot: Boot) -> tuple[dict[str, Any], list[str]]:
        """Look into the machine that came up in this boot after a cut: what is there, and what is wrong with it.

        Raises PowerCut, MachineError.
        """
        kept = guest.acknowledged(self.machine)
        for attempt in range(3):
            try:
                found = guest.look(self.machine)
                return found, guest.faults(found, kept, boot.slot)
            except (MachineError, OSError) as error:
                if self.machine.was_cut or not self.machine.running or attempt == 2:
                    raise self._cut_or(error) from None
            self.restart_begins("restart")  # the agent gave this boot up
            boot = self.come_up()
        raise AssertionError("not reached")

    def _next_move(self, status: dict[str, Any]) -> str:
        """The words of the verb that comes next where nothing is open."""
        slots = {slot["slot"]: slot for slot in status["slots"]}
        running = slots[status["booted"]]
        idle = next(slot for slot in slots.values() if slot is not running)
        if idle["state"] == "staged":
            return "activate"
        fresh = self.rng.random() < 0.4
        if idle["state"] == "good" and not fresh:
            older = Release.parse(idle["release"]) < Release.parse(running["release"])
            if not older:
                return "activate"
            if status["way_back"]:
                return "rollback"
        adjoins = Policy().adjoining(Release.parse(running["release"]), Release.parse(guest.SICK))
        sick = adjoins and self.rng.random() < self.sick_chance
        return f"stage {self.bundles.sick if sick else self.bundles.sound}"

    def _cut_or(self, error: Exception) -> Exception:
        return PowerCut() if self.machine.was_cut else error


def _result(line: str) -> str:
    try:
        found = json.loads(line)
    except ValueError:
        return ""
    return str(found.get("data", {}).get("state", "")) if isinstance(found, dict) else ""


def _console(machine: VolatileMachine) -> str:
    return machine.serial.read_text(errors="replace") if machine.serial.exists() else ""
