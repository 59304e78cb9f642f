"""Every check of stage, activate and rollback fails alone, with its exit code, and nothing is changed by it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from core.errors import UpdaterError
from core.journal import Journal
from core.report import Report
from core.window import Window
from tests.updater.crash import die_at, points
from tests.updater.lab import IMAGE, Lab, do, look
from updater import upgrade
from updater.checks import Purposes
from updater.execution import Plan
from updater.machine import Sandbox
from updater.node import open_node

Change = Callable[[Path], object]


def everything(node: Path) -> dict[str, bytes]:
    """All files of the sandbox; who holds or held the lock is no change."""
    home = node.parent
    return {str(path): path.read_bytes() for path in sorted(home.rglob("*")) if path.is_file() and path.name != "lock"}


def failing(plan: Plan) -> list[str]:
    return [check.name for check in plan.checks if check.error is not None]


def refused(node: Path, code: int, verb: str, *arguments: Any, **options: Any) -> UpdaterError:
    before = everything(node)
    with pytest.raises(UpdaterError) as caught:
        do(node, verb, *arguments, **options)
    assert caught.value.exit_code == code, caught.value
    assert everything(node) == before
    assert caught.value.state
    return caught.value


def plan_of(node: Path, bundle: Path, purposes: Purposes) -> Plan:
    with open_node(node) as opened, upgrade.open_bundle(opened, str(bundle)) as source:
        return upgrade.plan_stage(opened, source, str(bundle), upgrade.Wishes(purposes=purposes))


# -- stage

#: Check, exit code, release, fields of BuildSpec that make the bundle unfit.
UNFIT: list[tuple[str, int, str, dict[str, Any]]] = [
    ("compatible", 22, "MR96-1", {"compatible": "another-switch"}),
    ("compatible", 22, "MR96-1", {"architecture": "sparc"}),
    ("agent", 22, "MR96-1", {"minimum_agent": "99.1"}),
    ("release", 22, "MR94-1", {}),
    ("release", 22, "MR101-1", {}),
    ("release", 22, "MR96-1", {"installable_over": ("MR94",)}),
    ("release", 22, "MR97-1", {"policy": {"lts": [96]}}),
    ("slot b", 24, "MR96-1", {"size": 2 * IMAGE}),
    ("space", 24, "MR96-1", {"required_free": 1 << 50}),
]


@pytest.mark.parametrize(("name", "code", "release", "changed"), UNFIT)
def test_a_bundle_that_does_not_fit(
    name: str, code: int, release: str, changed: dict[str, Any], lab: Lab, node: Path
) -> None:
    bundle = lab.bundle(release, **changed)
    assert failing(plan_of(node, bundle, Purposes())) == [name]
    refused(node, code, "stage", bundle)


def test_downgrades_and_jumps_on_purpose(lab: Lab, node: Path) -> None:
    assert failing(plan_of(node, lab.bundle("MR94-1"), Purposes(downgrade=True))) == []
    assert failing(plan_of(node, lab.bundle("MR93-1"), Purposes(downgrade=True))) == ["release"]  # the data is at 95
    assert failing(plan_of(node, lab.bundle("MR101-1"), Purposes(jump=True))) == []


def environment(node: Path) -> Path:
    found = [path for path in (node.parent / "esp").rglob("*") if path.is_file() and path.stat().st_size == 1024]
    return next(path for path in found if path.read_bytes().startswith(b"# GRUB Environment"))


def break_environment(node: Path) -> None:
    environment(node).write_bytes(bytes(1024))


def shorten_environment(node: Path) -> None:
    environment(node).write_bytes(b"")


def sparse_environment(node: Path) -> None:
    raw = environment(node).read_bytes()
    with environment(node).open("wb") as file:
        file.truncate(1024)
    assert raw


def lose_slot(node: Path) -> None:
    (node.parent / "slots/b.img").unlink()


@pytest.mark.parametrize(
    ("change", "code"), [(break_environment, 31), (shorten_environment, 31), (sparse_environment, 31), (lose_slot, 30)]
)
def test_a_node_that_is_not_fit(change: Change, code: int, lab: Lab, node: Path) -> None:
    change(node)
    refused(node, code, "stage", lab.bundle("MR96-1"))


def test_not_root(lab: Lab, node: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert failing(plan_of(node, lab.bundle("MR96-1"), Purposes())) == ["rights"]
    refused(node, 12, "stage", lab.bundle("MR96-1"))


@pytest.mark.root
def test_a_slot_in_use(lab: Lab, node: Path) -> None:
    loop = subprocess.run(
        ["losetup", "--find", "--show", str(node.parent / "slots/b.img")], check=True, capture_output=True, text=True
    ).stdout.strip()
    try:
        assert failing(plan_of(node, lab.bundle("MR96-1"), Purposes())) == ["slot b"]
        error = refused(node, 11, "stage", lab.bundle("MR96-1"))
        assert any(loop in line for line in error.what)
    finally:
        subprocess.run(["losetup", "--detach", loop], check=True)


def test_several_faults_are_told_at_once(lab: Lab, node: Path) -> None:
    bundle = lab.bundle("MR101-1", compatible="another-switch", minimum_agent="99")
    assert failing(plan_of(node, bundle, Purposes())) == ["compatible", "agent", "release"]
    error = refused(node, 22, "stage", bundle)
    assert any("99" in line for line in error.what) and any("jumps over" in line for line in error.what)


def test_while_the_running_slot_is_not_confirmed(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    _die(node, "activate", "health:intended")
    with open_node(node) as opened:
        run = opened.journal.open_run()
        assert run is not None
        assert failing(plan_of(node, lab.bundle("MR97-1"), Purposes())) == ["running slot"]
    refused(node, 13, "stage", lab.bundle("MR97-1"))


def _die(node: Path, verb: str, at: str, *arguments: Any, **options: Any) -> None:
    """Leave a run open: the verb's process dies at the first passing of this point."""
    trial = node.parent.with_name("trial")
    from tests.updater.lab import copy_sandbox

    config = copy_sandbox(node.parent, trial)
    wanted = next(point for point in points(lambda: do(config, verb, *arguments, **options)) if point.name == at)
    shutil.rmtree(trial)
    assert die_at(wanted, lambda: do(node, verb, *arguments, **options))


