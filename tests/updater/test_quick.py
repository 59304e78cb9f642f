"""The command line starts without Typer's heaviest import, and takes the global options wherever they stand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from updater.cli.context import Settings, settings
from updater.cli.quick import take_globals


@pytest.fixture(autouse=True)
def _same_settings() -> Iterator[None]:
    before = settings.config, settings.json, settings.debug
    yield
    settings.config, settings.json, settings.debug = before


@pytest.mark.parametrize(
    ("words", "rest", "taken"),
    [
        (["status"], ["status"], Settings()),
        (["--json", "status"], ["status"], Settings(json=True)),
        (["status", "--json", "--debug"], ["status"], Settings(json=True, debug=True)),
        (["stage", "x", "--config", "n.toml", "--again"], ["stage", "x", "--again"], Settings(config=Path("n.toml"))),
        (["stage", "--config=n.toml", "x"], ["stage", "x"], Settings(config=Path("n.toml"))),
        (["stage", "--", "--json"], ["stage", "--", "--json"], Settings()),
    ],
)
def test_global_options_stand_anywhere(words: list[str], rest: list[str], taken: Settings) -> None:
    settings.json = settings.debug = True  # what an earlier call left does not count
    assert take_globals(words) == rest
    assert settings == taken


@pytest.mark.parametrize("words", [["status", "--config"], ["--config=", "status"]])
def test_config_needs_a_path(words: list[str]) -> None:
    with pytest.raises(typer.BadParameter, match="needs a path"):
        take_globals(words)


@pytest.mark.parametrize("words", [["--help"], ["--config", "/nonexistent/node.toml", "status"]])
def test_what_is_not_given_loads_no_pydantic(words: list[str]) -> None:
    program = (
        f"import sys; sys.argv = ['updater', *{words!r}]\n"
        "from updater.cli.main import main\n"
        "try: main()\n"
        "finally: print('pydantic' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False False"
