"""Gates: open only when everything is known and so. What could not be read opens nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from zdu.gates import DispatcherFacts, Facts, NodeFacts, SiteFacts, judge
from zdu.runbook import Gate, GateKind

NODE = NodeFacts(runs="MR96-1", good=True, other="MR97-1", fit=True, healthy=True)
SITE = SiteFacts(
    calls=0,
    empty=True,
    closed=False,
    alone=False,
    read_only=True,
    replicates=True,
    lag=0.5,
    applied=True,
    healthy=True,
    billing_active=False,
    locked=True,
    untransferred=0,
    balanced=True,
)
HERE = DispatcherFacts(sends_to=("B",), serves=True, holds=True, answers=True)
THERE = replace(HERE, holds=False, answers=False)


def is_open(kind: GateKind, facts: Facts, **more: Any) -> bool:
    verdict = judge(Gate(kind=kind, site="B", server="d1", release="MR96-1", **more), facts)
    assert verdict.found
    return verdict.open


def facts(
    node: NodeFacts = NODE, site: SiteFacts = SITE, d1: DispatcherFacts = HERE, d2: DispatcherFacts = THERE
) -> Facts:
    return Facts(nodes={"d1": node}, sites={"B": site}, dispatchers={"d1": d1, "d2": d2})


@pytest.mark.parametrize("kind", GateKind)
def test_what_could_not_be_read_opens_no_gate(kind: GateKind) -> None:
    assert not is_open(kind, Facts(), sites=("B",))
    nothing = facts(NodeFacts(), SiteFacts(), DispatcherFacts(), DispatcherFacts())
    assert not is_open(kind, nothing, sites=("B",))


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (GateKind.OPEN, {"closed": True}),
        (GateKind.ASKS_MAIN, {"alone": True}),
        (GateKind.NO_CALLS, {"empty": False, "calls": 3}),
        (GateKind.NO_CALLS, {"empty": None, "calls": 0}),
        (GateKind.FOLLOWS, {"replicates": False}),
        (GateKind.FOLLOWS, {"lag": 1.5}),
        (GateKind.FOLLOWS, {"lag": None}),
        (GateKind.HEALTHY, {"healthy": False}),
        (GateKind.LOCKED, {"locked": None}),
        (GateKind.TRANSFERRED, {"untransferred": 1}),
        (GateKind.TRANSFERRED, {"untransferred": None}),
        (GateKind.BALANCED, {"balanced": False}),
        (GateKind.BALANCED, {"untransferred": None}),
        (GateKind.BILLING_RESTS, {"billing_active": True}),
    ],
)
def test_gates_of_sites(kind: GateKind, changes: dict[str, Any]) -> None:
    assert is_open(kind, facts())
    assert not is_open(kind, facts(site=replace(SITE, **changes)))


def test_a_site_that_is_not_empty_says_why() -> None:
    """And whether those who count are at odds, which does not end by itself."""

    def said(**changes: Any) -> tuple[str, bool]:
        verdict = judge(Gate(kind=GateKind.NO_CALLS, site="B"), facts(site=replace(SITE, **changes)))
        return verdict.found, verdict.at_odds

    assert said() == ("B has 0 calls", False)
    assert said(empty=False, calls=3) == ("B has 3 calls", False)
    assert said(empty=False, calls=None, problems=("b-03 is silent",)) == ("B: b-03 is silent", False)
    assert said(empty=False, problems=("0 calls, but d1: 4",)) == ("B: 0 calls, but d1: 4", True)


def test_a_site_stands_alone_only_with_a_replica_that_nobody_writes_to() -> None:
    alone = replace(SITE, alone=True)
    assert is_open(GateKind.STANDS_ALONE, facts(site=alone))
    assert not is_open(GateKind.STANDS_ALONE, facts(site=replace(alone, read_only=False)))
    assert not is_open(GateKind.STANDS_ALONE, facts(site=replace(alone, read_only=None)))


def test_a_replica_is_held_when_it_stands_still_and_has_everything() -> None:
    held = replace(SITE, replicates=False)
    assert is_open(GateKind.HELD, facts(site=held))
    assert not is_open(GateKind.HELD, facts(site=replace(held, applied=False)))
    assert not is_open(GateKind.HELD, facts())


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        (GateKind.READY, {"runs": "MR95-1"}),
        (GateKind.READY, {"fit": False}),
        (GateKind.RUNS, {"runs": "MR95-1"}),
        (GateKind.RUNS, {"good": False}),
        (GateKind.RUNS, {"healthy": None}),
        (GateKind.BOOTING, {"runs": "MR95-1"}),
        (GateKind.STAGED, {"runs": "MR95-1", "other": None}),
    ],
)
def test_gates_of_nodes(kind: GateKind, changes: dict[str, Any]) -> None:
    assert is_open(kind, facts())
    assert not is_open(kind, facts(node=replace(NODE, **changes)))


def test_a_node_that_boots_need_not_answer() -> None:
    assert is_open(GateKind.BOOTING, facts(node=NodeFacts(booting="MR96-1")))


@pytest.mark.parametrize("other", [{"holds": True}, {"holds": None}])
def test_a_virtual_ip_has_moved_when_it_is_there_gone_elsewhere_and_answers(other: dict[str, Any]) -> None:
    assert is_open(GateKind.VIP_AT, facts())
    assert not is_open(GateKind.VIP_AT, facts(d2=replace(THERE, **other)))
    assert not is_open(GateKind.VIP_AT, facts(d1=replace(HERE, answers=False)))
    assert not is_open(GateKind.VIP_AT, facts(d1=THERE))


def test_every_dispatcher_in_service_has_to_send_there() -> None:
    def sends(**more: Any) -> bool:
        return is_open(GateKind.SENDS_TO, facts(**more), sites=("B",))

    assert sends()
    assert not sends(d2=replace(THERE, sends_to=("A", "B")))
    assert not sends(d2=replace(THERE, sends_to=None))
    assert sends(d2=replace(THERE, sends_to=("A",), serves=False))
    assert not sends(d1=replace(HERE, serves=False), d2=replace(THERE, serves=False))


def test_a_dispatcher_comes_back_only_with_what_the_others_know() -> None:
    assert is_open(GateKind.IN_SERVICE, facts())
    assert not is_open(GateKind.IN_SERVICE, facts(d1=replace(HERE, sends_to=("A",))))
    assert not is_open(GateKind.IN_SERVICE, facts(d1=replace(HERE, serves=None)))
    assert is_open(GateKind.STANDBY, facts(d1=replace(THERE, serves=False)))
    assert not is_open(GateKind.STANDBY, facts(d1=replace(HERE, serves=False)))
