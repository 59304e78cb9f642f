"""One run with calls all the time, and from every single effect of it: the controller dies there and another one goes
on; the controller dies there and the run is aborted.
"""

from __future__ import annotations

from typing import Any

import pytest

from core.errors import RollbackRefused
from core.release import Release
from tests.zdu.rehearsal import Rehearsal, in_service
from tests.zdu.sitelab import NEW, OLD, installation, wish
from tests.zdu.world import ACCOUNTS, World
from zdu.limits import LimitsConfig
from zdu.planning import plan
from zdu.sites import Sites


def rehearsal(sites: Sites, start: Release = OLD, **more: Any) -> Rehearsal:
    wanted = wish(sites, start, NEW, **more)
    return Rehearsal(sites, World(sites, dict(wanted.found)), plan(sites, wanted))


def traffic(run: Rehearsal, beat: int) -> None:
    """A call now and then, some of them long."""
    world = run.world
    if beat % 2 == 0:
        world.call(ACCOUNTS[beat // 2 % 2], 3, beat)
    if beat % 3 == 0 and world.calls:
        numbers = list(world.calls)
        world.hang_up(numbers[beat % len(numbers)], 1 + beat % 3)
    world.check()


@pytest.mark.parametrize(
    ("sites", "more"),
    [
        pytest.param(installation(1), {}, id="two sites"),
        pytest.param(installation(1, normally=("A",)), {}, id="calls to the main site only"),
        pytest.param(installation(3, limits=LimitsConfig(parallel_sites=2)), {}, id="four sites"),
        pytest.param(installation(1, dispatchers=3), {}, id="three dispatchers"),
        pytest.param(installation(1, dispatchers=3), {"found": {"a-01": NEW, "b-02": NEW, "d1": NEW}}, id="some done"),
        pytest.param(installation(2), {"found": dict.fromkeys([f"a-0{n}" for n in range(1, 5)], NEW)}, id="main done"),
        pytest.param(
            installation(1), {"start": Release(NEW.number - 3, 1), "accept_no_rollback": True}, id="three releases on"
        ),
    ],
)
def test_from_every_place_a_run_can_go_on_and_go_back(sites: Sites, more: dict[str, Any]) -> None:
    start = more.get("start", OLD)
    run = rehearsal(sites, **more)
    before = dict.fromkeys(sites.servers, str(start)) | {k: str(v) for k, v in more.get("found", {}).items()}
    after = dict.fromkeys(sites.servers, str(NEW))
    forks = beat = refused = 0
    while not run.progress.finished:
        steps = [*run.active(), *run.ready()]
        step = steps[beat % len(steps)]
        if step.id not in run.under_way:
            run.begin(step)
        elif not run.advance(step):
            run.world.hang_up(next(iter(run.world.calls)), 1)
        traffic(run, beat)
        beat += 1
        prepared = run.progress.runbook.phase_of[step.id] != "1"
        if prepared and beat % 4 == 0:
            on = run.fork()
            on.to_the_end()
            in_service(on, after)
        if prepared and not run.progress.finished:
            forks += 1
            back = run.fork()
            try:
                back.abort()
            except RollbackRefused:
                assert run.progress.past_return
                refused += 1
                continue
            assert not run.progress.past_return or step.id == run.progress.runbook.point_of_no_return
            back.to_the_end()
            in_service(back, before)
    in_service(run, after)
    assert forks > 20
    assert (refused > 20) is (start.number < OLD.number)
