"""Recordings: whole cycles of an upgrade in a machine, with every write to its disk logged. Made once and cached.

A recording is a directory: `base` (the disk before, raw), `log` (see `log`), `marks.json` (see `Mark`), `own.json`
(where on the disk the releases' own files lie).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from vagrant import cache, disk, frozen, own
from vagrant.cuts.disks import CutDisk, as_raw
from vagrant.cuts.log import WriteLog
from vagrant.cuts.own_files import Ranges, find
from vagrant.frozen import QUICK
from vagrant.node import Lab
from vagrant.qemu import Machine
from vagrant.serve import Server
from vagrant.tree import Variant


class LoggedMachine(Machine):
    """A machine whose disk writes are logged to `log` from its start on. Its disk is written as always."""

    def __init__(self, disk: Path, log: Path, work: Path) -> None:
        super().__init__(disk, work)
        self.log = log
        log.touch()

    def _blockdevs(self) -> list[Mapping[str, object]]:
        """The log sits between the guest and the image's format, so it has what the guest wrote."""
        *before, last = super()._blockdevs()
        logged = {
            "driver": "blklogwrites",
            "node-name": last["node-name"],
            "file": {**last, "node-name": "logged"},
            "log": {"driver": "file", "filename": str(self.log)},
            "log-sector-size": 512,
            "discard": "unmap",
        }
        return [*before, logged]


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A phase of a recording begins with the entry `entry`. `runs`: the slot that the machine runs in it; `writes`:
    the slot into which an image is written in it; `whole`: the slot that is complete since here. Empty for none.
    """

    name: str
    entry: int
    runs: str
    writes: str = ""
    whole: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording on disk. `lab`: the node that was recorded."""

    name: str
    path: Path
    lab: Lab

    @property
    def base(self) -> Path:
        """The disk before the first entry."""
        return self.path / "base"

    @property
    def log(self) -> Path:
        """The log of writes."""
        return self.path / "log"

    @property
    def marks(self) -> list[Mark]:
        """Its phases, in order."""
        return [Mark(**each) for each in json.loads((self.path / "marks.json").read_text())]

    def own_files(self, slot: str, whole: int) -> Ranges:
        """Where on the disk the release's own files lie in a slot, which is complete since the entry `whole`."""
        found = json.loads((self.path / "own.json").read_text())[f"{slot} {whole}"]
        return Ranges(tuple((offset, length) for offset, length in found))


class Recorder:
    """A machine being recorded, and the marks so far."""

    def __init__(self, machine: LoggedMachine) -> None:
        self.machine = machine
        self.marks: list[Mark] = []

    def mark(self, name: str, runs: str, *, writes: str = "", whole: str = "", sync: bool = True) -> None:
        """A phase begins. With `sync` the guest flushes all it has first, so that no older write falls into it."""
        if sync:
            self.machine.run("sync")
        # before the first flush there is nothing in the log, not even its super block
        entry = 0
        if self.machine.log.stat().st_size:
            with WriteLog(self.machine.log) as log:
                entry = len(log)
        self.marks.append(Mark(name=name, entry=entry, runs=runs, writes=writes, whole=whole))

    def settled(self, slot: str, timeout: float = 240) -> None:
        """Wait until the machine has booted this slot and the agent is through with it."""
        boot = self.machine.wait_for_boot(timeout)
        if boot.slot != slot:
            raise RuntimeError(f"slot {boot.slot} booted, not {slot}")
        self.machine.run(
            "while [ $(systemctl show -P ExecMainExitTimestampMonotonic updater-confirm) = 0 ]; do sleep 0.5; done",
            timeout=timeout,
        )

    def until_kernel(self, count: int) -> str:
        """Wait for boot number `count` since the recording began; its slot."""
        return self.machine.wait_for_kernel(count, timeout=240).slot


Act = Callable[[Recorder, Lab], None]


def _stage(recorder: Recorder, lab: Lab) -> None:
    """The operator's own things are declared, and MR96-1 is staged."""
    machine, bundle = recorder.machine, lab.bundle("MR96-1")
    recorder.mark("before staging", "a")
    own.declare(machine)
    machine.run(" && ".join(f"updater {words}" for words in own.VERBS), timeout=300)
    with Server(bundle.parent) as server:
        recorder.mark("stage", "a", writes="b")
        machine.run(f"updater stage {server.url(bundle.name, guest=True)}", timeout=600)
    recorder.mark("staged", "a", whole="b")
    machine.run("updater status; sync")


def _switch(recorder: Recorder, lab: Lab) -> None:
    """MR96-1 is activated and confirmed, and rolled back."""
    machine = recorder.machine
    recorder.mark("staged", "a", whole="b")
    boots = _activate(recorder)
    recorder.mark("confirmed", "b")
    machine.run("updater status")
    recorder.mark("rollback", "b")
    machine.run("updater rollback")
    recorder.until_kernel(boots + 2)
    recorder.mark("rolled back", "a", sync=False)
    recorder.settled("a")
    machine.run("updater status; sync")


