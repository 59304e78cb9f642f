"""The commands in the pages run, and print what the pages show."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from docscreens import PAGES, ROOT, Command, commands_of, difference, run

from updater.cli.main import app

RUNNABLE = [page for page in PAGES if any(not command.real_node for command in commands_of(page))]


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="the verbs need root, also in a sandbox")
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_screens_are_what_the_program_prints(page: Path, tmp_path: Path) -> None:
    commands = [command for command in commands_of(page) if not command.real_node]
    results = run(commands, tmp_path, Path(sys.executable).parent)
    assert len(results) == len(commands), "the shell ended early"
    found = [difference(command, *result) for command, result in zip(commands, results, strict=True)]
    assert not [each for each in found if each], "\n\n".join(each for each in found if each)


ALL = [command for page in PAGES for command in commands_of(page)]


def _updater_lines(command: Command) -> list[list[str]]:
    """The `updater` command lines in a line of shell, as words."""
    lexer = shlex.shlex(command.line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    parts: list[list[str]] = [[]]
    for word in lexer:
        if set(word) <= set("();<>|&"):
            parts.append([])
        else:
            parts[-1].append(word)
    found = []
    for words in parts:
        while words and (words[0] in ("sudo", "timeout", "env") or words[0][:1].isdigit() or "=" in words[0]):
            words.pop(0)
        if words[:1] == ["updater"]:
            found.append(words[1:])
    return found


@pytest.mark.parametrize("command", ALL, ids=lambda command: command.where)
def test_commands_and_options_exist(command: Command) -> None:
    for words in _updater_lines(command):
        top: Any = typer.main.get_command(app)
        here, job = top, top.commands["job"].commands["start"]
        everywhere = {name for each in here.params for name in each.opts} | {"-h", "--help"}
        options: set[str] = set()
        before = ""
        for word in words:
            if word.startswith("-"):
                assert word.partition("=")[0] in options | everywhere, f"{command.where}: no {word} here"
            elif hasattr(here, "commands") and before != "--config":
                assert word in here.commands, f"{command.where}: updater has no command {word}"
                here = here.commands[word]
                options = {name for each in here.params for name in each.opts}
            elif here is job and not before.startswith("-"):  # the verb of the job, with options of its own
                here = top.commands[word]
                options = {name for each in here.params for name in each.opts}
            before = word
