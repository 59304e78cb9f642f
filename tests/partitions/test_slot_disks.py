"""Describing devices, and proposing a layout."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DeviceFailed, NotReady
from partitions import disks
from partitions.disks import Device, describe, devices, find, size_of, stable_name, users_of
from partitions.layout import propose

MIB = 1 << 20
GIB = 1 << 30
ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"


def partition(name: str, size: int, **more: Any) -> Device:
    return replace(
        Device(path=Path("/dev") / name, kind="partition", size=size, parent=Path("/dev") / name[:-1]),
        **more,
    )


FOUR = [
    Device(path=Path("/dev/sda"), kind="disk", size=20 * GIB),
    partition("sda1", 128 * MIB, partlabel="esp", fstype="vfat", parttype=ESP),
    partition("sda2", 4 * GIB, partlabel="slot-a", fstype="ext4", partuuid="22"),
    partition("sda3", 4 * GIB, partlabel="slot-b", partuuid="33"),
    partition("sda4", 11 * GIB, partlabel="data", fstype="ext4"),
]


@given(st.permutations(FOUR))
def test_the_documented_layout(order: list[Device]) -> None:
    layout = propose(order)
    assert [[d.path.name for d in pair] for pair in layout.slots] == [["sda2", "sda3"]]
    assert [d.path.name for d in layout.esp] == ["sda1"]
    assert [d.path.name for d in layout.data] == ["sda4"]


def test_without_labels_equal_sizes_on_one_disk() -> None:
    bare = [replace(device, partlabel="", parttype="") for device in FOUR] + [partition("sdb1", 4 * GIB)]
    layout = propose(bare)
    assert [[d.path.name for d in pair] for pair in layout.slots] == [["sda2", "sda3"]]
    assert layout.esp == ()
    assert layout.data[0].path.name == "sda4"


def test_several_pairs_the_labelled_first() -> None:
    more = [partition("nvme0n1p1", 4 * GIB), partition("nvme0n1p2", 4 * GIB), *FOUR]
    layout = propose(more)
    assert layout.slots[0][0].partlabel == "slot-a"
    assert [d.path.name for d in layout.slots[1]] == ["nvme0n1p1", "nvme0n1p2"]


def test_read_only_and_small_ones_are_no_slots() -> None:
    assert propose([partition("sda1", 4 * GIB, read_only=True), partition("sda2", 4 * GIB)]).slots == ()
    assert propose([partition("sda1", MIB), partition("sda2", MIB)]).slots == ()


def test_stable_names() -> None:
    assert str(stable_name(FOUR[2], FOUR)) == "/dev/disk/by-partlabel/slot-a"
    twin = replace(FOUR[2], path=Path("/dev/sdb2"), partuuid="44")
    assert str(stable_name(FOUR[2], [*FOUR, twin])) == "/dev/disk/by-partuuid/22"
    assert str(stable_name(FOUR[0], FOUR)) == "/dev/sda"


def test_plain_file(tmp_path: Path) -> None:
    file = tmp_path / "slot"
    file.write_bytes(bytes(8 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-L", "root", str(file)], check=True)
    found = describe(file)
    assert (found.kind, found.size, found.fstype, found.label, found.read_only) == (
        "file",
        8 * MIB,
        "ext4",
        "root",
        False,
    )
    assert users_of(file) == [] and users_of(tmp_path / "missing") == []


def test_size_of_what_has_none(tmp_path: Path) -> None:
    with pytest.raises(DeviceFailed, match="size"):
        size_of(tmp_path)
    with pytest.raises(DeviceFailed, match="size"):
        size_of(tmp_path / "missing")


def test_missing_device() -> None:
    with pytest.raises(NotReady, match="does not exist"):
        find(Path("/dev/disk/by-partlabel/no-such-slot"))
    with pytest.raises(NotReady, match="does not exist"):
        describe(Path("/dev/no-such-disk"))


def test_stable_name_without_udevd(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {Path("/dev/x1"): {"ID_PART_ENTRY_NAME": "slot-q"}, Path("/dev/x2"): {"ID_PART_ENTRY_NAME": "slot-r"}}
    monkeypatch.setattr(disks, "_block_devices", lambda: list(known))
    monkeypatch.setattr(disks, "_properties", lambda path: known[path])
    assert find(Path("/dev/disk/by-partlabel/slot-q")) == Path("/dev/x1")
    known[Path("/dev/x2")] = known[Path("/dev/x1")]
    with pytest.raises(NotReady, match="not unique"):
        find(Path("/dev/disk/by-partlabel/slot-q"))


@pytest.mark.root
def test_loop_device(loop: Callable[..., Path], tmp_path: Path) -> None:
    device = loop(16 * MIB)
    subprocess.run(
        ["mkfs.ext4", "-q", "-L", "lab el", "-U", "3e6be9de-8139-4a1f-8d2b-5a1d6f1c0a11", str(device)], check=True
    )
    found = describe(device)
    assert (found.kind, found.size, found.fstype) == ("loop", 16 * MIB, "ext4")
    assert found.fsuuid == "3e6be9de-8139-4a1f-8d2b-5a1d6f1c0a11"
    assert found in devices()
    link = tmp_path / "by-name"
    link.symlink_to(device)
    assert describe(link).path == device
    assert users_of(tmp_path / "loop0.img") == [f"loop device {device}"]


@pytest.mark.root
def test_read_only_loop(loop: Callable[..., Path]) -> None:
    device = loop(MIB)
    subprocess.run(["blockdev", "--setro", str(device)], check=True)
    try:
        assert describe(device).read_only
    finally:
        subprocess.run(["blockdev", "--setrw", str(device)], check=True)  # else the next user of the number inherits it


@pytest.mark.root
def test_works_without_udevs_library(loop: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    device = loop(MIB)
    monkeypatch.setitem(sys.modules, "pyudev", None)
    assert device in [found.path for found in devices()]


@pytest.mark.root
def test_swap_is_a_use(loop: Callable[..., Path]) -> None:
    device = loop(16 * MIB)
    subprocess.run(["mkswap", str(device)], check=True, capture_output=True)
    if subprocess.run(["swapon", str(device)], capture_output=True).returncode != 0:
        pytest.skip("this kernel does not swap")
    try:
        assert users_of(device) == [f"swap ({device})"]
    finally:
        subprocess.run(["swapoff", str(device)], check=True)


@pytest.mark.root
def test_btrfs_mount_is_found_though_it_has_another_number(loop: Callable[..., Path], tmp_path: Path) -> None:
    device = loop(128 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", str(device)], check=True, capture_output=True)
    point = tmp_path / "with space"
    point.mkdir()
    subprocess.run(["mount", str(device), str(point)], check=True)
    try:
        assert users_of(device) == [f"mounted at {point}"]
    finally:
        subprocess.run(["umount", str(point)], check=True)
