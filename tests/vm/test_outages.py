"""A machine whose power goes at random instants, and one whose disk, memory or clock fails: it says what is wrong,
loses nothing, goes on with the release that it runs, and finishes its work when the fault is gone.

The faults that tests/cuts/test_failing_disk.py makes under a sandbox as well are on demand here: ``make test-long``.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.vm.conftest import thawed
from tests.vm.guest import states, status
from vagrant import disk
from vagrant.node import Lab
from vagrant.outages.cuts import CHANCE, Outages, table
from vagrant.outages.driver import Bundles, Operator
from vagrant.outages.faults import FaultyMachine
from vagrant.outages.power import VolatileMachine
from vagrant.qemu import Machine
from vagrant.serve import Server

GRUBENV = "/efi/updater/grubenv"


@pytest.fixture
def fresh(running: Path, tmp_path: Path) -> Iterator[FaultyMachine]:
    """MR95-1 runs."""
    yield from thawed(running, tmp_path, FaultyMachine)


@pytest.fixture
def ready(staged: Path, tmp_path: Path) -> Iterator[FaultyMachine]:
    """MR95-1 runs, MR96-1 is staged."""
    yield from thawed(staged, tmp_path, FaultyMachine)


def refused(machine: Machine, words: str, code: int) -> str:
    """A verb ends with this exit code; what it says. Slot a stays what runs and what boots next."""
    done = machine.run(f"updater {words}", check=False, timeout=400)
    text = done.stdout + done.stderr
    assert done.code == code, (words, done.code, text)
    assert "Traceback" not in text
    assert "state " in text and "next " in text, text
    return text


def still_whole(machine: Machine) -> None:
    """Slot a runs and is the next to boot; slot b is staged; and flipping works, as does taking it back."""
    assert states(machine) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "staged")}
    machine.run("updater activate --no-reboot", timeout=200)
    assert status(machine)["next_boot"] == "b"
    machine.run("updater abort")
    found = status(machine)
    assert (found["upgrade"], found["booted"], found["next_boot"]) == (None, "a", "a")


def test_three_cuts_in_a_row(staged: Path, lab: Lab, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    rng, bundle = random.Random(seed), lab.bundle("MR96-1")
    overlay = disk.overlay(staged / "disk", tmp_path / "disk")
    with Server(bundle.parent) as server, VolatileMachine(overlay, tmp_path / "machine", rng) as machine:
        url = server.url(bundle.name, guest=True)
        # one in the activation, and two more while it comes up again: that is one boot for three cuts
        operator = Operator(machine, Bundles(sound=url, sick=url), rng)
        outages = Outages(operator, rng, chance={**CHANCE, "activate": 1.0}, again=1.0)
        outages.begin(staged)
        cuts = outages.run(3)
    with capsys.disabled():
        print("", *(cut.line() for cut in cuts), *table(cuts), f"seed {seed}", sep="\n  ")
    assert len(cuts) == 3
    assert not any(cut.wrong for cut in cuts)


@pytest.mark.long
def test_a_slot_that_cannot_be_written_and_then_little_memory(fresh: FaultyMachine, lab: Lab) -> None:
    bundle, slot = lab.bundle("MR96-1"), lab.disk.partitions()["slot-b"]
    with Server(bundle.parent) as server:
        url = server.url(bundle.name, guest=True)
        with fresh.failing("write", sector=slot.start // 512 + 8):
            text = refused(fresh, f"stage {url}", 30)
            assert "slot b" in text or "slot-b" in text
        found = status(fresh)
        assert (found["upgrade"]["verb"], found["next_boot"]) == ("stage", "a")
        assert states(fresh)["b"][1] == "bad"
        # the disk is mended, and all but some 250 MB of memory is taken: nothing swaps it out
        fresh.run(
            "mount -o remount,size=100% /dev/shm; free=$(awk '/MemAvailable/ {print int($2 / 1024)}' /proc/meminfo); "
            "head -c $((free - 250))M /dev/zero > /dev/shm/hog"
        )
        fresh.run("updater resume", timeout=400)
    assert states(fresh) == {"a": ("MR95-1", "good"), "b": ("MR96-1", "staged")}


@pytest.mark.long
def test_an_esp_that_cannot_be_written_or_read(ready: FaultyMachine) -> None:
    sector = ready.sector_of(GRUBENV)
    ready.run("mount -o remount,ro /efi")
    assert "not writable" in refused(ready, "activate", 31)
    ready.run("mount -o remount,rw /efi")
    with ready.failing("read", sector=sector):
        ready.run("echo 3 > /proc/sys/vm/drop_caches")
        refused(ready, "activate", 31)
        assert status(ready)["indicator"] == "CRITICAL"
    with ready.failing("write", sector=sector):
        refused(ready, "activate", 31)
    ready.run("mount -o remount,rw /efi; echo 3 > /proc/sys/vm/drop_caches")  # an error may turn it read-only
    assert status(ready)["next_boot"] == "a"
    ready.run("updater abort")
    still_whole(ready)


@pytest.mark.long
def test_a_full_data_partition(ready: FaultyMachine) -> None:
    ready.run("fallocate -l $(($(df --output=avail -B1 /data | tail -1) - 1000000)) /data/full")
    ready.run("cat /dev/zero > /data/rest; sync", check=False)
    refused(ready, "activate", 24)
    assert status(ready)["booted"] == "a"
    ready.run("rm /data/full /data/rest")
    still_whole(ready)


@pytest.mark.long
def test_a_clock_at_1970(ready: FaultyMachine, lab: Lab) -> None:
    now = int(ready.run("date +%s").stdout)
    ready.run("date -s @1000")
    found = status(ready)
    assert (found["upgrade"], found["next_boot"]) == (None, "a")
    with Server(lab.bundle("MR96-1").parent) as server:
        text = refused(ready, f"stage {server.url(lab.bundle('MR96-1').name, guest=True)}", 21)
    assert "clock" in text
    ready.run(f"date -s @{now}")
    still_whole(ready)
