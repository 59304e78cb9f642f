"""Directories for a while on a partition of our choice: also those of processes that were killed are cleared away."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def scratch(parent: Path, purpose: str) -> Iterator[Path]:
    """A new directory `PURPOSE-…` in `parent`, for its owner only and gone after the context. Those that killed
    processes left behind for the same purpose go first; who lives still holds the lock on his own. Raises OSError.
    """
    with _locked(parent):
        for left in parent.glob(f"{purpose}-*"):
            try:
                with _locked(left, wait=False):
                    shutil.rmtree(left)
            except (BlockingIOError, NotADirectoryError):
                continue
        made = Path(tempfile.mkdtemp(prefix=f"{purpose}-", dir=parent))
        held = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(held, fcntl.LOCK_EX)
    try:
        yield made
    finally:
        shutil.rmtree(made)
        os.close(held)


@contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(fd)
