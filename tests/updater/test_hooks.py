"""The operator's hooks: order, facts, deadlines, and what a failure stops."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from core.errors import HookFailed
from core.report import Event, Kind, Report
from tests.updater.lab import Lab, add_hooks, do, hooks_ran, look, make_unhealthy, power_cycle
from updater.hooks import MOMENTS, hooks_at, run_hooks
from updater.node import open_node
from updater.node_toml import HooksConfig


def hook(directory: Path, moment: str, name: str, script: str) -> Path:
    path = directory / f"{moment}.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_in_the_order_of_their_names_with_the_facts_as_json(tmp_path: Path) -> None:
    for name in ("20-b", "10-a", "README"):
        hook(tmp_path, "before-stage", name, f"echo {name} >> {tmp_path}/ran; cat > {tmp_path}/facts-{name}")
    (tmp_path / "before-stage.d" / "README").chmod(0o644)
    (tmp_path / "before-stage.d" / "30-directory").mkdir()
    config = HooksConfig(directory=tmp_path)
    assert run_hooks(config, "before-stage", {"node": "n1", "text": 'a "b"\n'}, Report()) == 2
    assert (tmp_path / "ran").read_text().split() == ["10-a", "20-b"]
    facts = json.loads((tmp_path / "facts-20-b").read_text())
    assert facts == {"moment": "before-stage", "node": "n1", "text": 'a "b"\n'}


def test_no_directory_no_hooks(tmp_path: Path) -> None:
    assert hooks_at(HooksConfig(directory=tmp_path / "none"), "before-stage") == []


def test_a_before_hook_that_fails_stops_and_shows_its_words(tmp_path: Path) -> None:
    hook(tmp_path, "before-stage", "10-a", "echo the database is being saved >&2; exit 7")
    hook(tmp_path, "before-stage", "20-b", f"touch {tmp_path}/ran")
    with pytest.raises(HookFailed) as caught:
        run_hooks(HooksConfig(directory=tmp_path), "before-stage", {}, Report())
    assert "exit code 7" in caught.value.message and "the database is being saved" in caught.value.what
    assert not (tmp_path / "ran").exists()


def test_an_after_hook_that_fails_is_reported_and_the_others_run(tmp_path: Path) -> None:
    hook(tmp_path, "after-stage", "10-a", "exit 1")
    hook(tmp_path, "after-stage", "20-b", f"touch {tmp_path}/ran")
    events: list[Event] = []
    run_hooks(HooksConfig(directory=tmp_path), "after-stage", {}, Report(events.append))
    assert (tmp_path / "ran").exists()
    assert [event.kind for event in events] == [Kind.WARNING] and "10-a" in events[0].text


def test_a_hook_that_hangs_is_ended_at_its_deadline(tmp_path: Path) -> None:
    hook(tmp_path, "before-stage", "10-a", "sleep 60 & wait")
    begun = time.monotonic()
    with pytest.raises(HookFailed, match=r"within 0\.3 s"):
        run_hooks(HooksConfig(directory=tmp_path, deadline=0.3), "before-stage", {}, Report())
    assert time.monotonic() - begun < 10


def test_a_hook_that_is_no_program_stops_as_well(tmp_path: Path) -> None:
    hook(tmp_path, "before-stage", "10-a", "").write_bytes(b"\0\1")
    with pytest.raises(HookFailed):
        run_hooks(HooksConfig(directory=tmp_path), "before-stage", {}, Report())


@pytest.mark.parametrize("verb", ["stage", "activate", "rollback"])
def test_a_failing_before_hook_leaves_nothing_changed_and_no_run_open(verb: str, lab: Lab, node: Path) -> None:
    arguments = [lab.bundle("MR96-1")] if verb == "stage" else []
    if verb != "stage":
        do(node, "stage", lab.bundle("MR96-1"))
    if verb == "rollback":
        do(node, "activate")
    before = look(node)
    hook(node.parent / "hooks", f"before-{verb}", "10-no", "exit 1")
    with pytest.raises(HookFailed) as caught:
        do(node, verb, *arguments)
    assert caught.value.state == "nothing was changed"
    after = look(node)
    same = [key for key in before if key not in ("runs", "last run", "status", "hooks")]
    assert {key: after[key] for key in same} == {key: before[key] for key in same}
    assert after["last run"] == f"{verb} failed" and after["open run"] is None


def test_a_failing_before_confirm_hook_counts_as_a_failed_try(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    hook(node.parent / "hooks", "before-confirm", "10-no", "exit 1")
    assert do(node, "activate") == "fell-back"
    assert look(node)["environment"] == {"a": "good 0", "b": "bad 0"}


def test_a_before_confirm_hook_runs_in_every_boot_on_trial(lab: Lab, node: Path) -> None:
    add_hooks(node.parent, ("before-confirm",))
    make_unhealthy(node.parent, "MR96-1")
    do(node, "stage", lab.bundle("MR96-1"))
    assert do(node, "activate") == "fell-back"
    assert (node.parent / "hooks-ran").read_text().split() == ["before-confirm"] * 3


@pytest.mark.parametrize("verb", ["activate", "rollback"])
def test_what_comes_before_the_reboot_is_not_run_after_it(verb: str, lab: Lab, node: Path) -> None:
    """The slot that was booted has hooks that the one it was flipped from had not."""
    do(node, "stage", lab.bundle("MR96-1"))
    if verb == "rollback":
        do(node, "activate")
    assert do(node, verb, by_hand=True) == "waiting"
    add_hooks(node.parent, MOMENTS)
    hook(node.parent / "hooks", f"before-{verb}", "20-no", "exit 1")
    power_cycle(node)
    assert do(node, "confirm") == "done"
    here = {"before-confirm", "after-confirm"} if verb == "activate" else {"after-rollback"}
    assert hooks_ran(node) == here


def test_where_the_journal_was_lost_a_trial_goes_on_after_its_flip(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate", by_hand=True)
    hook(node.parent / "hooks", "before-activate", "10-no", "exit 1")
    power_cycle(node)
    (node.parent / "data/journal.sqlite").unlink()
    assert do(node, "confirm") == "done"
    assert look(node)["environment"] == {"a": "good 0", "b": "good 0"}


def test_every_moment_comes_once_in_the_whole_story_and_is_in_the_plan(lab: Lab, node: Path) -> None:
    add_hooks(node.parent, MOMENTS)
    from updater.upgrade import Wishes, open_bundle, plan_stage

    source = str(lab.bundle("MR96-1"))
    with open_node(node) as opened, open_bundle(opened, source) as bundle:
        steps = [step["step"] for step in plan_stage(opened, bundle, source, Wishes()).steps]
    assert steps[0] == "before-stage" and "after-confirm" in steps
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate")
    do(node, "rollback")
    assert hooks_ran(node) == set(MOMENTS) - {"after-fallback"}
    ran = (node.parent / "hooks-ran").read_text().split()
    assert len(ran) == len(set(ran))
