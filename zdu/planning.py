"""The planner: sites, what their servers run, and a release become a runbook. Pure.

Two sites go in the order of the domain page "Zero-downtime upgrade". With more, one secondary site stands in for the
main one; the others are emptied with it, because they ask it for authorization, and get the release in waves.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from core.release import Release
from zdu.moves import Expansion, PhaseMoves, time_for
from zdu.policy import Wish, can_return, check_wish, choose_stand_in, refuse, starting_release
from zdu.runbook import Action, Phase, Runbook, Step, WayBack, batches
from zdu.sites import Sites
from zdu.vocabulary import Move, place, words
from zdu.wayback import Ends, Reached, dispatcher_moves, no_way_back, way_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What there is to do. `todo`: site ("": the dispatchers) → servers that do not have the release yet."""

    ends: Ends
    found: dict[str, str]
    todo: dict[str, tuple[str, ...]]


def plan(sites: Sites, wish: Wish) -> Runbook:
    """The runbook for these sites. Raises ZduRefused with every rule that it would break."""
    from zdu.situation import check_runbook

    refuse(check_wish(sites, wish), f"the upgrade to {wish.target}")
    runbook = _written(sites, _work(sites, wish))
    refuse(check_runbook(sites, runbook, found=_texts(wish.found)), f"the upgrade to {wish.target}")
    return runbook


def plan_back(sites: Sites, runbook: Runbook, begun: Iterable[str], done: Iterable[str]) -> Runbook | None:
    """The way back of a run that has come so far (ids of steps), as a runbook; None past the point of no return."""
    ends = ends_of(runbook)
    reached, finished = Reached(main=runbook.main), set(done)
    seen = {*begun, *finished}
    for step in runbook.steps:
        if step.id in seen:
            reached.note(step, done=step.id in finished)
    if runbook.back or no_way_back(ends, reached) or _closed(runbook, finished):
        return None
    expansion = Expansion(sites, ends.stand_in)
    phases = tuple(expansion.phase(phase) for phase in way_back(sites, ends, reached))
    return replace_phases(runbook, phases)


def replace_phases(runbook: Runbook, phases: tuple[Phase, ...]) -> Runbook:
    """The same run in the other direction."""
    return replace(runbook, phases=phases, back=True, ways_back={}, point_of_no_return="", no_return_why="", passed=())


def ends_of(runbook: Runbook) -> Ends:
    """Between what a runbook goes."""
    return Ends(start=runbook.start, target=runbook.target, stand_in=runbook.stand_in, adjoining=runbook.adjoining)


def _closed(runbook: Runbook, finished: set[str]) -> bool:
    return any(runbook.by_id[name].action is Action.FINISH for name in finished)


def _texts(found: Mapping[str, Release]) -> dict[str, str]:
    return {name: str(release) for name, release in found.items()}


def _work(sites: Sites, wish: Wish) -> Work:
    start = starting_release(wish)
    stand_in = choose_stand_in(sites)
    assert start is not None and stand_in is not None  # else it was refused
    todo: dict[str, tuple[str, ...]] = {}
    for name, site in sites.site_of.items():
        if wish.found[name] != wish.target:
            todo[site] = (*todo.get(site, ()), name)
    ends = Ends(
        start=str(start),
        target=str(wish.target),
        stand_in=stand_in.name,
        adjoining=can_return(sites, wish, start),
    )
    return Work(ends=ends, found=_texts(wish.found), todo=todo)


def _written(sites: Sites, work: Work) -> Runbook:
    """The moves of all phases as steps, each with its way back."""
    ends = work.ends
    expansion = Expansion(sites, ends.stand_in)
    plain = [expansion.phase(phase) for phase in _phases(sites, work)]
    ways, phases, point = _Ways(sites, ends), [], ""
    for phase in plain:
        steps: list[Step] = []
        for group in batches(phase.steps):
            key = ways.key(group)
            if not key and not point:
                point = group[0].id
            steps += [replace(step, way_back="" if step.action is Action.FINISH else key) for step in group]
        phases.append(replace(phase, steps=tuple(steps)))
    finish = phases[-1].steps[-1].id
    why = f"a return is a zero-downtime upgrade of its own, to {ends.start}"
    if point:
        why = f"from then on the data is that of {ends.target}, and {ends.start} does not read it"
    everything = [name for names in work.todo.values() for name in names]
    return Runbook(
        installation=sites.name,
        start=ends.start,
        target=ends.target,
        main=sites.main.name,
        stand_in=ends.stand_in,
        phases=tuple(phases),
        ways_back=ways.told(),
        point_of_no_return=point or finish,
        no_return_why=why,
        adjoining=ends.adjoining,
        passed=tuple(sorted(set(sites.servers) - set(everything))),
    )


