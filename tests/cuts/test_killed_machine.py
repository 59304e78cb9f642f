"""What a killed machine's disk is made of, and how a look inside is judged; no machine is booted."""

from __future__ import annotations

import os
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from core.run import run
from tests.cuts.logs import make_log
from vagrant import data
from vagrant.disk import Layout, copy_sparse
from vagrant.outages import cuts, guest
from vagrant.outages.driver import PowerCut
from vagrant.outages.power import Loss, recover, settle
from vagrant.qemu import Boot

PAGE = 4096
FLUSHED, PENDING = b"F" * PAGE, b"P" * PAGE


def after(tmp_path: Path, seed: int, entries: list[tuple[str, int, bytes]], **more: Any) -> tuple[Loss, bytes]:
    """What a cut makes of an empty disk with this log."""
    disk = tmp_path / f"disk-{seed}"
    disk.write_bytes(bytes(64 * PAGE))
    loss = settle(disk, make_log(tmp_path / f"log-{seed}", entries, **more), random.Random(seed))
    return loss, disk.read_bytes()


def test_what_was_flushed_stays_and_the_rest_is_left_to_chance(tmp_path: Path) -> None:
    entries = [("write", 0, FLUSHED), ("flush", 0, b""), *(("write", 8 * (n + 1), PENDING) for n in range(20))]
    fates = set()
    for seed in range(8):
        # the super block counts as QEMU does: up to the last flush
        loss, disk = after(tmp_path, seed, entries, count=2)
        assert disk[:PAGE] == FLUSHED
        assert loss.durable == 1 and loss.kept + loss.torn + loss.lost == 20
        pages = [disk[PAGE * (n + 1) : PAGE * (n + 2)] for n in range(20)]
        whole = sum(page == PENDING for page in pages)
        none = sum(page == bytes(PAGE) for page in pages)
        assert (loss.kept, loss.lost, loss.torn) == (whole, none, 20 - whole - none)
        fates |= {"kept"} if loss.kept else set()
        fates |= {"torn"} if loss.torn else set()
        fates |= {"lost"} if loss.lost else set()
    assert fates == {"kept", "torn", "lost"}


def test_the_log_ends_where_its_writer_was_killed(tmp_path: Path) -> None:
    entries = [("write", 0, FLUSHED), ("flush", 0, b""), ("write", 8, PENDING)]
    log = make_log(tmp_path / "log", entries, count=2)
    disk = tmp_path / "disk"
    for end in (bytes(512), b"\x01\x02", log.read_bytes()[512:600]):
        disk.write_bytes(bytes(64 * PAGE))
        torn = tmp_path / "torn"
        torn.write_bytes(log.read_bytes() + end)
        assert settle(disk, torn, random.Random(1)).durable == 1
        assert disk.read_bytes()[:PAGE] == FLUSHED
    torn.write_bytes(b"")
    assert settle(disk, torn, random.Random(1)) == Loss(durable=0, kept=0, torn=0, lost=0)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="loop devices need root")
def test_only_a_filesystem_that_was_mounted_is_recovered(tmp_path: Path) -> None:
    disk, image = tmp_path / "disk", tmp_path / "image"
    part = replace(Layout().partitions()["data"], start=1 << 20, size=32 << 20)
    disk.write_bytes(bytes(40 << 20))
    assert not recover(disk, part)  # no filesystem
    image.write_bytes(bytes(part.size))
    run("mkfs.ext4", "-q", "-F", "-b", "4096", "-J", "size=4", image)
    copy_sparse(image, disk, at=part.start, room=part.size)
    clean = disk.read_bytes()
    assert not recover(disk, part)
    assert disk.read_bytes() == clean  # of a slot that is sealed every byte counts
    run("debugfs", "-w", "-R", "feature needs_recovery", image)
    copy_sparse(image, disk, at=part.start, room=part.size)
    assert recover(disk, part)
    assert not recover(disk, part)


