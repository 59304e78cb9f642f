"""The machine below: which slot is booted, which boot this is, and how to boot again.

`Host` is the real one. `Sandbox` is a node made of plain files: instead of a reboot, a model of the boot loader reads
the very same environment and picks a slot.
"""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any, Protocol

from core.errors import BootEnvironment, NotReady
from core.files import write_atomic
from partitions.boot.state import Slot
from updater.node_toml import NodeConfig


class Machine(Protocol):
    """What the story needs of a machine."""

    def booted_slot(self) -> Slot:
        """The slot that runs now, "a" or "b". Raises NotReady."""
        ...

    def boot_id(self) -> str:
        """Another one after every boot."""
        ...

    def architecture(self) -> str:
        """As in manifests: x86_64, aarch64, …"""
        ...

    def reboot(self) -> None:
        """Boot again. May return before the machine goes down."""
        ...

    def confirmed(self) -> None:
        """The slot on trial is good: call off the boot deadline."""
        ...


class Host:
    """The machine that this process runs on."""

    def booted_slot(self) -> Slot:
        """From the kernel command line that our boot entries set (`updater.slot=`)."""
        found = re.search(r"(?:^|\s)updater\.slot=([ab])(?:\s|$)", Path("/proc/cmdline").read_text())
        if found is None:
            raise NotReady(
                "cannot tell which slot is booted",
                what="the kernel command line has no updater.slot=a or b",
                next=["boot through the installed grub.cfg", "updater init --install    installs it"],
            )
        return "a" if found[1] == "a" else "b"

    def boot_id(self) -> str:
        """The kernel's own."""
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def architecture(self) -> str:
        """The kernel's name of it."""
        return platform.machine()

    def reboot(self) -> None:
        """Through systemd, so that services stop in order."""
        from core.run import run

        os.sync()
        # A moment later, so that whoever asked for it (over SSH, perhaps) still gets the answer.
        run("systemd-run", "--quiet", "--on-active=2", "--timer-property=AccuracySec=100ms", "systemctl", "reboot")

    def confirmed(self) -> None:
        """The unit of the boot deadline looks for this file; no Python is needed there."""
        Path("/run/updater-confirmed").touch()


class Sandbox:
    """A machine made of one small file: the booted slot and the number of the boot."""

    def __init__(self, config: NodeConfig) -> None:
        self._config = config
        self._file = config.data / "sandbox-machine.json"

    def booted_slot(self) -> Slot:
        """The slot that the boot loader's model picked last."""
        slot: Slot | None = self._read()["slot"]
        if slot is None:
            raise NotReady(
                "the sandbox stands in the boot menu: no slot was fit to boot",
                next="updater sandbox boot --slot a    picks one by hand, as an operator at the console would",
            )
        return slot

    def boot_id(self) -> str:
        """A counter."""
        return f"sandbox-boot-{self._read()['boot']}"

    def architecture(self) -> str:
        """The host's."""
        return platform.machine()

    def reboot(self) -> None:
        """Let the model of the boot loader pick a slot from the environment, and "run" it."""
        from partitions.boot import model
        from partitions.boot.grub_config import ENVIRONMENT
        from partitions.boot.grub_environment import GrubEnvironment

        environment = GrubEnvironment(self._config.boot.esp / ENVIRONMENT)
        try:
            found = environment.load()
        except BootEnvironment:
            found = None  # as for the loader: the menu waits for a person
        outcome = model.boot(found)
        if outcome.environment is not None:
            environment.store(outcome.environment)
        self.start(outcome.slot)

    def confirmed(self) -> None:
        """There is no deadline."""

    def start(self, slot: Slot | None) -> None:
        """Become a machine that has booted this slot (None: stands in the menu)."""
        before: dict[str, Any] = self._read() if self._file.exists() else {"boot": 0}
        write_atomic(self._file, json.dumps({"slot": slot, "boot": before["boot"] + 1}))

    def _read(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(self._file.read_text())
            if found["slot"] not in ("a", "b", None):
                raise ValueError(f"{found['slot']!r} is no slot")
            return {"slot": found["slot"], "boot": int(found["boot"])}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise NotReady(
                "the sandbox does not know which slot it booted",
                what=f"{self._file}: {error}",
                next="updater sandbox create DIR    makes a new one",
            ) from error


def machine_of(config: NodeConfig) -> Machine:
    """The machine that node.toml speaks of."""
    return Sandbox(config) if config.machine == "sandbox" else Host()
