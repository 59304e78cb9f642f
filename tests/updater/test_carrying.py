"""What the operator carries, through stage, plan and activate of a sandbox: real images, mounted for real."""

from __future__ import annotations

import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import Busy, ConfigError, DeviceFailed, ModificationConflict, WrongState
from core.files import exclusive_lock
from partitions.filesystems import free_space
from patches.lifetime import Lifetime
from patches.registry import Kind, Registry
from tests.patches.rpmlab import plain_root, prepared_root, rpms
from tests.templates.configlab import SCHEMA, section
from tests.updater.crash import die_at, in_child, points
from tests.updater.lab import IMAGE, ROOMY, Lab, attempt, copy_sandbox, do, look
from updater.cli.main import app
from updater.execution import Plan
from updater.node import open_node
from updater.upgrade import Wishes, open_bundle, plan_activate, plan_stage
from vagrant.rpms import Rpms

pytestmark = pytest.mark.root
__all__ = ["plain_root", "prepared_root", "rpms"]  # fixtures

SHIPPED = "one\ntwo\nthree\nfour\nfive\n"
PATCH = "--- a/etc/app.conf\n+++ b/etc/app.conf\n@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three\n"
PATCHED = SHIPPED.replace("two", "TWO")


@pytest.fixture(scope="session")
def release(lab: Lab) -> Path:
    """A bundle of MR96-1 that ships a configuration file."""
    tree = lab.home / "tree-with-app"
    (tree / "boot").mkdir(parents=True)
    for name in ("vmlinuz-6.1", "initrd.img-6.1"):
        (tree / "boot" / name).write_text(name)
    (tree / "etc").mkdir()
    (tree / "etc/app.conf").write_text(SHIPPED)
    return lab.bundle("MR96-1", tree=tree)


@pytest.fixture
def node(lab: Lab, place: Path) -> Path:
    """A sandbox that runs MR95-1, with a root of its own."""
    config = lab.sandbox(place / "node", slot=ROOMY)
    (config.parent / "root/etc/ops").mkdir(parents=True)
    return config


@pytest.fixture
def registry(node: Path) -> Iterator[Registry]:
    with Registry.of(node.parent / "data") as opened:
        yield opened


def carry_patch(registry: Registry, name: str = "0001-two", text: str = PATCH, **lifetime: str) -> None:
    registry.add(Kind.PATCH, name, lifetime=Lifetime(**lifetime), reason="ticket 1", content=text.encode())


def keep(registry: Registry, path: str, policy: str = "ask") -> None:
    registry.add(Kind.FILE, path, lifetime=Lifetime(), reason="", facts={"policy": policy})


def in_slot(node: Path, path: str, slot: str = "b") -> str | None:
    """A file's content in a slot's image; None where there is none."""
    image = node.parent / "slots" / f"{slot}.img"
    done = subprocess.run(["debugfs", "-R", f"cat {path}", image], capture_output=True, text=True, check=True)
    return None if "File not found" in done.stderr else done.stdout


def is_sound(node: Path) -> bool:
    """The slot is staged, its seal holds, and its filesystem is clean."""
    seen = look(node)
    checked = subprocess.run(["e2fsck", "-fn", node.parent / "slots/b.img"], capture_output=True, check=False)
    return "staged" in seen["slots"]["b"] and seen["records"]["b"]["seal"] == "holds" and checked.returncode == 0


def plan(node: Path, bundle: Path, **wishes: Any) -> Plan:
    with open_node(node) as opened, open_bundle(opened, str(bundle)) as source:
        return plan_stage(opened, source, str(bundle), Wishes(**wishes))


def stage(node: Path, bundle: Path, *without: str) -> str:
    return do(node, "stage", bundle, without=without)


def text_of(plan: Plan) -> list[str]:
    return [f"{each.kind} {each.name}: {each.why}" for each in plan.decisions]


def names_of(plan: Plan) -> list[str]:
    return [step["step"] for step in plan.steps]


# -- both


def test_a_file_that_is_patched_and_kept_is_refused_before_anything_is_written(
    node: Path, release: Path, registry: Registry
) -> None:
    carry_patch(registry)
    (node.parent / "root/etc/app.conf").write_text(SHIPPED)
    keep(registry, "/etc")
    before = look(node)
    with pytest.raises(ModificationConflict, match=r"/etc/app\.conf is both patched and kept"):
        stage(node, release)
    assert look(node) == before
    keep(registry, "/etc/app.conf", "theirs")  # the nearer entry counts
    assert stage(node, release) == "done"
    assert in_slot(node, "/etc/app.conf") == PATCHED


