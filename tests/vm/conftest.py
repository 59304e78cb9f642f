"""Machines that boot, for all tests in this directory.

Disks and a machine that has MR95-1 running and MR96-1 staged are made once and cached; each test gets an overlay, and
begins where that machine was frozen.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from vagrant import disk, frozen
from vagrant.node import Lab
from vagrant.qemu import Machine

M = TypeVar("M", bound=Machine)

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here boots a machine, and says so. One at a time: two of them on two cores wait for each other."""
    lacking = next((name for name in ("qemu-system-x86_64", "debootstrap", "sgdisk") if not shutil.which(name)), None)
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.vm)
        item.add_marker(pytest.mark.xdist_group("vm"))
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="makes root trees, so it needs root"))
        elif lacking:
            item.add_marker(pytest.mark.skip(reason=f"{lacking} is missing: tools/install-system-packages lab"))


@pytest.fixture(scope="session")
def lab() -> Lab:
    """A node that gives a release two tries, and is quick to find it unhealthy."""
    return frozen.QUICK


@pytest.fixture(scope="session")
def running(lab: Lab) -> Path:
    """A frozen machine that runs MR95-1: a directory with `disk` and `state`."""
    return frozen.running(lab)


@pytest.fixture(scope="session")
def staged(lab: Lab) -> Path:
    """The same, with what the operator carries declared, and MR96-1 staged in slot b from its bundle over HTTP."""
    return frozen.staged(lab)


def thawed(machine_at: Path, work: Path, kind: type[M]) -> Iterator[M]:
    """A machine on a copy of a frozen one, which goes on where that one was."""
    with kind(disk.overlay(machine_at / "disk", work / "disk"), work / "machine") as machine:
        machine.thaw(machine_at / "state")
        yield machine


@pytest.fixture
def node(running: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine of one's own on which MR95-1 runs."""
    yield from thawed(running, tmp_path, Machine)


@pytest.fixture
def ready(staged: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine of one's own on which MR95-1 runs and MR96-1 is staged."""
    yield from thawed(staged, tmp_path, Machine)
