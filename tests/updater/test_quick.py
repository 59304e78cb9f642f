"""The command line starts without Typer's heaviest import, and takes the global options wherever they stand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import pytest
import typer
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from typer.testing import CliRunner

from updater.cli.context import Settings, settings
from updater.cli.quick import quick, take_globals


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


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "status",
        "doctor",
        "stage x.bundle --without a --without b --rate-limit 5M",
        "job start --id x --fence 1 stage x.bundle",
        "job status x --since 5 --wait 0.5",
        "migrate status",
    ],
)
def test_what_is_missing_or_plain_loads_no_pydantic(line: str) -> None:
    words = ["--config", "/nonexistent/node.toml", *line.split()]
    program = (
        f"import sys; sys.argv = ['updater', *{words!r}]\n"
        "from updater.cli.main import main\n"
        "try: main()\n"
        "finally: print('pydantic' in sys.modules, 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1] == "False False"


class Colour(StrEnum):
    RED = "red"


def command(
    text: str,
    texts: Annotated[list[str], typer.Option()] = [],  # noqa: B006
    number: Annotated[int, typer.Option(min=1, max=9)] = 3,
    wait: Annotated[float, typer.Option(min=0)] = 0.5,
    bare: int | None = None,
    path: Path | None = None,
    colour: Colour | None = None,
    words: Annotated[list[str] | None, typer.Argument()] = None,
    flag: bool = False,
) -> None:
    """Tell what it was given."""
    print(repr((text, texts, number, wait, bare, path, colour, words, flag)))


def told(line: list[str], *, plainly: bool) -> tuple[int, str]:
    """Exit code and output of `command`."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    app.callback()(lambda: None)
    done = CliRunner().invoke(quick(app) if plainly else app, ["command", *line])
    return done.exit_code, done.output


VALUES = st.sampled_from(
    ["", "0", "1", "9", "10", "-1", "1.5", "x", " 3", "1_0", "1e3", "nan", "inf", "²", "red", "a b"]
)
OPTIONS = st.sampled_from(["--texts", "--number", "--wait", "--bare", "--path", "--colour"])


@settings_of_hypothesis(deadline=None)
@given(
    st.lists(st.builds(lambda name, value: [f"{name}={value}"], OPTIONS, VALUES), max_size=4),
    st.lists(VALUES.filter(lambda word: not word.startswith("-")), max_size=3),
    st.lists(st.sampled_from(["--flag", "--no-flag"]), max_size=1),
)
def test_what_is_plain_becomes_what_typer_makes_of_it(
    options: list[list[str]], words: list[str], flags: list[str]
) -> None:
    line = [word for option in options for word in option] + flags + words
    assert told(line, plainly=True) == told(line, plainly=False)
