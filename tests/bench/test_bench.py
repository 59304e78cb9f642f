"""The benchmark's plumbing, on an image of a few MB. What the figures are does not matter here."""

from __future__ import annotations

import math
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import carry, configuration, migrations
from bench.__main__ import Extent, measure
from bench.devices import loop_device
from bench.timing import Sample, in_turns, table
from bench.writers import Tally
from core.sql import Engine

MIB = 1 << 20


def test_contenders_run_in_turns() -> None:
    order: list[str] = []

    def contender(name: str) -> dict[str, float]:
        order.append(name)
        return {name: float(len(order))}

    found = in_turns([lambda: contender("a"), lambda: contender("b")], 3)
    assert order == ["a", "b"] * 3
    assert found == {"a": Sample((1, 3, 5)), "b": Sample((2, 4, 6))}
    assert found["a"].median == 3
    assert found["b"].over(found["a"]) == 4 / 3
    assert table(found, "s").splitlines()[0].split() == ["a", "3.000", "min", "1.000", "max", "5.000", "s"]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")
def test_a_loop_device_goes_away_with_an_interrupt(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), loop_device(tmp_path / "disk", 8 * MIB + 4096, filled=True) as device:
        assert int(subprocess.check_output(["blockdev", "--getsize64", device])) == 8 * MIB + 4096
        raise KeyboardInterrupt
    assert not (tmp_path / "disk").exists()
    assert str(tmp_path) not in subprocess.check_output(["losetup", "--list"], text=True)


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root for loop devices")
@pytest.mark.skipif(not all(map(shutil.which, ("rauc", "dbus-daemon"))), reason="RAUC is not installed")
def test_every_figure_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    figures = measure(Extent(size=24 * MIB, content=8 * MIB, larger=2, turns=1, starts=1), tmp_path)
    assert [figure.name for figure in figures] == [
        "stage_vs_rauc",
        "stage_vs_floor",
        "stage_peak_mb",
        "stage_peak_growth",
        "help_vs_bare_typer",
        "status_vs_bare_typer",
    ]
    assert all(math.isfinite(figure.value) and figure.value > 0 for figure in figures)
    assert list(tmp_path.iterdir()) == []
    assert str(tmp_path) not in subprocess.check_output(["losetup", "--list"], text=True)
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to install packages")
def test_carrying_is_measured_against_the_bare_tools_and_nothing_stays() -> None:
    with TemporaryDirectory() as short:  # gpg's agent listens on a socket in there, whose path cannot be long
        [figure] = carry.measure(carry.Extent(packages=2, patches=3, turns=1), Path(short))
        assert list(Path(short).iterdir()) == []
    assert figure.name == "carry_overhead_pct"
    assert math.isfinite(figure.value)


def test_configuration_is_measured_and_nothing_stays(tmp_path: Path) -> None:
    figures = configuration.measure(configuration.Extent(files=5, options=100, instances=20, turns=1), tmp_path)
    assert [figure.name for figure in figures] == ["render_200_files_s", "resolve_tree_s"]
    assert all(figure.value > 0 for figure in figures)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", [Engine.MARIADB, Engine.POSTGRESQL])
def test_migrations_are_measured_on_real_servers(engine: Engine) -> None:
    extent = migrations.Extent(rows=2000, rate=80, turns=1, idle=1.5, statements=20, engines=(engine,))
    # a place that is open to the servers' own users, as pytest's directories are not
    figures = {figure.name: figure.value for figure in migrations.measure(extent, Path("/var/tmp"))}
    wanted = {"stall_instant_ms", "stall_online_ms", "stall_vs_best_peer", "idle_txn_stall_ms", "rows_lost"}
    assert set(figures) == {f"{name}_{engine}" for name in wanted} | {"lint_500_s"}
    assert figures[f"rows_lost_{engine}"] == 0


def test_a_row_that_is_lost_is_counted() -> None:
    tally = Tally(inserted=3, updated=7, deleted=1)
    assert migrations.missing((10, 0), tally, (12, 7)) == 0
    assert migrations.missing((10, 0), tally, (11, 7)) == 1
    assert migrations.missing((10, 0), tally, (12, 5)) == 2
