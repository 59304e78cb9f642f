"""The proof of the pudding: a machine started on the disk that a cut left, and its upgrade brought to an end."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vagrant import data
from vagrant.cuts.disks import CutDisk
from vagrant.cuts.log import WriteLog
from vagrant.cuts.points import Point
from vagrant.cuts.record import Recording
from vagrant.qemu import Machine, MachineError

#: Seconds in which a machine comes up and the agent is through with it; emulation needs half a minute for a boot.
PATIENCE = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """How it went. `fault`: empty when the machine came up and the upgrade was brought to an end."""

    point: Point
    phase: str
    slot: str
    said: str
    did: str
    ended: str
    fault: str


def boot(recording: Recording, point: Point, phase: str, seed: str) -> Booted:
    """Boot the disk of this point, see where `updater status` says it stands, and resume or abort."""
    work = Path(tempfile.mkdtemp(prefix="updater-cut-boot-"))
    slot = said = did = ended = fault = ""
    try:
        with WriteLog(recording.log) as log, CutDisk(recording.base, log) as disk:
            disk.cut(point.index, point.how, point.seed(seed))
            raw = disk.materialise(work / "disk")
        with Machine(raw, work / "machine") as machine:
            try:
                machine.start()
                slot = machine.wait_for_boot(PATIENCE).slot
                status = _settled(machine)
                upgrade = status["upgrade"]
                said = f"{upgrade['verb']} {upgrade['state']} in step {upgrade['step']}" if upgrade else "nothing open"
                if upgrade is not None:
                    # the server of its bundle is gone, so that a stage cannot go on here
                    did = "updater abort" if upgrade["verb"] == "stage" else "updater resume"
                    machine.run(did, timeout=PATIENCE)
                    status = _settled(machine, closed=True)
                ended = " ".join(f"{each['slot']}{'*' * each['booted']}={each['state']}" for each in status["slots"])
                fault = _faults(machine, status)
            except MachineError as error:
                fault = str(error)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return Booted(point=point, phase=phase, slot=slot, said=said, did=did, ended=ended, fault=fault)


def _settled(machine: Machine, *, closed: bool = False) -> dict[str, Any]:
    """The status when the agent is through with a boot (`closed`: and nothing is open any more); it may boot again
    meanwhile. Raises MachineError."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            ended = machine.run("systemctl show -P ExecMainExitTimestampMonotonic updater-confirm", timeout=30).stdout
            status: dict[str, Any] = json.loads(machine.run("updater --json status", timeout=60).stdout)
            waits = status["upgrade"] is not None and (closed or status["upgrade"]["state"] != "interrupted")
            if ended.strip() != "0" and not waits:
                return status
        except (MachineError, ValueError):
            if not machine.running:
                raise
        if time.monotonic() > deadline:
            raise MachineError(f"the agent did not settle within {PATIENCE} s\n{machine.serial_tail()}")
        time.sleep(1)


def _faults(machine: Machine, status: dict[str, Any]) -> str:
    if status["indicator"] == "CRITICAL":
        return f"status is CRITICAL: {'; '.join(status['problems'])}"
    running = next(each["release"] for each in status["slots"] if each["booted"])
    found = machine.run("acme-balance", check=False).stdout.strip()
    return "" if found == data.answer(running) else f"the application's data: {found!r}"
