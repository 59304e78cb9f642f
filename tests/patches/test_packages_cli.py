"""`updater rpm`, on a sandbox and a real bundle of a release that was not made of RPM packages."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from core.errors import ConfigError, ModificationConflict, SignatureInvalid
from core.release import Release
from images.build import BuildSpec, build
from images.keys import load_signer
from patches.packages import Packages, outcomes
from patches.registry import Kind, Registry
from tests.patches.rpmlab import Rpms, plain_root, rpms, shell
from tests.updater.conftest import lab, memory, place
from tests.updater.lab import Lab
from updater.cli import rpm
from updater.cli.context import settings

__all__ = ["lab", "memory", "place", "plain_root", "rpms"]
pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="mounts")]

Cli = Callable[..., str]


@pytest.fixture
def node(lab: Lab, place: Path, rpms: Rpms) -> Iterator[Path]:
    settings.config = lab.sandbox(place / "node")
    shell("cp", "-r", rpms.keys, place / "node/rpm-keys")
    yield settings.config.parent
    settings.config, settings.json = None, False


@pytest.fixture
def cli(node: Path) -> Cli:
    app = typer.Typer()
    app.add_typer(rpm.app, name="rpm")

    def run(*words: Any) -> str:
        done = CliRunner().invoke(app, ["rpm", *map(str, words)])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        assert done.exit_code == 0, done.output
        return done.output

    return run


@pytest.fixture
def bundle(cli: Cli, lab: Lab, place: Path, plain_root: Path) -> Path:
    tree = place / "tree"
    shell("cp", "-a", plain_root, tree)
    (tree / "boot").mkdir()
    for name in ("vmlinuz-6.1", "initrd.img-6.1"):
        (tree / "boot" / name).write_text("x")
    assert "platform-7-1" in cli("platform", tree, "--version", "7")
    made = place / "mr96-1.bundle"
    spec = BuildSpec(release="MR96-1", compatible="sandbox", tree=tree, size=32 << 20, architecture=os.uname().machine)
    build(spec, made, [load_signer(str(lab.key))])
    return made


def test_the_story_of_a_package(cli: Cli, rpms: Rpms, bundle: Path, place: Path) -> None:
    assert "no packages are carried" in cli("list")
    good, broken = rpms.make("tool", requires=["/bin/sh"]), rpms.make("broken", requires=["nothing"])
    said = cli("add", good, broken, "--reason", "ticket 4711", "--until", "MR100")
    assert "tool-1-1.noarch   carried from now on, until MR100   signed by" in said
    assert "was carried already" in cli("add", good)
    with pytest.raises(ModificationConflict, match=r"package broken-1-1\.noarch does not fit the release"):
        cli("check", bundle)
    said = cli("check", bundle, "--without", "broken")
    assert "carried until MR100" in said and "NOT carried: left out this once" in said
    assert "can be installed together" in said
    with pytest.raises(ConfigError, match="no carried package is called brokne"):
        cli("check", bundle, "--without", "brokne")
    assert "until MR95" in cli("expire", "broken", "MR95", "--reason", "fixed")
    assert "NOT carried: lifetime ends at MR95" in cli("check", bundle)
    settings.json = True
    told = json.loads(cli("check", bundle))
    assert [each["state"] for each in told] == ["carried", "expired"]
    [first, _] = json.loads(cli("list"))
    assert (first["name"], first["until"], first["reason"], first["slots"]) == (
        "tool-1-1.noarch", "MR100", "ticket 4711", {}
    )  # fmt: skip
    settings.json = False
    assert "no longer carried" in cli("remove", "broken")
    assert "broken" not in cli("list")


def test_the_list_shows_what_became_of_each_in_the_slots(cli: Cli, node: Path, rpms: Rpms, plain_root: Path) -> None:
    cli("add", rpms.make("tool"))
    with Registry.of(node / "data") as opened:
        packages = Packages(opened, node / "rpm-keys")
        choices = packages.decide(Release.parse("MR96-1"), plain_root)
        opened.set_outcomes("b", Kind.PACKAGE, outcomes(choices, plain_root))
    assert "slot b: carried" in cli("list")


def test_packages_come_from_a_repository_by_name(cli: Cli, rpms: Rpms, place: Path) -> None:
    (place / "repository").mkdir()
    shutil.copy(rpms.make("tool", "2"), place / "repository")
    shell("createrepo_c", "--quiet", place / "repository")
    assert "tool-2-1.noarch   carried" in cli("add", "tool", "--repository", place / "repository")


def test_nothing_unsigned_is_carried_and_there_is_no_option_for_it(cli: Cli, node: Path, rpms: Rpms) -> None:
    with pytest.raises(SignatureInvalid):
        cli("add", rpms.make("tool", signed=""))
    shutil.rmtree(node / "rpm-keys")
    with pytest.raises(ConfigError, match="no key"):
        cli("add", rpms.make("tool"))
    with pytest.raises(ConfigError, match="cannot be carried so"):
        cli("add", rpms.make("tool"), "--until", "95")