def test_a_stage_does_not_go_on_into_the_slot_that_runs_by_now(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate")
    _die(node, "stage", "mark:before", lab.bundle("MR97-1"))
    with open_node(node) as opened:
        assert isinstance(opened.machine, Sandbox)
        opened.machine.start("a")  # by hand, in the boot menu
    for verb, *bundle in (("resume",), ("stage", lab.bundle("MR97-1"))):
        error = refused(node, 34, verb, *bundle)
        assert "slot a runs now" in error.message and error.next == ("updater abort",)
    upgrade = look(node)["status"].upgrade
    assert upgrade is not None and upgrade.next == ("updater abort",)
    assert do(node, "abort") == "nothing"  # after a boot into the primary slot
    after = look(node)
    assert (after["booted"], after["slots"]) == ("b", {"a": "MR95-1 good", "b": "MR96-1 good"})


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"rate_limit": 0}, "--rate-limit: 10000000 bytes a second"),
        ({"without": ("nosuch",)}, "--without: nothing"),
        ({"again": True}, "--again: not given"),
    ],
)
def test_an_interrupted_stage_goes_on_with_its_own_options_only(
    options: dict[str, Any], told: str, lab: Lab, node: Path
) -> None:
    bundle, begun_with = lab.bundle("MR96-1"), {"rate_limit": 10_000_000}
    _die(node, "stage", "write:flushed", bundle, **begun_with)
    error = refused(node, 13, "stage", bundle, **begun_with | options)
    assert told in error.what and "updater abort" in error.next[1]
    assert do(node, "stage", bundle, **begun_with) == "done"


# -- activate


def closed() -> Window:
    soon = datetime.now() + timedelta(hours=2)
    return Window(soon.time().replace(second=0, microsecond=0), (soon + timedelta(hours=1)).time())


