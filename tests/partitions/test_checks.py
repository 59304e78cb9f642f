"""The doctor's questions about devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import NotReady
from partitions import checks
from partitions.disks import Device

MIB = 1 << 20


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name in "ab":
        (tmp_path / name).write_bytes(bytes(MIB))
    return tmp_path / "a", tmp_path / "b"


def test_sound_pair(pair: tuple[Path, Path]) -> None:
    assert checks.usable(pair[0]) == f"{pair[0]}, 1 MiB"
    assert checks.equal(*pair) == "1 MiB each"
    assert checks.unused(pair[1]) == "nothing uses it"


def test_unequal(pair: tuple[Path, Path]) -> None:
    os.truncate(pair[1], 2 * MIB)
    with pytest.raises(NotReady, match="differ in size") as failure:
        checks.equal(*pair)
    assert failure.value.what == (f"{pair[0]}, 1 MiB", f"{pair[1]}, 2 MiB")


def test_the_same_twice(pair: tuple[Path, Path]) -> None:
    pair[1].unlink()
    pair[1].symlink_to(pair[0])
    with pytest.raises(NotReady, match="same device"):
        checks.equal(*pair)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(NotReady, match="does not exist"):
        checks.usable(tmp_path / "none")


def test_name_that_does_not_last(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(path=Path("/dev/sda2"), kind="partition", size=MIB, partlabel="slot-a")
    monkeypatch.setattr(checks, "describe", lambda name: device)
    monkeypatch.setattr(checks, "devices", lambda: [device])
    with pytest.raises(NotReady, match="after the next boot") as failure:
        checks.usable(Path("/dev/sda2"))
    assert failure.value.next == ('set device = "/dev/disk/by-partlabel/slot-a" in node.toml',)
    assert checks.usable(Path("/dev/disk/by-partlabel/slot-a")).startswith("/dev/sda2")


def test_root_is_elsewhere(pair: tuple[Path, Path]) -> None:
    with pytest.raises(NotReady, match="not on"):
        checks.runs_from(pair[0])


@pytest.mark.root
def test_inactive_slot_in_use(loop: Callable[..., Path], tmp_path: Path) -> None:
    device = loop(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", str(device)], check=True)
    point = tmp_path / "mnt"
    point.mkdir()
    subprocess.run(["mount", str(device), str(point)], check=True)
    try:
        with pytest.raises(NotReady, match="in use") as failure:
            checks.unused(device)
        assert failure.value.what == (f"mounted at {point}",)
        with pytest.raises(NotReady, match="not on"):
            checks.runs_from(device)
    finally:
        subprocess.run(["umount", str(point)], check=True)