def seen(**changed: Any) -> dict[str, Any]:
    """A look inside a machine where all is well."""
    slot = {"slot": "a", "booted": True, "release": "MR95-1", "state": "good"}
    status = {"slots": [slot], "indicator": "OK", "problems": []}
    return {
        "numbers": 12,
        "calls": 3,
        "billing": "ok",
        "journal": "ok",
        "release": "MR95-1",
        "balance": data.answer("MR95-1"),
        "failed": "",
        "status": status,
    } | changed


KEPT = guest.Kept(numbers=12, calls=3)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"numbers": 11}, "12 numbers were durable, 11 are there"),
        ({"calls": 2}, "3 calls were durable, 2 are there"),
        ({"journal": "malformed"}, "journal: malformed"),
        ({"balance": "no such table"}, "acme-balance says no such table"),
        ({"failed": "acme.service loaded failed failed The application"}, "acme.service failed"),
        ({"status": "error: the journal cannot be used"}, "status: error"),
        ({"release": "MR96-1", "balance": data.answer("MR96-1")}, "status takes"),
    ],
)
def test_what_is_wrong_is_seen(changed: dict[str, Any], said: str) -> None:
    assert guest.faults(seen(), KEPT, "a") == []
    wrong = guest.faults(seen(**changed), KEPT, "a")
    assert len(wrong) == 1 and said in wrong[0]


def test_the_agent_may_say_that_a_run_is_interrupted() -> None:
    assert guest.faults(seen(failed="updater-confirm.service loaded failed failed"), KEPT, "a") == []


class FakeMachine:
    """Power, and nothing else."""

    def __init__(self) -> None:
        self.was_cut, self.started = False, 0

    def start(self) -> None:
        self.was_cut, self.started = False, self.started + 1

    def cut(self) -> None:
        self.was_cut = True

    def come_to_rest(self) -> Loss:
        assert self.was_cut
        return Loss(durable=1, kept=2, torn=3, lost=4)


class FakeOperator:
    """A stage is interrupted by every cut; `resume` finishes it at once."""

    def __init__(self, wrong: list[str]) -> None:
        self.machine, self.wrong, self.open, self.doing = FakeMachine(), wrong, False, ""

    def settle(self) -> dict[str, Any]:
        return {"upgrade": {"verb": "stage", "state": "interrupted", "step": "write"} if self.open else None}

    def choose(self, status: dict[str, Any]) -> str:
        return "resume" if status["upgrade"] else "stage x"

    def do(self, words: str) -> dict[str, Any]:
        self.open = words != "resume"
        while self.open and not self.machine.was_cut:
            time.sleep(0.01)
        if self.open:
            raise PowerCut
        return self.settle()

    def restart_begins(self, doing: str) -> None:
        self.doing = doing

    def come_up(self) -> Boot:
        return Boot(id="x", slot="a", trying=None)

    def inspect(self, boot: Boot) -> tuple[dict[str, Any], list[str]]:
        return {"status": {**self.settle(), "last_run": ""}}, list(self.wrong)

    def inside(self, command: str) -> tuple[int, str]:
        return 0, ""

    def where(self) -> str:
        return self.doing or "stage"


@pytest.mark.parametrize("wrong", [[], ["a number is missing"]])
def test_the_power_goes_again_on_the_way_up(
    wrong: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cuts, "AGAIN_SPAN", 0.05)
    monkeypatch.setattr(cuts, "SECONDS", dict.fromkeys(cuts.SECONDS, 0.05))
    operator = FakeOperator(wrong)
    outages = cuts.Outages(cast("Any", operator), random.Random(1), chance=dict.fromkeys(cuts.CHANCE, 1.0), again=1.0)
    found = outages.run(3)
    assert [cut.phase for cut in found] == ["stage", "power on", "power on"]
    assert operator.machine.started == 3
    assert {(cut.came_up, cut.said, cut.finished) for cut in found} == {
        ("slot a", "stage interrupted, step write", "resume")
    }
    assert [cut.wrong for cut in found] == [[], [], wrong]  # what is wrong is told once
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("cut ")]) == 3
    assert "| power on | 2 | slot a | stage interrupted, step write | resume |" in cuts.table(found)
