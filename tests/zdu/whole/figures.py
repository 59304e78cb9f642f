"""Figures of the controller by itself: planning a large installation, and what it adds to each step."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.zdu import controllerlab as lab
from tests.zdu.sitelab import installation, wish
from zdu.planning import plan
from zdu.records import Approve


def plan_seconds(sites: int = 50, servers: int = 40) -> float:
    """To plan an upgrade of so many sites with so many servers each; the best of three."""
    large = installation(sites - 1, servers=servers)
    wanted, took = wish(large), []
    for _ in range(3):
        begun = time.perf_counter()
        plan(large, wanted)
        took.append(time.perf_counter() - begun)
    return min(took)


def step_overhead() -> float:
    """Milliseconds that the controller adds to a step, all told: a run in which every action and every look is made at
    once, with all that is recorded.
    """
    with TemporaryDirectory() as directory:
        sites = lab.sites(Path(directory))
        runbook = lab.runbook(sites)
        world = lab.MemoryWorld(lab.model(sites))
        world.talking = False
        with lab.controller(sites, world) as controller:
            begun = time.perf_counter()
            ended = controller.start(runbook, bundle="/depot/b", approve=Approve.NONE, who="bench")
            seconds = time.perf_counter() - begun
        assert ended.error is None, ended.error
        return 1000 * seconds / len(runbook.steps)
