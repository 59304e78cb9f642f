"""Write logs for tests: made by QEMU's own tools, or by hand."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

MAGIC = 0x6A736677736872
_FLAGS = {"write": 0, "flush": 1, "fua": 2, "discard": 4, "mark": 8}


def recorded(work: Path, *, size: int, commands: Sequence[str]) -> Path:
    """The log of what these commands of qemu-io do to `work`/disk, an empty raw disk of `size` bytes."""
    disk, log = work / "disk", work / "log"
    with disk.open("xb") as file:
        file.truncate(size)
    log.touch()
    words = [word for command in [*commands, "flush"] for word in ("-c", command)]
    options = f"driver=blklogwrites,file.driver=file,file.filename={disk},log.driver=file,log.filename={log}"
    argv = ["qemu-io", *words, "--image-opts", f"{options},log-sector-size=512,discard=unmap,cache.no-flush=off"]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    return log


def make_log(path: Path, entries: Sequence[tuple[str, int, bytes]], *, count: int | None = None) -> Path:
    """A log of these entries: kind (write, fua, flush, discard or mark), sector, and content (of a discard: as long as
    it is; of a mark: its text). `count`: entries that the super block tells of."""
    raw = struct.pack("<QQQL", MAGIC, 1, len(entries) if count is None else count, 512).ljust(512, b"\0")
    for kind, sector, content in entries:
        text = content if kind == "mark" else b""
        length = 0 if text else len(content) // 512
        raw += (struct.pack("<QQQQ", sector, length, _FLAGS[kind], len(text)) + text).ljust(512, b"\0")
        if kind in ("write", "fua"):
            raw += content
    path.write_bytes(raw)
    return path
