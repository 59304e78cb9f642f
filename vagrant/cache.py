"""A cache of things that are slow to make, each under a name and a hash of what it is made of."""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from blake3 import blake3

#: How many of one name are kept; the least recently used go first.
KEEP = 9


def root() -> Path:
    """Where everything lies: $UPDATER_CACHE, else /var/cache/updater-lab."""
    path = Path(os.environ.get("UPDATER_CACHE") or "/var/cache/updater-lab")
    path.mkdir(parents=True, exist_ok=True)
    return path


def key(*parts: str | bytes | Path) -> str:
    """16 hex digits of a hash over all parts; of a path, the content of the file counts."""
    whole = blake3()
    for part in parts:
        raw = part.read_bytes() if isinstance(part, Path) else part.encode() if isinstance(part, str) else part
        whole.update(len(raw).to_bytes(8, "big") + raw)
    return whole.hexdigest(8)


def cached(name: str, digest: str, build: Callable[[Path], None]) -> Path:
    """The file or directory `name-digest`, made by `build(path)` if it is not there yet.

    It appears under its name only when complete. Who comes second waits for who builds.
    """
    target = root() / f"{name}-{digest}"
    with (root() / f".{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            for stale in root().glob(f".{name}-*.part"):
                remove(stale)
            part = root() / f".{name}-{digest}.part"
            try:
                build(part)
                part.rename(target)
            finally:
                remove(part)
        # the time of use only: to those who serve or watch it, a new time of change would be a change
        os.utime(target, ns=(time.time_ns(), target.stat().st_mtime_ns))
        used = sorted(root().glob(f"{name}-{'?' * 16}"), key=lambda path: path.stat().st_atime_ns)
        for old in used[:-KEEP]:
            remove(old)
    return target


def remove(path: Path) -> None:
    """Delete a file or a whole directory, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