def _sick(recorder: Recorder, lab: Lab) -> None:
    """From MR96-1 in slot b the sick MR97-1 is staged over the good slot a, activated, and falls back."""
    machine, bundle = recorder.machine, lab.bundle("MR97-1", variant=Variant.UNHEALTHY)
    recorder.mark("staged", "a", whole="b")
    boots = _activate(recorder)
    with Server(bundle.parent) as server:
        recorder.mark("stage over a good slot", "b", writes="a")
        machine.run(f"updater stage {server.url(bundle.name, guest=True)}", timeout=600)
    recorder.mark("staged, sick", "b", whole="a")
    recorder.mark("activate, sick", "b")
    machine.run("updater activate")
    recorder.until_kernel(boots + 2)
    recorder.mark("trial, sick", "a", sync=False)
    recorder.until_kernel(boots + 2 + lab.tries)
    recorder.mark("fallback", "b", sync=False)
    recorder.settled("b")
    machine.run("updater status; sync")


def _activate(recorder: Recorder) -> int:
    """MR96-1 in slot b becomes good; how many boots there were before."""
    boots = len(recorder.machine.boots)
    recorder.mark("activate", "a")
    recorder.machine.run("updater activate")
    recorder.until_kernel(boots + 1)
    recorder.mark("trial", "b", sync=False)
    recorder.settled("b")
    return boots


#: A boot environment that is truncated and written anew, as `grub-editenv set` does it.
_PLANTED = """
import os
path = "/efi/updater/grubenv"
for count in range(12):
    raw = open(path, "rb").read()
    old, new = (b"b_state=bad", b"b_state=good")[:: 1 if count % 2 == 0 else -1]
    with open(path, "wb") as file:
        file.write(raw.replace(old, new).ljust(1024, b"#")[:1024])
        file.flush()
        os.fsync(file.fileno())
    with open("/data/lab-count", "w") as file:
        file.write(str(count))
        os.fsync(file.fileno())
"""


def _planted(recorder: Recorder, lab: Lab) -> None:
    """Something writes the boot environment as it must not be written. For showing that such a thing is found."""
    recorder.mark("staged", "a", whole="b")
    recorder.mark("planted", "a")
    recorder.machine.run("python3 -", input=_PLANTED.encode())
    recorder.machine.run("sync")


def _own_files(part: Path, lab: Lab, marks: list[Mark]) -> dict[str, list[tuple[int, int]]]:
    """By slot and entry since which it is complete: where the files of its release lie on the disk."""
    found: dict[str, list[tuple[int, int]]] = {}
    with WriteLog(part / "log") as log, CutDisk(part / "base", log) as disk:
        for slot, whole in (("a", 0), *((mark.whole, mark.entry) for mark in marks if mark.whole)):
            disk.leave(whole, ())
            place = lab.disk.partitions()[f"slot-{slot}"]
            image, mount_at = part / "slot", part / "mounted"
            mount_at.mkdir()
            try:
                disk.materialise(image, start=place.start, end=place.start + place.size)
                ranges = find(image, mount_at).ranges
            finally:
                image.unlink(missing_ok=True)
                mount_at.rmdir()
            found[f"{slot} {whole}"] = [(place.start + offset, length) for offset, length in ranges]
    return found


#: By name: what is recorded, and the frozen machine that it begins with.
ACTS: Mapping[str, tuple[Act, Callable[[Lab], Path]]] = {
    "stage": (_stage, frozen.running),
    "switch": (_switch, frozen.staged),
    "sick": (_sick, frozen.staged),
    "planted": (_planted, frozen.staged),
}


def recording(name: str, lab: Lab = QUICK) -> Recording:
    """The recording of one of `ACTS`, from the cache where it was made before; takes minutes where not."""
    act, begin = ACTS[name]
    start = begin(lab)

    def make(part: Path) -> None:
        part.mkdir()
        as_raw(start / "disk", part / "base")
        overlay = disk.overlay(start / "disk", part / "disk")
        with LoggedMachine(overlay, part / "log", part / "machine") as machine:
            machine.thaw(start / "state")
            recorder = Recorder(machine)
            act(recorder, lab)
        (part / "marks.json").write_text(json.dumps([asdict(mark) for mark in recorder.marks], indent=1))
        overlay.unlink()
        cache.remove(part / "machine")
        (part / "own.json").write_text(json.dumps(_own_files(part, lab, recorder.marks)))

    began = time.monotonic()
    path = cache.cached(f"cuts-{name}", cache.key(start.name, lab.bundle("MR96-1").name, Path(__file__)), make)
    if time.monotonic() - began > 5:
        print(f"recorded {name} in {time.monotonic() - began:.0f} s", flush=True)
    for old in path.parent.glob(f"cuts-{name}-*"):  # each takes about two gigabytes
        if old != path:
            cache.remove(old)
    return Recording(name=name, path=path, lab=lab)
