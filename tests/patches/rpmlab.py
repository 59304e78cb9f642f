"""Real packages, made by rpmbuild and signed with keys of the test's own, and small roots to install them into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.report import Event, Report
from patches import packages_platform
from patches.lifetime import Lifetime
from patches.packages import Packages
from patches.packages_rpm import database_of
from patches.registry import Registry
from vagrant.rpms import Rpms, shell, shell_root


@pytest.fixture(scope="session")
def rpms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rpms]:
    """The maker of packages."""
    made = Rpms(tmp_path_factory.mktemp("rpms"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def plain_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with a shell and nothing else, as a release that was not made of RPM packages."""
    root = tmp_path_factory.mktemp("plain") / "root"
    shell_root(root)
    return root


@pytest.fixture(scope="session")
def prepared_root(plain_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with an RPM database and the platform package; to be copied."""
    root = tmp_path_factory.mktemp("prepared") / "root"
    shell("cp", "-a", plain_root, root)
    packages_platform.prepare(root)
    return root


@pytest.fixture
def root(prepared_root: Path, tmp_path: Path) -> Path:
    """A root of the test's own, with the platform package."""
    shell("cp", "-a", prepared_root, tmp_path / "root")
    return tmp_path / "root"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    """An empty registry."""
    data = tmp_path / "data"
    data.mkdir()
    with Registry.of(data) as opened:
        yield opened


@pytest.fixture
def packages(registry: Registry, rpms: Rpms) -> Packages:
    """The carried packages of a node that trusts acme; none yet."""
    return Packages(registry, rpms.keys)


def release_has(root: Path, *paths: Path) -> None:
    """Make packages part of the release in the root."""
    database = database_of(root)
    assert database is not None
    shell("rpm", *database.options, "-U", "--nosignature", *paths)


def carry(packages: Packages, *paths: Path, **lifetime: str) -> None:
    """Add packages, with a lifetime."""
    packages.add(paths, lifetime=Lifetime(**lifetime))


def listening() -> tuple[Report, list[Event]]:
    """A report, and the list to which its events go."""
    events: list[Event] = []
    return Report(events.append), events
