"""The planner: the order of the domain page, limits, mixed beginnings, refusals that name their rule; and that each
runbook and each way back keeps the rules that hold at every moment.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from core.errors import ZduRefused
from core.release import Policy, Release
from core.schema import structure
from tests.zdu.sitelab import NEW, OLD, database, installation, site, wish
from zdu.limits import ControllerConfig, ExpectConfig, LimitsConfig, Role, WindowConfig
from zdu.planning import plan, plan_back
from zdu.runbook import Action, Runbook
from zdu.runbook_text import runbook_lines
from zdu.sites import SiteKind, Sites
from zdu.situation import ordinary, take, walk


def planned(sites: Sites | None = None, *arguments: Any, **more: Any) -> Runbook:
    sites = sites or installation()
    return plan(sites, wish(sites, *arguments, **more))


def ids(runbook: Runbook, phase: str) -> list[str]:
    return [step.id.split("/", 1)[1] for each in runbook.phases if each.name == phase for step in each.steps]


def refusals(sites: Sites, *arguments: Any, **more: Any) -> dict[str, str]:
    """Rule → what breaks it."""
    with pytest.raises(ZduRefused) as caught:
        plan(sites, wish(sites, *arguments, **more))
    assert caught.value.exit_code == 50 and caught.value.next and caught.value.state == "nothing was touched"
    told: dict[str, str] = {}
    for rule, _, what in (line.partition(": ") for line in caught.value.what):
        told[rule] = f"{told.get(rule, '')}{what}; "
    return told


def test_two_sites_go_in_the_order_of_the_domain() -> None:
    runbook = planned()
    assert [phase.name for phase in runbook.phases] == list("123456789")
    assert ids(runbook, "2") == ["dispatch-to/A", "standalone-enter/B", "dispatch-to/B"]
    assert ids(runbook, "3") == ["maintenance-enter/A", "drain-wait/A"]
    assert ids(runbook, "4")[:4] == ["replica-hold/B", "activate-node/a-01", "confirm-node/a-01", "activate-node/a-02"]
    one = ["vip-move/d2", "dispatcher-standby/d1", "activate-node/d1", "confirm-node/d1", "dispatcher-restore/d1"]
    other = [each.replace("d2", "D").replace("d1", "d2").replace("D", "d1") for each in one]
    assert ids(runbook, "5") == [*one, *other, "vip-move/d1#2"]
    assert ids(runbook, "6") == [
        "verify-site/A",
        "maintenance-leave/A",
        "sync-lock/B",
        "standalone-leave/B",
        "sync-transfer/B",
    ]
    assert ids(runbook, "7") == ["dispatch-to/A", "maintenance-enter/B", "drain-wait/B"]
    assert ids(runbook, "8")[:3] == ["sync-close/B", "replica-rejoin/B", "activate-node/b-01"]
    assert ids(runbook, "9") == [
        "verify-site/B",
        "billing-standby/B",
        "maintenance-leave/B",
        "dispatch-to/A+B",
        "finish",
    ]


def test_between_adjoining_releases_there_is_a_way_back_until_the_end() -> None:
    runbook = planned()
    assert runbook.adjoining and runbook.by_id[runbook.point_of_no_return].action is Action.FINISH
    assert all(step.way_back in runbook.ways_back for step in runbook.steps[:-1])


def test_over_a_distance_the_point_of_no_return_is_the_migration() -> None:
    runbook = planned(None, Release(93, 1), accept_no_rollback=True)
    point = runbook.by_id[runbook.point_of_no_return]
    assert (point.action, point.server) == (Action.ACTIVATE_NODE, "a-01")
    after = runbook.steps.index(point)
    assert all(step.way_back for step in runbook.steps[:after])
    assert not any(step.way_back for step in runbook.steps[after:])
    assert "POINT OF NO RETURN" in "\n".join(runbook_lines(runbook))


def test_migrations_that_the_old_release_cannot_read_take_the_way_back() -> None:
    assert "adjoining" in refusals(installation(), readable_from=96)
    assert not planned(None, readable_from=96, accept_no_rollback=True).adjoining


def test_more_sites_go_in_waves_behind_the_one_that_stood_in() -> None:
    runbook = planned(installation(4, stand_in="C", limits=LimitsConfig(parallel_sites=2)))
    assert [phase.name for phase in runbook.phases] == ["1", "2", "3", "4", "5", "6", "7", "8.1", "9.1", "8.2", "9.2"]
    assert ids(runbook, "2")[1] == "standalone-enter/C"
    assert ids(runbook, "3") == [f"{what}/{who}" for what in ("maintenance-enter", "drain-wait") for who in "ABDE"]
    assert ids(runbook, "8.1")[:3] == ["sync-close/C", "replica-rejoin/C", "replica-rejoin/B"]
    assert ids(runbook, "9.1")[-1] == "dispatch-to/A+B+C" and ids(runbook, "9.2")[-2] == "dispatch-to/A+B+C+D+E"


def test_servers_are_restarted_together_within_the_limits_and_databases_first() -> None:
    limits = LimitsConfig(parallel_servers=3, max_unavailable={Role.SIP: 1})
    runbook = planned(installation(1, servers=9, limits=limits))
    groups = [b for b in runbook.batches if b[0].action is Action.ACTIVATE_NODE and b[0].site == "A"]
    assert [[step.server for step in group] for group in groups] == [
        ["a-01"],
        ["a-06"],
        ["a-05"],
        ["a-02", "a-03", "a-04"],
        ["a-07"],
        ["a-08"],
        ["a-09"],
    ]


def test_servers_that_have_the_release_are_passed_over() -> None:
    runbook = planned(None, found={"a-02": NEW, "b-01": NEW, "d2": NEW})
    switched = {step.server for step in runbook.steps if step.action in (Action.STAGE_NODE, Action.ACTIVATE_NODE)}
    assert switched == {"a-01", "a-03", "a-04", "b-02", "b-03", "b-04", "d1"}
    assert runbook.passed == ("a-02", "b-01", "d2")
    checked = {step.server: step.release for step in runbook.steps if step.action is Action.CHECK_NODE}
    assert checked["a-02"] == str(NEW) and checked["a-01"] == str(OLD)


def test_where_the_main_site_is_done_nobody_stands_alone() -> None:
    sites = installation(2)
    runbook = planned(sites, found={server.name: NEW for server in sites.main.servers})
    assert [phase.name for phase in runbook.phases] == ["1", "5", "7.1", "8.1", "9.1", "7.2", "8.2", "9.2"]
    assert not any(step.action is Action.STANDALONE_ENTER for step in runbook.steps)


def test_a_plan_reads_back_as_it_was_written() -> None:
    runbook = planned()
    again = structure(json.loads(json.dumps(runbook.as_json())), Runbook)
    assert again == runbook and again.digest == runbook.digest
    assert len({step.id for step in runbook.steps}) == len(runbook.steps)


def test_a_digest_is_of_everything() -> None:
    assert planned().digest == planned().digest
    assert planned().digest != planned(None, found={"a-04": NEW}).digest


@pytest.mark.parametrize(
    ("sites", "arguments", "more", "rule", "word"),
    [
        (installation(), (Release(90, 1), Release(96, 1)), {"accept_no_rollback": True}, "jump", "at most 5"),
        (
            installation(policy=Policy(lts=(94,))),
            (Release(93, 1),),
            {"accept_no_rollback": True},
            "lts",
            "passes over the LTS release MR94",
        ),
        (installation(), (Release(93, 1),), {}, "adjoining", "no way back"),
        (installation(), (Release(97, 1),), {}, "downgrade", "older"),
        (installation(), (Release(98, 1),), {"downgrade": True}, "downgrade", "reads data up to"),
        (installation(), (NEW,), {}, "something-to-do", "every server runs MR96-1"),
        (installation(), (), {"found": {"a-03": Release(94, 1)}}, "one-starting-release", "a-03 runs MR94-1"),
        (installation(), (), {"found": {"a-03": Release(97, 1)}}, "one-starting-release", "a-03 runs MR97-1"),
        (installation(), (), {"found": {"x": OLD}}, "servers-known", "x: not in the sites file"),
        (installation(dispatchers=1), (), {}, "one-dispatcher", "one dispatcher only"),
        (installation(0), (), {}, "stand-in", "no secondary site"),
        (
            installation(sites=(site("A", SiteKind.MAIN), site("B", SiteKind.SECONDARY, servers=3))),
            (),
            {},
            "stand-in",
            "a server with the role web",
        ),
        (
            installation(sites=(site("A", SiteKind.MAIN), site("B", SiteKind.SECONDARY, standalone=None))),
            (),
            {},
            "stand-in",
            "the table standalone",
        ),
        (
            installation(sites=(site("A", SiteKind.MAIN, database=None), site("B", SiteKind.SECONDARY))),
            (),
            {},
            "stand-in",
            "nothing can be synchronised to A",
        ),
        (installation(limits=LimitsConfig(minimum_capacity=101)), (), {}, "capacity", "A can carry 100 calls"),
        (
            installation(
                sites=(site("A", SiteKind.MAIN), site("B", SiteKind.SECONDARY, capacity=0)),
                limits=LimitsConfig(minimum_capacity=1),
            ),
            (),
            {},
            "capacity",
            "it is not known how many B",
        ),
        (installation(windows=(WindowConfig(hours="01:00-02:00"),)), (), {}, "windows", "the longest window has 60"),
        (installation(), (), {"rehearsed": False}, "rehearsal", "has not been rehearsed"),
    ],
)
def test_what_breaks_a_rule_is_refused_with_the_rule(
    sites: Sites, arguments: tuple[Release, ...], more: dict[str, Any], rule: str, word: str
) -> None:
    if rule == "rehearsal":
        sites = replace(sites, controller=ControllerConfig(database=database("zdu")))
    assert word in refusals(sites, *arguments, **more)[rule]


def test_every_broken_rule_is_told_at_once() -> None:
    sites = installation(dispatchers=1, policy=Policy(lts=(94,)), limits=LimitsConfig(minimum_capacity=500))
    assert {"jump", "lts", "adjoining", "one-dispatcher"} <= set(refusals(sites, Release(90, 1)))


def test_a_server_of_which_nothing_is_known_is_named() -> None:
    sites = installation()
    wanted = wish(sites)
    found = {name: release for name, release in wanted.found.items() if name != "b-03"}
    with pytest.raises(ZduRefused, match="servers-known"):
        plan(sites, replace(wanted, found=found))


def test_a_window_that_is_long_enough_will_do() -> None:
    windows = (WindowConfig(hours="01:00-02:00"), WindowConfig(hours="23:00-05:00"))
    assert planned(installation(windows=windows))
    assert "windows" in refusals(installation(windows=windows, expect=ExpectConfig(drain=5 * 3600)))


@settings(max_examples=40, deadline=None)
@example(secondaries=1, servers=4, parallel=1, waves=1, done=set(), cut=0.5, half=True)  # a server that still boots
@example(secondaries=1, servers=7, parallel=1, waves=1, done={0, 1, 7, 8, 9, 10}, cut=0.71875, half=True)  # so does d2
@given(
    secondaries=st.integers(1, 4),
    servers=st.integers(4, 8),
    parallel=st.integers(1, 5),
    waves=st.integers(1, 3),
    done=st.sets(st.integers(0, 40), max_size=8),
    cut=st.floats(0, 1),
    half=st.booleans(),
)
def test_each_way_back_keeps_the_rules_that_hold_at_every_moment(
    secondaries: int, servers: int, parallel: int, waves: int, done: set[int], cut: float, half: bool
) -> None:
    sites = installation(
        secondaries, servers=servers, limits=LimitsConfig(parallel_servers=parallel, parallel_sites=waves)
    )
    names = list(sites.servers)
    found = {names[number % len(names)]: NEW for number in done}
    if set(found) == set(names):
        return
    wanted = wish(sites, found=found)
    runbook = plan(sites, wanted)
    steps = runbook.steps[: int(cut * (len(runbook.steps) - 1))]
    now = ordinary(sites, {name: str(release) for name, release in wanted.found.items()})
    for step in steps if not half else steps[:-1]:
        take(sites, now, step)
    done_ids = [step.id for step in (steps[:-1] if half else steps)]
    back = plan_back(sites, runbook, [step.id for step in steps], done_ids)
    assert back is not None and back.back and back.phases[-1].steps[-1].action is Action.FINISH
    for batch in back.batches:
        assert not list(walk(sites, now, batch)), batch
    assert now.takers == sites.normally and not (now.closed or now.held or now.alone or now.standby or now.restarting)
    assert now.runs == {name: str(release) for name, release in wanted.found.items()}


def test_a_large_installation_is_planned_in_a_moment() -> None:
    sites = installation(49, servers=40)
    wanted = wish(sites)
    began = time.process_time()
    runbook = plan(sites, wanted)
    assert time.process_time() - began < 10
    assert len({step.server for step in runbook.steps if step.action is Action.ACTIVATE_NODE}) == 50 * 40 + 2
