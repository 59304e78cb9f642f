"""The rules that hold at every moment of a run, judged step by step on what the steps do. Pure.

`check_runbook` walks a whole runbook, a way back as well; the controller asks `forbidden` once more, before each step,
about what it has found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from core.release import Release
from zdu.limits import Role
from zdu.policy import Refusal
from zdu.runbook import Action, Runbook, Step
from zdu.sites import Sites


class Delta(IntEnum):
    """How the delta of the site that stands in stands to the books of the main site."""

    NONE = 0  # there is none
    EMPTY = 1  # the site stands alone, and got no new calls so far
    SPENT = 2  # it has spent what the main site does not know of
    LOCKED = 3  # the main site holds as much back
    TRANSFERRED = 4


@dataclass(slots=True)
class Situation:
    """How things stand. `takers`: sites that new calls go to. `runs`: server → release; `data`: site → release that its
    data was migrated to. `restarting`: servers switched and not confirmed yet. `empty`: sites seen without calls.
    """

    takers: tuple[str, ...]
    runs: dict[str, str]
    data: dict[str, str]
    closed: set[str] = field(default_factory=set)
    empty: set[str] = field(default_factory=set)
    held: set[str] = field(default_factory=set)
    alone: str = ""
    delta: Delta = Delta.NONE
    restarting: dict[str, str] = field(default_factory=dict)
    standby: set[str] = field(default_factory=set)
    vip: str = ""


def ordinary(sites: Sites, found: Mapping[str, str]) -> Situation:
    """The ordinary course of things, from which runs begin."""
    data = {}
    for site in sites.sites:
        releases = [Release.parse(found[s.name]) for s in site.with_role(Role.DB_PRIMARY, Role.DB_REPLICA)]
        data[site.name] = str(max(releases)) if releases else ""
    newest = data[sites.main.name]  # replicas follow it
    return Situation(
        takers=sites.normally,
        runs=dict(found),
        data=dict.fromkeys(data, newest),
        vip=sites.dispatchers.servers[0].name,
    )


def check_runbook(sites: Sites, runbook: Runbook, *, found: Mapping[str, str]) -> list[Refusal]:
    """Every rule that the runbook would break, from the ordinary course of things on."""
    now = ordinary(sites, found)
    refusals = [refusal for batch in runbook.batches for refusal in walk(sites, now, batch)]
    return [*dict.fromkeys(refusals), *windows_long_enough(sites, runbook)]


def walk(sites: Sites, now: Situation, batch: Iterable[Step]) -> Iterator[Refusal]:
    """Take the steps of a batch: `now` is changed. Yields what they break."""
    steps = list(batch)
    for step in steps:
        yield from forbidden(sites, now, step)
        take(sites, now, step)
    changed = steps[0].action if steps else Action.FINISH
    if changed not in (Action.CHECK_NODE, Action.STAGE_NODE):
        yield from broken(sites, now)


def take(sites: Sites, now: Situation, step: Step) -> None:
    """What a step does."""
    site, server = step.site, step.server
    match step.action:
        case Action.DISPATCH_TO:
            now.takers = step.sites
            now.empty -= set(step.sites)
            if now.alone in step.sites and now.delta is Delta.EMPTY:
                now.delta = Delta.SPENT
        case Action.STANDALONE_ENTER:
            if now.alone != site:
                now.alone, now.delta = site, Delta.EMPTY
        case Action.MAINTENANCE_ENTER:
            now.closed.add(site)
        case Action.MAINTENANCE_LEAVE:
            now.closed.discard(site)
        case Action.DRAIN_WAIT:
            now.empty.add(site)
        case Action.REPLICA_HOLD:
            now.held.add(site)
        case Action.REPLICA_REJOIN:
            now.held.discard(site)
            now.data[site] = now.data[sites.main.name]
        case Action.ACTIVATE_NODE | Action.ROLLBACK_NODE:
            now.restarting[server] = now.runs[server] = step.release
            if Role.DB_PRIMARY in sites.servers[server].roles:
                newest = max(Release.parse(now.data[site]), Release.parse(step.release))
                followers = [each.name for each in sites.secondaries if each.name not in now.held]
                now.data |= dict.fromkeys((site, *followers), str(newest))
        case Action.CONFIRM_NODE:
            now.restarting.pop(server, None)
        case Action.VIP_MOVE:
            now.vip = server
        case Action.DISPATCHER_STANDBY:
            now.standby.add(server)
        case Action.DISPATCHER_RESTORE:
            now.standby.discard(server)
        case Action.SYNC_LOCK:
            now.delta = Delta.LOCKED if now.delta in (Delta.EMPTY, Delta.SPENT) else now.delta
        case Action.STANDALONE_LEAVE:
            now.alone = ""
        case Action.SYNC_TRANSFER:
            now.delta = Delta.TRANSFERRED if now.delta is Delta.LOCKED else now.delta
        case Action.SYNC_CLOSE:
            now.delta = Delta.NONE
        case _:
            pass


def forbidden(sites: Sites, now: Situation, step: Step) -> Iterator[Refusal]:
    """Why a step may not be begun as things stand."""
    main, site = sites.main.name, step.site
    away = main in now.closed or any(sites.site_of[name] == main for name in now.restarting)
    match step.action:
        case Action.STANDALONE_ENTER if now.alone != site:
            if now.alone:
                yield _rule("one-book", f"{site} would stand alone beside {now.alone}")
            if site in now.held or site in now.closed or away:
                yield _rule("one-book", f"{site} would stand alone on a replica that does not follow {main}")
            if now.delta is not Delta.NONE:
                yield _rule("one-book", f"the last delta of {now.alone or site} is not closed")
            if site in now.takers:
                yield _rule("one-book", f"{site} would change over while it gets new calls")
        case Action.DRAIN_WAIT if site in now.takers:
            yield _rule("no-call-cut", f"{site} would be waited for while it gets new calls")
        case Action.REPLICA_HOLD:
            busy = [s.name for s in sites.sites if s.name != site and s.name not in now.empty]
            if now.alone != site or busy:
                yield _rule("one-book", f"the replica of {site} would miss what calls on {', '.join(busy)} still cost")
        case Action.ACTIVATE_NODE | Action.ROLLBACK_NODE:
            yield from _may_restart(sites, now, step)
        case Action.VIP_MOVE if step.server in now.standby or step.server in now.restarting:
            yield _rule("one-dispatcher", f"the virtual IP would go to {step.server}, which is out of service")
        case Action.DISPATCHER_STANDBY if now.vip == step.server:
            yield _rule("one-dispatcher", f"{step.server} would leave with the virtual IP")
        case Action.SYNC_LOCK | Action.STANDALONE_LEAVE if away:
            yield _rule("one-book", f"{site} would need {main}, which is away")
        case Action.STANDALONE_LEAVE if now.delta in (Delta.EMPTY, Delta.SPENT):
            yield _rule("one-book", f"{site} would ask {main}, which does not know what {site} has spent")
        case Action.SYNC_CLOSE if now.delta not in (Delta.TRANSFERRED, Delta.NONE):
            yield _rule("one-book", f"call records of {site} would be left behind")
        case _:
            pass


def _may_restart(sites: Sites, now: Situation, step: Step) -> Iterator[Refusal]:
    if not step.site:
        if step.server not in now.standby:
            yield _rule("one-dispatcher", f"{step.server} would restart in service")
        return
    booked = {step.site}
    if step.site == sites.main.name:
        booked = {site.name for site in sites.sites} - {now.alone}
        if now.alone and now.alone not in now.held:
            yield _rule("one-book", f"the replica of {now.alone} would follow {step.site} while that changes")
    busy = sorted(booked - now.empty | {step.site} - now.closed)
    if busy:
        yield _rule("no-call-cut", f"{step.server} would restart while {', '.join(busy)} may carry calls")


def broken(sites: Sites, now: Situation) -> Iterator[Refusal]:
    """The rules that are broken as things stand."""
    main = sites.main.name
    away = main in now.closed or any(sites.site_of[name] == main for name in now.restarting)
    if now.alone in now.takers and now.takers != (now.alone,):
        yield _rule("one-book", f"{' and '.join(now.takers)} would authorize from two books at a time")
    if now.delta is Delta.SPENT and now.alone not in now.takers:
        yield _rule("one-book", f"{' and '.join(now.takers)} would not know what {now.alone} has spent")
    for name in now.takers:
        if name in now.closed:
            yield _rule("service", f"new calls would go to {name}, which is in maintenance")
        elif name != now.alone and away:
            yield _rule("service", f"new calls would go to {name}, which asks {main}, and {main} is away")
    if len(now.standby) > 1 or now.vip in now.standby:
        yield _rule("one-dispatcher", f"{', '.join(sorted(now.standby))} would be out of service together")
    carried = sum(sites.by_name[name].capacity for name in now.takers)
    if carried < sites.limits.minimum_capacity:
        yield Refusal(
            rule="capacity",
            what=f"{' and '.join(now.takers)} can carry {carried} calls, and {sites.limits.minimum_capacity} must be "
            "possible at all times",
            change="name a larger site as stand_in, or lower limits.minimum_capacity, in the sites file",
        )
    yield from _limits(sites, now)
    yield from _data_read(sites, now)


def _limits(sites: Sites, now: Situation) -> Iterator[Refusal]:
    if len(now.restarting) > sites.limits.parallel_servers:
        yield _rule("limits", f"{len(now.restarting)} servers would restart together")
    roles = Counter((sites.site_of[name], role) for name in now.restarting for role in sites.servers[name].roles)
    for (site, role), number in roles.items():
        if number > sites.limits.max_unavailable.get(role, number):
            yield _rule("limits", f"{number} servers of {site} with the role {role} would restart together")


def _data_read(sites: Sites, now: Situation) -> Iterator[Refusal]:
    """No site serves with software that does not read its data."""
    for site in sites.sites:
        if site.name in now.closed or not now.data[site.name]:
            continue
        releases = {now.runs[server.name] for server in site.servers}
        for release in releases:
            why = sites.policy.forbids_data(Release.parse(release), Release.parse(now.data[site.name]))
            if why:
                yield _rule("data", f"{site.name} would serve although {why}")


def windows_long_enough(sites: Sites, runbook: Runbook) -> Iterator[Refusal]:
    """From the first change of traffic until the main site serves again, and each wave, fits a window."""
    if not sites.windows:
        return
    longest = max(each.window.seconds for each in sites.windows)
    pieces: dict[str, float] = {}
    for phase in runbook.phases:
        number, _, wave = phase.name.partition(".")
        if number != "1":
            piece = f"wave {wave}" if wave and wave != "1" else "the change-over"
            pieces[piece] = pieces.get(piece, 0.0) + phase.seconds
    for piece, seconds in pieces.items():
        if seconds > longest:
            yield Refusal(
                rule="windows",
                what=f"{piece} takes about {seconds / 60:.0f} min, and the longest window has {longest / 60:.0f}",
                change="a longer window, more limits.parallel_servers, or truer figures under expect in the sites file",
            )


def _rule(rule: str, what: str) -> Refusal:
    return Refusal(rule=rule, what=what, change=_CHANGES.get(rule, "this plan cannot be carried out; report it"))


_CHANGES = {
    "limits": "raise limits.max_unavailable or limits.parallel_servers in the sites file",
    "data": "upgrade the site itself first, or go release by release",
}
