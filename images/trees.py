"""Filesystem images from directory trees, reproducibly, and what a tree or an image is."""

from __future__ import annotations

import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from blake3 import blake3

from core.errors import CommandFailed, ConfigError
from core.files import inside
from core.image import BootFiles
from core.run import run

MIB: Final = 1 << 20
_LONG: Final = 3600.0

#: Type → (offset, bytes) of its superblock's magic.
_MAGIC: Final = {
    "ext4": (1080, b"\x53\xef"),
    "xfs": (0, b"XFSB"),
    "btrfs": (65600, b"_BHRfS_M"),
    "squashfs": (0, b"hsqs"),
    "erofs": (1024, b"\xe2\xe1\xf5\xe0"),
}


def detect(image: Path) -> str:
    """Type of the filesystem in a raw image. Raises ConfigError for one that is not known or not whole sectors long."""
    with image.open("rb") as file:
        head = file.read(1 << 17)
        size = file.seek(0, os.SEEK_END)
    found = [name for name, (at, magic) in _MAGIC.items() if head[at : at + len(magic)] == magic]
    if not found or size % 512:
        raise ConfigError(
            f"{image} is not a filesystem image",
            what=f"known are {', '.join(_MAGIC)}, in whole sectors of 512 bytes; it has {size} bytes",
        )
    return found[0]


def newest(tree: Path) -> int:
    """The latest time of modification in the tree, seconds since 1970."""
    return max(int(status.st_mtime) for _, status in _walk(tree))


def boot_files(tree: Path, *, kernel: str | None, initrd: str | None, cmdline: str) -> BootFiles:
    """Kernel and initrd of a root tree: those given (they must exist), else the newest in /boot, else /vmlinuz with
    /initrd.img beside it. Raises ConfigError.
    """
    if kernel is None:
        candidates = sorted((tree / "boot").glob("vmlinuz-*"), key=_version_key)
        if candidates:
            kernel = f"/boot/{candidates[-1].name}"
        elif _exists(tree, "/vmlinuz"):
            kernel = "/vmlinuz"
        else:
            raise ConfigError(
                "no kernel in the tree", what=f"neither {tree}/boot/vmlinuz-* nor {tree}/vmlinuz", next="give --kernel"
            )
    if initrd is None:
        version = Path(kernel).name.removeprefix("vmlinuz").removeprefix("-")
        names = (
            [f"initrd.img-{version}", f"initramfs-{version}.img", f"initrd-{version}"] if version else ["initrd.img"]
        )
        places = [str(Path(kernel).parent / name) for name in names]
        initrd = next((place for place in places if _exists(tree, place)), None)
    missing = [path for path in (kernel, initrd) if path is not None and not _exists(tree, path)]
    if missing:
        raise ConfigError(
            "the tree lacks what it should boot", what=[f"{path} does not exist in {tree}" for path in missing]
        )
    try:
        return BootFiles(kernel=kernel, initrd=initrd, cmdline=cmdline)
    except ValueError as error:
        raise ConfigError(
            "the tree's kernel cannot stand in a boot entry", what=str(error), next="rename it, or give --kernel"
        ) from error


def _exists(tree: Path, path: str) -> bool:
    return inside(tree, path).is_file()


