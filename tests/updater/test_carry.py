"""Dying while the slot is mounted: the mount goes with the process, and the stage goes on. With a real loop mount."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from partitions.mounts import loops_over
from tests.updater.crash import die_at, in_child, points
from tests.updater.lab import Lab, copy_sandbox, do, look


@pytest.mark.root
def test_death_at_every_point_around_the_mount(lab: Lab, place: Path) -> None:
    carried = place / "carried" / "node.toml"
    carried.parent.mkdir()
    carried.write_text("the node's own\n")
    config = lab.sandbox(place / "node", carry=(carried,))
    bundle = lab.bundle("MR96-1")
    trial = copy_sandbox(config.parent, place / "trial")
    found = [point for point in points(lambda: do(trial, "stage", bundle)) if point.during in ("carry", "entry")]
    assert {point.name for point in found} >= {"carry:intended", "carry:applied", "entry:intended"}
    for point in found:
        dead = copy_sandbox(config.parent, place / "dead")
        assert die_at(point, lambda dead=dead: do(dead, "stage", bundle))  # type: ignore[misc]
        slot = dead.parent / "slots" / "b.img"
        assert loops_over(slot) == [], point
        assert in_child(lambda dead=dead: do(dead, "resume")) == "done", point  # type: ignore[misc]
        seen = in_child(lambda dead=dead: look(dead))  # type: ignore[misc]
        assert seen is not None and seen["slots"]["b"] == "MR96-1 staged", point
        assert seen["records"]["b"]["seal"] == "holds", point
        checked = subprocess.run(["e2fsck", "-fn", str(slot)], capture_output=True, text=True, check=False)
        assert checked.returncode == 0, checked.stdout
        shown = subprocess.run(
            ["debugfs", "-R", f"cat {carried}", str(slot)], capture_output=True, text=True, check=True
        )
        assert shown.stdout == "the node's own\n"
        shutil.rmtree(dead.parent)
