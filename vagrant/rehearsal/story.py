"""The story of a rehearsal on its machine: what a night does, phase by phase, and how the node stands after each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any, Final

from core.journal import Facts
from partitions.boot.state import Slot
from updater.exported import Manifest, carried_hash, kept_hash
from updater.node_toml import NodeConfig
from updater.pristine import path_of
from updater.status import STEPS
from vagrant.qemu import MachineError
from vagrant.rehearsal.guest import Guest, Said, standing
from vagrant.rehearsal.installed import LIST, NEXT
from zdu.rehearsal import Finding, Grade, Phase, Standing

#: The slots of a rehearsal: the machine begins in the old one.
OLD: Slot = "b"
NEW: Slot = "a"

#: These are executed by the agent of the slot that was booted.
_AFTER_REBOOT: Final = ("health", "confirm")

_FAULT: Final = '#!/bin/sh\n[ "$UPDATER_SLOT" != a ] || { echo "rehearsed: unhealthy" >&2; exit 1; }\n'


class StopRehearsal(Exception):
    """A phase went wrong: what comes after it would prove nothing."""


@dataclass(kw_only=True)
class Story:
    """A rehearsal under way. `start`, `target`: releases. `bundle`: its path in the guest. `cuts`: steps during which
    the power is still to be cut; `happened`: those during which it was. `tell`: where progress goes.
    """

    guest: Guest
    config: NodeConfig
    exported: Manifest
    bundle: str
    start: str
    target: str
    cuts: list[str]
    tell: Callable[[str], None]
    accept_no_rollback: bool = False
    happened: list[str] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    plan: Any = None
    _configuration: str = ""

    # -- the phases

    def boot(self) -> None:
        """The old release comes up, with what the node carries."""
        with self._phase("boot", self._standing("", "bad", booted=OLD)) as seen:
            self.guest.start()
            self.guest.arrive()
            self.guest.settled()
            self._configuration = self._configured()
            seen.remarks += self._as_exported()

    def look(self) -> None:
        """`updater plan`: what it refuses here it would refuse on the night."""
        with self._phase("plan", self._standing("", "bad", booted=OLD)) as seen:
            said = self.guest.updater(f"plan {self.bundle}")
            self.plan = said.data
            self._require(said, seen)
            carried = self.plan.get("carried", [])
            seen.remarks += [f"not carried: {e['kind']} {e['name']}, {e['why']}" for e in carried if not e["carried"]]

    def stage(self, *, again: bool = False, name: str = "stage") -> None:
        """The new release goes into the other slot."""
        with self._phase(name, self._standing(self.target, "staged", booted=OLD)) as seen:
            self._do("stage", f"stage {'--again ' if again else ''}{self.bundle}", seen)
            listed, place = self.bundle.replace(NEXT, LIST), path_of(self.config, NEW)
            self.guest.run(f"[ ! -e {listed} ] || {{ mkdir -p {place.parent} && cp {listed} {place}; }}")

    def activate(self, name: str = "activate") -> None:
        """It is booted, proves itself healthy, and is confirmed."""
        with self._phase(name, self._standing(self.target, "good", booted=NEW)) as seen:
            self._do("activate", self._activation(), seen)
            took = self.guest.confirmed_after()
            seen.limits["from power on until it is confirmed"] = (took, self.config.boot.deadline)
            if "health" in seen.steps:
                longest = self.config.health.deadline  # it was kept: what is beyond is the step's own work
                seen.limits["health checks"] = (min(seen.steps["health"], longest), longest)
            self._compare(NEW, seen)

    def prove(self) -> None:
        """The way back is proved without going it."""
        with self._phase("prove-rollback", self._standing(self.target, "good", booted=NEW)) as seen:
            self._require(self.guest.updater("prove-rollback"), seen)

    def roll_back(self) -> None:
        """The old release runs again, on the data that was migrated."""
        with self._phase("rollback", self._standing(self.target, "good", booted=OLD)) as seen:
            self._do("rollback", "rollback", seen)
            self._compare(OLD, seen)

    def unhealthy(self) -> None:
        """The new release fails its health checks: the node must come back by itself."""
        home = self.config.health.drop_in
        carried = any(home.is_relative_to(path) for path in self.config.stage.carry)
        with self._phase("unhealthy", self._standing(self.target, "bad", booted=OLD)) as seen:
            if not carried:
                seen.failed += [f"{home} is not carried into new slots: its checks would not run there"]
                return
            fault = PurePosixPath(home) / "99-rehearsed"
            self.guest.push(_FAULT, str(fault), mode=0o755)
            self._require(self.guest.updater(f"stage {self.bundle}"), seen)
            self._require(self.guest.updater(self._activation()), seen)
            tries = self.config.boot.tries
            longest = (tries + 1) * (self.config.health.deadline + self.config.boot.deadline + 300)
            self.guest.until(self._fallen_back, longest, "the fall-back")
            self.guest.boot_id = self.guest.run("cat /proc/sys/kernel/random/boot_id").stdout.strip()
            self.guest.run(f"rm {fault}")
            self._compare(OLD, seen)

    def uncut(self) -> list[Finding]:
        """Cuts that were wanted and did not come: what they should have shown nobody has seen."""
        return [
            Finding(grade=Grade.FAILS, phase="power cuts", text=f"the power was never cut at {step}")
            for step in self.cuts
        ]

    # -- how a verb is done

    def _do(self, verb: str, words: str, seen: _Seen) -> None:
        """Do it, cutting the power where that is wanted."""
        last = self._runs()
        steps = [step for step in STEPS[verb] if step in self.cuts]
        if steps:
            self._interrupted(words, steps, last, seen)
            self._finish(seen)
        else:
            said = self._require(self.guest.updater(words), seen)
            self._follow(said)
        seen.steps |= self._steps_since(last)

    def _interrupted(self, words: str, steps: Sequence[str], last: int, seen: _Seen) -> None:
        """Let the verb begin, and cut the power at one step after the other. What was interrupted is resumed, but for
        the steps after the reboot: these the new slot's agent does by itself, as soon as it has booted.
        """
        for step, following in zip(steps, [*steps[1:], ""], strict=True):
            if words:
                self.guest.begin(words, f"rehearsal-{step}")
                if step in _AFTER_REBOOT:
                    self.guest.arrive()
            told, slot = self._cut(step, last, seen)
            goes_on = slot == NEW and following in _AFTER_REBOOT
            upgrade = None if goes_on else self.guest.settled()["upgrade"]
            where = f"{upgrade['verb']} was interrupted in step {upgrade['step']}" if upgrade else ""
            seen.remarks.append(f"{told}, {where or 'the agent went on by itself'}")
            if not goes_on and upgrade is None:
                return  # it is over: what else was to be cut may come in a later phase
            words = "" if goes_on else "resume"

    def _cut(self, step: str, last: int, seen: _Seen) -> tuple[str, str]:
        """Take the power away when the step is under way, and boot again. Returns what to say of it, and the slot."""
        state = self.guest.watch(str(self.config.data / "journal.sqlite"), step, last, 900)
        if not state:
            seen.failed.append(f"the step {step} did not come: the power could not be cut there")
            raise StopRehearsal
        self.guest.kill()
        self.cuts.remove(step)
        self.happened.append(step)
        self.tell(f"  the power is cut at {step}")
        self.guest.start()
        slot = self.guest.arrive()
        when = "while it ran" if state == "intent" else "just after it"
        return f"power cut at {step}, {when}: the node came up in slot {slot}", slot

    def _finish(self, seen: _Seen) -> None:
        """After a cut: resume what was interrupted, until nothing is."""
        for _ in range(3):
            if self.guest.settled()["upgrade"] is None:
                return
            self._follow(self._require(self.guest.updater("resume"), seen))
        if self.guest.settled()["upgrade"] is not None:
            seen.failed.append("it is interrupted still")
            raise StopRehearsal

    def _follow(self, said: Said) -> None:
        """Through the reboot that a verb has asked for."""
        if said.data and said.data.get("state") == "rebooting":
            self.guest.arrive()
        self.guest.settled()

    def _require(self, said: Said, seen: _Seen) -> Said:
        if said.code != 0:
            seen.failed += said.lines
            raise StopRehearsal
        return said

    def _activation(self) -> str:
        return f"activate{' --accept-no-rollback' if self.accept_no_rollback else ''}"

    def _fallen_back(self) -> Facts | None:
        found = self.guest.status()
        if found is None or found["upgrade"] is not None or found["booted"] != OLD:
            return None
        return found

    # -- what is compared

    def _compare(self, slot: str, seen: _Seen) -> None:
        """Files and configuration, against what is declared and what was."""
        said = self.guest.updater(f"verify --slot {slot}")
        if said.code == 11:  # nobody has its list yet: the bundle has
            said = self.guest.updater(f"verify --slot {slot} --bundle {self.bundle}")
        if said.data is None:
            seen.remarks.append(f"files of slot {slot} were not compared: {said.error.get('message', '')}")
        else:
            seen.undeclared += [f"{each['path']} ({each['how']})" for each in said.data["changes"]]
        seen.configured = self._configured() == self._configuration

    def _configured(self) -> str:
        done = self.guest.run("updater --json config show", check=False)
        return done.stdout if done.code == 0 else ""

    def _as_exported(self) -> list[str]:
        """Whether the machine has what the node has, by the parts of the fingerprint."""
        said = self.guest.updater("export --dry-run --data none")
        if said.data is None:
            return [f"what the machine carries was not compared with the export: {said.error.get('message', '')}"]
        found, exported = said.data["fingerprint"], self.exported
        wanted = {"carried": carried_hash(exported.carried), "configuration": exported.configured}
        if not any(each.left_out for each in exported.kept):
            wanted["kept"] = kept_hash(exported.kept)
        return [f"the machine is not as the node: {name} differs" for name in wanted if wanted[name] != found[name]]

    def _standing(self, release: str, state: str, *, booted: str) -> Standing:
        return Standing(booted=booted, slots={NEW: (release, state), OLD: (self.start, "good")})

    def _runs(self) -> int:
        """The number of the newest run."""
        return len(self.guest.updater("history").data or [])

    def _steps_since(self, last: int) -> dict[str, float]:
        """Seconds of each step of the runs since."""
        runs: Sequence[Facts] = self.guest.updater("history").data or []
        found: dict[str, float] = {}
        for run in reversed(runs[: max(0, len(runs) - last)]):
            for step in self.guest.updater(f"history {run['id']}").data["steps"]:
                if step["ended"]:
                    began, ended = (datetime.fromisoformat(step[key]) for key in ("started", "ended"))
                    found[step["name"]] = round((ended - began).total_seconds(), 1)
        return found

    @contextmanager
    def _phase(self, name: str, expected: Standing) -> Iterator[_Seen]:
        """Time it, and write down how the node stands after it. Raises StopRehearsal when it went wrong."""
        self.tell(name)
        began = time.monotonic()
        seen = _Seen()
        phase = Phase(name=name, seconds=0, expected=expected)
        wrong: Exception | None = None
        try:
            yield seen
        except StopRehearsal as error:
            wrong = error
        except MachineError as error:
            seen.failed += str(error).splitlines()[:12]
            wrong = error
        found = self.guest.status() if self.guest.running else None
        if found and not seen.failed and standing(found) != expected:
            seen.failed += found["problems"]  # the node knows why
        phase = replace(
            phase,
            seconds=round(time.monotonic() - began, 1),
            found=standing(found) if found else None,
            failed=tuple(seen.failed),
            limits=seen.limits,
            undeclared=tuple(seen.undeclared),
            configured=seen.configured,
            steps=seen.steps,
            remarks=tuple(seen.remarks),
        )
        self.phases.append(phase)
        self.tell(f"  {phase.seconds:.0f} s: {phase.found}")
        if wrong is not None or phase.failed or phase.found != phase.expected:
            raise StopRehearsal from wrong


@dataclass(kw_only=True)
class _Seen:
    """What a phase comes upon."""

    failed: list[str] = field(default_factory=list)
    limits: dict[str, tuple[float, float]] = field(default_factory=dict)
    undeclared: list[str] = field(default_factory=list)
    configured: bool = True
    steps: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
