"""Reading the real state of an installation: what a gate has to know, asked of whoever knows it. Changes nothing."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from core.errors import FencedOff, UpdaterError
from zdu.gates import DispatcherFacts, Facts, NodeFacts, SiteFacts
from zdu.hands import Hands
from zdu.ledgers import Books, books_of
from zdu.records import Sample
from zdu.runbook import Gate, GateKind
from zdu.sites import Site, SiteKind
from zdu.traffic.drain import Drain, Reading, judge
from zdu.traffic.targets import State, Target

T = TypeVar("T")

_DISPATCHERS = frozenset({GateKind.SENDS_TO, GateKind.VIP_AT, GateKind.STANDBY, GateKind.IN_SERVICE})
_NODES = frozenset({GateKind.READY, GateKind.STAGED, GateKind.RUNS, GateKind.BOOTING})
_BOOKS = frozenset({GateKind.LOCKED, GateKind.TRANSFERRED, GateKind.BALANCED})


def look(hands: Hands, gate: Gate) -> Facts:
    """What is needed to judge a gate; what could not be read is missing, with the reason among the problems."""
    if gate.kind in _NODES:
        node = hands.node(gate.server)
        health = gate.kind is GateKind.RUNS
        return Facts(nodes={gate.server: node.facts(fit=gate.kind is GateKind.READY, health=health)})
    if gate.kind in _DISPATCHERS:
        return Facts(dispatchers=dispatchers(hands))
    site = hands.sites.by_name[gate.site]
    return Facts(sites={site.name: _site(hands, site, gate.kind)})


def dispatchers(hands: Hands) -> dict[str, DispatcherFacts]:
    """All dispatchers, asked at the same time."""
    names = [server.name for server in hands.sites.dispatchers.servers]
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        return dict(zip(names, pool.map(lambda name: _dispatcher(hands, name), names), strict=True))


def sample(hands: Hands) -> Sample:
    """How traffic stands now."""
    calls: dict[str, int | None] = {}
    lag: dict[str, float | None] = {}
    delta: dict[str, int | None] = {}
    for site in hands.sites.sites:
        calls[site.name] = hands.calls(site).read().count
        if site.kind is SiteKind.SECONDARY and site.database is not None:
            seen = _tried(lambda site=site: hands.replica(site).status())  # type: ignore[misc]
            lag[site.name] = seen.lag if seen is not None else None
        if site.standalone is not None and site.standalone.delta is not None:
            books = _tried(lambda site=site: books_of(hands, site))  # type: ignore[misc]
            if books is None or books.open:
                delta[site.name] = books.untransferred if books is not None else None
    return Sample(calls=calls, lag=lag, delta=delta)


def nodes_seen(hands: Hands, names: list[str], *, parallel: int = 16) -> dict[str, NodeFacts | UpdaterError]:
    """Many nodes at the same time; for each the facts, or why they could not be had."""

    def one(name: str) -> NodeFacts | UpdaterError:
        try:
            return hands.node(name).facts(fit=True)
        except UpdaterError as error:
            return error

    with ThreadPoolExecutor(max_workers=max(1, min(parallel, len(names)))) as pool:
        return dict(zip(names, pool.map(one, names), strict=True))


def _site(hands: Hands, site: Site, kind: GateKind) -> SiteFacts:
    if kind is GateKind.NO_CALLS:
        return _empty(hands, site)
    if kind in (GateKind.CLOSED, GateKind.OPEN):
        return SiteFacts(closed=hands.stands("maintenance", site.maintenance))
    if kind in (GateKind.HELD, GateKind.STILL, GateKind.FOLLOWS):
        return _replica(hands, site)
    if kind in (GateKind.STANDS_ALONE, GateKind.ASKS_MAIN):
        return _alone(hands, site)
    if kind is GateKind.HEALTHY:
        found = [(check, said) for check in site.checks if (said := hands.healthy(check))]
        problems = tuple(said if check.required else f"{said} (not required)" for check, said in found)
        return SiteFacts(healthy=not any(check.required for check, _ in found), problems=problems)
    if kind in _BOOKS:
        books = books_of(hands, site)
        return SiteFacts(locked=books.locked, untransferred=books.untransferred, balanced=books.balanced)
    assert kind is GateKind.BILLING_RESTS, kind
    return SiteFacts(billing_active=site.billing is not None and hands.stands("billing", site.billing))


def _empty(hands: Hands, site: Site) -> SiteFacts:
    """Read the calls until the drain gate has an opinion: open, or a reading that says no."""
    config = hands.sites.drain
    counter = hands.calls(site)
    drain = Drain()
    with ThreadPoolExecutor(max_workers=1 + len(hands.dispatchers)) as pool:
        while True:
            own = counter.read()
            cross, explained = _cross_check(hands, site, pool) if own.count == 0 else ([], {})
            drain, verdict = judge(drain, config, own, cross, explained)
            if verdict.open or not drain.zeros:
                counted = own.count is not None and own.count > 0
                problems = () if verdict.open or counted else (verdict.text,)
                return SiteFacts(calls=own.count, empty=verdict.open, problems=problems)
            time.sleep(max(0.0, own.at + config.interval - time.monotonic()))


def _cross_check(hands: Hands, site: Site, pool: ThreadPoolExecutor) -> tuple[list[Reading], dict[str, str]]:
    """What the dispatchers count at a site, and whose count proves nothing, asked at the same time: a gate should open
    soon.
    """
    explained = pool.submit(_explained, hands)
    live = pool.map(lambda each: each.live(site.name), hands.dispatchers)
    return [reading for readings in live for reading in readings], explained.result()


def _explained(hands: Hands) -> dict[str, str]:
    """A dispatcher that gave the virtual IP away sees no call end any more: its count proves nothing."""
    holders = {name for each in hands.vips for name in _tried(each.holders) or ()}  # not known: everybody's counts
    return {
        server.name: "it does not hold the virtual IP"
        for server in hands.sites.dispatchers.servers
        if holders and server.name not in holders
    }


def _replica(hands: Hands, site: Site) -> SiteFacts:
    assert site.standalone is not None or site.kind is SiteKind.SECONDARY
    seen = hands.replica(site).status()
    limit = site.standalone.lag if site.standalone is not None else 1.0
    return SiteFacts(
        read_only=seen.read_only,
        replicates=seen.replicates,
        lag=seen.lag,
        lag_limit=limit,
        applied=seen.applied,
        problems=tuple(seen.problems),
    )


def _alone(hands: Hands, site: Site) -> SiteFacts:
    """The ledger's word, and that of the services: while they differ it is not known."""
    services = hands.stands("standalone", hands.standalone(site))
    books: Books | None = books_of(hands, site) if site.standalone and site.standalone.delta else None
    ledger = services if books is None else books.alone
    read_only = hands.replica(site).status().read_only
    return SiteFacts(alone=services if services == ledger else None, read_only=read_only)