class _Ways:
    """The ways back of a runbook: one for each shape of how far it has come, from the furthest point of it."""

    def __init__(self, sites: Sites, ends: Ends) -> None:
        self._sites = sites
        self._ends = ends
        self._reached = Reached(main=sites.main.name)
        self._shapes: dict[tuple[object, ...], str] = {}
        self._furthest: dict[str, Reached] = {}

    def key(self, batch: tuple[Step, ...]) -> str:
        """The key of the way back when this batch, the next one, has been begun; empty if there is none."""
        for step in batch:
            self._reached.note(step)
        if no_way_back(self._ends, self._reached):
            return ""
        key = self._shapes.setdefault(self._reached.shape(), f"w{len(self._shapes) + 1}")
        furthest = self._furthest.get(key)
        if furthest is None:
            self._furthest[key] = self._reached.copy()
        else:
            for step in batch:
                furthest.note(step)
        return key

    def told(self) -> dict[str, WayBack]:
        """The ways back in words."""
        said: dict[str, WayBack] = {}
        for key, reached in self._furthest.items():
            phases = way_back(self._sites, self._ends, reached)
            moves = [move for phase in phases for group in phase.moves for move in group]
            real = [move for move in moves if move.action is not Action.FINISH]
            lines = tuple(words(self._sites, self._ends.stand_in, move.action, move) for move in real)
            short = tuple(f"{move.action} {place(move)}".rstrip() for move in real)
            said[key] = WayBack(moves=lines, seconds=time_for(self._sites, real), actions=short)
        return said


def _phases(sites: Sites, work: Work) -> Iterator[PhaseMoves]:
    main, stand_in = sites.main.name, work.ends.stand_in
    out = sorted(site.name for site in sites.secondaries)
    whole = bool(work.todo.get(main))  # the main site has to leave; else only what is left over is to be done

    def phase(name: str, title: str, moves: Iterable[tuple[Move, ...]]) -> PhaseMoves:
        return PhaseMoves(name=name, title=title, moves=tuple(moves))

    yield phase("1", "preparation: every server checked, the release staged", _prepare(sites, work))
    if whole:
        others = [name for name in out if name != stand_in]
        yield phase("2", f"{stand_in} stands alone and takes the new calls", _hand_over(main, stand_in))
        yield phase("3", f"{main} to maintenance; calls end by themselves", _empty(main, others))
        yield phase("4", f"the new release on {main}: the database first", _switch_main(work, main, stand_in))
    if work.todo.get(""):
        yield phase("5", "the dispatchers, one after the other", _switch_dispatchers(sites, work))
    if whole:
        yield phase("6", f"{main} verified and back; {stand_in} is synchronised to it", _return_main(main, stand_in))
        yield phase("7", f"new calls to {main}; those on {stand_in} end by themselves", _empty_stand_in(main, stand_in))
    yield from _waves(sites, work, whole)


def _prepare(sites: Sites, work: Work) -> Iterator[tuple[Move, ...]]:
    names = [*(site.name for site in sites.sites), ""]
    servers = {name: tuple(each for each, site in sites.site_of.items() if site == name) for name in names}
    yield tuple(
        Move(action=Action.CHECK_NODE, site=name, servers=servers[name], runs={s: work.found[s] for s in servers[name]})
        for name in names
    )
    yield tuple(Move(action=Action.VERIFY_SITE, site=site.name) for site in sites.sites)
    yield tuple(
        Move(action=Action.STAGE_NODE, site=name, servers=work.todo[name], release=work.ends.target)
        for name in names
        if name in work.todo
    )


def _hand_over(main: str, stand_in: str) -> Iterator[tuple[Move, ...]]:
    """New calls go to the main site alone while the other one changes over: at no time are there two books."""
    yield (Move(action=Action.DISPATCH_TO, sites=(main,)),)
    yield (Move(action=Action.STANDALONE_ENTER, site=stand_in),)
    yield (Move(action=Action.DISPATCH_TO, sites=(stand_in,)),)


def _empty(main: str, others: list[str]) -> Iterator[tuple[Move, ...]]:
    yield tuple(Move(action=Action.MAINTENANCE_ENTER, site=name) for name in (main, *others))
    yield tuple(Move(action=Action.DRAIN_WAIT, site=name) for name in (main, *others))


