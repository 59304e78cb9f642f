"""`updater verify`: the list of a release's files from its build to the slot, and what differs from it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from typer.testing import CliRunner

from core.errors import Drifted, NotReady, UpdaterError, WrongState
from core.report import Report
from images import trees
from images.build import BuildSpec, build
from images.keys import load_signer
from patches.drift import compare, load, save, snapshot
from patches.registry import Kind, Registry
from templates.history import History, Record, hashed
from tests.patches.rpmlab import Rpms, carry, listening, packages, plain_root, prepared_root, registry, root, rpms
from tests.updater.lab import CHUNK, Lab, do
from updater import pristine, upgrade, verify
from updater.checks import Check
from updater.cli.context import settings
from updater.cli.main import app
from updater.node import Node, open_node

__all__ = ["packages", "plain_root", "prepared_root", "registry", "root", "rpms"]

SLOT = 4 << 20
FILES = {
    "boot/vmlinuz-6.1": "kernel",
    "boot/initrd.img-6.1": "initrd",
    "etc/motd": "welcome\n",
    "etc/app/menu": "main\nend\n",
    "etc/app/one.conf": "1\n",
    "usr/bin/tool": "tool\n",
    "usr/lib/app/core.py": "x = 1\n",
}

Cli = Callable[..., str]


def make_tree(place: Path, **more: str) -> Path:
    for name, content in {**FILES, **more}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(content)
    return place


@pytest.fixture
def tree(place: Path) -> Path:
    return make_tree(place / "tree")


@pytest.fixture
def config(lab: Lab, place: Path) -> Iterator[Path]:
    yield lab.sandbox(place / "node", slot=SLOT)
    settings.config, settings.json, settings.debug = None, False, False


@pytest.fixture
def cli(config: Path) -> Cli:
    def run(*words: Any) -> str:
        done = CliRunner().invoke(app, ["--config", str(config), *map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            done.exception.add_note(done.output)
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


def make_bundle(lab: Lab, tree: Path, release: str, *, listed: bool = True) -> Path:
    output = tree.parent / f"{release}-{listed}.bundle"
    with pristine.listed(tree if listed else None, None, Report()) as sections:
        spec = BuildSpec(
            release=release, compatible="sandbox", tree=tree, size=SLOT, chunk_size=CHUNK, level=1, sections=sections
        )
        return build(spec, output, [load_signer(str(lab.key))])


@contextmanager
def staged_by_hand(config: Path, tree: Path, **record: Any) -> Iterator[Node]:
    """The node, whose running slot a came from the tree as it is now."""
    with open_node(config) as node:
        book = pristine.path_of(node.config, "a")
        pristine.make_home(book)
        save(snapshot(tree), book)
        node.journal.set_slot("a", {"release": "MR95-1", **record})
        yield node


def look(node: Node, root: Path) -> verify.Found:
    return verify.verify(node, "a", root, pristine.known(node, "a"))


def changes(found: verify.Found) -> list[tuple[str, str, int]]:
    return [(each.drift.how.value, each.drift.path, each.below) for each in found.changes]


# -- from the build to the slot


@pytest.mark.root
def test_the_list_goes_from_the_build_to_the_slot(cli: Cli, lab: Lab, tree: Path, place: Path) -> None:
    for name in ("one", "two"):
        options = ("--release", "MR96-1", "--compatible", "sandbox", "--key", lab.key, "--level", 1, "--size", SLOT)
        cli("bundle", "build", place / name, "--tree", tree, *options)
    assert (place / "one").read_bytes() == (place / "two").read_bytes()
    cli("stage", place / "one")
    assert "slot b is as MR96-1 and what is declared have it" in cli("verify", "--slot", "b")
    data = place / "node/data"
    assert (data / "pristine/b.zst").stat().st_mode & 0o777 == 0o600
    assert list(load(data / "pristine/b.zst")) == list(snapshot(tree))


@pytest.mark.root
def test_the_list_goes_with_its_release(config: Path, lab: Lab, tree: Path) -> None:
    book = config.parent / "data/pristine/b.zst"
    do(config, "stage", make_bundle(lab, tree, "MR96-1"))
    assert book.exists()
    (tree / "etc/motd").write_text("other\n")
    do(config, "stage", make_bundle(lab, tree, "MR96-2", listed=False))
    assert not book.exists()
    with open_node(config) as node, pytest.raises(NotReady, match="which files MR96-2 has is not known"):
        pristine.known(node, "b")


@pytest.mark.root
def test_an_image_has_the_list_of_its_tree(tree: Path, place: Path) -> None:
    image = place / "image"
    trees.make_image(tree, image, filesystem="ext4", size=SLOT, label="MR96-1", at=1_750_000_000)
    before = blake3(image.read_bytes()).digest()
    with pristine.listed(None, image, Report()) as sections:
        assert list(load(sections["files"])) == list(snapshot(tree))
    assert blake3(image.read_bytes()).digest() == before


def test_no_list_is_a_warning_only(place: Path) -> None:
    (place / "image").write_bytes(bytes(8192))
    for image in (None, place / "image"):
        report, events = listening()
        with pristine.listed(None, image, report) as sections:
            assert sections == {}
        assert [each.kind.value for each in events] == ["warning"]


@pytest.mark.root
@pytest.mark.parametrize("listed", [True, False])
def test_a_slot_that_was_not_staged_is_told_by_its_bundle(
    cli: Cli, config: Path, lab: Lab, tree: Path, listed: bool
) -> None:
    mine = make_bundle(lab, tree, "MR95-1", listed=listed)
    (tree / "etc/motd").write_text("changed\n")
    with pytest.raises(NotReady, match="which files MR95-1 has is not known"):
        cli("verify")
    with pytest.raises(WrongState, match="not the one that is in slot a"):
        cli("verify", "--bundle", make_bundle(lab, tree, "MR96-1"))
    with pytest.raises(Drifted, match=r"1 undeclared change in slot a \(MR95-1\)"):
        cli("verify", "--root", tree, "--bundle", mine)
    with pytest.raises(Drifted):
        cli("verify", "--root", tree)  # it is known now


def test_an_incomplete_slot_is_not_compared(config: Path, tree: Path) -> None:
    with staged_by_hand(config, tree, partial=True) as node, pytest.raises(WrongState, match="is not complete"):
        pristine.known(node, "a")


# -- what differs


def test_changes_are_listed_with_the_ways_to_declare_them(cli: Cli, config: Path, tree: Path) -> None:
    with staged_by_hand(config, tree) as node:
        (tree / "etc/motd").write_text("mine\n")
        (tree / "usr/bin/tool").chmod(0o4755)
        shutil.rmtree(tree / "usr/lib/app")
        (tree / "opt/own/deep").mkdir(parents=True)
        (tree / "opt/own/deep/file").write_text("")
        found = look(node, tree)
    assert changes(found) == [
        ("changed", "/etc/motd", 0),
        ("added", "/opt", 3),
        ("mode", "/usr/bin/tool", 0),
        ("missing", "/usr/lib/app", 1),
    ]
    with pytest.raises(Drifted) as caught:
        cli("verify", "--root", tree)
    assert caught.value.exit_code == 26
    assert "added    /opt           is not in the release, and 3 more in it" in caught.value.__notes__[0]
    assert [each.split("    ")[0] for each in caught.value.next] == [
        "updater keep add /etc/motd",
        "updater patch capture /etc/motd",
    ]
    with pytest.raises(Drifted) as caught:
        cli("verify", "--root", tree, "--json")
    told = json.loads(caught.value.__notes__[0])
    assert (told["slot"], told["release"], told["clean"]) == ("a", "MR95-1", False)
    assert told["changes"][2] | {"why": ""} == {
        "path": "/usr/bin/tool", "how": "mode", "kind": "f", "why": "", "declared": "", "below": 0
    }  # fmt: skip


def test_what_is_declared_is_no_change(cli: Cli, config: Path, tree: Path) -> None:
    text = config.read_text()
    config.write_text(text.replace("carry = []", 'carry = ["/etc/updater"]'))
    with staged_by_hand(config, tree) as node:
        own = {"etc/updater/node.toml": "n", "etc/app/one.conf": "mine", "etc/app/two.conf": "new", "srv/site/x": ""}
        made = {"etc/hosts": "h", "etc/app/menu": "patched", "usr/share/new/file": "by patch"}
        make_tree(tree, **own, **made)
        (tree / "etc/motd").unlink()
        (tree / "usr/bin/tool").write_text("patched, and then changed")
        files = {"/etc/app/menu": "patched", "/usr/share/new/file": "by patch", "/usr/bin/tool": "patched"}
        facts: list[Any] = [{"path": path, "after": blake3(text.encode()).hexdigest()} for path, text in files.items()]
        with Registry.of(node.config.data) as registry:
            registry.set_outcomes(
                "a", Kind.PATCH, [("x", "applied", {"files": [*facts, {"path": "/etc/motd", "after": None}]})]
            )
            for kept in ("/etc/app/*.conf", "/srv/**/x"):
                registry.add(Kind.FILE, kept)
        history = History(node.config.data / "rendered/a")
        history.begin(Record(what="v1", changes=(), written={"/etc/hosts": (hashed(b"h"), False)}))
        found = look(node, tree)
        assert changes(found) == [("changed", "/usr/bin/tool", 0)]
        assert {each.path: each.declared for each in found.explained if each.kind == "f"} == {
            "/etc/app/menu": "patch",
            "/etc/app/one.conf": "keep /etc/app/*.conf",
            "/etc/app/two.conf": "keep /etc/app/*.conf",
            "/etc/hosts": "template",
            "/etc/motd": "patch",
            "/etc/updater/node.toml": "carry /etc/updater",
            "/srv/site/x": "keep /srv/**/x",
            "/usr/share/new/file": "patch",
        }
        (tree / "etc/hosts").write_text("edited")
        (tree / "etc/app/one.conf").unlink()  # what is gone is not kept
        assert [path for _, path, _ in changes(look(node, tree))] == [
            "/etc/app/one.conf",
            "/etc/hosts",
            "/usr/bin/tool",
        ]
    with pytest.raises(Drifted) as caught:
        cli("verify", "--root", tree, "--all")
    assert "declared  /etc/updater" in caught.value.__notes__[0]


@pytest.mark.root
def test_files_of_carried_packages_are_declared_as_they_were_installed(
    root: Path, packages: Any, registry: Registry, rpms: Rpms, config: Path
) -> None:
    with staged_by_hand(config, root) as node:
        carry(packages, rpms.make("acme-tool", files={"/opt/acme/bin": "1\n", "/lib/acme/data": "d\n"}))
        choices = packages.decide(node.release("a"), root, ())
        packages.install(choices, root, listening()[0])
        shutil.copytree(registry.blobs, node.config.data / "carried")
        shutil.copy(registry.path, node.config.data / "carried.sqlite")
        found = look(node, root)
        assert changes(found) == []
        by = {each.path: each.declared for each in found.explained}
        assert by["/opt/acme/bin"] == by["/usr/lib/acme/data"] == "package acme-tool"
        (root / "opt/acme/bin").write_text("2\n")
        make_tree(root / "opt/other")
        assert [path for _, path, _ in changes(look(node, root))] == ["/opt/acme/bin", "/opt/other"]


@pytest.mark.root
def test_what_is_mounted_is_not_looked_into(tree: Path, place: Path) -> None:
    make_tree(tree, **{"data/below": "hidden"})
    save(snapshot(tree), place / "book")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=700", "none", str(tree / "data")], check=True)
    try:
        (tree / "data/more").write_text("")
        assert list(compare(tree, load(place / "book"))) == []
    finally:
        subprocess.run(["umount", str(tree / "data")], check=True)


# -- before an update


def test_the_quick_look_tells_what_was_changed_since_staging(config: Path, tree: Path) -> None:
    with staged_by_hand(config, tree) as node:
        (tree / "etc/motd").write_text("by a package's script, while it was staged\n")
        assert verify.quick_look(node, tree) == ""  # nobody knows when it was staged
        now = max(path.lstat().st_ctime for path in tree.rglob("*"))
        staged = datetime.fromtimestamp(now, UTC) + timedelta(microseconds=1)
        node.journal.set_slot("a", {"release": "MR95-1", "written": staged.isoformat()})
        assert verify.quick_look(node, tree) == ""
        while (tree / "usr/bin/tool").lstat().st_ctime <= staged.timestamp():
            (tree / "usr/bin/tool").write_text("mine\n")
        told = verify.quick_look(node, tree)
        assert told.startswith("1 undeclared change of the running system will not be carried: /usr/bin/tool (changed)")
        assert "not all was looked at" in verify.quick_look(node, tree, seconds=-1)
        pristine.path_of(node.config, "a").write_bytes(b"x")
        assert "could not be compared" in verify.quick_look(node, tree)
        assert verify.undeclared(node) == []  # in a sandbox nothing runs


# -- patches of what differs


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
def test_a_patch_is_captured_without_the_bundle(cli: Cli, config: Path, lab: Lab, tree: Path, place: Path) -> None:
    running = make_tree(config.parent / "root")
    with staged_by_hand(config, running):
        pass
    (running / "etc/app/menu").write_text("local\nend\n")
    (running / "etc/app/new").write_text("new\n")
    (running / "etc/app/one.conf").write_text("2\n")
    assert "+++ b/etc/app/new" in cli("patch", "capture", "/etc/app/new")
    with pytest.raises(NotReady, match="what MR95-1 has at /etc/app/menu is not known"):
        cli("patch", "capture", "/etc/app/menu")
    (tree / "etc/app/one.conf").write_text("of MR96\n")
    do(config, "stage", make_bundle(lab, tree, "MR96-1"))
    assert "-main\n+local\n" in cli("patch", "capture", "/etc/app/menu")  # the other slot has the same
    with pytest.raises(UpdaterError, match=r"/etc/app/one\.conf is not known"):
        cli("patch", "capture", "/etc/app/one.conf")
    with pytest.raises(NotReady):
        cli("patch", "capture", "/etc/resolv.conf")  # not in the list, which does not say that it is not there


# -- all of it


@pytest.mark.root
def test_a_slot_is_clean_with_all_that_stage_carried_into_it(
    cli: Cli, config: Path, lab: Lab, tree: Path, place: Path
) -> None:
    running = make_tree(config.parent / "root", **{"etc/ours/a": "kept\n", "etc/motd": "ours\n"})
    (running / "etc/ours/a").chmod(0o600)
    (place / "x.patch").write_text("--- a/usr/bin/tool\n+++ b/usr/bin/tool\n@@ -1 +1 @@\n-tool\n+better\n")
    cli("patch", "add", place / "x.patch")
    cli("keep", "add", "/etc/ours", "/etc/mo*", "--policy", "ours")
    cli("stage", make_bundle(lab, tree, "MR96-1"))
    told = cli("verify", "--slot", "b", "--all")
    assert "what is declared have it (4 declared differences)" in told
    for line in ("/etc/motd changed: keep /etc/mo*", "/etc/ours added: keep /etc/ours", "/usr/bin/tool changed: patch"):
        assert line in " ".join(told.split())
    cli("keep", "remove", "/etc/ours")
    with pytest.raises(Drifted, match=r"1 undeclared change in slot b \(MR96-1\)"):
        cli("verify", "--slot", "b")


def test_plan_and_stage_warn(cli: Cli, lab: Lab, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warning = Check(name="undeclared", found="1 undeclared change …", warning=True)
    monkeypatch.setattr(upgrade, "undeclared", lambda node: [warning])
    made = make_bundle(lab, tree, "MR96-1", listed=False)
    assert "! undeclared        1 undeclared change …" in cli("plan", made)
    told = cli("stage", made)
    assert " ! undeclared: 1 undeclared change …" in told and "MR96-1 is staged" in told