def _dispatcher(hands: Hands, name: str) -> DispatcherFacts:
    problems: list[str] = []
    try:
        told = [_sends_to(each.targets()) for each in hands.dispatchers_on(name)]
    except FencedOff:
        raise
    except UpdaterError as error:
        return DispatcherFacts(serves=None, problems=(error.message,))
    sends_to = told[0] if len({frozenset(each) for each in told}) == 1 else None
    if sends_to is None:
        problems.append("its programs do not send to the same sites")
    held: list[bool] = []
    ready: list[bool] = []
    answers = True
    for vip in hands.vips:
        host = next(each for each in vip.hosts if each.name == name)
        try:
            held.append(host.holds())
            ready.append(host.ready())
            said = vip.asking.ask(vip.address) if held[-1] else ""
        except UpdaterError as error:
            said = error.message
            problems.append(said)
        answers = answers and not said
    known = len(held) == len(ready) == len(hands.vips)
    return DispatcherFacts(
        sends_to=sends_to,
        serves=all(ready) if known else None,
        holds=held[0] if known and len(set(held)) == 1 else None,
        answers=answers and bool(held) and all(held),
        problems=tuple(problems),
    )


def _sends_to(targets: list[Target]) -> tuple[str, ...]:
    """Sites that get something new. One that is only down counts by another name: it is neither in nor out."""
    states: dict[str, set[State]] = {}
    for target in targets:
        if target.site:
            states.setdefault(target.site, set()).add(target.state)
    found = [site for site, seen in states.items() if State.ACTIVE in seen]
    down = [f"{site} (down)" for site, seen in states.items() if State.DOWN in seen and State.ACTIVE not in seen]
    return tuple(sorted(found + down))


def _tried(work: Callable[[], T]) -> T | None:
    try:
        return work()
    except UpdaterError:
        return None
