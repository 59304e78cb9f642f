"""The check of a cut disk, on small disks whose writes are made by hand: it passes what is well, and finds what is not.

No machine is needed. A disk of the lab is put together in small: slot a runs, slot b holds the next release; then a
log says what was written to it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from core.journal import Journal
from partitions.boot.grub_config import ENVIRONMENT
from partitions.boot.grub_environment import render
from partitions.boot.state import BAD, GOOD, BootState, Slot, flip, variables
from tests.cuts.logs import make_log
from vagrant import data
from vagrant.cuts.check import Checker, Verdict
from vagrant.cuts.disks import How
from vagrant.cuts.fat import Fat
from vagrant.cuts.points import Point
from vagrant.cuts.record import Mark, Recording
from vagrant.disk import Layout, Partition, make_disk, make_image
from vagrant.loader import BOOT_FILES, esp_files
from vagrant.node import Lab
from vagrant.tree import File, put

pytestmark = pytest.mark.skipif(
    not all(map(shutil.which, ("sgdisk", "mcopy", "grub-mkimage", "e2fsck"))), reason="the lab's tools are missing"
)

LAYOUT = Layout(esp=40, slot=64, data=64)
LAB = Lab(tries=2, disk=LAYOUT)
PARTS = LAYOUT.partitions()
STAGED = BootState(primary="a", a=GOOD, b=BAD)

Writes = Sequence[tuple[str, int, bytes]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The disk before the first entry: slot a is good, slot b is complete and bad."""
    work = tmp_path_factory.mktemp("disk")
    images = {}
    for slot in ("a", "b"):
        tree = work / slot
        put(tree, {"/boot/vmlinuz": File(content=f"kernel {slot}" * 3000), "/boot/initrd.img": File(content="initrd")})
        put(tree, {"/usr/bin/program": File(content=f"program {slot}\n" * 5000)})
        images[slot] = make_image(tree, work / f"{slot}.image", size=LAYOUT.slot << 20)
    journal = work / "journal.sqlite"
    with Journal.open(journal) as opened:
        opened.set_slot("a", {"release": "MR95-1"})
        opened.set_slot("b", {"release": "MR96-1", "seal": "00", "seal_size": 4096})
    files = {
        "/updater/journal.sqlite": File(content=journal.read_bytes()),
        f"/{data.PLACE.relative_to('/data')}": File(content=data.fresh()),
    }
    esp = esp_files(LAYOUT, boot={"a": BOOT_FILES, "b": BOOT_FILES})
    return make_disk(
        work / "base", slot_a=images["a"], slot_b=images["b"], esp=esp, data=files, layout=LAYOUT
    )  # fmt: skip


@pytest.fixture
def check(base: Path, tmp_path: Path) -> Callable[..., Verdict]:
    """Check the disk after these writes, all of which are there (or as `how` says)."""

    def checked(writes: Writes, how: How = How.ALL, *, marks: Sequence[Mark] | None = None) -> Verdict:
        place = tmp_path / "recording"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "base").symlink_to(base)
        make_log(place / "log", writes)
        marks = marks or [Mark(name="staged", entry=0, runs="a", whole="b")]
        (place / "marks.json").write_text(json.dumps([asdict(mark) for mark in marks]))
        program = {f"{slot} 0": [_find(base, PARTS[f"slot-{slot}"], f"program {slot}\n".encode())] for slot in "ab"}
        (place / "own.json").write_text(json.dumps(program))
        work = place / "work"
        work.mkdir()
        with Checker(Recording(name="hand", path=place, lab=LAB), work, "seed") as checker:
            return checker.check(Point("hand", len(writes), 0, how))

    return checked


def _find(disk: Path, part: Partition, content: bytes) -> tuple[int, int]:
    """Where on the disk the block is that begins with this content."""
    with disk.open("rb") as file:
        file.seek(part.start)
        at = part.start + file.read(part.size).index(content)
    return at, 4096


def _environment(disk: Path, state: BootState) -> tuple[str, int, bytes]:
    """The write of another boot environment, in its own sectors."""
    esp = PARTS["esp"]
    with disk.open("rb") as file:
        fat = Fat(lambda offset, length: os.pread(file.fileno(), length, esp.start + offset))
        raw = fat.file(ENVIRONMENT)
        file.seek(esp.start)
        at = file.read(esp.size).index(raw)
    return "write", (esp.start + at) // 512, render(variables(state))


def _slot(slot: Slot, state: BootState = STAGED) -> BootState:
    return flip(state, slot, 2)


def test_nothing_was_written(check: Callable[..., Verdict]) -> None:
    verdict = check([])
    assert verdict.faults == ()
    assert (verdict.slot, verdict.counted, verdict.phase) == ("a", False, "staged")
    assert verdict.standing is not None
    assert verdict.standing.slots == ("a* good", "b staged")


def test_a_flip_is_there_or_not(base: Path, check: Callable[..., Verdict]) -> None:
    flipped = [_environment(base, _slot("b"))]
    after = check(flipped)
    assert (after.faults, after.slot, after.counted) == ((), "b", True)
    before = check(flipped, How.NONE)
    assert (before.faults, before.slot) == ((), "a")


def test_an_environment_that_is_gone_or_makes_no_sense(base: Path, check: Callable[..., Verdict]) -> None:
    kind, sector, raw = _environment(base, STAGED)
    for content in (
        bytes(1024),
        raw.replace(b"=good", b"=well"),
        raw[:512].replace(b"primary", b"primarx") + raw[512:],
    ):
        verdict = check([(kind, sector, content)])
        assert any("the boot environment" in fault for fault in verdict.faults), verdict
        assert verdict.slot is None


