"""Whether a gate is open, judged on what was just read from the sites. Pure.

What could not be read is None, and opens nothing: not knowing is never good news.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from zdu.runbook import Gate, GateKind


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """A server, as its own ``updater --json`` verbs tell. `runs`: the release that is booted. `good`: its slot is
    confirmed. `other`: the release in the other slot, if it is complete; `booting`: the release that it restarts into,
    between the flip and the confirmation. `fit`: nothing is wrong that would keep it from being upgraded. `healthy`:
    its health checks pass. `problems`: in words.
    """

    runs: str | None = None
    good: bool | None = None
    other: str | None = None
    booting: str | None = None
    fit: bool | None = None
    healthy: bool | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteFacts:
    """A site as a whole. `empty`: the drain gate's word that it has no live calls (`zdu.traffic.drain`). `calls`: for
    people. `lag`: seconds that its replica is behind (0: nothing to apply); `lag_limit`: what its configuration bears.
    `applied`: the replica has applied all that the main database has written.
    """

    calls: int | None = None
    empty: bool | None = None
    closed: bool | None = None
    alone: bool | None = None
    read_only: bool | None = None
    replicates: bool | None = None
    lag: float | None = None
    lag_limit: float = 1.0
    applied: bool | None = None
    healthy: bool | None = None
    billing_active: bool | None = None
    locked: bool | None = None  # the lock step of the open delta got to its end once, or there is no delta
    untransferred: int | None = None  # call records
    balanced: bool | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatcherFacts:
    """A dispatcher. `sends_to`: names of sites, on all of its programs. `serves`: it runs and could take a virtual IP.
    `holds`: it has the virtual IPs (None where it has some of them, too). `answers`: they answer here.
    """

    sends_to: tuple[str, ...] | None = None
    serves: bool | None = None
    holds: bool | None = None
    answers: bool | None = None
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was read just now. What is not in here could not be read."""

    nodes: Mapping[str, NodeFacts] = field(default_factory=dict)
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)
    dispatchers: Mapping[str, DispatcherFacts] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether a gate is open, and what was found, for screens and records. `at_odds`: those who were asked contradict
    each other: waiting may not mend that.
    """

    open: bool
    found: str
    at_odds: bool = False


def judge(gate: Gate, facts: Facts) -> Verdict:
    """Whether the gate is open."""
    if gate.kind in _OF_NODE:
        return _node(gate, facts.nodes.get(gate.server, NodeFacts()))
    if gate.kind in _OF_DISPATCHERS:
        return _dispatcher(gate, facts.dispatchers)
    return _site(gate, facts.sites.get(gate.site, SiteFacts()))


_OF_NODE = frozenset({GateKind.READY, GateKind.STAGED, GateKind.RUNS, GateKind.BOOTING})
_OF_DISPATCHERS = frozenset({GateKind.SENDS_TO, GateKind.VIP_AT, GateKind.STANDBY, GateKind.IN_SERVICE})


def _node(gate: Gate, node: NodeFacts) -> Verdict:
    told = f"{gate.server} runs {node.runs or 'what could not be read'}"
    match gate.kind:
        case GateKind.READY:
            found = "; ".join((told, *node.problems))
            return Verdict(open=node.fit is True and node.runs == gate.release, found=found)
        case GateKind.STAGED:
            there = gate.release in (node.other, node.runs)
            return Verdict(open=there, found=f"{gate.server} has {node.other or 'nothing complete'} in its other slot")
        case GateKind.BOOTING:
            return Verdict(open=gate.release in (node.booting, node.runs), found=told)
        case _:
            good = node.runs == gate.release and node.good is True and node.healthy is True
            word = "confirmed" if node.good else "not confirmed"
            health = {True: "healthy", False: "not healthy", None: "health not known"}[node.healthy]
            return Verdict(open=good, found="; ".join((f"{told}, {word}, {health}", *node.problems)))


def _dispatcher(gate: Gate, all_of_them: Mapping[str, DispatcherFacts]) -> Verdict:
    here = all_of_them.get(gate.server, DispatcherFacts())
    others = {name: each for name, each in all_of_them.items() if name != gate.server}
    match gate.kind:
        case GateKind.SENDS_TO:
            serving = {name: each for name, each in all_of_them.items() if each.serves is not False}
            wrong = sorted(
                n for n, each in serving.items() if each.sends_to is None or set(each.sends_to) != set(gate.sites)
            )
            told = "; ".join(f"{name} sends to {_listed(serving[name].sends_to)}" for name in wrong)
            return Verdict(open=bool(serving) and not wrong, found=told or f"all send to {_listed(gate.sites)}")
        case GateKind.VIP_AT:
            also = sorted(name for name, each in others.items() if each.holds is not False and each.serves is not False)
            good = here.holds is True and here.answers is True and not also
            where = {True: "holds the virtual IP", False: "does not hold the virtual IP", None: "cannot be asked"}
            told = f"{gate.server} {where[here.holds]}"
            told += "" if here.answers else ", which does not answer there"
            return Verdict(open=good, found=f"{told}; {', '.join(also)} may hold it too" if also else told)
        case GateKind.STANDBY:
            good = here.holds is False and here.serves is False
            return Verdict(open=good, found=f"{gate.server} {'is' if good else 'is not'} on stand-by")
        case _:
            agree = {frozenset(each.sends_to) for each in others.values() if each.sends_to is not None and each.serves}
            same = here.sends_to is not None and (not agree or frozenset(here.sends_to) in agree)
            told = f"{gate.server} {'serves' if here.serves else 'does not serve'}, sends to {_listed(here.sends_to)}"
            return Verdict(open=here.serves is True and same, found=told)


def _site(gate: Gate, site: SiteFacts) -> Verdict:
    name = gate.site
    match gate.kind:
        case GateKind.STANDS_ALONE:
            return _all(name, {"stands alone": site.alone, "its replica is read-only": site.read_only})
        case GateKind.ASKS_MAIN:
            return _all(name, {"asks the main site": _not(site.alone)})
        case GateKind.CLOSED:
            return _all(name, {"is in maintenance": site.closed})
        case GateKind.OPEN:
            return _all(name, {"is open": _not(site.closed)})
        case GateKind.NO_CALLS:
            calls = "a number of calls that could not be read" if site.calls is None else f"{site.calls} calls"
            found = f"{name}: {'; '.join(site.problems)}" if site.problems else f"{name} has {calls}"
            return Verdict(open=site.empty is True, found=found, at_odds=site.calls == 0 and site.empty is False)
        case GateKind.HELD:
            return _all(
                name, {"its replica stands still": _not(site.replicates), "has applied everything": site.applied}
            )
        case GateKind.STILL:
            return _all(name, {"its replica stands still": _not(site.replicates)})
        case GateKind.FOLLOWS:
            near = None if site.lag is None else site.lag <= site.lag_limit
            verdict = _all(name, {"its replica runs": site.replicates, "is not behind": near})
            told = "lag not known" if site.lag is None else f"{site.lag:g} s behind, {site.lag_limit:g} s allowed"
            return Verdict(open=verdict.open, found="; ".join((f"{verdict.found} ({told})", *site.problems)))
        case GateKind.HEALTHY:
            verdict = _all(name, {"is healthy": site.healthy})
            return Verdict(open=verdict.open, found="; ".join((verdict.found, *site.problems)))
        case GateKind.LOCKED:
            return _all(name, {"what it spent is held back": site.locked})
        case GateKind.TRANSFERRED:
            left = "not known" if site.untransferred is None else str(site.untransferred)
            return Verdict(open=site.untransferred == 0, found=f"{name}: call records left: {left}")
        case GateKind.BALANCED:
            return _all(
                name,
                {
                    "sums agree": site.balanced,
                    "nothing is left": None if site.untransferred is None else site.untransferred == 0,
                },
            )
        case _:
            return _all(name, {"billing is on stand-by": _not(site.billing_active)})


def _all(name: str, wanted: dict[str, bool | None]) -> Verdict:
    """Open when all of it is known and so."""
    words = {True: "yes", False: "no", None: "could not be read"}
    told = ", ".join(f"{what}: {words[so]}" for what, so in wanted.items())
    return Verdict(open=all(so is True for so in wanted.values()), found=f"{name}: {told}")


def _not(known: bool | None) -> bool | None:
    return None if known is None else not known


def _listed(names: tuple[str, ...] | None) -> str:
    return "what could not be read" if names is None else " and ".join(names) or "nobody"