# -- patches


def test_a_patch_is_planned_then_applied(node: Path, release: Path, registry: Registry) -> None:
    carry_patch(registry)
    planned = plan(node, release)
    assert planned.feasible and "patches" in names_of(planned)
    assert text_of(planned) == ["patch 0001-two: 1 file, 1 hunk, applies cleanly"]
    assert stage(node, release) == "done"
    assert in_slot(node, "/etc/app.conf") == PATCHED
    assert is_sound(node)
    [became] = registry.outcomes("b", Kind.PATCH)
    assert (became.state, [file["path"] for file in became.facts["files"]]) == ("applied", ["/etc/app.conf"])
    assert stage(node, release) == "nothing"
    assert do(node, "activate") == "done"


def test_a_patch_after_its_lifetime_is_named_and_not_applied(node: Path, release: Path, registry: Registry) -> None:
    carry_patch(registry, until="MR96-1", superseded_by="fixed upstream, ref 18223")
    [decision] = plan(node, release).decisions
    assert not decision.carried and "MR96-1 (fixed upstream, ref 18223)" in str(decision)
    stage(node, release)
    assert in_slot(node, "/etc/app.conf") == SHIPPED


def test_a_patch_that_conflicts_stops_before_anything_is_written(node: Path, release: Path, registry: Registry) -> None:
    carry_patch(registry, text=PATCH.replace("-two", "-zwei"))
    carry_patch(
        registry, "0002-five", PATCH.replace("@@ -1,3 +1,3 @@\n one\n-two\n+TWO\n three", "@@ -5 +5 @@\n-five\n+FIVE")
    )
    before = look(node)
    planned = plan(node, release)
    assert not planned.feasible
    with pytest.raises(ModificationConflict) as caught:
        stage(node, release)
    assert caught.value.exit_code == 23
    assert "0001-two" in caught.value.message and any("--without 0001-two" in each for each in caught.value.next)
    after = look(node)
    assert {key: after[key] for key in after if key != "status"} == {
        key: before[key] for key in before if key != "status"
    }
    assert not list((node.parent / "data/scratch").iterdir())
    # left out this once, the other one still goes in
    assert stage(node, release, "0001-two") == "done"
    assert in_slot(node, "/etc/app.conf") == SHIPPED.replace("five", "FIVE")


def test_a_name_that_names_nothing_is_an_error(node: Path, release: Path, registry: Registry) -> None:
    with pytest.raises(ConfigError, match="nothing is carried"):
        stage(node, release, "0001")
    carry_patch(registry)
    with pytest.raises(ConfigError, match="called 0002"):
        stage(node, release, "0002")


# -- staged already?


def test_what_is_staged_is_out_of_date_when_what_is_carried_changes(
    node: Path, release: Path, registry: Registry
) -> None:
    stage(node, release)
    assert stage(node, release) == "nothing"
    carry_patch(registry)
    assert stage(node, release) == "done"
    assert in_slot(node, "/etc/app.conf") == PATCHED
    assert stage(node, release) == "nothing"
    assert stage(node, release, "0001-two") == "done"
    assert in_slot(node, "/etc/app.conf") == SHIPPED
    registry.expire(Kind.PATCH, "0001-two", "MR96-1")
    assert stage(node, release) == "done"
    (node.parent / "root/etc/ops/a").write_text("mine\n")
    keep(registry, "/etc/ops")
    assert stage(node, release) == "done"
    assert stage(node, release) == "nothing"
    (node.parent / "root/etc/ops/a").write_text("edited\n")
    assert stage(node, release) == "done"
    assert in_slot(node, "/etc/ops/a") == "edited\n"


# -- files


