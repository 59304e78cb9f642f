"""Looking over an installation without touching it: what every server runs, and, for a dry run, everything that a run
will rely on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

from core.errors import NotReady, UpdaterError
from core.release import Release
from zdu import tokens
from zdu.conduct import told
from zdu.effects import RealWorld, fit
from zdu.gates import NodeFacts, judge
from zdu.hands import Hands
from zdu.runbook import Action, Gate, GateKind, Runbook
from zdu.sightings import look, nodes_seen
from zdu.sites import Sites

#: Servers that are asked at a time.
PARALLEL: Final = 16

#: Gates that are open in the ordinary course of things; of the others only whether they can be read matters.
_ORDINARY: Final = frozenset({GateKind.READY, GateKind.HEALTHY, GateKind.FOLLOWS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at. `error`: why it could not be, or what stands against a run."""

    what: str
    found: str
    error: UpdaterError | None = None
    ok: bool = True


def releases(hands: Hands, sites: Sites) -> tuple[dict[str, Release], list[Finding]]:
    """What each server runs, and those that do not tell."""
    seen = nodes_seen(hands, list(sites.servers), parallel=PARALLEL)
    found: dict[str, Release] = {}
    silent: list[Finding] = []
    for name, facts in seen.items():
        if isinstance(facts, NodeFacts) and facts.runs:
            try:
                found[name] = Release.parse(facts.runs)
            except ValueError as strange:
                silent.append(Finding(what=name, found=str(strange), ok=False))
            continue
        error = facts if isinstance(facts, UpdaterError) else None
        text = error.message if error else f"{name} does not say what it runs"
        silent.append(Finding(what=name, found=text, error=error, ok=False))
    return found, silent


def dry_run(world: RealWorld, runbook: Runbook, on_finding: Callable[[Finding], None]) -> list[Finding]:
    """Look at everything that the runbook relies on, changing nothing: each server with its plan for the release, every
    gate that can be read, every driver. `on_finding` is called with each one as it comes.
    """
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        found = []
        for finding in pool.map(lambda work: work(), list(_looks(world, runbook))):
            on_finding(finding)
            found.append(finding)
    return found


def admit(hands: Hands, runbook: Runbook) -> None:
    """Raise FencedOff when a server or a ledger would refuse a controller with the token of `hands`. Those that cannot
    be asked are not judged here.
    """
    found = tokens.seen(hands, runbook.stand_in)
    if tokens.greater(found, hands.fence):
        raise tokens.refused(found, hands.fence)


def refuse(findings: list[Finding]) -> None:
    """Raise NotReady with everything that stands against a run."""
    wrong = [finding for finding in findings if not finding.ok]
    if not wrong:
        return
    raise NotReady(
        f"{len(wrong)} of {len(findings)} checks stand against the upgrade",
        what=[f"{each.what}: {each.found}" for each in wrong],
        state="nothing was touched",
        next=list(dict.fromkeys(line for each in wrong if each.error for line in each.error.next[:1]))[:6],
    )


def _looks(world: RealWorld, runbook: Runbook) -> Iterator[Callable[[], Finding]]:
    hands = world.hands
    for step in runbook.steps:
        if step.action is Action.CHECK_NODE:
            yield lambda server=step.server: _tried(f"{server}: plan", lambda: fit(world, hands, server))  # type: ignore[misc]
    for gate in dict.fromkeys(gate for step in runbook.steps for gate in (*step.needs, *step.gates)):
        if gate.kind not in (GateKind.RUNS, GateKind.BOOTING, GateKind.STAGED):
            yield lambda gate=gate: _gate(hands, gate)  # type: ignore[misc]
    yield lambda: _tried("tokens", lambda: _tokens(hands, runbook))
    for program in hands.dispatchers:
        yield lambda each=program: _faults(f"dispatcher {each.name}", each.check)  # type: ignore[misc]
    for vip in hands.vips:
        yield lambda each=vip: _faults(f"virtual IP {each.address}", each.check)  # type: ignore[misc]


def _gate(hands: Hands, gate: Gate) -> Finding:
    try:
        verdict = judge(gate, look(hands, gate))
    except UpdaterError as error:
        return Finding(what=told(gate), found=error.message, error=error, ok=False)
    ok = verdict.open or (gate.kind not in _ORDINARY and "could not be read" not in verdict.found)
    return Finding(what=told(gate), found=verdict.found, ok=ok)


def _tokens(hands: Hands, runbook: Runbook) -> str:
    admit(hands, runbook)
    return f"nobody has seen a greater one than {hands.fence}"


def _faults(what: str, check: Callable[[], list[str]]) -> Finding:
    try:
        faults = check()
    except UpdaterError as error:
        return Finding(what=what, found=error.message, error=error, ok=False)
    return Finding(what=what, found="; ".join(faults) or "well", ok=not faults)


def _tried(what: str, work: Callable[[], str]) -> Finding:
    try:
        return Finding(what=what, found=work())
    except UpdaterError as error:
        return Finding(what=what, found="; ".join((error.message, *error.what)), error=error, ok=False)
