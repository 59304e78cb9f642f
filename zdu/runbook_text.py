"""A runbook as people read it: what happens in which order, what each step waits for, and the way back from there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from textwrap import wrap
from typing import Final

from zdu.runbook import Action, Gate, GateKind, Phase, Runbook, Step, batches, expected

_GATES: Final = {
    GateKind.READY: "fit, and running {release}",
    GateKind.STAGED: "{release} complete in the other slot",
    GateKind.RUNS: "{release} runs, healthy and confirmed",
    GateKind.BOOTING: "{release} boots",
    GateKind.SENDS_TO: "every dispatcher sends to {sites}, and nowhere else",
    GateKind.STANDS_ALONE: "{site} stands alone, its replica is read-only",
    GateKind.ASKS_MAIN: "{site} asks the main site",
    GateKind.CLOSED: "{site} says that it is in maintenance",
    GateKind.OPEN: "{site} says that it is open",
    GateKind.NO_CALLS: "no call on {site}, counted several times; it waits as long as it takes",
    GateKind.HELD: "the replica of {site} has everything, and stands still",
    GateKind.STILL: "the replica of {site} stands still, on what it had when it was held",
    GateKind.FOLLOWS: "the replica of {site} follows and is not behind",
    GateKind.VIP_AT: "the virtual IP is at {server}, nowhere else, and answers",
    GateKind.STANDBY: "{server} is out of the pair and without the virtual IP",
    GateKind.IN_SERVICE: "{server} serves, and sends where the others send",
    GateKind.HEALTHY: "the checks of {site} pass",
    GateKind.LOCKED: "every account of {site} locked once",
    GateKind.TRANSFERRED: "no call record of {site} is left behind",
    GateKind.BALANCED: "sums agree, nothing is held back",
    GateKind.BILLING_RESTS: "billing of {site} is on stand-by",
}

_SWITCHES: Final = frozenset({Action.ACTIVATE_NODE, Action.ROLLBACK_NODE})

#: A space at which no line ends.
_TIED: Final = "\N{NO-BREAK SPACE}"

#: How many names stand on a line.
_NAMED: Final = 4


def runbook_lines(runbook: Runbook) -> Iterator[str]:
    """The whole runbook."""
    yield (
        f"{runbook.start} → {runbook.target} on {runbook.installation}: {runbook.main} is upgraded while "
        f"{runbook.stand_in} stands in for it"
    )
    steps = f"{len(runbook.steps)} steps in {len(runbook.phases)} phases"
    yield f"plan {runbook.digest}   {steps}, about {span(runbook.seconds)}; calls decide how long"
    if runbook.passed:
        yield f"have {runbook.target} already: {listed(runbook.passed)}"
    printed: dict[str, int] = {}
    for phase in runbook.phases:
        yield ""
        yield f"phase {phase.name}   {phase.title}   ~{span(phase.seconds)}"
        for group in groups(phase):
            yield from _group_lines(runbook, group, printed)
    yield from _ways(runbook, printed)
    yield ""
    yield f"point of no return: {runbook.point_of_no_return}: {runbook.no_return_why}"


def groups(phase: Phase) -> list[list[Step]]:
    """The steps of a phase as they are printed: what is done to the servers of a site in one piece."""
    found: list[list[Step]] = []
    for batch in batches(phase.steps):
        last = found[-1][0] if found else None
        goes_on = last is not None and last.action in _SWITCHES and last.site == batch[0].site
        if goes_on and last is not None and batch[0].action in (last.action, Action.CONFIRM_NODE):
            found[-1] += batch
        else:
            found.append(list(batch))
    return found


def _group_lines(runbook: Runbook, group: list[Step], printed: dict[str, int]) -> Iterator[str]:
    first = group[0]
    if any(step.id == runbook.point_of_no_return for step in group):
        yield "   ━━━━━━━━ POINT OF NO RETURN ━━━━━━━━"
    names = [step.where for step in group if step.action is not Action.CONFIRM_NODE]
    where = listed(tuple(names)) if any(names) else ""
    yield f"   {first.action:<20}{where:<32} ~{span(expected(tuple(group)))}"
    what = first.what if len(names) == 1 or first.action in _SWITCHES else _general(first, names)
    yield f"        what      {what}"
    if first.action in _SWITCHES and len(names) > 1:
        rounds = len({step.batch for step in group if step.action is first.action})
        yield f"                  {len(names)} servers, {rounds} batch{'es' * (rounds > 1)}, databases first"
    gates = dict.fromkeys(gate_words(gate, one=len(names) == 1) for gate in group[-1].gates)
    if gates:
        yield f"        go on if  {'; '.join(gates)}"
    yield f"        way back  {_way_back(runbook, group[-1], printed)}"


def _general(step: Step, names: list[str]) -> str:
    """The words of the first of many, for all of them."""
    return step.what.replace(f"{step.where} of {step.site}", f"each of {len(names)} servers", 1).replace(
        step.where, "each", 1
    )


def gate_words(gate: Gate, *, one: bool = True) -> str:
    """What a gate waits for."""
    facts = {
        "site": gate.site if one else "each",
        "server": gate.server,
        "release": gate.release,
        "sites": listed(gate.sites),
    }
    return _GATES[gate.kind].format(**facts)


def _way_back(runbook: Runbook, step: Step, printed: dict[str, int]) -> str:
    if not step.way_back:
        return "none in this run" if not runbook.back else "this is the way back"
    way = runbook.ways_back[step.way_back]
    if not way.moves:
        return "nothing to undo"
    number = printed.setdefault(step.way_back, len(printed) + 1)
    return f"({number}) {len(way.moves)} move{'s' * (len(way.moves) > 1)}, ~{span(way.seconds)}"


def _ways(runbook: Runbook, printed: dict[str, int]) -> Iterator[str]:
    if printed:
        yield ""
        yield "ways back, from the step that names them"
    for key, number in printed.items():
        chain = " → ".join(action.replace(" ", _TIED) for action in runbook.ways_back[key].actions)
        for place, line in enumerate(wrap(chain, width=108, break_long_words=False, break_on_hyphens=False)):
            yield f"{f'  ({number})' if place == 0 else '':<8}{line.replace(_TIED, ' ')}"


def listed(names: tuple[str, ...]) -> str:
    """Names, not more than fit on a line."""
    if len(names) > _NAMED:
        return f"{', '.join(names[: _NAMED - 1])} and {len(names) - _NAMED + 1} more"
    return ", ".join(names)


def span(seconds: float) -> str:
    """A length of time, for people."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02} min"


def roles_line(roles: list[str]) -> str:
    """Roles with how often they occur."""
    return ", ".join(f"{number} {role}" for role, number in Counter(roles).items())
