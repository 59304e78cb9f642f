"""Superblocks: those that the real tools make, and anything else."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DeviceFailed
from partitions.filesystems import HEAD, FsType, filesystem_of, filesystem_size, free_space, identify

UUID = "3e6be9de-8139-4a1f-8d2b-5a1d6f1c0a11"
MIB = 1 << 20

MAKERS = {
    "ext4": (FsType.EXT4, 64 * MIB, ["mkfs.ext4", "-q", "-U", UUID, "-L", "root", "FILE"]),
    "ext4-1k": (
        FsType.EXT4,
        64 * MIB,
        ["mkfs.ext4", "-q", "-b", "1024", "-O", "^64bit", "-U", UUID, "-L", "root", "FILE"],
    ),
    "xfs": (FsType.XFS, 320 * MIB, ["mkfs.xfs", "-q", "-m", f"uuid={UUID}", "-L", "root", "FILE"]),
    "btrfs": (FsType.BTRFS, 256 * MIB, ["mkfs.btrfs", "-q", "-U", UUID, "-L", "root", "FILE"]),
}


def make(argv: list[str], file: Path, size: int) -> Path:
    with file.open("wb") as out:
        out.truncate(size)
    subprocess.run([word if word != "FILE" else str(file) for word in argv], check=True, capture_output=True)
    return file


@pytest.mark.parametrize("name", MAKERS)
def test_real_filesystems(tmp_path: Path, name: str) -> None:
    kind, size, argv = MAKERS[name]
    found = filesystem_of(make(argv, tmp_path / "fs", size))
    assert found is not None
    assert (found.type, found.size, found.uuid, found.label) == (kind, size, UUID, "root")
    assert filesystem_size(tmp_path / "fs") == size


@pytest.mark.parametrize("name", ["ext4", "ext4-1k"])
def test_what_is_free_holds_nothing(tmp_path: Path, name: str) -> None:
    """Noise in all that is said to be free changes no file, and e2fsck finds nothing wrong."""
    _, size, argv = MAKERS[name]
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(40):
        (tree / f"f{number}").write_bytes(bytes([number]) * 200_000)
    device = make([*argv[:-1], "-d", str(tree), argv[-1]], tmp_path / "fs", size)
    free = free_space(device)
    assert size * 0.5 < sum(len(part) for part in free) < size - 40 * 200_000
    assert all(one.stop <= two.start for one, two in pairwise(free))
    with device.open("r+b") as out:
        for part in free:
            out.seek(part.start)
            out.write(b"noise" * (len(part) // 5))
    assert subprocess.run(["e2fsck", "-f", "-n", device], check=False, capture_output=True).returncode == 0
    for number in range(40):
        said = subprocess.run(["debugfs", "-R", f"cat /f{number}", device], check=True, capture_output=True)
        assert said.stdout == bytes([number]) * 200_000


@pytest.mark.parametrize("name", ["xfs", "btrfs"])
def test_nothing_counts_as_free_where_nobody_says_so(tmp_path: Path, name: str) -> None:
    _, size, argv = MAKERS[name]
    assert free_space(make(argv, tmp_path / "fs", size)) == []


def test_squashfs(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"x" * 100_000)
    argv = ["mksquashfs", str(tmp_path / "tree"), str(tmp_path / "fs"), "-nopad", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    found = filesystem_of(tmp_path / "fs")
    assert found is not None
    assert (found.type, found.size) == (FsType.SQUASHFS, (tmp_path / "fs").stat().st_size)


def test_erofs_by_its_definition() -> None:
    block = bytearray(2048)
    block[1024:1028] = (0xE0F5E1E2).to_bytes(4, "little")
    block[1024 + 12] = 12
    block[1024 + 36 : 1024 + 40] = (1000).to_bytes(4, "little")
    found = identify(bytes(block))
    assert found is not None and (found.type, found.size) == (FsType.EROFS, 4096000)


def test_fat(tmp_path: Path) -> None:
    file = tmp_path / "fs"
    make(["mformat", "-i", "FILE", "-F", "-v", "ESP", "-N", "12345678", "::"], file, 64 * MIB)
    found = filesystem_of(file)
    assert found is not None
    assert (found.type, found.size, found.uuid, found.label) == (FsType.VFAT, 64 * MIB, "1234-5678", "ESP")


@given(st.binary(max_size=3000))
def test_noise_is_no_filesystem_and_no_crash(noise: bytes) -> None:
    identify(noise)
    identify(bytes(0x10000) + noise)
    identify(bytes(1024) + noise)


@given(
    cut=st.integers(0, HEAD),
    magic=st.sampled_from([(0, b"XFSB"), (0, b"hsqs"), (1080, b"\x53\xef"), (0x10040, b"_BHRfS_M")]),
)
def test_truncated_superblocks_do_not_crash(cut: int, magic: tuple[int, bytes]) -> None:
    head = bytearray(b"\xff" * HEAD)
    head[magic[0] : magic[0] + len(magic[1])] = magic[1]
    identify(bytes(head[:cut]))


def test_nothing_there(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "zeros").write_bytes(bytes(HEAD))
    assert filesystem_of(tmp_path / "empty") is None
    assert filesystem_size(tmp_path / "zeros") is None
    with pytest.raises(DeviceFailed):
        filesystem_of(tmp_path / "missing")