def _switch_main(work: Work, main: str, stand_in: str) -> Iterator[tuple[Move, ...]]:
    yield (Move(action=Action.REPLICA_HOLD, site=stand_in),)
    yield (_activate(work, main),)


def _switch_dispatchers(sites: Sites, work: Work) -> Iterator[tuple[Move, ...]]:
    names = [server.name for server in sites.dispatchers.servers]
    for name in work.todo[""]:
        switch = Move(action=Action.ACTIVATE_NODE, servers=(name,), release=work.ends.target)
        yield from dispatcher_moves(names, name, switch)
    yield (Move(action=Action.VIP_MOVE, servers=(names[0],)),)


def _return_main(main: str, stand_in: str) -> Iterator[tuple[Move, ...]]:
    yield (Move(action=Action.VERIFY_SITE, site=main),)
    yield (Move(action=Action.MAINTENANCE_LEAVE, site=main),)
    yield (Move(action=Action.SYNC_LOCK, site=stand_in),)
    yield (Move(action=Action.STANDALONE_LEAVE, site=stand_in),)
    yield (Move(action=Action.SYNC_TRANSFER, site=stand_in),)


def _empty_stand_in(main: str, stand_in: str) -> Iterator[tuple[Move, ...]]:
    yield (Move(action=Action.DISPATCH_TO, sites=(main,)),)
    yield (Move(action=Action.MAINTENANCE_ENTER, site=stand_in),)
    yield (Move(action=Action.DRAIN_WAIT, site=stand_in),)


def _waves(sites: Sites, work: Work, whole: bool) -> Iterator[PhaseMoves]:
    """The secondary sites, so many at a time; the one that stood in comes first."""
    main, stand_in = sites.main.name, work.ends.stand_in
    order = sorted(sites.secondaries, key=lambda site: site.name != stand_in)
    names = [site.name for site in order if whole or work.todo.get(site.name)]
    size = sites.limits.parallel_sites
    waves = [names[start : start + size] for start in range(0, len(names), size)]
    back = set(sites.by_name) - set(names)
    for number, wave in enumerate(waves, 1):
        suffix = f".{number}" if len(waves) > 1 else ""
        told = ", ".join(wave)
        if not whole:
            rest = tuple(name for name in sites.normally if name not in wave) or (main,)
            moves: list[tuple[Move, ...]] = [
                (Move(action=Action.DISPATCH_TO, sites=rest),),
                tuple(Move(action=Action.MAINTENANCE_ENTER, site=name) for name in wave),
                tuple(Move(action=Action.DRAIN_WAIT, site=name) for name in wave),
            ]
            yield PhaseMoves(name=f"7{suffix}", title=f"calls on {told} end by themselves", moves=tuple(moves))
        moves = [(Move(action=Action.SYNC_CLOSE, site=stand_in),)] if whole and stand_in in wave else []
        moves.append(tuple(Move(action=Action.REPLICA_REJOIN, site=name) for name in wave))
        moves += [(_activate(work, name),) for name in wave if work.todo.get(name)]
        yield PhaseMoves(name=f"8{suffix}", title=f"the new release on {told}", moves=tuple(moves))
        back |= set(wave)
        last = number == len(waves)
        moves = list(_reopen(sites, wave, back, main))
        yield PhaseMoves(
            name=f"9{suffix}",
            title=f"{told} back to normal",
            moves=(*moves, *([(Move(action=Action.FINISH),)] if last else [])),
        )
    if not waves:
        yield PhaseMoves(name="9", title="the end", moves=((Move(action=Action.FINISH),),))


def _reopen(sites: Sites, wave: list[str], back: set[str], main: str) -> Iterator[tuple[Move, ...]]:
    yield tuple(Move(action=Action.VERIFY_SITE, site=name) for name in wave)
    resting = [name for name in wave if sites.by_name[name].billing is not None]
    if resting:
        yield tuple(Move(action=Action.BILLING_STANDBY, site=name) for name in resting)
    yield tuple(Move(action=Action.MAINTENANCE_LEAVE, site=name) for name in wave)
    yield (Move(action=Action.DISPATCH_TO, sites=tuple(n for n in sites.normally if n in back) or (main,)),)


def _activate(work: Work, site: str) -> Move:
    return Move(action=Action.ACTIVATE_NODE, site=site, servers=work.todo[site], release=work.ends.target)
