"""A machine, as the tests here ask it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from vagrant.qemu import Machine
from vagrant.tree import TRICKS


def status(machine: Machine) -> dict[str, Any]:
    """`updater --json status` inside the machine."""
    found: dict[str, Any] = json.loads(machine.run("updater --json status").stdout)
    return found


def states(machine: Machine) -> dict[str, tuple[str, str]]:
    """Release and state of both slots."""
    return {slot["slot"]: (slot["release"], slot["state"]) for slot in status(machine)["slots"]}


def settled(machine: Machine) -> dict[str, Any]:
    """The status once the agent is through with this boot."""
    machine.run(
        "while [ $(systemctl show -P ExecMainExitTimestampMonotonic updater-confirm) = 0 ]; do sleep 0.5; done",
        timeout=180,
    )
    found = status(machine)
    assert found["upgrade"] is None
    return found


def until(machine: Machine, true: Callable[[], bool], timeout: float = 120) -> None:
    """Wait for something on the machine."""
    deadline = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < deadline, machine.serial_tail()
        time.sleep(0.1)


def trick(machine: Machine, *names: str, tries: int) -> None:
    """Make what is in slot b misbehave from its next boot on (a panic and a hang: once each, in this order), and give
    it so many tries.
    """
    for name in names:
        machine.push("", f"{TRICKS}/{name}")
    machine.run(f"sed -i 's/^tries = .*/tries = {tries}/' /etc/updater/node.toml && sync")
