"""Growing real filesystems to their slots."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core import faults
from core.errors import DeviceFailed, NoSpace, NotReady
from core.report import Kind
from partitions.filesystems import filesystem_size
from partitions.mounts import mounted
from partitions.slots import Slot, grow
from tests.partitions.fakes import Heard

MIB = 1 << 20

MAKERS = {
    "ext4": (["mkfs.ext4", "-q"], 32 * MIB, 80 * MIB),
    "xfs": (["mkfs.xfs", "-q"], 320 * MIB, 512 * MIB),
    "btrfs": (["mkfs.btrfs", "-q"], 128 * MIB, 300 * MIB),
}


def image(file: Path, maker: list[str], small: int, large: int) -> Path:
    """A filesystem of `small` bytes in a file of `large`."""
    with file.open("wb") as out:
        out.truncate(small)
    subprocess.run([*maker, str(file)], check=True, capture_output=True)
    os.truncate(file, large)
    return file


@pytest.mark.root
@pytest.mark.parametrize("on", ["file", "loop"])
@pytest.mark.parametrize("name", MAKERS)
def test_grow(name: str, on: str, tmp_path: Path, loop: Callable[..., Path], heard: Heard) -> None:
    maker, small, large = MAKERS[name]
    file = image(tmp_path / "slot.img", maker, small, large)
    slot = Slot(name="b", device=loop(file=file) if on == "loop" else file)
    with mounted(slot.device, read_only=False) as point:
        (point / "kept").write_text("here")
    assert grow(slot, heard.report)
    size = filesystem_size(slot.device)
    assert size is not None and large - MIB < size <= large
    note = [event for event in heard.events if event.kind is Kind.NOTE][-1]
    assert note.data == {"slot": "b", "before": small, "after": size}
    with mounted(slot.device, read_only=True) as point:
        assert (point / "kept").read_text() == "here"
    assert not grow(slot, heard.report)


@pytest.mark.root
@pytest.mark.parametrize("point", ["grow:before", "grow:checked", "grow:after"])
def test_again_after_dying_half_way(point: str, tmp_path: Path, heard: Heard) -> None:
    slot = Slot(name="b", device=image(tmp_path / "slot.img", *MAKERS["ext4"]))
    child = os.fork()
    if child == 0:
        try:
            faults.arm(lambda name: os.kill(os.getpid(), signal.SIGKILL) if name == point else None)
            grow(slot, heard.report)
        finally:
            os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
    assert grow(slot, heard.report) == (point != "grow:after")
    assert filesystem_size(slot.device) == 80 * MIB
    subprocess.run(["e2fsck", "-f", "-n", str(slot.device)], check=True, capture_output=True)


def test_read_only_filesystems_stay(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "tree").mkdir()
    file = tmp_path / "slot.img"
    subprocess.run(
        ["mksquashfs", str(tmp_path / "tree"), str(file), "-quiet", "-no-progress"], check=True, capture_output=True
    )
    os.truncate(file, 40 * MIB)
    before = file.read_bytes()
    assert not grow(Slot(name="a", device=file), heard.report)
    assert file.read_bytes() == before


def test_no_filesystem(tmp_path: Path, heard: Heard) -> None:
    (tmp_path / "slot").write_bytes(bytes(MIB))
    with pytest.raises(DeviceFailed, match="no filesystem"):
        grow(Slot(name="a", device=tmp_path / "slot"), heard.report)


def test_filesystem_larger_than_the_slot(tmp_path: Path, heard: Heard) -> None:
    file = image(tmp_path / "slot", *MAKERS["ext4"])
    os.truncate(file, 20 * MIB)
    with pytest.raises(NoSpace, match="larger than slot a"):
        grow(Slot(name="a", device=file), heard.report)


def test_damaged_filesystem(tmp_path: Path, heard: Heard) -> None:
    file = image(tmp_path / "slot", *MAKERS["ext4"])
    with file.open("r+b") as out:
        out.seek(4096)
        out.write(b"\xa5" * 400_000)  # group descriptors, bitmaps, inode tables
    with pytest.raises(DeviceFailed, match="cannot grow") as failure:
        grow(Slot(name="b", device=file), heard.report)
    assert "written again" in failure.value.state


@pytest.mark.root
def test_mounted_slot_is_refused(tmp_path: Path, heard: Heard) -> None:
    file = image(tmp_path / "slot", *MAKERS["ext4"])
    with mounted(file, read_only=True), pytest.raises(NotReady, match="in use"):
        grow(Slot(name="b", device=file), heard.report)
