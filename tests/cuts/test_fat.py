"""The reader of FAT, against what mkfs.vfat and mcopy make, and what a cut may make of it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from vagrant.cuts.fat import Fat, FatError

pytestmark = pytest.mark.skipif(not shutil.which("mcopy"), reason="mtools is missing")

FILES = {"EFI/BOOT/BOOTX64.EFI": b"loader" * 5000, "updater/grubenv": b"#" * 1024, "updater/empty.txt": b""}


@pytest.fixture(params=["-F32 -s1 40", "-F16 -s4 20"])
def image(request: pytest.FixtureRequest, tmp_path: Path) -> bytearray:
    """A filesystem with FILES in it."""
    *options, size = request.param.split()
    path, tree = tmp_path / "image", tmp_path / "tree"
    with path.open("xb") as file:
        file.truncate(int(size) << 20)
    subprocess.run(["mkfs.vfat", *options, path], check=True, capture_output=True)
    for name, content in FILES.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(content)
    subprocess.run(["mcopy", "-s", "-Q", "-i", path, *sorted(tree.iterdir()), "::/"], check=True)
    return bytearray(path.read_bytes())


def _open(image: bytearray) -> Fat:
    return Fat(lambda offset, length: bytes(image[offset : offset + length]))


def test_files(image: bytearray) -> None:
    fat = _open(image)
    assert {name: fat.file(name) for name in FILES} == FILES
    assert len(fat.look_up("EFI/BOOT/BOOTX64.EFI")[1]) > 10
    for name in ("updater/none", "EFI", "updater/grubenv/x"):
        with pytest.raises(FatError):
            fat.file(name)


def test_a_chain_that_leads_nowhere_or_round(image: bytearray) -> None:
    fat = _open(image)
    first, second = fat.look_up("EFI/BOOT/BOOTX64.EFI")[1][:2]
    width = 4 if fat.wide else 2
    at = int.from_bytes(image[14:16], "little") * 512 + second * width
    for value, word in ((0, "leads to cluster 0"), (first, "circle")):
        image[at : at + width] = value.to_bytes(width, "little")
        with pytest.raises(FatError, match=word):
            _open(image).file("EFI/BOOT/BOOTX64.EFI")


def test_no_filesystem(image: bytearray) -> None:
    with pytest.raises(FatError, match="no boot sector"):
        Fat(lambda offset, length: bytes(length))
    image[11:13] = b"\0\0"
    with pytest.raises(FatError, match="makes no sense"):
        _open(image)
