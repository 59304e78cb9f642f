"""What a controller adds to each step of an upgrade across sites: records, workflow, looking at gates that are open."""

from __future__ import annotations

import tempfile
from datetime import datetime
from pathlib import Path

from core.sql import Database, Engine
from zdu.controller import Controller
from zdu.drivers import CallsConfig, CallsKind, DispatcherConfig, DispatcherKind, SwitchConfig, TargetConfig, VipConfig
from zdu.gates import Facts, NodeFacts
from zdu.limits import ControllerConfig, Role
from zdu.records import Approve, Sample, StepRecord
from zdu.runbook import Action, Gate, GateKind, Phase, Runbook, Step
from zdu.sites import DispatchersConfig, Server, Site, SiteKind, Sites
from zdu.tables import Tables
from zdu.world import Talk

STEPS = 100


class Nothing:
    """Sites that answer at once."""

    def __init__(self) -> None:
        self.done = False

    def look(self, gate: Gate) -> Facts:
        """Open once something was done."""
        runs, self.done = ("MR96-1" if self.done else "MR95-1"), False
        return Facts(nodes={"n": NodeFacts(runs=runs)})

    def act(self, step: Step, talk: Talk) -> str:
        """Nothing."""
        self.done = True
        return "done"

    def sample(self) -> Sample:
        """Nobody calls."""
        return Sample(calls={"A": 0})


def measure_step_overhead() -> float:
    """Milliseconds from the beginning of a step to that of the next one, with an action that takes no time."""
    gate = Gate(kind=GateKind.BOOTING, server="n", release="MR96-1")
    steps = tuple(
        Step(
            id=f"1/{number}",
            action=Action.ACTIVATE_NODE,
            what="nothing",
            needs=(),
            gates=(gate,),
            seconds=0,
            batch=number,
        )
        for number in range(STEPS)
    )
    runbook = Runbook(
        installation="bench",
        start="MR95-1",
        target="MR96-1",
        main="A",
        stand_in="",
        phases=(Phase(name="1", title="nothing", steps=steps),),
        ways_back={},
        point_of_no_return=steps[-1].id,
        no_return_why="",
        adjoining=True,
    )
    with tempfile.TemporaryDirectory(prefix="updater-bench-") as folder:
        sites = _sites(Path(folder))
        with Tables.open(sites.controller.database) as tables:
            controller = Controller(sites, tables, lambda *_: Nothing())
            ended = controller.start(runbook, bundle="", approve=Approve.NONE, who="bench")
            assert ended.error is None, ended.error
            records = controller.runs.steps(ended.run.id)
    first, last = _begun(records[0]), _begun(records[-1])
    return 1000 * (last - first) / (len(records) - 1)


def _begun(record: StepRecord) -> float:
    return datetime.fromisoformat(record.began).timestamp()


def _sites(folder: Path) -> Sites:
    site = Site(
        name="A",
        kind=SiteKind.MAIN,
        servers=(Server(name="n", roles=(Role.DB_PRIMARY, Role.SIP)),),
        calls=CallsConfig(kind=CallsKind.COMMAND, command=("true",)),
        maintenance=SwitchConfig(command=("true",)),
    )
    program = DispatcherConfig(
        kind=DispatcherKind.COMMAND, command=("true",), targets=(TargetConfig(site="A", destinations=("a",)),)
    )
    dispatchers = DispatchersConfig(
        servers=(Server(name="d", roles=(Role.DISPATCHER,)),),
        programs=(program,),
        vips=(VipConfig(address="192.0.2.1"),),
    )
    database = Database(engine=Engine.SQLITE, path=folder / "zdu.sqlite")
    return Sites(
        name="bench",
        sites=(site,),
        dispatchers=dispatchers,
        controller=ControllerConfig(database=database, require_rehearsal=False),
    )
