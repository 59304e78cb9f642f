"""`updater patch` and `updater keep`, on a sandbox and real bundles."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from core.errors import ConfigError, ModificationConflict, NoSpace
from core.release import Release
from images.build import BuildSpec, build
from images.keys import load_signer, load_trust
from images.read import Bundle
from patches.carried import base_of, choose_keeps, choose_patches, note_patches, patched_files, stage_keeps
from patches.keep import Fate
from patches.kept_record import changed_since
from patches.patch import apply
from patches.registry import Kind, Registry
from tests.updater.conftest import lab, memory, place
from tests.updater.lab import Lab
from updater import bundle_root as rooms
from updater.cli import keep, patch
from updater.cli.context import settings

__all__ = ["lab", "memory", "place"]
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]

Cli = Callable[..., str]


@pytest.fixture
def cli(lab: Lab, place: Path) -> Iterator[Cli]:
    app = typer.Typer()
    app.add_typer(patch.app, name="patch")
    app.add_typer(keep.app, name="keep")
    settings.config = lab.sandbox(place / "node")

    def run(*words: Any) -> str:
        done = CliRunner().invoke(app, [str(word) for word in words])
        run.shown = done.output  # type: ignore[attr-defined]
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    yield run
    settings.config, settings.json = None, False


def bundle(lab: Lab, place: Path, release: str, files: dict[str, str]) -> Path:
    tree = place / f"tree-{release}"
    for name, content in {"boot/vmlinuz-6.1": "k", "boot/initrd.img-6.1": "i", **files}.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(content)
    output = place / f"{release}.bundle"
    spec = BuildSpec(release=release, compatible="sandbox", tree=tree, size=4 << 20)
    build(spec, output, [load_signer(str(lab.key))])
    return output


DIFF = "--- a/etc/menu\n+++ b/etc/menu\n@@ -1,2 +1,2 @@\n-main\n+local\n end\n"


def test_a_patch_from_adding_to_expiring(cli: Cli, lab: Lab, place: Path) -> None:
    (place / "0009-local-menu.patch").write_text(DIFF)
    made = bundle(lab, place, "MR96-1", {"etc/menu": "main\nend\n"})
    out = cli("patch", "add", place / "0009-local-menu.patch", "--package", "ivr", "--reason", "ticket 1")
    assert "0009-local-menu   carried from now on, for ever" in out and "/etc/menu" in out
    assert "ticket 1" in cli("patch", "list") and "ivr" in cli("patch", "list")
    assert "1 file, 1 hunk, applies cleanly" in cli("patch", "check", made)
    shown = cli("patch", "check", made, "--show", "0009")
    assert "/etc/menu: change, applies" in shown and "hunk 1: applies at line 1" in shown
    assert "+local" in cli("patch", "show", "0009")
    cli("patch", "expire", "0009", "MR96-1", "--superseded-by", "fixed upstream, ref 18223")
    assert "NOT carried: lifetime ends at MR96-1 (fixed upstream, ref 18223)" in cli("patch", "check", made)
    assert "carried until MR96-1" in cli("patch", "list", "--for", "MR95-9")
    settings.json = True
    (told,) = json.loads(cli("patch", "check", made))
    assert (told["name"], told["carried"]) == ("0009-local-menu", False)
    settings.json = False
    assert "no longer carried" in cli("patch", "remove", "0009", "--reason", "done")
    assert "no patches are carried" in cli("patch", "list")
    assert not list((place / "node").rglob("*.root"))


def test_a_conflict_ends_with_its_code(cli: Cli, lab: Lab, place: Path) -> None:
    (place / "p.diff").write_text(DIFF)
    cli("patch", "add", place / "p.diff")
    made = bundle(lab, place, "MR96-1", {"etc/menu": "root\nend\n"})
    with pytest.raises(ModificationConflict, match="patch p does not apply to MR96-1") as raised:
        cli("patch", "check", made, "--show", "p")
    assert raised.value.what == ("/etc/menu, hunk 1 of 1: line 1 is `root`, the patch expects `main`",)
    (place / "new.diff").write_text(DIFF.replace("main", "root"))
    cli("patch", "add", place / "new.diff", "--replace", "p")
    assert "applies cleanly" in cli("patch", "check", made)


def test_what_cannot_be_carried_is_refused_at_once(cli: Cli, place: Path) -> None:
    (place / "bad.diff").write_text(DIFF.replace("b/etc", "b/../../etc"))
    for words in (["bad.diff"], ["none.diff"], ["bad.diff", "--until", "tomorrow"]):
        with pytest.raises(ConfigError):
            cli("patch", "add", place / words[0], *words[1:])
    with pytest.raises(ConfigError, match="cannot be kept"):
        cli("keep", "add", "relative/path")


def test_kept_paths_are_added_all_or_none_and_removed_by_their_whole_name(cli: Cli) -> None:
    cli("keep", "add", "/etc/ssh/sshd_config", "--from", "MR97")
    with pytest.raises(ConfigError, match="cannot be carried so"):
        cli("keep", "add", "/etc/a", "/etc/ssh/sshd_config", "--until", "MR96")
    assert "/etc/a" not in cli("keep", "list")
    with pytest.raises(ConfigError, match="no kept files of the name /etc/ssh"):
        cli("keep", "remove", "/etc/ssh")
    assert "/etc/ssh/sshd_config" in cli("keep", "list")
    cli("keep", "remove", "/etc/ssh/sshd_config")


def test_drift_is_captured_and_carried(cli: Cli, lab: Lab, place: Path) -> None:
    mine = place / "node/root/etc/menu"
    mine.parent.mkdir(parents=True)
    mine.write_text("local\nend\n")
    made = bundle(lab, place, "MR95-1", {"etc/menu": "main\nend\n"})
    diff = cli("patch", "capture", "/etc/menu", "--bundle", made)
    assert "-main\n+local\n" in diff
    (place / "x.patch").write_text(diff)
    cli("patch", "add", place / "x.patch")
    assert "applies cleanly" in cli("patch", "check", made)


def test_kept_files_over_two_releases(cli: Cli, lab: Lab, place: Path) -> None:
    running, name = place / "node/root", "etc/site/conf"  # the sandbox's running root
    (running / "etc/site").mkdir(parents=True, exist_ok=True)
    (running / name).write_text("mine\n2\n3\n4\nport 1\n")
    (running / "etc/site/own").write_text("own")
    conf, own = Path("/", name), Path("/etc/site/own")
    cli("keep", "add", conf, own, "--policy", "merge", "--reason", "site rules")
    assert "merge" in cli("keep", "list") and "site rules" in cli("keep", "list")
    first = bundle(lab, place, "MR95-2", {name: "1\n2\n3\n4\nport 1\n"})
    second = bundle(lab, place, "MR96-1", {name: "1\n2\n3\n4\nport 2\n"})
    with pytest.raises(ModificationConflict, match="needs a decision before MR95-2"):
        cli("keep", "diff", first, "--full")  # what the old release had is not known
    cli("keep", "add", conf, "--policy", "ours")
    assert f"ours      {conf}" in cli("keep", "diff", first)
    root = place / "slot-a"
    root.mkdir()
    book = place / "book"
    with Registry.of(place / "node/data") as registry:
        (root / name).parent.mkdir(parents=True)
        (root / name).write_text("1\n2\n3\n4\nport 1\n")
        keeps = choose_keeps(registry, Release.parse("MR95-2")).keeps
        counts = stage_keeps(registry, keeps, running, root, old_slot="b", slot="a", book=book)
        assert counts == {Fate.OURS: 1, Fate.KEPT: 1}
        assert (root / name).read_text().startswith("mine\n")
        assert list(changed_since(book, keeps, running)) == []
        assert base_of(registry, "a")(str(conf)) == b"1\n2\n3\n4\nport 1\n"
    cli("keep", "add", conf, "--policy", "merge")
    shown = cli("keep", "diff", second, "--full")
    assert f"merged    {conf}   three-way merge, clean" in shown and "-port 2" in shown
    assert "no longer kept" in cli("keep", "remove", own)


def test_outcomes_of_patches_are_recorded_by_file(place: Path) -> None:
    root = place / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc/menu").write_text("main\nend\n")
    with Registry.of(place) as registry:
        registry.add(Kind.PATCH, "p", content=DIFF.encode())
        chosen = choose_patches(registry, Release.parse("MR96-1"))
        note_patches(registry, "b", chosen.decisions, apply(chosen.patches, root, place / "journal"))
        (became,) = registry.outcomes("b", Kind.PATCH)
        assert became.state == "applied"
        assert set(patched_files(registry, "b")) == {"/etc/menu"}
        left = choose_patches(registry, Release.parse("MR96-1"), without=["p"])
        assert left.patches == [] and str(left.decisions[0]) == "NOT carried: left out this once"


def test_the_root_of_a_bundle_goes_away(lab: Lab, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = bundle(lab, place, "MR96-1", {"etc/menu": "x"})
    work = place / "scratch"
    work.mkdir()
    (work / "999999999-left.root").write_text("of a killed process")
    with Bundle.open(made, load_trust((lab.public,), 1)) as opened:
        with pytest.raises(KeyError), rooms.bundle_root(opened, work) as root:
            assert (root / "etc/menu").read_text() == "x"
            with pytest.raises(OSError, match="Read-only"):
                (root / "etc/menu").write_text("y")
            raise KeyError
        assert not list(work.iterdir())
        monkeypatch.setattr(rooms, "_SPARE", 1 << 60)
        with pytest.raises(NoSpace, match="no room"), rooms.bundle_root(opened, work):
            pass