def test_kept_files_that_are_edited_after_staging_are_copied_again(
    node: Path, release: Path, registry: Registry
) -> None:
    ours = node.parent / "root/etc/ops"
    for name in ("stays", "edited", "removed"):
        (ours / name).write_text(f"{name}\n")
    (node.parent / "root/etc/app.conf").write_text(SHIPPED + "mine\n")
    keep(registry, "/etc/ops")
    keep(registry, "/etc/app.conf", "ours")
    stage(node, release)
    assert in_slot(node, "/etc/app.conf") == SHIPPED + "mine\n"
    with open_node(node) as opened:
        assert "files-again" not in names_of(plan_activate(opened))
    (ours / "edited").write_text("changed\n")
    (ours / "removed").unlink()
    (ours / "added").write_text("new\n")
    (node.parent / "root/etc/app.conf").write_text(SHIPPED + "mine, too\n")
    with open_node(node) as opened:
        planned = plan_activate(opened)
    assert planned.feasible and names_of(planned)[0] == "files-again"
    assert "/etc/ops/edited changed" in planned.steps[0]["what"]
    assert do(node, "activate") == "done"
    found = {name: in_slot(node, f"/etc/ops/{name}") for name in ("stays", "edited", "removed", "added")}
    assert found == {"stays": "stays\n", "edited": "changed\n", "removed": None, "added": "new\n"}
    assert in_slot(node, "/etc/app.conf") == SHIPPED + "mine, too\n"
    # the base of the next merge is what the release shipped, not what we had put there before
    [became] = [each for each in registry.outcomes("b", Kind.FILE) if each.name == "/etc/app.conf"]
    assert registry.kept(became.facts["shipped"]) == SHIPPED.encode()


def test_an_edit_after_staging_that_needs_a_decision_changes_nothing(
    node: Path, release: Path, registry: Registry
) -> None:
    ours = node.parent / "root/etc/app.conf"
    ours.write_text(SHIPPED)  # the same as the release's: no question yet
    keep(registry, "/etc/app.conf")
    stage(node, release)
    ours.write_text(SHIPPED + "mine\n")
    assert attempt(node, "activate").startswith("modification conflict: the kept file /etc/app.conf needs a decision")
    assert is_sound(node) and look(node)["next boot"] == "a"
    ours.write_text(SHIPPED)
    assert do(node, "activate") == "done"


def test_a_kept_file_that_needs_a_decision_stops_stage(node: Path, release: Path, registry: Registry) -> None:
    (node.parent / "root/etc/app.conf").write_text("quite different\n")
    keep(registry, "/etc/app.conf")
    assert not plan(node, release).feasible
    assert attempt(node, "stage", release).startswith("modification conflict")
    assert look(node)["runs"] == 0
    assert stage(node, release, "/etc/app.conf") == "done"
    assert in_slot(node, "/etc/app.conf") == SHIPPED


# -- configuration