def _version_key(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", path.name)]


def make_image(tree: Path, image: Path, *, filesystem: str, size: int | None, label: str, at: int) -> None:
    """Make an image file of the tree without mounting anything. The same tree (names, modes, owners, contents, times of
    modification up to `at`, seconds since 1970) gives the same bytes.

    `size` in bytes; None: what is used, a quarter more, and 64 MiB. Raises ConfigError, CommandFailed.
    """
    if filesystem != "ext4":
        raise ConfigError(
            f"no {filesystem} image can be made of a tree so that the same tree gives the same bytes",
            next=["leave out the filesystem: ext4 is made", f"make the {filesystem} image yourself and build from it"],
        )
    paths = list(_walk(tree))
    odd = [path for path, _ in paths if "\n" in path]
    if odd:
        raise ConfigError("file names with line breaks cannot go into an image", what=[repr(path) for path in odd[:10]])
    used = sum(-(-status.st_size // 4096) * 4096 if stat.S_ISREG(status.st_mode) else 4096 for _, status in paths)
    size = size or -(-(used + used // 4) // MIB) * MIB + 64 * MIB
    with image.open("wb") as file:
        file.truncate(size)
    # Inodes for half as many files again, so that a tree of small files does not run out of them.
    ratio = max(1024, min(16384, size // (len(paths) * 3 // 2 + 64) // 1024 * 1024))
    # Same name, same time: same UUID. The boot loader and fstab go by partition, so it need not be unique.
    name = uuid.UUID(bytes=blake3(f"{label} {at}".encode()).digest()[:16], version=4)
    _mkfs_ext4(tree, image, name, label[:16], at, ratio)
    _set_times(image, paths, at)


def _walk(tree: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Every path of the tree, the root first, as seen from inside; symlinks not followed."""
    yield "/", tree.lstat()
    for folder, folders, files in os.walk(tree):
        folders.sort()
        inner = folder.removeprefix(str(tree))
        for name in sorted(folders + files):
            yield f"{inner}/{name}", os.lstat(f"{folder}/{name}")


def _mkfs_ext4(tree: Path, image: Path, name: uuid.UUID, label: str, at: int, bytes_per_inode: int) -> None:
    """All is said here and nothing left to mke2fs.conf, which differs between machines. The features are those that
    GRUB and the kernels of the last ten years read. Not metadata_csum: with it a superblock or a commit of the journal
    that a power cut tears between two sectors of 512 bytes keeps the filesystem from being mounted (ADR 14).
    """
    features = "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file"
    features += ",huge_file,dir_nlink,extra_isize,uninit_bg"
    options = f"hash_seed={name},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,nodiscard"
    shape = ["-b", "4096", "-I", "256", "-i", str(bytes_per_inode), "-m", "1", "-O", f"none,{features}"]
    named = ["-U", str(name), "-L", label, "-E", options]
    run("mkfs.ext4", "-q", "-F", *shape, *named, "-d", tree, image, timeout=_LONG, env=_environment(at))


def _set_times(image: Path, paths: list[tuple[str, os.stat_result]], at: int) -> None:
    """mke2fs copies the input's times of access and change, which differ from run to run: set these to `at`, and let no
    time of modification be later.
    """
    script = image.with_name("times")
    with script.open("w", encoding="utf-8", errors="surrogateescape") as lines:
        # By number, not by path: debugfs looks through a directory name by name.
        for number in _used_inodes(image):
            lines.writelines(f"set_inode_field <{number}> {field} @{at}\n" for field in ("ctime", "atime"))
        for path, status in paths:
            if int(status.st_mtime) > at:
                quoted = '"' + path.replace('"', '""') + '"'
                lines.write(f"set_inode_field {quoted} mtime @{at}\n")
    done = run("debugfs", "-w", "-f", script, image, timeout=_LONG, env=_environment(at))
    complaints = [line for line in done.stderr.splitlines() if not line.startswith("debugfs 1.")]
    if complaints:
        raise CommandFailed("debugfs could not set all times in the image", what=complaints[:10])
    script.unlink()


def _used_inodes(image: Path) -> list[int]:
    """Numbers of the inodes that hold the root and what is below it."""
    told = run("dumpe2fs", image, timeout=_LONG).stdout
    free: set[int] = set()
    for line in re.findall(r"^  Free inodes: (.+)$", told, re.MULTILINE):
        for span in line.split(", "):
            first, _, last = span.partition("-")
            free.update(range(int(first), int(last or first) + 1))
    count = re.search(r"^Inode count: +([0-9]+)$", told, re.MULTILINE)
    if count is None:
        raise CommandFailed("dumpe2fs does not tell the number of inodes", what=str(image))
    return [2, *(number for number in range(11, int(count[1]) + 1) if number not in free)]


def _environment(at: int) -> dict[str, str]:
    return {"E2FSPROGS_FAKE_TIME": str(at), "MKE2FS_CONFIG": "/dev/null"}