def test_a_slot_that_can_be_booted_and_is_not_what_was_staged(base: Path, check: Callable[..., Verdict]) -> None:
    at, _ = _find(base, PARTS["slot-b"], b"program b\n")
    change = ("write", at // 512, b"x" * 512)
    assert check([change]).faults == ()  # it is bad: nothing boots it
    verdict = check([change, _environment(base, _slot("b"))])
    assert any("own files" in fault for fault in verdict.faults), verdict


def test_a_flip_before_the_image_is_flushed(base: Path, check: Callable[..., Verdict]) -> None:
    at, _ = _find(base, PARTS["slot-b"], b"program b\n")
    image = [("write", at // 512, b"new program\n" + bytes(500)), ("write", at // 512 + 1, b"y" * 512)]
    marks = [Mark(name="stage", entry=0, runs="a", writes="b"), Mark(name="staged", entry=2, runs="a", whole="b")]
    flip_over = _environment(base, _slot("b"))
    # the environment survives, the image does not
    found = check([*image, ("fua", *flip_over[1:])], How.NONE, marks=marks)
    assert any("differ from what staging left" in fault for fault in found.faults), found
    marks = [marks[0], Mark(name="staged", entry=3, runs="a", whole="b")]
    assert check([*image, ("flush", 0, b""), flip_over], marks=marks).faults == ()
    marks = [Mark(name="staged", entry=0, runs="a", whole="b"), Mark(name="stage", entry=1, runs="a", writes="b")]
    half = check([flip_over, *image], marks=marks)
    assert any("half-written" in fault for fault in half.faults), half


def test_a_filesystem_that_is_damaged(base: Path, check: Callable[..., Verdict]) -> None:
    group = PARTS["slot-a"].start // 512 + 8  # the group descriptors
    verdict = check([("write", group, b"\xff" * 4096)])
    assert any(fault.startswith("slot a: ") for fault in verdict.faults), verdict
    verdict = check([("write", PARTS["data"].start // 512 + 2, bytes(1024))])
    assert any(fault.startswith("data: ") for fault in verdict.faults), verdict


def test_data_that_is_lost(base: Path, check: Callable[..., Verdict]) -> None:
    with base.open("rb") as file:
        part = PARTS["data"]
        file.seek(part.start)
        raw = file.read(part.size)
        names = {"journal": b"CREATE TABLE journal", "billing": b"acme-77"}
        for what, content in names.items():
            at = (part.start + raw.index(content)) // 4096 * 4096
            verdict = check([("write", at // 512, b"\x5a" * 4096)])
            assert verdict.faults, what


def test_a_torn_commit_of_the_journal_harms_nobody_without_metadata_csum(base: Path, tmp_path: Path) -> None:
    part, image, place, work = PARTS["data"], tmp_path / "data", tmp_path / "recording", tmp_path / "work"
    with base.open("rb") as file:
        file.seek(part.start)
        before = file.read(part.size)
    image.write_bytes(before)
    size = 1024  # what mkfs.ext4 chooses for so small a filesystem
    (tmp_path / "block").write_bytes(bytes(size))
    # one transaction more in the journal, with checksums: block 60000, which no file has
    commands = f"jo -c -v 3\njw -b 60000 {tmp_path / 'block'}\njc\n"
    subprocess.run(["debugfs", "-w", "-f", "-", image], input=commands.encode(), check=True, capture_output=True)
    after = image.read_bytes()
    changed = [at for at in range(0, part.size, size) if before[at : at + size] != after[at : at + size]]
    (commit,) = (at for at in changed if after[at : at + 8] == bytes.fromhex("c03b3998 00000002"))
    writes = [("write", (part.start + at) // 512, after[at : at + size]) for at in changed if at != commit]
    # what lay in the journal before, and then the commit
    writes.append(("write", (part.start + commit) // 512, b"\x5a" * size))
    writes += [("flush", 0, b""), ("write", (part.start + commit) // 512, after[commit : commit + size])]
    for path in (place, work):
        path.mkdir()
    (place / "base").symlink_to(base)
    make_log(place / "log", writes)
    (place / "marks.json").write_text(json.dumps([asdict(Mark(name="staged", entry=0, runs="a", whole="b"))]))
    (place / "own.json").write_text(json.dumps({"a 0": [], "b 0": []}))
    with Checker(Recording(name="hand", path=place, lab=LAB), work, "seed") as checker:
        found = [checker.check(Point("hand", len(writes), number, How.SOME)) for number in range(40)]
    assert [verdict.faults for verdict in found] == [()] * 40
    assert not any(verdict.mended for verdict in found)


def test_the_same_answer_forwards_and_backwards(base: Path, tmp_path: Path, check: Callable[..., Verdict]) -> None:
    check([_environment(base, _slot("b")), ("flush", 0, b""), _environment(base, STAGED), ("flush", 0, b"")])
    place, work = tmp_path / "recording", tmp_path / "work"
    work.mkdir()
    with Checker(Recording(name="hand", path=place, lab=LAB), work, "seed") as checker:
        points = [Point("hand", index) for index in (0, 2, 4, 2, 0)]
        assert [checker.check(point).slot for point in points] == ["a", "b", "a", "b", "a"]