def updater(node: Path, *words: str) -> str:
    done = CliRunner().invoke(app, ["--config", str(node), *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_the_active_configuration_is_rendered_into_the_slot(node: Path, release: Path) -> None:
    updater(node, "config", "clone")
    updater(node, "config", "set", "ssh.port", "2222")
    assert "configuration" not in names_of(plan(node, release)), "a draft is not carried"
    updater(node, "config", "apply", "--no-render")
    planned = plan(node, release)
    assert planned.feasible and "configuration" in names_of(planned)
    assert stage(node, release) == "done"
    assert "\nPort 2222\n" in str(in_slot(node, "/etc/ssh/sshd_config.d/50-updater.conf"))
    assert is_sound(node) and stage(node, release) == "nothing"
    updater(node, "config", "clone")
    updater(node, "config", "set", "ssh.port", "2223")
    updater(node, "config", "apply", "--no-render")
    assert stage(node, release) == "done"
    assert "\nPort 2223\n" in str(in_slot(node, "/etc/ssh/sshd_config.d/50-updater.conf"))


SSHD, SUDOERS = "/etc/ssh/sshd_config.d/50-updater.conf", "/etc/sudoers.d/50-updater"


def apply(node: Path, *settings: tuple[str, str]) -> None:
    """Another configuration with these values, made the active one."""
    updater(node, "config", "clone")
    for option, value in settings:
        updater(node, "config", "set", option, value)
    updater(node, "config", "apply", "--no-render")


def test_a_configuration_that_is_applied_after_staging_is_rendered_again(node: Path, release: Path) -> None:
    apply(node, ("ssh.port", "22"), ("sudo.administrators", "%wheel"))
    stage(node, release)
    assert "wheel" in str(in_slot(node, SUDOERS))
    with open_node(node) as opened:
        assert "configuration-again" not in names_of(plan_activate(opened))
    apply(node, ("ssh.port", "2222"), ("sudo.administrators", ""))
    with open_node(node) as opened:
        planned = plan_activate(opened)
    assert planned.feasible and names_of(planned)[0] == "configuration-again"
    assert "v2" in planned.steps[0]["what"] and is_sound(node)
    assert do(node, "activate") == "done"
    assert "\nPort 2222\n" in str(in_slot(node, SSHD)) and in_slot(node, SUDOERS) is None


def test_the_first_configuration_is_rendered_with_the_staged_releases_own_templates(node: Path, lab: Lab) -> None:
    section(lab.home / "own-templates", {"app.j2": "port {{ app.port }} of {{ release }}\n"})
    stage(node, lab.bundle("MR96-1", sections={"templates": lab.home / "own-templates"}))
    apply(node)
    assert do(node, "activate") == "done"
    assert "\nport 22 of MR96-1\n" in str(in_slot(node, "/etc/app"))
    apply(node, ("app.port", "7"))  # the booted release knows its options
    updater(node, "render")
    assert "\nport 7 of MR96-1\n" in (node.parent / "root/etc/app").read_text()


def test_a_configuration_that_does_not_fit_the_staged_release_stops_activate(node: Path, lab: Lab) -> None:
    narrow = SCHEMA.replace("older.port", "ssh.port").replace("65535", "1024")
    section(lab.home / "narrow-templates", {"app.j2": "x\n"}, schema=narrow)
    stage(node, lab.bundle("MR96-2", sections={"templates": lab.home / "narrow-templates"}))
    apply(node, ("ssh.port", "2222"))
    before = look(node)
    with open_node(node) as opened:
        assert not plan_activate(opened).feasible
    assert attempt(node, "activate").startswith("modification conflict: cannot activate: configuration v1 does not fit")
    assert look(node) == before and is_sound(node)


def test_a_slot_that_an_older_agent_staged_is_rendered_again_or_staged_again(node: Path, release: Path) -> None:
    def forget() -> None:
        with open_node(node) as opened:
            record = opened.journal.slot("b")
            opened.journal.set_slot("b", {key: record[key] for key in record if key != "rendered"})

    stage(node, release)
    forget()
    apply(node, ("ssh.port", "2222"))
    assert attempt(node, "activate").startswith(
        "wrong state: cannot activate: a configuration was applied after slot b"
    )
    stage(node, release)
    forget()
    with open_node(node) as opened:
        assert names_of(plan_activate(opened))[0] == "configuration-again"
    assert do(node, "activate") == "done"


def test_rendering_into_the_staged_slot_keeps_it_sealed(node: Path, release: Path) -> None:
    refused = CliRunner().invoke(app, ["--config", str(node), "render", "--slot", "inactive"])
    assert isinstance(refused.exception, WrongState)
    apply(node, ("ssh.port", "22"))
    stage(node, release)
    apply(node, ("ssh.port", "2222"))
    image = (node.parent / "slots/b.img").read_bytes()
    assert "1 changed" in updater(node, "render", "--slot", "inactive", "--dry-run")
    assert (node.parent / "slots/b.img").read_bytes() == image
    with exclusive_lock(node.parent / "data/lock", purpose="stage"):
        refused = CliRunner().invoke(app, ["--config", str(node), "render", "--slot", "inactive", "--dry-run"])
        assert isinstance(refused.exception, Busy)
    assert "1 changed" in updater(node, "render", "--slot", "inactive")
    assert "\nPort 2222\n" in str(in_slot(node, SSHD)) and is_sound(node)
    with open_node(node) as opened:
        assert "configuration-again" not in names_of(plan_activate(opened))
    assert "1 changed" in updater(node, "render", "--slot", "inactive", "--undo")
    assert "\nPort 22\n" in str(in_slot(node, SSHD)) and is_sound(node)
    assert do(node, "activate") == "done"


def test_a_rendering_into_the_staged_slot_that_was_cut_short_is_taken_up(node: Path, release: Path) -> None:
    apply(node, ("sudo.administrators", "%wheel"))
    stage(node, release)
    apply(node, ("sudo.administrators", ""))
    trial = copy_sandbox(node.parent, node.parent.with_name("trial"))
    [cut] = [
        point
        for point in points(lambda: updater(trial, "render", "--slot", "inactive"))
        if point.name == "render:recorded"
    ]
    assert die_at(cut, lambda: updater(node, "render", "--slot", "inactive"))
    assert in_slot(node, SUDOERS) is not None
    updater(node, "render", "--slot", "inactive")
    assert in_slot(node, SUDOERS) is None and is_sound(node)


# -- packages


@pytest.fixture(scope="session")
def rpm_release(lab: Lab, prepared_root: Path) -> Path:
    """A bundle of MR96-1 with a shell, an RPM database and the platform package."""
    tree = lab.home / "tree-with-rpm"
    subprocess.run(["cp", "-a", prepared_root, tree], check=True)
    (tree / "boot").mkdir()
    for name in ("vmlinuz-6.1", "initrd.img-6.1"):
        (tree / "boot" / name).write_text(name)
    return lab.bundle("MR96-1", tree=tree, size=16 << 20, chunk_size=1 << 20)


@pytest.fixture
def rpm_node(lab: Lab, place: Path, rpms: Rpms) -> Path:
    """A sandbox with room for that, which trusts acme's packages."""
    config = lab.sandbox(place / "node", slot=24 << 20)
    shutil.copytree(rpms.keys, config.parent / "rpm-keys")
    return config


def test_packages_are_installed_into_the_slot(rpm_node: Path, rpm_release: Path, rpms: Rpms) -> None:
    probe = rpms.make(
        "probe",
        files={"/opt/probe": "probe 1\n"},
        requires=["/bin/sh"],
        scriptlets={"post": "echo configured > /opt/probe.post"},
    )
    lonely = rpms.make("lonely", requires=["libmissing.so.1"])
    updater(rpm_node, "rpm", "add", str(probe), str(lonely))
    planned = plan(rpm_node, rpm_release)
    assert not planned.feasible
    assert attempt(rpm_node, "stage", rpm_release).startswith("modification conflict: ")
    assert look(rpm_node)["runs"] == 0
    planned = plan(rpm_node, rpm_release, without=("lonely",))
    assert planned.feasible and "packages" in names_of(planned)
    assert {(each.name.split("-")[0], each.carried) for each in planned.decisions} == {
        ("probe", True),
        ("lonely", False),
    }
    assert stage(rpm_node, rpm_release, "lonely") == "done"
    assert in_slot(rpm_node, "/opt/probe") == "probe 1\n"
    assert in_slot(rpm_node, "/opt/probe.post") == "configured\n"
    assert is_sound(rpm_node)
    assert "slot b: installed" in updater(rpm_node, "rpm", "list")
    assert do(rpm_node, "activate") == "done"


def test_death_while_packages_are_installed(rpm_node: Path, rpm_release: Path, rpms: Rpms, place: Path) -> None:
    updater(rpm_node, "rpm", "add", str(rpms.make("probe", files={"/opt/probe": "probe 1\n"})))
    trial = copy_sandbox(rpm_node.parent, place / "trial")
    found = {point.name: point for point in points(lambda: stage(trial, rpm_release)) if point.during == "packages"}
    assert found.keys() >= {"packages:intended", "packages:applied"}
    for name in ("packages:intended", "packages:applied"):
        dead = copy_sandbox(rpm_node.parent, place / "dead")
        assert die_at(found[name], lambda dead=dead: stage(dead, rpm_release))  # type: ignore[misc]
        assert in_child(lambda dead=dead: do(dead, "resume")) == "done", name  # type: ignore[misc]
        assert is_sound(dead) and in_slot(dead, "/opt/probe") == "probe 1\n"
        shutil.rmtree(dead.parent)


# -- the seal


def test_the_seal_holds_all_that_the_slot_uses_and_nothing_that_is_free(lab: Lab, place: Path) -> None:
    """Also what was carried in behind the end of the image, where the filesystem was grown."""
    size = 8 * IMAGE
    config = lab.sandbox(place / "node", slot=size)
    (config.parent / "root/opt").mkdir(parents=True)
    (config.parent / "root/opt/large").write_bytes(random.Random(1).randbytes(IMAGE * 3 // 2))
    with Registry.of(config.parent / "data") as registry:
        keep(registry, "/opt/large")
    assert do(config, "stage", lab.bundle("MR96-1")) == "done"
    slot = config.parent / "slots/b.img"
    free = free_space(slot)
    behind = [at for at in range(IMAGE, size, 1024) if not any(at in part for part in free)]
    assert len(behind) > 100
    for at, holds in ((behind[-1], False), (next(part for part in free if len(part) > 2 * IMAGE).start + IMAGE, True)):
        with slot.open("r+b") as image:
            image.seek(at)
            before = image.read(1)
            image.seek(at)
            image.write(bytes([before[0] ^ 1]))
        assert (look(config)["records"]["b"]["seal"] == "holds") is holds, at
        if not holds:
            with pytest.raises(DeviceFailed, match="no longer what was staged"):
                do(config, "activate")
            with slot.open("r+b") as image:
                image.seek(at)
                image.write(before)
