"""The data partition runs full: before a verb, and at each single write of one. What is left can always be mended."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from core import faults
from tests.cli.clilab import cli, contents, refused, runs, slot, status, well_told
from tests.updater.lab import Lab, copy_sandbox, do
from updater import checks

pytestmark = pytest.mark.root

PAGE = 4096
DataMaker = Callable[[Path], Path]


@pytest.fixture
def small_data(small_tmpfs: Callable[[int], Path]) -> DataMaker:
    """``small_data(node)`` moves the node's data to a filesystem of 1 MiB, and returns where a filler may be put."""

    def make(node: Path) -> Path:
        disk = small_tmpfs(1 << 20)
        data = node.parent / "data"
        shutil.copytree(data, disk / "data")
        shutil.rmtree(data)
        data.symlink_to(disk / "data")
        return disk / "filler"

    return make


def fill(filler: Path, leave: int = 0) -> None:
    """Leave so many bytes free."""
    with filler.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(PAGE))
        except OSError:
            pass
        out.truncate(max(0, out.tell() - leave))


def no_room_needed() -> None:
    """The check that there is room says yes: so that the verbs run into the wall."""
    checks.JOURNAL_ROOM = 0


def mended(node: Path, bundle: Path) -> None:
    """With room again: what is open goes on, what is not is done anew; the release is staged in the end."""
    if status(node)["upgrade"] is not None:
        ended = cli(node, "resume", before=no_room_needed)
    else:
        ended = cli(node, "stage", bundle, before=no_room_needed)
    assert ended.code == 0, ended
    assert slot(node, "b")["state"] == "staged" and status(node)["upgrade"] is None


def test_the_room_is_checked_first(lab: Lab, node: Path, small_data: DataMaker) -> None:
    small_data(node)
    refused(node, 24, "stage", lab.bundle("MR96-1"))


def test_little_room(lab: Lab, place: Path, small_data: DataMaker) -> None:
    """However much is left: it works, or says that there is no room, and can be mended."""
    bundle, codes = lab.bundle("MR96-1"), set()
    for pages in (0, 1, 2, 3, 4, 6, 9, 14, 20):
        node = lab.sandbox(place / f"node{pages}")
        filler = small_data(node)
        fill(filler, pages * PAGE)
        running = contents(node)[str(node.parent / "slots/a.img")]
        ended = cli(node, "stage", bundle, before=no_room_needed)
        codes.add(ended.code)
        if ended.code:
            well_told(ended, 24)
            assert slot(node, "b")["state"] == "bad" and status(node)["next_boot"] == "a"
        assert contents(node)[str(node.parent / "slots/a.img")] == running
        filler.unlink()
        mended(node, bundle)
    assert codes == {0, 24}


def test_no_room_at_each_write_of_stage(lab: Lab, place: Path, small_data: DataMaker) -> None:
    bundle = lab.bundle("MR96-1")
    sample = lab.sandbox(place / "sample")
    for number in range(100):
        node = copy_sandbox(sample.parent, place / f"node{number}")
        filler = small_data(node)
        ended = cli(node, "stage", bundle, before=full_at(number, filler))
        if not filler.exists():
            assert ended.code == 0 and number > 10
            return
        if ended.code:
            well_told(ended, 24)
        filler.unlink()
        if number % 4 == 3 and status(node)["upgrade"] is not None:
            assert cli(node, "abort").code == 0
            assert runs(node) == ["stage aborted"] and slot(node, "b")["state"] == "bad"
        else:
            mended(node, bundle)


def test_no_room_at_each_write_of_activate(lab: Lab, place: Path, small_data: DataMaker) -> None:
    sample = lab.sandbox(place / "sample")
    do(sample, "stage", lab.bundle("MR96-1"))
    for number in range(100):
        node = copy_sandbox(sample.parent, place / f"node{number}")
        filler = small_data(node)
        ended = cli(node, "activate", before=full_at(number, filler))
        if not filler.exists():
            assert ended.code == 0 and number > 5
            return
        if ended.code:
            well_told(ended, 24)
        filler.unlink()
        found = status(node)
        assert found["next_boot"] in ("a", "b")
        if found["upgrade"] is not None:
            went_on = cli(node, "resume")
            assert went_on.code == 0, (number, ended, went_on)
        elif not slot(node, "b")["booted"]:
            assert cli(node, "activate").code == 0
        assert slot(node, "b")["booted"] and slot(node, "b")["state"] == "good", number


def full_at(number: int, filler: Path) -> Callable[[], None]:
    """In the child: the disk is full from the `number`-th write of the journal on."""
    seen: list[str] = []

    def full(name: str) -> None:
        if name.startswith("journal:"):
            seen.append(name)
            if len(seen) == number + 1:
                fill(filler)
                os.sync()

    def arm() -> None:
        no_room_needed()
        faults.arm(full)

    return arm
