"""Loop devices to write to: with direct I/O, so that a write is a write, as on a disk."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PIECE = 4 << 20


@contextmanager
def loop_device(backing: Path, size: int, *, filled: bool) -> Iterator[Path]:
    """A loop device of `size` bytes over a new file; device and file go away in the end.

    `filled`: every block of the file is written beforehand. Else the first write to each would pay for its allocation,
    which no partition asks for.
    """
    device = ""
    try:
        with backing.open("wb") as file:
            file.truncate(size)
        if filled:
            blocks = ["bs=4M", "oflag=direct", "conv=notrunc", f"count={-(-size // PIECE)}", "status=none"]
            subprocess.run(["dd", "if=/dev/zero", f"of={backing}", *blocks], check=True)
            with backing.open("r+b") as file:
                file.truncate(size)
        command = ["losetup", "--find", "--show", "--direct-io=on", str(backing)]
        device = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        yield Path(device)
    finally:
        if device:
            subprocess.run(["losetup", "--detach", device], check=False)
        backing.unlink(missing_ok=True)