def test_nothing_is_staged(node: Path) -> None:
    refused(node, 34, "activate")


def test_somebody_wrote_to_the_staged_slot(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    with (node.parent / "slots/b.img").open("r+b") as slot:
        slot.seek(IMAGE // 2)
        slot.write(b"x")
    refused(node, 30, "activate")
    assert do(node, "stage", lab.bundle("MR96-1")) == "done"  # written anew, for it is not what was sealed
    assert do(node, "activate") == "done"


def test_the_window_is_closed(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    with open_node(node) as opened:
        assert failing(upgrade.plan_activate(opened, window=closed())) == ["window"]
    refused(node, 36, "activate", window=closed())


def test_no_way_back_must_be_accepted(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR97-1"))
    with open_node(node) as opened:
        assert failing(upgrade.plan_activate(opened)) == ["way back"]
        assert "none" in upgrade.plan_activate(opened).way_back
    refused(node, 35, "activate")
    assert do(node, "activate", accept_no_rollback=True) == "done"
    error = refused(node, 35, "rollback")
    assert "migrated to MR97" in error.message


def test_another_run_is_open(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    _die(node, "stage", "write:flushed", lab.bundle("MR96-2"))
    for verb in ("activate", "rollback"):
        assert "updater resume" in " ".join(refused(node, 13, verb).next)
    refused(node, 13, "stage", lab.bundle("MR97-1"))


def test_a_broken_environment_stops_activate_and_rollback(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    break_environment(node)
    refused(node, 31, "activate")
    refused(node, 31, "rollback")


# -- rollback, and the way back


@pytest.mark.parametrize("verbs", [(), ("stage",)])
def test_the_other_slot_was_never_confirmed(verbs: tuple[str, ...], lab: Lab, node: Path) -> None:
    for verb in verbs:
        do(node, verb, lab.bundle("MR96-1"))
    error = refused(node, 35, "rollback")
    assert ("never booted" if verbs else "no release that was ever confirmed") in error.message


def test_the_other_slot_fell_back(lab: Lab, node: Path) -> None:
    from tests.updater.lab import make_unhealthy

    make_unhealthy(node.parent, "MR96-1")
    do(node, "stage", lab.bundle("MR96-1"))
    assert do(node, "activate") == "fell-back"
    assert "10-release" in refused(node, 35, "rollback").message
    assert "10-release" in str(refused(node, 34, "activate").what)


def test_back_and_forward_between_adjoining_releases(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate")
    assert do(node, "rollback") == "done" and look(node)["booted"] == "a"
    assert look(node)["data"] == "MR96-1"  # the data has seen it
    assert do(node, "activate") == "done" and look(node)["booted"] == "b"


def test_data_that_went_further_bars_the_way(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    do(node, "activate")
    with Journal.open(node.parent / "data/journal.sqlite") as journal:
        journal.set_fact("data-release", "MR97-1")
    error = refused(node, 35, "rollback")
    assert "migrated to MR97" in error.message
    assert not look(node)["status"].way_back


def test_staging_again_is_nothing_to_do(lab: Lab, node: Path) -> None:
    do(node, "stage", lab.bundle("MR96-1"))
    before = everything(node)
    assert do(node, "stage", lab.bundle("MR96-1")) == "nothing"
    assert everything(node) == before


@pytest.mark.parametrize("verb", ["resume", "abort"])
def test_nothing_to_go_on_with(verb: str, node: Path) -> None:
    before = everything(node)
    with pytest.raises(UpdaterError) as caught:
        do(node, verb)
    assert caught.value.exit_code == 34 and everything(node) == before


def test_a_plan_changes_nothing(lab: Lab, node: Path) -> None:
    before = everything(node)
    plan = plan_of(node, lab.bundle("MR96-1"), Purposes())
    assert plan.feasible and "adjoining" in plan.way_back
    assert [step["step"] for step in plan.steps][:2] == ["mark", "write"]
    assert everything(node) == before
    assert Report().sinks == ()
