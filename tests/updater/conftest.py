"""A lab (keys and tiny bundles, made once per session) and sandboxes in memory."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.updater.lab import Lab


@pytest.fixture(scope="session")
def memory() -> Iterator[Path]:
    """A directory for the session's sandboxes."""
    home = Path(tempfile.mkdtemp(prefix="updater-tests-"))
    yield home
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def lab(memory: Path) -> Lab:
    """Bundles and keys of the session."""
    home = memory / "lab"
    home.mkdir()
    return Lab.create(home)


@pytest.fixture
def place(memory: Path) -> Iterator[Path]:
    """An empty directory in memory, gone after the test."""
    directory = Path(tempfile.mkdtemp(dir=memory))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def node(lab: Lab, place: Path) -> Path:
    """The node.toml of a fresh sandbox that runs MR95-1 in slot a."""
    return lab.sandbox(place / "node")
