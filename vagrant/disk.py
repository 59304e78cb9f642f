"""Disks of the lab: GPT with esp, slot-a, slot-b and data, put together in a plain file without mounting anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.run import run
from vagrant import cache
from vagrant.tree import Files, put

MIB = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    """One partition. `start` and `size` in bytes; `label` is its GPT name; `uuid` its PARTUUID."""

    number: int
    label: str
    start: int
    size: int
    type: str
    uuid: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Sizes in MiB. Every disk of the same layout has the same PARTUUIDs."""

    esp: int = 64
    slot: int = 1024
    data: int = 1024

    def partitions(self) -> dict[str, Partition]:
        """By label: esp (1), slot-a (2), slot-b (3), data (4)."""
        found: dict[str, Partition] = {}
        start = MIB
        sizes = {"esp": self.esp, "slot-a": self.slot, "slot-b": self.slot, "data": self.data}
        for number, (label, size) in enumerate(sizes.items(), start=1):
            found[label] = Partition(
                number=number,
                label=label,
                start=start,
                size=size * MIB,
                type="ef00" if label == "esp" else "8300",
                uuid=f"5ab0c0de-0000-4000-8000-00000000000{number}",
            )
            start += size * MIB
        return found

    @property
    def size(self) -> int:
        """Bytes of the whole disk."""
        return (self.esp + 2 * self.slot + self.data + 2) * MIB


def make_image(tree: Path, into: Path, *, size: int) -> Path:
    """An ext4 image of `size` bytes (sparse) with the tree in it; about 3 s for 350 MB."""
    with into.open("xb") as file:
        file.truncate(size)
    # lazy initialisation would leave work to the first mount, in emulation; the journal is small as the slot is
    options = "lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0"
    shape = ["-m", "0", "-J", "size=16", "-O", "^metadata_csum"]  # as in the slots: ADR 14
    run("mkfs.ext4", "-q", "-F", *shape, "-E", options, "-d", tree, into, timeout=300)
    return into


def release_image(tree: Path, *, size: int) -> Path:
    """The cached image of a cached tree (one of `tree.release_tree`), `size` bytes."""

    def build(part: Path) -> None:
        make_image(tree, part, size=size)

    return cache.cached("image", cache.key(tree.name, str(size)), build)


def make_disk(
    into: Path,
    *,
    slot_a: Path,
    esp: Mapping[str, bytes],
    data: Files | None = None,
    slot_b: Path | None = None,
    layout: Layout | None = None,
    data_tree: Path | None = None,
) -> Path:
    """Assemble a raw, sparse disk image.

    `slot_a`, `slot_b`: filesystem images, not larger than the slots. `esp`: files of the ESP by path, the boot loader
    among them (`boot.esp_files`). `data`: files of the data partition by absolute path. `data_tree`: a directory that
    goes there too.
    """
    layout = layout or Layout()
    parts = layout.partitions()
    with into.open("xb") as file:
        file.truncate(layout.size)
    _write_table(into, parts)
    _make_esp(into, parts["esp"], esp)
    for label, image in (("slot-a", slot_a), ("slot-b", slot_b)):
        if image is not None:
            copy_sparse(image, into, at=parts[label].start, room=parts[label].size)
    work = into.with_name(f"{into.name}.data")
    try:
        (work / "tree").mkdir(parents=True)
        if data_tree is not None:
            run("cp", "-a", f"{data_tree}/.", work / "tree", timeout=600)
        put(work / "tree", data or {})
        filled = make_image(work / "tree", work / "image", size=parts["data"].size)
        copy_sparse(filled, into, at=parts["data"].start, room=parts["data"].size)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return into


def cached_disk(
    *,
    slot_a: Path,
    esp: Mapping[str, bytes],
    data: Files | None = None,
    slot_b: Path | None = None,
    layout: Layout | None = None,
) -> Path:
    """As `make_disk`, from cached images only (`release_image`), and made once."""
    layout = layout or Layout()
    contents = (f"{name} {content!r}" for name, content in sorted(esp.items()))
    files = (f"{name} {thing!r}" for name, thing in sorted((data or {}).items()))
    digest = cache.key(slot_a.name, slot_b.name if slot_b else "", repr(layout), *contents, "data", *files)

    def build(part: Path) -> None:
        make_disk(part, slot_a=slot_a, slot_b=slot_b, esp=esp, data=data, layout=layout)

    return cache.cached("disk", digest, build)


def overlay(base: Path, into: Path) -> Path:
    """A qcow2 file that starts as `base` (raw or qcow2) and keeps all changes to itself: a fresh disk in a blink."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", image_format(base), "-b", base.resolve(), into)
    return into


def image_format(disk: Path) -> str:
    """``qcow2`` or ``raw``."""
    with disk.open("rb") as file:
        return "qcow2" if file.read(4) == b"QFI\xfb" else "raw"


def copy_sparse(source: Path, target: Path, *, at: int, room: int) -> None:
    """Copy a file to byte `at` of another, leaving its holes alone. Raises ValueError when it exceeds `room` bytes."""
    size = source.stat().st_size
    if size > room:
        raise ValueError(f"{source} has {size} bytes, the partition {room}")
    src, dst = os.open(source, os.O_RDONLY), os.open(target, os.O_WRONLY)
    try:
        end = 0
        while True:
            try:
                start = os.lseek(src, end, os.SEEK_DATA)
            except OSError:  # no data after this
                return
            end = os.lseek(src, start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(src, dst, end - start, start, at + start)
    finally:
        os.close(src)
        os.close(dst)


def _write_table(disk: Path, parts: Mapping[str, Partition]) -> None:
    words = ["--clear", "--set-alignment=2048", "--disk-guid=5ab0c0de-0000-4000-8000-000000000000"]
    for part in parts.values():
        first, last = part.start // 512, (part.start + part.size) // 512 - 1
        number = part.number
        words += [f"--new={number}:{first}:{last}", f"--typecode={number}:{part.type}"]
        words += [f"--change-name={number}:{part.label}", f"--partition-guid={number}:{part.uuid}"]
    run("sgdisk", *words, disk)


def _make_esp(disk: Path, part: Partition, files: Mapping[str, bytes]) -> None:
    work = disk.with_name(f"{disk.name}.esp")
    try:
        image, tree = work / "image", work / "tree"
        tree.mkdir(parents=True)
        with image.open("xb") as file:
            file.truncate(part.size)
        run("mkfs.vfat", "-F", "32", "-s", "1", "-n", "ESP", "-i", "5ab0c0de", image)
        for name, content in files.items():
            path = tree / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        run("mcopy", "-s", "-Q", "-i", image, *sorted(tree.iterdir()), "::/")
        copy_sparse(image, disk, at=part.start, room=part.size)
    finally:
        shutil.rmtree(work, ignore_errors=True)
