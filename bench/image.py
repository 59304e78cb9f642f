"""What is installed: an ext4 image made of a real root tree, mostly holes, as images of root filesystems are."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from images.build import BuildSpec, build
from images.keys import generate, load_signer
from vagrant import cache

BLOCK = 4096


def root_tree(tree: Path, content: int) -> None:
    """Make a root tree of about `content` bytes (a tenth less in small files may be lost to rounding).

    It begins with the Debian tree that the lab keeps, if there is one; the rest is this machine's /usr, in the order of
    names.
    """
    tree.mkdir()
    have = 0
    known = sorted(cache.root().glob("base-" + "?" * 16), key=lambda path: path.stat().st_mtime)
    for origin in [*known[-1:], Path("/usr")]:
        for folder, path in _files(origin):
            if have >= content:
                return
            place = tree / ("more" if origin == Path("/usr") else "") / folder
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, place / path.name, follow_symlinks=False)
            have += _blocks(path)


def _files(origin: Path) -> Iterator[tuple[Path, Path]]:
    """Every regular file and symlink below: its folder within `origin`, and its path."""
    for folder, folders, names in os.walk(origin):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() or path.is_symlink():
                yield Path(folder).relative_to(origin), path


def _blocks(path: Path) -> int:
    return 0 if path.is_symlink() else -(-path.stat().st_size // BLOCK) * BLOCK


def multiplied(tree: Path, target: Path, times: int) -> None:
    """`times` copies of the tree side by side in `target`, no two files of different copies alike."""
    for number in range(times):

        def copy(source: str, place: str, mark: bytes = f"copy {number}\n".encode()) -> None:
            with open(source, "rb") as old, open(place, "wb") as new:
                new.write(mark)
                shutil.copyfileobj(old, new, 1 << 20)

        shutil.copytree(tree, target / str(number), symlinks=True, copy_function=copy)


def ext4(tree: Path, image: Path, size: int) -> None:
    """An ext4 image of `size` bytes, made without mounting it; unused blocks are holes of the file."""
    with image.open("wb") as file:
        file.truncate(size)
    options = "nodiscard,lazy_itable_init=0,lazy_journal_init=0"
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", options, "-d", tree, image], check=True)


def key_pair(folder: Path) -> tuple[Path, Path]:
    """A throw-away pair of signing keys: private, public."""
    return generate(folder / "bench.pem")


def bundle(image: Path, output: Path, release: str, key: Path, **more: int) -> Path:
    """A signed release bundle of the image, for a sandbox."""
    spec = BuildSpec(release=release, compatible="sandbox", image=image, kernel="/boot/vmlinuz", **more)  # type: ignore[arg-type]
    return build(spec, output, [load_signer(str(key))])
