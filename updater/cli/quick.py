"""Commands that start quickly. Typer converts every value with pydantic, whose import takes longer than all of
`updater status`: so what is not given is not converted, and the global options are taken here. Groups of commands are
made when they are asked for, those that other packages bring (entry points of the group `updater.commands`) too.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

from updater.cli.context import settings


class Verb(TyperCommand):
    """A command whose options cost nothing while they are not given (if their default is None or a flag's)."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, Typer's own ones too."""
        return _spared(super().get_params(ctx))


#: Our groups of commands: each is the Typer program `app` of the module of its name.
GROUPS: Final = ("bundle", "rpm", "patch", "keep", "config", "migrate", "job", "zdu", "sandbox")

#: A package brings a command to the command line under this group of entry points: a Typer program, by its word.
BROUGHT: Final = "updater.commands"


class Commands(dict[str, Any]):
    """The verbs, and behind them our groups and the commands of other packages: only who asks for one of them, or for
    all, pays for its making, and who asks for a word that is none of ours for the search.
    """

    def get(self, word: str, default: Any = None) -> Any:
        """The command, made if it was not asked for before."""
        found = super().get(word)
        return (self._made(word) or default) if found is None else found

    def __contains__(self, word: object) -> bool:
        return super().__contains__(word) or (isinstance(word, str) and self._made(word) is not None)

    def __getitem__(self, word: str) -> Any:
        found = self.get(word)
        if found is None:
            raise KeyError(word)
        return found

    def __iter__(self) -> Iterator[str]:
        self._make_all()
        return super().__iter__()

    def keys(self) -> Any:
        """All words."""
        self._make_all()
        return super().keys()

    def items(self) -> Any:
        """All words with their commands."""
        self._make_all()
        return super().items()

    def _made(self, word: str) -> Any:
        made: Any
        if word in GROUPS:
            made = typer.main.get_group(import_module(f"updater.cli.{word}").app)
        elif (brought := self._brought().get(word)) is not None:
            made = typer.main.get_command(brought.load())
        else:
            return None
        made.name = word
        self[word] = made
        return made

    def _make_all(self) -> None:
        for word in (*GROUPS, *self._brought()):
            if not super().__contains__(word):
                self._made(word)

    def _brought(self) -> dict[str, Any]:
        from importlib.metadata import entry_points  # it brings half of the e-mail package along

        return {each.name: each for each in entry_points(group=BROUGHT)}


class Root(TyperGroup):
    """The whole command line. Takes the global options, wherever they stand; Typer only shows them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands(self.commands)

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, Typer's own ones too."""
        return _spared(super().get_params(ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the global options into `settings`; the rest is Typer's."""
        return super().parse_args(ctx, take_globals(args))


def take_globals(words: list[str]) -> list[str]:
    """Put the global options before a bare ``--`` into `settings`; returns the other words. Raises BadParameter."""
    settings.config, settings.json, settings.debug = None, False, False
    rest: list[str] = []
    pending = iter(words)
    for word in pending:
        if word == "--":
            rest += [word, *pending]
        elif word == "--json":
            settings.json = True
        elif word == "--debug":
            settings.debug = True
        elif word == "--config" or word.startswith("--config="):
            value = next(pending, "") if word == "--config" else word.removeprefix("--config=")
            if not value:
                raise typer.BadParameter("needs a path", param_hint="--config")
            settings.config = Path(value)
        else:
            rest.append(word)
    return rest


def _spared(params: list[Any]) -> list[Any]:
    for param in params:
        single = param.nargs == 1 and not getattr(param, "multiple", False)
        if param.default is None and single and not param.required and "process_value" not in vars(param):
            param.process_value = _unless_missing(param)
    return params


def _unless_missing(param: Any) -> Any:
    """What Typer does with a parameter's value, but for the conversion when it is missing."""
    convert, callback = param.process_value, param.callback

    def process(ctx: Any, value: Any) -> Any:
        if value is not None:
            return convert(ctx, value)
        return callback(ctx, param, None) if callback else None

    return process
