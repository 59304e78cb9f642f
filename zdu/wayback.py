"""The way back: from how far a run has come, the moves that lead to service on the release that it began with.

A step that was begun counts as done: what undoes it makes sure of something, and does no harm where nothing was done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from zdu.moves import PhaseMoves
from zdu.runbook import Action, Step
from zdu.sites import Sites
from zdu.vocabulary import Move


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Between what the run goes: releases, who stands in, and whether old software reads the new data."""

    start: str
    target: str
    stand_in: str
    adjoining: bool


@dataclass(slots=True)
class Reached:
    """How far a run has come: what has been begun, as far as the way back depends on it. The sets are in order."""

    main: str
    dispatched: bool = False
    alone: bool = False
    held: bool = False
    main_closed: bool = False
    main_reopened: bool = False
    locked: bool = False
    balanced: bool = False
    closed: dict[str, None] = field(default_factory=dict)  # secondary sites
    reopened: dict[str, None] = field(default_factory=dict)
    touched: dict[str, dict[str, None]] = field(default_factory=dict)  # site ("": dispatchers) → servers switched
    aside: dict[str, None] = field(default_factory=dict)  # dispatchers that left
    booting: dict[str, None] = field(default_factory=dict)  # dispatchers switched and not confirmed
    vip_moved: bool = False
    vip_under_way: str = ""  # where to, while nothing after the move was begun: the others may stand by for it

    def note(self, step: Step, *, done: bool = True) -> None:
        """A step has been begun; `done`: and ended well."""
        self.vip_under_way = step.server if step.action is Action.VIP_MOVE else ""
        match step.action:
            case Action.DISPATCH_TO:
                self.dispatched = True
            case Action.STANDALONE_ENTER:
                self.alone = True
            case Action.REPLICA_HOLD:
                self.held = True
            case Action.MAINTENANCE_ENTER if step.site == self.main:
                self.main_closed = True
            case Action.MAINTENANCE_ENTER:
                self.closed[step.site] = None
            case Action.MAINTENANCE_LEAVE if step.site == self.main:
                self.main_reopened = True
            case Action.MAINTENANCE_LEAVE:
                self.reopened[step.site] = None
            case Action.ACTIVATE_NODE:
                self.touched.setdefault(step.site, {})[step.server] = None
                if not step.site:
                    self.booting[step.server] = None
            case Action.CONFIRM_NODE if done:
                self.booting.pop(step.server, None)
            case Action.DISPATCHER_STANDBY:
                self.aside[step.server] = None
            case Action.VIP_MOVE:
                self.vip_moved = True
            case Action.SYNC_LOCK:
                self.locked = True
            case Action.SYNC_CLOSE:
                self.balanced = self.balanced or done
            case _:
                pass

    def shape(self) -> tuple[object, ...]:
        """The same while the way back is the same but for the number of servers."""
        flags = (self.dispatched, self.alone, self.held, self.main_closed, self.main_reopened, self.locked)
        many = (self.closed, self.reopened, self.touched, self.aside, self.booting)
        moved = (self.vip_moved, self.vip_under_way)
        return (*flags, self.balanced, *moved, *(tuple(each) for each in many), tuple(self.touched.get("", ())))

    def copy(self) -> Reached:
        """One that goes on by itself."""
        own = replace(self, closed=dict(self.closed), reopened=dict(self.reopened), aside=dict(self.aside))
        own.booting = dict(self.booting)
        own.touched = {site: dict(servers) for site, servers in self.touched.items()}
        return own


def no_way_back(ends: Ends, reached: Reached) -> str:
    """Why there is no way back from here; empty where there is one."""
    if ends.adjoining or not any(reached.touched.values()):
        return ""
    return f"the data is migrated to {ends.target}, and {ends.start} does not read it"


def way_back(sites: Sites, ends: Ends, reached: Reached) -> list[PhaseMoves]:
    """The moves, in phases. Only where `no_way_back` has nothing to say."""
    parts = [
        ("the dispatcher that was under way returns to {start}", _leave_booting_dispatcher(sites, ends, reached)),
        ("secondary sites return to {start}", _leave_secondaries(sites, ends, reached)),
        ("{stand_in} stands alone again, {main} is emptied", _empty_main_again(sites, ends, reached)),
        ("{main} returns to {start}", _leave_main(sites, ends, reached)),
        ("the dispatchers return to {start}, one after the other", _leave_dispatchers(sites, ends, reached)),
        ("{stand_in} is synchronised, all sites are back to normal", _back_to_normal(sites, ends, reached)),
    ]
    phases: list[PhaseMoves] = []
    for title, groups in parts:
        moves = tuple(groups)
        if moves:
            told = title.format(start=ends.start, stand_in=ends.stand_in, main=sites.main.name)
            phases.append(PhaseMoves(name=f"back-{len(phases) + 1}", title=told, moves=moves))
    return phases


Groups = Iterator[tuple[Move, ...]]


