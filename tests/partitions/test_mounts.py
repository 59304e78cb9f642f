"""mountinfo, and mounting for a while."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DeviceFailed
from partitions.disks import users_of
from partitions.mounts import Mount, loops_over, mounted, mounts, mounts_of, parse_mountinfo

MIB = 1 << 20


def escape(text: str) -> str:
    return "".join(f"\\{ord(c):03o}" if c in " \t\n\\" else c for c in text)


paths = st.text(
    st.characters(exclude_characters="\0\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029", exclude_categories=["Cs"]), max_size=20
)


@given(point=paths, source=paths.filter(bool), optional=st.lists(st.sampled_from(["shared:1", "master:2"]), max_size=2))
def test_mountinfo_round_trip(point: str, source: str, optional: list[str]) -> None:
    line = f"36 35 98:0 /mnt1 /{escape(point)} rw,noatime "
    line += f"{' '.join([*optional, '-'])} ext3 {escape(source)} rw,errors=continue"
    assert parse_mountinfo(line + "\nnonsense\n\n1 2 - x\n") == [
        Mount(
            device="98:0",
            root="/mnt1",
            point=Path(f"/{point}"),
            options=("rw", "noatime"),
            fstype="ext3",
            source=source,
            super_options=("rw", "errors=continue"),
        )
    ]


@given(st.text(max_size=200))
def test_mountinfo_never_crashes(text: str) -> None:
    parse_mountinfo(text)


def test_own_mounts_are_seen() -> None:
    assert any(mount.point == Path("/proc") and mount.fstype == "proc" for mount in mounts())


def ext4(file: Path, size: int = 16 * MIB) -> Path:
    with file.open("wb") as out:
        out.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", str(file)], check=True)
    return file


@pytest.mark.root
def test_file_mounted_and_written(tmp_path: Path) -> None:
    image = ext4(tmp_path / "fs.img")
    with mounted(image, read_only=False) as point:
        (point / "hello").write_text("there")
        assert len(loops_over(image)) == 1
        assert f"mounted at {point}" in users_of(image)
        options = next(mount.options for mount in mounts() if mount.point == point)
        assert {"nodev", "nosuid"} <= set(options)
    assert not point.exists() and not users_of(image)
    with mounted(image, read_only=True) as point:
        assert (point / "hello").read_text() == "there"
        with pytest.raises(OSError):
            (point / "hello").write_text("no")


@pytest.mark.root
def test_block_device_mounted(loop: Callable[..., Path], tmp_path: Path) -> None:
    device = loop(file=ext4(tmp_path / "fs.img"))
    with mounted(device, read_only=False) as point:
        assert [mount.point for mount in mounts_of(device)] == [point]
    assert mounts_of(device) == []


@pytest.mark.root
def test_unmounted_after_an_error_inside(tmp_path: Path) -> None:
    image = ext4(tmp_path / "fs.img")
    with pytest.raises(ZeroDivisionError), mounted(image, read_only=False) as point:
        raise ZeroDivisionError
    assert not point.exists() and not users_of(image)


@pytest.mark.root
@pytest.mark.parametrize(
    "maker", [["mkfs.ext4", "-q"], ["mkfs.xfs", "-q"], ["mkfs.btrfs", "-q"]], ids=lambda m: m[0][5:]
)
def test_read_only_changes_not_a_byte_even_after_a_crash(
    tmp_path: Path, loop: Callable[..., Path], maker: list[str]
) -> None:
    """The journal of a filesystem that was in use when the power failed must not be replayed by looking."""
    live = loop(320 * MIB)
    subprocess.run([*maker, str(live)], check=True, capture_output=True)
    cut = tmp_path / "cut.img"
    with mounted(live, read_only=False) as point:
        for number in range(50):
            (point / f"file{number}").write_text("x" * 5000)
        subprocess.run(["sync", "--file-system", str(point)], check=True)
        subprocess.run(["cp", "--sparse=always", str(tmp_path / "loop0.img"), str(cut)], check=True)
    before = blake3(cut.read_bytes()).digest()
    device = loop(file=cut)
    subprocess.run(["losetup", "-d", str(live)], check=True)
    with mounted(device, read_only=True) as point:
        list(point.iterdir())
    assert blake3(cut.read_bytes()).digest() == before


@pytest.mark.root
def test_two_slots_of_one_release(loop: Callable[..., Path], tmp_path: Path) -> None:
    """Both slots hold the same filesystem, identity and all: XFS by default refuses that."""
    first = tmp_path / "a.img"
    with first.open("wb") as out:
        out.truncate(320 * MIB)
    subprocess.run(["mkfs.xfs", "-q", str(first)], check=True)
    subprocess.run(["cp", "--sparse=always", str(first), str(tmp_path / "b.img")], check=True)
    with mounted(loop(file=first), read_only=True), mounted(loop(file=tmp_path / "b.img"), read_only=False) as point:
        (point / "only-in-b").write_text("")


@pytest.mark.root
def test_no_filesystem(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    before = set(Path("/run").glob(f"updater-mount-{os.getpid()}-*"))
    with pytest.raises(DeviceFailed, match="cannot mount"), mounted(tmp_path / "zeros", read_only=False):
        pass
    assert set(Path("/run").glob(f"updater-mount-{os.getpid()}-*")) == before


@pytest.mark.root
def test_mount_dies_with_the_process(tmp_path: Path) -> None:
    image = ext4(tmp_path / "fs.img")
    child = os.fork()
    if child == 0:
        try:
            with mounted(image, read_only=False) as point:
                (point / "file").write_text("x")
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    deadline = time.monotonic() + 5
    while users_of(image) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert users_of(image) == []
    for left in Path("/run").glob(f"updater-mount-{child}-*"):  # only the empty directory outlives it
        left.rmdir()
