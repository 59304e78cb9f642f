"""The main job, for real: signed bundles are built from a root tree, release 1 boots in a virtual machine, and inside
it release 2 is staged, activated, confirmed, rolled back and forward again; release 3 is sick and falls back by itself.

Ends with a table of what happened. Exits with 0 only if every boot was seen from inside the guest, as expected.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from core.run import run
from vagrant import data, own
from vagrant.node import COMPATIBLE, IMAGE_SIZE, Lab
from vagrant.qemu import Machine, MachineError
from vagrant.serve import Server
from vagrant.tree import Variant

UPDATER = str(Path(sys.executable).with_name("updater"))


class DemoError(Exception):
    """Something was not as it should be."""


@dataclass(slots=True)
class Table:
    """What happened: phase, seconds, slot states after it."""

    rows: list[tuple[str, float, str]] = field(default_factory=list)

    @contextmanager
    def phase(self, name: str) -> Iterator[list[str]]:
        """Time a phase; what is put into the yielded list stands in its row."""
        print(f"\n=== {name}", flush=True)
        began = time.monotonic()
        said: list[str] = []
        yield said
        self.rows.append((name, time.monotonic() - began, " ".join(said)))

    def show(self) -> None:
        """Print the table."""
        print(f"\n{'phase':<52}{'seconds':>8}   afterwards")
        for name, seconds, said in self.rows:
            print(f"{name:<52}{seconds:>8.1f}   {said}")


class Node:
    """The node in the machine, spoken to as a release engineer would: `updater VERB` over SSH."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def updater(self, words: str, *, expect: int = 0, timeout: float = 240) -> str:
        """Run a verb, show its screen, and check its exit code."""
        print(f"node$ updater {words}", flush=True)
        done = self.machine.run(f"updater {words}", timeout=timeout, check=False)
        print("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()), end="", flush=True)
        if done.code != expect:
            raise DemoError(f"updater {words} exited {done.code}, not {expect}")
        return done.stdout + done.stderr

    def status(self) -> dict[str, Any]:
        """`updater --json status`."""
        found: dict[str, Any] = json.loads(self.machine.run("updater --json status", timeout=60).stdout)
        return found

    def brief(self) -> str:
        """Both slots in one line, the booted one starred."""
        return "  ".join(
            f"{s['slot']}{'*' if s['booted'] else ''}={s['release'] or '-'}:{s['state']}"
            for s in self.status()["slots"]
        )

    def expect(self, slot: str, timeout: float = 240) -> None:
        """Wait for the next boot, see from inside that it is this slot, and wait until the agent has settled."""
        boot = self.machine.wait_for_boot(timeout=timeout)
        if boot.slot != slot:
            raise DemoError(f"slot {boot.slot} booted, not slot {slot}")
        deadline = time.monotonic() + timeout
        while True:
            try:
                status = self.status()
                if status["booted"] == slot and status["upgrade"] is None:
                    return
            except (MachineError, ValueError):
                pass  # it is rebooting just now
            if time.monotonic() > deadline:
                raise DemoError(f"the agent in slot {slot} did not settle")
            time.sleep(1)


def main() -> int:
    """Run the demo; 0 when all went as expected."""
    table = Table()
    with tempfile.TemporaryDirectory(prefix="updater-demo-") as work:
        try:
            _demo(Path(work), table)
        except (DemoError, MachineError) as error:
            table.show()
            print(f"\nthe demo failed: {error}", file=sys.stderr)
            return 1
    table.show()
    print("\nevery boot was seen from inside the guest")
    return 0


def _demo(work: Path, table: Table) -> None:
    lab = Lab()
    with table.phase("root trees (cached after the first time)"):
        trees = {
            "MR95-1": lab.tree("MR95-1", first=True),
            "MR96-1": lab.tree("MR96-1"),
            "MR97-1": lab.tree("MR97-1", variant=Variant.UNHEALTHY),
        }
    bundles = work / "bundles"
    bundles.mkdir()
    for release, tree in trees.items():
        with table.phase(f"build and sign {release}") as said:
            output = bundles / f"{release.lower()}.bundle"
            words = f"{UPDATER} bundle build {output} --release {release} --compatible {COMPATIBLE} --tree {tree}"
            words += f" --size {IMAGE_SIZE} --kernel /boot/vmlinuz --initrd /boot/initrd.img --level 3"
            if data.catalogue(release, work / "migrations" / release):
                words += f" --migrations {work / 'migrations' / release}"
            run(*words.split(), "--key", lab.keys / "release.pem", timeout=600)
            print(run(UPDATER, "bundle", "inspect", output).stdout, flush=True)
            said.append(f"{output.stat().st_size >> 20} MiB")
    with table.phase("install MR95-1 in slot a of a new disk"):
        disk = lab.fresh_disk("MR95-1", work / "disk.qcow2", bundle=bundles / "mr95-1.bundle")
    with Server(bundles) as server, Machine(disk, work / "vm") as machine:
        _on_the_node(Node(machine), server, table)


def _on_the_node(node: Node, server: Server, table: Table) -> None:
    with table.phase("boot MR95-1") as said:
        node.machine.start()
        node.expect("a")
        node.updater("status")
        node.updater("doctor", expect=11)  # the machine has no watchdog; all else is well
        said.append(node.brief())
    with table.phase("the operator's own: a package, patches, files, configuration"):
        own.declare(node.machine)
        for words in own.VERBS:
            node.updater(words)
    with table.phase("stage MR96-1 over HTTP, while MR95-1 serves") as said:
        node.updater(f"plan {server.url('mr96-1.bundle', guest=True)}")
        node.updater(f"stage {server.url('mr96-1.bundle', guest=True)}")
        said.append(node.brief())
    with table.phase("activate MR96-1: boot, health, confirm") as said:
        node.updater("activate")
        node.expect("b")
        node.updater("status")
        for line in [*own.seen(node.machine), own.data_read(node.machine, "MR96-1")]:
            print(f"  seen inside: {line}")
        node.updater("migrate status")
        said.append(node.brief())
    with table.phase("roll back to MR95-1") as said:
        node.updater("rollback")
        node.expect("a")
        node.updater("status")
        print(f"  seen inside: {own.data_read(node.machine, 'MR95-1')}")
        said.append(node.brief())
    with table.phase("forward to MR96-1 again") as said:
        node.updater("activate")
        node.expect("b")
        said.append(node.brief())
    with table.phase("stage MR97-1, which is sick") as said:
        node.updater(f"stage {server.url('mr97-1.bundle', guest=True)}")
        said.append(node.brief())
    with table.phase("activate MR97-1: three tries, then back to MR96-1") as said:
        before = len(node.machine.boots)
        node.updater("activate")
        for number in range(1, 5):
            boot = node.machine.wait_for_kernel(before + number, timeout=240)
            print(f"  boot {number}: slot {boot.slot}, {boot.trying if boot.trying is not None else 'not'} on trial")
            if boot.slot != ("a" if number <= 3 else "b"):
                raise DemoError(f"try {number} booted slot {boot.slot}")
        node.expect("b")
        node.updater("status")
        print(f"  seen inside: {own.data_read(node.machine, 'MR96-1')}")
        said.append(node.brief())
    with table.phase("rollback is refused, with the reason"):
        text = node.updater("rollback", expect=35)
        if "acme" not in text:
            raise DemoError("the refusal does not say why slot a is bad")
        node.updater("history")


if __name__ == "__main__":
    sys.exit(main())
