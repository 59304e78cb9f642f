"""Machines of the lab, frozen where tests and power cuts begin; made once and cached."""

from __future__ import annotations

from pathlib import Path

from vagrant import cache, disk, own
from vagrant.node import Lab
from vagrant.qemu import Machine
from vagrant.serve import Server

#: A node that gives a release two tries, and is quick to find it unhealthy.
QUICK = Lab(tries=2, health=10, deadline=110)


def running(lab: Lab) -> Path:
    """A frozen machine that runs MR95-1: a directory with `disk` and `state`."""
    base = lab.base_disk("MR95-1", lab.bundle("MR95-1", first=True))

    def make(part: Path) -> None:
        part.mkdir()
        with Machine(disk.overlay(base, part / "disk"), part / "machine") as machine:
            machine.start()
            machine.wait_for_boot()
            machine.run("while systemctl is-active -q updater-confirm || [ ! -e /data/updater/lock ]; do sleep 1; done")
            machine.freeze(part / "state")

    return cache.cached("running", cache.key(base.name), make)


def staged(lab: Lab) -> Path:
    """The same, with what the operator carries declared, and MR96-1 staged in slot b from its bundle over HTTP."""
    begun, bundle = running(lab), lab.bundle("MR96-1")

    def make(part: Path) -> None:
        part.mkdir()
        with (
            Server(bundle.parent) as server,
            Machine(disk.overlay(begun / "disk", part / "disk"), part / "machine") as machine,
        ):
            machine.thaw(begun / "state")
            own.declare(machine)
            machine.run(" && ".join(f"updater {words}" for words in own.VERBS), timeout=300)
            machine.run(f"updater stage {server.url(bundle.name, guest=True)}", timeout=600)
            machine.freeze(part / "state")

    return cache.cached("staged", cache.key(begun.name, bundle.name, Path(own.__file__)), make)
