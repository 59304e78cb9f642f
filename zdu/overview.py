"""A run at a glance, made of its records: for `status`, for the live view, and for JSON. Pure, but for reading them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from core.errors import RollbackRefused, WrongState
from zdu.lease import Holder, holder
from zdu.progress import Progress
from zdu.records import Leg, Run, RunState, Sample, StepRecord, StepState
from zdu.runbook import Action, Step
from zdu.runs import Runs
from zdu.sites import Sites
from zdu.standing import back, states
from zdu.tables import Tables


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """A site, as far as the records and the last sample tell. `nodes`: server → a word or two."""

    name: str
    kind: str
    calls: int | None
    state: str
    nodes: dict[str, str]
    lag: float | None
    delta: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """A run. `seconds_left`: expected. `under_way`: steps that were begun and have not ended. `way_back`: what an abort
    would do now, or why there is none. `stale`: the controller that should be working is gone.
    """

    run: Run
    leg: Leg
    holder: Holder | None
    stale: bool
    phase: str
    title: str
    phases: int
    phase_number: int
    done: int
    total: int
    seconds_run: float
    seconds_left: float
    under_way: tuple[StepRecord, ...]
    next: str
    way_back: tuple[str, ...]
    way_back_seconds: float
    no_return: str
    sends_to: tuple[str, ...]
    sites: tuple[SiteRow, ...]
    dispatchers: dict[str, str]
    sampled: str

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "run": self.run.id,
            "state": str(self.run.state),
            "text": self.run.text,
            "waits_for": self.run.waits_for,
            "start": self.run.start,
            "target": self.run.target,
            "began": self.run.began,
            "ended": self.run.ended,
            "who": self.run.who,
            "approve": str(self.run.approve),
            "controller": {"who": self.holder.who, "fence": self.holder.fence, "alive": self.holder.alive}
            if self.holder
            else None,
            "stale": self.stale,
            "way_back_under_way": self.leg.runbook.back,
            "phase": self.phase,
            "title": self.title,
            "done": self.done,
            "steps": self.total,
            "seconds_run": round(self.seconds_run),
            "seconds_left": round(self.seconds_left),
            "under_way": [
                {"step": each.step, "began": each.began, "attempts": each.attempts} for each in self.under_way
            ],
            "next": self.next,
            "way_back": list(self.way_back),
            "way_back_seconds": round(self.way_back_seconds),
            "point_of_no_return": self.no_return,
            "sends_to": list(self.sends_to),
            "sites": [
                {"site": s.name, "kind": s.kind, "calls": s.calls, "state": s.state, "nodes": s.nodes, "lag": s.lag}
                | {"delta": s.delta}
                for s in self.sites
            ],
            "dispatchers": self.dispatchers,
            "sampled": self.sampled,
            "error": self.leg.error,
        }


def overview(tables: Tables, sites: Sites, run: Run) -> Overview:
    """Read how a run stands now."""
    runs = Runs(tables)
    legs = runs.legs(run.id)
    leg = legs[-1]
    records = runs.steps(run.id)
    known = states(legs, records)
    progress = Progress(runbook=leg.runbook, states=known)
    samples = runs.samples(run.id, newest=1)
    now_held = holder(tables, run.installation)
    working = run.state in (RunState.RUNNING, RunState.WAITING, RunState.PAUSED, RunState.ABORTING) and not run.ended
    phase = progress.phase
    names = [each.name for each in leg.runbook.phases]
    moves, seconds, why = _way_back(sites, runs, run, progress)
    last = samples[-1] if samples else Sample()
    seen = _Seen(sites, legs, records)
    return Overview(
        run=run,
        leg=leg,
        holder=now_held,
        stale=working and (now_held is None or not now_held.alive),
        phase=phase.name if phase else "",
        title=phase.title if phase else "",
        phases=len(names),
        phase_number=names.index(phase.name) + 1 if phase else len(names),
        done=sum(map(progress.is_done, leg.runbook.steps)),
        total=len(leg.runbook.steps),
        seconds_run=_since(run.began, run.ended),
        seconds_left=0.0 if run.ended else progress.seconds_left,
        under_way=tuple(r for r in records if r.leg == leg.number and r.state is StepState.BEGUN and not run.ended),
        next=_next(progress) if not run.ended else "",
        way_back=moves,
        way_back_seconds=seconds,
        no_return=why,
        sends_to=seen.sends_to,
        sites=tuple(_row(site.name, str(site.kind), sites, seen, last) for site in sites.sites),
        dispatchers={server.name: seen.dispatcher(server.name) for server in sites.dispatchers.servers},
        sampled=last.at,
    )


class _Seen:
    """How the installation stands by the records of all legs, in the order in which steps were done."""

    def __init__(self, sites: Sites, legs: list[Leg], records: list[StepRecord]) -> None:
        steps = {(leg.number, step.id): step for leg in legs for step in leg.runbook.steps}
        self.sends_to: tuple[str, ...] = sites.normally
        self.site: dict[str, list[str]] = {site.name: [] for site in sites.sites}
        self.node: dict[str, str] = {}
        self.vip = sites.dispatchers.servers[0].name
        self.standby: set[str] = set()
        for record in sorted(records, key=lambda each: (each.ended or "~", each.began)):
            step = steps.get((record.leg, record.step))
            if step is not None:
                self._take(step, record)

    def _take(self, step: Step, record: StepRecord) -> None:
        if step.server:
            word = _WORDS.get((step.action, record.state))
            if word is not None:
                self.node[step.server] = word.format(release=step.release)
        if record.state is not StepState.DONE:
            return
        words = self.site.get(step.site, [])
        match step.action:
            case Action.DISPATCH_TO:
                self.sends_to = step.sites
            case Action.VIP_MOVE:
                self.vip = step.server
            case Action.DISPATCHER_STANDBY:
                self.standby.add(step.server)
            case Action.DISPATCHER_RESTORE:
                self.standby.discard(step.server)
            case Action.MAINTENANCE_ENTER:
                words.append("maintenance")
            case Action.STANDALONE_ENTER:
                words.append("stand-alone")
            case Action.MAINTENANCE_LEAVE:
                words[:] = [word for word in words if word != "maintenance"]
            case Action.STANDALONE_LEAVE:
                words[:] = [word for word in words if word != "stand-alone"]
            case _:
                pass

    def dispatcher(self, name: str) -> str:
        """A word on a dispatcher."""
        parts = ["VIP"] if self.vip == name else ["stand-by"] if name in self.standby else []
        return " ".join((*parts, self.node.get(name, ""))).strip()


_WORDS = {
    (Action.CHECK_NODE, StepState.DONE): "checked",
    (Action.CHECK_NODE, StepState.FAILED): "not fit",
    (Action.STAGE_NODE, StepState.BEGUN): "staging",
    (Action.STAGE_NODE, StepState.DONE): "staged",
    (Action.STAGE_NODE, StepState.FAILED): "stage failed",
    (Action.ACTIVATE_NODE, StepState.BEGUN): "reboot",
    (Action.ACTIVATE_NODE, StepState.DONE): "reboot",
    (Action.ACTIVATE_NODE, StepState.FAILED): "activate failed",
    (Action.ROLLBACK_NODE, StepState.BEGUN): "reboot",
    (Action.ROLLBACK_NODE, StepState.DONE): "reboot",
    (Action.CONFIRM_NODE, StepState.BEGUN): "reboot",
    (Action.CONFIRM_NODE, StepState.DONE): "✓ {release}",
    (Action.CONFIRM_NODE, StepState.FAILED): "✗ not on {release}",
}


def _row(name: str, kind: str, sites: Sites, seen: _Seen, last: Sample) -> SiteRow:
    nodes = {server.name: seen.node.get(server.name, "") for server in sites.by_name[name].servers}
    return SiteRow(
        name=name,
        kind=kind,
        calls=last.calls.get(name),
        state=", ".join(dict.fromkeys(seen.site[name])) or "in service",
        nodes=nodes,
        lag=last.lag.get(name),
        delta=last.delta.get(name),
    )


def _next(progress: Progress) -> str:
    """The first step that has not been begun."""
    return next((step.what for step in progress.runbook.steps if step.id not in progress.states), "")


def _way_back(sites: Sites, runs: Runs, run: Run, progress: Progress) -> tuple[tuple[str, ...], float, str]:
    """Moves of the way back from here, as the plan printed them, how long they take, and the point of no return."""
    if run.ended:
        return (), 0.0, ""
    try:
        back(sites, runs, run.id)
    except RollbackRefused as error:
        return (), 0.0, "; ".join((error.message, *error.what))
    except WrongState:
        return (), progress.seconds_left, "the way back is under way"
    runbook = progress.runbook
    begun = [step for step in runbook.steps if step.id in progress.states]
    way = runbook.ways_back.get(begun[-1].way_back) if begun else None
    point = runbook.point_of_no_return
    where = f"none before {point}" if point in runbook.by_id else "none"
    return (way.moves, way.seconds, where) if way is not None else ((), 0.0, where)


def _since(began: str, ended: str) -> float:
    end = datetime.fromisoformat(ended) if ended else datetime.now(UTC)
    return max(0.0, (end - datetime.fromisoformat(began)).total_seconds())


def minutes(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
