"""Real loop devices and small filesystems that go away whatever happens."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core import faults
from tests.core.conftest import small_tmpfs
from tests.partitions.fakes import Heard

__all__ = ["small_tmpfs"]


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "loop" in getattr(item, "fixturenames", ()):  # /dev/loopN is one namespace for the whole machine
            item.add_marker(pytest.mark.xdist_group("loop"))


@pytest.fixture
def heard() -> Heard:
    return Heard()


LoopMaker = Callable[..., Path]


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[LoopMaker]:
    """``loop(size)`` or ``loop(file=path, offset=..., size=...)`` makes a loop device over a file; returns its path."""
    made: dict[Path, Path] = {}

    def make(size: int | None = None, *, file: Path | None = None, offset: int = 0, direct: bool = True) -> Path:
        backing = file or tmp_path / f"loop{len(made)}.img"
        if file is None:
            assert size is not None
            with backing.open("wb") as out:
                out.truncate(size)
        options = ["--offset", str(offset)] + (["--sizelimit", str(size)] if size and file else [])
        options += ["--direct-io=on"] if direct else []
        shown = subprocess.run(
            ["losetup", "--find", "--show", *options, str(backing)], check=True, capture_output=True, text=True
        )
        made[Path(shown.stdout.strip())] = backing
        return next(reversed(made))

    yield make
    for device, backing in made.items():
        subprocess.run(["umount", "-q", str(device)], check=False)
        # A test may have let the device go itself: by now its number can be somebody else's.
        if device in (Path(line.split(":", 1)[0]) for line in _loops_over(backing)):
            subprocess.run(["losetup", "--detach", str(device)], check=False)


def _loops_over(backing: Path) -> list[str]:
    shown = subprocess.run(["losetup", "--associated", str(backing)], capture_output=True, text=True, check=True)
    return shown.stdout.splitlines()


@pytest.fixture
def armed() -> Iterator[Callable[[Callable[[str], None]], None]]:
    """Arms the crash points, and disarms them at the end."""
    yield faults.arm
    faults.arm(None)
