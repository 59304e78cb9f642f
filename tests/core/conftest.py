"""A tiny filesystem in memory, to be filled up."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import faults


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """``small_tmpfs(bytes)`` mounts a tmpfs of that size, and unmounts it after the test."""
    made: list[Path] = []

    def make(size: int) -> Path:
        point = tmp_path / f"tmpfs{len(made)}"
        point.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(point)], check=True)
        made.append(point)
        return point

    yield make
    for point in made:
        subprocess.run(["umount", "-l", str(point)], check=False)


@pytest.fixture
def passed() -> Iterator[list[str]]:
    """The crash points that are passed while the test runs."""
    names: list[str] = []
    faults.arm(names.append)
    yield names
    faults.arm(None)
