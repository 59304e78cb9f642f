"""Commands that other packages bring, and what is wanted of a rehearsal."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer

from core.errors import ConfigError
from updater.cli.main import app
from updater.cli.quick import Commands
from vagrant.rehearsal.custom import Step, steps_of
from vagrant.rehearsal.options import parse_cuts, parse_faults

UPDATER = Path(sys.executable).with_name("updater")


def program(words: Sequence[str]) -> str:
    """What is imported when the command line is called so."""
    text = (
        f"import sys; sys.argv = ['updater', *{list(words)!r}]\n"
        "from updater.cli.main import main\n"
        "try: main()\n"
        "finally: print('vagrant' in sys.modules, 'importlib.metadata' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()[-1]


def test_no_other_command_pays_for_them() -> None:
    assert program(["--config", "/nonexistent/node.toml", "status"]) == "False False"


def test_they_stand_in_the_list_and_have_help() -> None:
    listed = subprocess.run([UPDATER, "--help"], capture_output=True, text=True, check=True).stdout
    assert "rehearse" in listed
    assert "prove-rollback" in listed
    shown = subprocess.run([UPDATER, "rehearse", "node", "--help"], capture_output=True, text=True, check=True).stdout
    assert "--prove-rollback" in shown
    shown = subprocess.run([UPDATER, "rehearse", "sites", "--help"], capture_output=True, text=True, check=True).stdout
    assert all(option in shown for option in ("--rate", "--cut", "--report"))


def test_a_word_that_nobody_brings_is_refused() -> None:
    done = subprocess.run([UPDATER, "reherse"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "No such command" in done.stderr


def test_commands_are_a_dictionary_like_any_other() -> None:
    commands: Any = typer.main.get_command(app)
    found = commands.commands
    assert isinstance(found, Commands)
    assert "rehearse" in found
    assert found["prove-rollback"].name == "prove-rollback"
    assert found.get("nonsense") is None
    assert {"status", "rehearse", "prove-rollback"} <= set(found) == set(found.keys()) == {k for k, _ in found.items()}
    with pytest.raises(KeyError):
        found["nonsense"]


def test_on_a_host_without_the_means_it_is_refused(tmp_path: Path) -> None:
    done = subprocess.run(
        [UPDATER, "rehearse", "node", "x.bundle", "--current", "y.bundle", "--from", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in (10, 11, 12), done.stderr  # no such export; or no programs, no rights
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("node", "x", "--current", "y", "--from", "z", "--accept-no-rollback", "--cut", "power@flip-back"), "no cut"),
        (("sites", "--cut", "power:A/a1@actvate-node"), "there is no such step, but check-node"),
    ],
)
def test_cuts_that_cannot_come_are_refused_at_once(words: Sequence[str], why: str) -> None:
    done = subprocess.run([UPDATER, "rehearse", *words], capture_output=True, text=True, check=False)
    assert done.returncode in (2, 10), done.stderr
    assert why in done.stderr and "Traceback" not in done.stderr


def test_cuts_name_steps() -> None:
    assert parse_cuts(["power@write", "power@flip", "power@write"]) == ("write", "flip")
    for word in ("power@nothing", "write", "power@reboot", "fire@write"):
        with pytest.raises(ConfigError):
            parse_cuts([word])
    assert parse_cuts(["power@flip-back"]) == ("flip-back",)
    with pytest.raises(ConfigError):
        parse_cuts(["power@flip-back"], way_back=False)
    with pytest.raises(ConfigError):
        parse_faults(["earthquake"])


def test_steps_of_ones_own(tmp_path: Path) -> None:
    program = tmp_path / "call through.sh"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    (tmp_path / "steps.toml").write_text(
        '[[step]]\nrun = "updater status"\nexit = 3\n[[step]]\nrun = "x"\non = "host"\n'
    )
    found = steps_of([program, tmp_path / "steps.toml"])
    assert [(each.on, each.exit) for each in found] == [("host", 0), ("guest", 3), ("host", 0)]
    assert found[0] == Step(name="call through.sh", run=f"'{program}'", on="host")


@pytest.mark.parametrize("text", ["[[step]]\nrun = ''\n", "[[step]]\nrun = 'x'\non = 'moon'\n", "steps = 1\n"])
def test_steps_that_make_no_sense_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "steps.toml").write_text(text)
    with pytest.raises(ConfigError):
        steps_of([tmp_path / "steps.toml"])
    with pytest.raises(ConfigError):
        steps_of([tmp_path / "none.sh"])
