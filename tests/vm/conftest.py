"""Machines that boot, for all tests in this directory. The disk is made once and cached; each test gets an overlay."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from vagrant import cache, disk, loader, tree
from vagrant.qemu import Machine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here boots a machine, and says so."""
    lacking = next((name for name in ("qemu-system-x86_64", "debootstrap", "sgdisk") if not shutil.which(name)), None)
    for item in items:
        if not item.path.is_relative_to(HERE):
            continue
        item.add_marker(pytest.mark.vm)
        if os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="makes root trees, so it needs root"))
        elif lacking:
            item.add_marker(pytest.mark.skip(reason=f"{lacking} is missing: tools/install-system-packages lab"))


@pytest.fixture(scope="session")
def first_disk() -> Path:
    """A disk with MR95-1 in slot a, an empty slot b, and no node.toml."""
    layout = disk.Layout()
    root = tree.release_tree("MR95-1")
    image = disk.release_image(root, size=layout.slot * disk.MIB)
    return disk.cached_disk(slot_a=image, esp=loader.esp_files(layout), layout=layout)


@pytest.fixture
def machine(first_disk: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine of one's own on a copy of `first_disk`, switched off. Ended whatever happens."""
    own = disk.overlay(first_disk, cache.root() / f"test-{os.getpid()}-{request.node.name}.qcow2")
    try:
        with Machine(own, tmp_path / "machine") as made:
            yield made
    finally:
        own.unlink(missing_ok=True)


@pytest.fixture(scope="session")
def frozen(first_disk: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a machine that was booted from `first_disk` and frozen: `memory` and what else, and `disk`."""
    work = tmp_path_factory.mktemp("frozen")
    with Machine(disk.overlay(first_disk, work / "disk"), work / "machine") as made:
        made.start()
        made.wait_for_boot()
        made.freeze(work / "state")
    return work


@pytest.fixture
def booted(frozen: Path, tmp_path: Path) -> Iterator[Machine]:
    """A machine of one's own that has booted `first_disk` already: seconds instead of a whole boot."""
    with Machine(disk.overlay(frozen / "disk", tmp_path / "disk"), tmp_path / "machine") as made:
        made.thaw(frozen / "state")
        yield made
