"""The floors of the house: imports go down, and the rooms do not know one another."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ROOMS = frozenset({"images", "partitions", "patches", "templates", "migrations", "zdu"})
BESIDE = frozenset({"vagrant", "bench", "tests", "tools", "docs"})
HOUSE = ROOMS | {"core", "updater"}

#: Who may import what, of our own.
ALLOWED = {
    "core": frozenset({"core"}),
    **{room: frozenset({room, "core"}) for room in ROOMS},
    "updater": HOUSE,
    "vagrant": HOUSE | {"vagrant"},
    "bench": HOUSE | {"bench", "vagrant"},
    "tools": HOUSE | {"vagrant"},
    "tests": HOUSE | {"vagrant", "bench", "tests"},
}


def files() -> list[Path]:
    return sorted(path for top in ALLOWED if (ROOT / top).is_dir() for path in (ROOT / top).rglob("*.py"))


def imported(source: str, package: tuple[str, ...]) -> Iterator[str]:
    """The modules that a source imports, relative ones resolved; at any depth, in functions and for typing too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            yield ".".join(part for part in (base, node.module or "") if part)


@pytest.mark.parametrize("path", files(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_down(path: Path) -> None:
    where = path.relative_to(ROOT)
    ours = {name.split(".")[0] for name in imported(path.read_text(), where.parts[:-1])} & (HOUSE | BESIDE)
    assert ours <= ALLOWED[where.parts[0]], f"{where} imports {', '.join(sorted(ours - ALLOWED[where.parts[0]]))}"


def test_the_test_sees_what_it_should() -> None:
    found = set(imported("import a.b\nfrom c import d\ndef f():\n  from .e import g\n  from .. import h", ("x", "y")))
    assert found == {"a.b", "c", "x.y.e", "x"}
    assert len(files()) > 50


def test_processes_are_started_in_one_place_only() -> None:
    for path in files():
        top = path.relative_to(ROOT).parts[0]
        if top in HOUSE:
            names = set(imported(path.read_text(), path.relative_to(ROOT).parts[:-1]))
            assert "subprocess" not in names, path
            assert "sh" not in names or path == ROOT / "core/run.py", path


def test_test_modules_have_names_of_their_own() -> None:
    """They are imported by their bare names: of two that are called the same, a worker can load only one."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name, after in pairwise(names) if name == after] == []


@pytest.mark.xdist_group("together")
def test_groups_stay_together(request: pytest.FixtureRequest) -> None:
    """Tests that share something of the whole machine are in groups; without them they would meet in two workers."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@together")
