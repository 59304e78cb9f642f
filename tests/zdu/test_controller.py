"""The controller on an installation in memory."""

from __future__ import annotations

from pathlib import Path

from tests.zdu import controllerlab as lab
from zdu.records import Approve, RunState


def test_a_run_from_start_to_end(tmp_path: Path) -> None:
    sites = lab.sites(tmp_path)
    model = lab.model(sites)
    world = lab.MemoryWorld(model)
    with lab.controller(sites, world) as controller:
        ended = controller.start(lab.runbook(sites), bundle="mr96-1.bundle", approve=Approve.NONE, who="ada")
        assert ended.error is None, ended.error.as_json()
        assert ended.run.state is RunState.DONE
        lab.in_service(model, "MR96-1")
        assert controller.runs.samples(ended.run.id)