def _leave_secondaries(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    """They give their calls to the main site and are emptied; then their servers go back."""
    names = [name for name in reached.touched if name not in ("", reached.main)]
    if not names:
        return
    yield (Move(action=Action.DISPATCH_TO, sites=(reached.main,)),)
    yield _each(Action.MAINTENANCE_ENTER, names)
    yield _each(Action.DRAIN_WAIT, names)
    for name in reversed(names):
        yield (_rollback(ends, name, reached.touched[name]),)


def _empty_main_again(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    """What the main site has taken in since it is back must be seen to before it can leave again."""
    if not reached.touched.get(reached.main):
        return
    main, stand_in = reached.main, ends.stand_in
    if not reached.locked:
        if reached.main_reopened:
            yield (Move(action=Action.MAINTENANCE_ENTER, site=main),)
            yield (Move(action=Action.DRAIN_WAIT, site=main),)
        return
    if not reached.balanced:
        yield (Move(action=Action.SYNC_LOCK, site=stand_in),)
        yield (Move(action=Action.STANDALONE_LEAVE, site=stand_in),)
    yield (Move(action=Action.DISPATCH_TO, sites=(main,)),)
    if not reached.balanced:
        yield (Move(action=Action.SYNC_TRANSFER, site=stand_in),)
        yield (Move(action=Action.SYNC_CLOSE, site=stand_in),)
    others = [name for name in reached.reopened if name != stand_in and name not in reached.touched]
    if others:
        yield _each(Action.MAINTENANCE_ENTER, others)
    yield (Move(action=Action.REPLICA_REJOIN, site=stand_in),)
    yield (Move(action=Action.MAINTENANCE_LEAVE, site=stand_in),)
    yield (Move(action=Action.STANDALONE_ENTER, site=stand_in),)
    yield (Move(action=Action.DISPATCH_TO, sites=(stand_in,)),)
    yield (Move(action=Action.MAINTENANCE_ENTER, site=main),)
    yield _each(Action.DRAIN_WAIT, [main, *others])
    yield (Move(action=Action.REPLICA_HOLD, site=stand_in),)


def _leave_main(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    servers = reached.touched.get(reached.main)
    if servers:
        yield (_rollback(ends, reached.main, servers),)
        yield (Move(action=Action.VERIFY_SITE, site=reached.main),)


def _leave_booting_dispatcher(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    """It may be between its two slots, and no more servers than allowed are to restart together: it goes first."""
    names = [server.name for server in sites.dispatchers.servers]
    for name in reached.booting:
        yield from dispatcher_moves(names, name, _rollback(ends, "", [name]))


def _leave_dispatchers(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    """At most one is out of service, the one that was begun last: it is put into service again, or goes back first."""
    names = [server.name for server in sites.dispatchers.servers]
    touched = reached.touched.get("", {})
    if touched and reached.dispatched and not any(name for name in reached.touched):
        # some may have heard of the last change and others not: no virtual IP moves between two that disagree
        away = reached.closed.keys() - reached.reopened.keys()
        takers = tuple(name for name in sites.normally if name not in away) or (reached.main,)
        yield (Move(action=Action.DISPATCH_TO, sites=takers),)
    stood_by = [name for name in names if reached.vip_under_way not in ("", name)]
    for name in dict.fromkeys([*reached.aside, *stood_by]):
        if name not in touched:
            yield (Move(action=Action.DISPATCHER_RESTORE, servers=(name,)),)
    for name in reversed(touched):
        if name not in reached.booting:
            yield from dispatcher_moves(names, name, _rollback(ends, "", [name]))
    if reached.vip_moved:
        yield (Move(action=Action.VIP_MOVE, servers=(names[0],)),)


def dispatcher_moves(names: list[str], name: str, switch: Move) -> Groups:
    """One dispatcher gives the virtual IP to another one, leaves, is switched, and comes back."""
    other = next(each for each in names if each != name)
    yield (Move(action=Action.VIP_MOVE, servers=(other,)),)
    yield (Move(action=Action.DISPATCHER_STANDBY, servers=(name,)),)
    yield (switch,)
    yield (Move(action=Action.DISPATCHER_RESTORE, servers=(name,)),)


def _back_to_normal(sites: Sites, ends: Ends, reached: Reached) -> Groups:
    """Everybody serves again as soon as the books are one; the last of the delta is posted beside that."""
    stand_in, main = ends.stand_in, reached.main
    touched = [name for name in reached.touched if name not in ("", main)]
    stood_alone = reached.alone and (not reached.balanced or bool(reached.touched.get(main)))
    if reached.held:
        yield (Move(action=Action.REPLICA_REJOIN, site=stand_in),)
    if reached.main_closed:
        yield (Move(action=Action.MAINTENANCE_LEAVE, site=main),)
    if stood_alone:
        yield (Move(action=Action.SYNC_LOCK, site=stand_in),)
        yield (Move(action=Action.STANDALONE_LEAVE, site=stand_in),)
    if touched:
        yield _each(Action.REPLICA_REJOIN, touched)
        yield _each(Action.VERIFY_SITE, touched)
    if reached.closed:
        yield _each(Action.MAINTENANCE_LEAVE, reached.closed)
    if reached.dispatched:
        yield (Move(action=Action.DISPATCH_TO, sites=sites.normally),)
    if stood_alone:
        yield (Move(action=Action.SYNC_TRANSFER, site=stand_in),)
        yield (Move(action=Action.SYNC_CLOSE, site=stand_in),)
    resting = dict.fromkeys([*([stand_in] if reached.alone else []), *touched])
    resting_billing = [name for name in resting if sites.by_name[name].billing is not None]
    if resting_billing:
        yield _each(Action.BILLING_STANDBY, resting_billing)
    yield (Move(action=Action.FINISH),)


def _each(action: Action, names: Iterable[str]) -> tuple[Move, ...]:
    return tuple(Move(action=action, site=name) for name in names)


def _rollback(ends: Ends, site: str, servers: Iterable[str]) -> Move:
    """Those that were switched last go first: some of them may be booting still, and so many at a time are allowed."""
    return Move(action=Action.ROLLBACK_NODE, site=site, servers=tuple(servers)[::-1], release=ends.start)
