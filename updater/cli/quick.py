"""Commands that start quickly. Typer converts every value with pydantic, whose import takes longer than all of
`updater status`: so what is not given is not converted, and the global options are taken here. What other packages
bring (entry points of the group `updater.commands`) is looked up when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from updater.cli.context import settings


class Verb(TyperCommand):
    """A command whose options cost nothing while they are not given (if their default is None or a flag's)."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, Typer's own ones too."""
        return _spared(super().get_params(ctx))


#: A package brings a command to the command line under this group of entry points: a Typer program, by its word.
GROUP = "updater.commands"


class Commands(dict[str, Any]):
    """Our own commands, and behind them those of other packages: only who asks for a word that is none of ours, or for
    all of them, pays for the search.
    """

    def get(self, word: str, default: Any = None) -> Any:
        """The command, loaded if it is another package's."""
        found = super().get(word)
        return (self._brought(word) or default) if found is None else found

    def __contains__(self, word: object) -> bool:
        return super().__contains__(word) or (isinstance(word, str) and self._brought(word) is not None)

    def __getitem__(self, word: str) -> Any:
        found = self.get(word)
        if found is None:
            raise KeyError(word)
        return found

    def __iter__(self) -> Iterator[str]:
        self._bring_all()
        return super().__iter__()

    def keys(self) -> Any:
        """All words."""
        self._bring_all()
        return super().keys()

    def items(self) -> Any:
        """All words with their commands."""
        self._bring_all()
        return super().items()

    def _brought(self, word: str) -> Any:
        from importlib.metadata import entry_points

        for each in entry_points(group=GROUP, name=word):
            made = typer.main.get_command(each.load())
            made.name = word
            self[word] = made
            return made
        return None

    def _bring_all(self) -> None:
        from importlib.metadata import entry_points

        for each in entry_points(group=GROUP):
            if not super().__contains__(each.name):
                self._brought(each.name)


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
