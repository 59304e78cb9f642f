"""Status in all its forms, in every state that a node gets into."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from core.errors import HookFailed
from core.files import exclusive_lock
from tests.updater.crash import die_at, points
from tests.updater.lab import Lab, add_hooks, copy_sandbox, do, make_unhealthy, power_cycle
from updater.hooks import MOMENTS
from updater.node import open_node
from updater.staging import Target
from updater.status import AGAIN, CARRIED, STEPS, Indicator, Status, nagios, prometheus, status_of
from updater.upgrade import activate_steps, open_bundle, rollback_steps, stage_steps


def seen(node: Path) -> Status:
    with open_node(node) as opened:
        return status_of(opened)


def leave_open(node: Path, at: str, verb: str, *arguments: Any) -> None:
    trial = copy_sandbox(node.parent, node.parent.with_name("trial"))
    wanted = next(point for point in points(lambda: do(trial, verb, *arguments)) if point.name == at)
    shutil.rmtree(trial.parent)
    assert die_at(wanted, lambda: do(node, verb, *arguments))


def test_the_steps_it_counts_are_those_of_the_stories(lab: Lab, node: Path) -> None:
    with open_node(node) as opened, open_bundle(opened, str(lab.bundle("MR96-1"))) as bundle:
        target = Target(node=opened, bundle=bundle, slot="b", source="", carried=CARRIED)
        stories = {
            "stage": stage_steps(opened, target, ["billing"]),
            "activate": activate_steps(opened, "b", False, carried=AGAIN, databases=["billing"]),
            "rollback": rollback_steps(opened, "b", False),
        }
    assert {verb: tuple(s.name for s in steps if s.name not in MOMENTS) for verb, steps in stories.items()} == STEPS


def test_a_fresh_node(node: Path) -> None:
    status = seen(node)
    assert (status.indicator, status.problems, status.upgrade, status.way_back) == (Indicator.OK, (), None, False)
    assert [(slot.release, slot.state, slot.booted, slot.next_boot) for slot in status.slots] == [
        ("MR95-1", "good", True, True),
        ("", "bad", False, False),
    ]
    assert status.sandbox and status.data_release == "MR95-1"


def test_staged_then_confirmed(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    status = seen(node)
    assert status.slots[1].state == "staged" and status.slots[1].written and status.slots[1].content
    do(node, "activate")
    status = seen(node)
    assert (status.indicator, status.booted, status.way_back) == (Indicator.OK, "b", True)
    assert "MR95-1 in slot a" in status.way_back_reason
    assert status.last_run.startswith("activate ")


def test_an_interrupted_stage(lab: Lab, node: Path) -> None:
    leave_open(node, "write:flushed", "stage", lab.bundle("MR96-1"))
    status = seen(node)
    assert status.upgrade is not None
    assert (status.upgrade.verb, status.upgrade.release) == ("stage", "MR96-1")
    assert (status.upgrade.step, status.upgrade.number, status.upgrade.of) == ("write", 2, 7)
    assert status.upgrade.state == "interrupted" and status.upgrade.next == ("updater resume", "updater abort")
    assert status.indicator is Indicator.WARNING and "interrupted in step write" in status.problems[0]
    assert "incomplete" in status.slots[1].note
    with exclusive_lock(node.parent / "data/lock", purpose="resume"):
        status = seen(node)
    assert status.upgrade is not None and (status.upgrade.state, status.upgrade.next) == ("under way", ())
    assert status.indicator is Indicator.OK


def test_waiting_for_the_operators_reboot_then_on_trial(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    assert do(node, "activate", by_hand=True) == "waiting"
    status = seen(node)
    assert status.upgrade is not None and status.upgrade.state == "waits for the reboot"
    assert (status.booted, status.next_boot, status.slots[1].tries) == ("a", "b", 3)
    power_cycle(node)
    status = seen(node)
    assert status.indicator is Indicator.WARNING and "on trial, 2 tries left" in status.problems[0]
    assert do(node, "confirm") == "done"
    assert seen(node).indicator is Indicator.OK


def test_after_a_fallback(lab: Lab, node: Path) -> None:
    make_unhealthy(node.parent, "MR96-1")
    do(node, "stage", lab.bundle("MR96-1"))
    assert do(node, "activate") == "fell-back"
    status = seen(node)
    assert status.indicator is Indicator.WARNING and "fell back" in status.problems[0]
    assert "is listed in" in status.slots[1].note
    assert not status.way_back and "is listed in" in status.way_back_reason


def test_a_fallback_is_told_until_a_run_ends_well(lab: Lab, node: Path) -> None:
    make_unhealthy(node.parent, "MR96-1")
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate")
    add_hooks(node.parent, ("before-stage",), "#!/bin/sh\nexit 1\n")
    with pytest.raises(HookFailed):
        do(node, "stage", lab.bundle("MR96-2"))
    assert seen(node).indicator is Indicator.WARNING and "fell back" in seen(node).problems[0]
    shutil.rmtree(node.parent / "hooks/before-stage.d")
    leave_open(node, "write:flushed", "stage", lab.bundle("MR96-2"))
    do(node, "abort")
    assert seen(node).indicator is Indicator.WARNING and "fell back" in seen(node).problems[0]
    do(node, "stage", lab.bundle("MR96-2"))
    assert seen(node).indicator is Indicator.OK


def test_what_cannot_be_read_is_critical_and_no_error(node: Path) -> None:
    for path in (node.parent / "esp").rglob("*"):
        if path.is_file() and path.read_bytes().startswith(b"# GRUB Environment"):
            path.write_bytes(b"rubbish")
    status = seen(node)
    assert status.indicator is Indicator.CRITICAL and [slot.state for slot in status.slots] == ["unknown"] * 2
    assert nagios(status).startswith("UPDATER CRITICAL - ") and prometheus(status) and json.dumps(status.as_json())
    (node.parent / "data/sandbox-machine.json").write_text('{"slot": null, "boot": 5}')
    status = seen(node)
    assert status.booted is None and any("boot menu" in problem for problem in status.problems)


# -- forms

_PERFDATA = re.compile(r"'?[^'=|]+'?=-?\d+(\.\d+)?(us|ms|s|%|B|KB|MB|GB|TB|c)?(;[^; ]*){0,4}")


def test_nagios(lab: Lab, node: Path) -> None:
    for level, text in (("OK", "way back: no"), ("WARNING", "interrupted")):
        line = nagios(seen(node))
        shown, perfdata = line.split(" | ")
        assert shown.startswith(f"UPDATER {level} - ") and text in shown and "\n" not in line
        assert all(_PERFDATA.fullmatch(word) for word in perfdata.split(" "))
        if level == "OK":
            assert perfdata == "a_tries=0 b_tries=0 way_back=0 upgrade=0"
            leave_open(node, "write:flushed", "stage", lab.bundle("MR96-1"))
    assert [level.exit_code for level in Indicator] == [0, 1, 2]


_SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)+)\} (-?\d+)')


@pytest.mark.parametrize("name", ["sandbox", 'a "b" \\ c'])
def test_prometheus(name: str, node: Path) -> None:
    node.write_text(node.read_text().replace('name = "sandbox"', f"name = {json.dumps(name)}"))
    text = prometheus(seen(node))
    assert text.endswith("\n")
    typed: set[str] = set()
    values: dict[str, list[int]] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            typed.add(line.split()[2])
        elif not line.startswith("# HELP "):
            found = _SAMPLE.fullmatch(line)
            assert found is not None and found[1] in typed, line
            values.setdefault(found[1], []).append(int(found[3]))
    assert values["updater_indicator"] == [0] and values["updater_slot_info"] == [1, 1]
    assert values["updater_slot_tries"] == [0, 0]


@pytest.mark.parametrize("form", ["table", "json", "nagios", "prometheus"])
def test_the_command_line_prints_each_form(form: str, node: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from updater.cli.main import app

    done = CliRunner().invoke(app, ["--config", str(node), "status", "--format", form])
    assert done.exit_code == 0, done.output
    assert "MR95-1" in done.output
    if form == "json":
        assert json.loads(done.output)["slots"][0]["state"] == "good"


@pytest.mark.parametrize(("broken", "code"), [(False, 0), (True, 2)])
def test_nagios_exit_codes(broken: bool, code: int, node: Path) -> None:
    from typer.testing import CliRunner

    from updater.cli.main import app

    if broken:
        (node.parent / "data/sandbox-machine.json").write_text('{"slot": null, "boot": 5}')
    assert CliRunner().invoke(app, ["--config", str(node), "status", "--format", "nagios"]).exit_code == code
