"""Shell completion works with our own `main`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

UPDATER = Path(sys.executable).with_name("updater")


def _ask(*words: str, **environment: str) -> str:
    done = subprocess.run(
        [UPDATER, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PATH": "/usr/bin", **environment},
    )
    return done.stdout


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("updater ro", ["rollback"]), ("updater bundle i", ["inspect"]), ("updater activate --w", ["--wait", "--window"])],
)
def test_bash_is_offered_commands_and_options(typed: str, offered: list[str]) -> None:
    count = str(len(typed.split()) - 1)
    found = _ask(_UPDATER_COMPLETE="complete_bash", COMP_WORDS=typed, COMP_CWORD=count)
    assert sorted(found.split()) == offered


def test_zsh_is_offered_commands() -> None:
    assert "sandbox" in _ask(_UPDATER_COMPLETE="complete_zsh", _TYPER_COMPLETE_ARGS="updater sand")


def test_the_script_for_bash_can_be_shown() -> None:
    assert "complete -o" in _ask(_UPDATER_COMPLETE="source_bash")
