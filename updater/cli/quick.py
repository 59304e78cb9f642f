"""Commands that start quickly. Typer converts every value with pydantic, whose import takes longer than all of
`updater status`: so what is missing or plain is not converted by it, and the global options are taken here. Groups of
commands are made when they are asked for, those that other packages bring (entry points of the group
`updater.commands`) too.
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
    """A command whose options cost nothing where they are missing, flags, texts or numbers."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, Typer's own ones too."""
        return _spared(super().get_params(ctx))


class Group(TyperGroup):
    """A group of commands whose options cost no more than those of a `Verb`."""

    def get_params(self, ctx: Any) -> list[Any]:
        """All parameters, Typer's own ones too."""
        return _spared(super().get_params(ctx))


def quick(app: typer.Typer, kind: type[TyperGroup] = Group) -> typer.Typer:
    """Have it make `Verb`s in a group of this kind, and in `Group`s inside that."""
    app.info.cls = kind
    for command in app.registered_commands:
        command.cls = Verb
    for group in app.registered_groups:
        if group.typer_instance is not None:
            quick(group.typer_instance)
    return app


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
            made = typer.main.get_group(quick(import_module(f"updater.cli.{word}").app))
        elif (brought := self._brought().get(word)) is not None:
            made = typer.main.get_command(quick(brought.load()))
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


class Root(Group):
    """The whole command line. Takes the global options, wherever they stand; Typer only shows them."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        self.commands = Commands(self.commands)

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
        if "process_value" not in vars(param):
            param.process_value = _unless_plain(param)
    return params


def _unless_plain(param: Any) -> Any:
    """What Typer does with a parameter's value, but for the conversion where it is plain."""
    convert, callback = param.process_value, param.callback

    def process(ctx: Any, value: Any) -> Any:
        plain = _plain(param, value)
        if plain is _NOT:
            return convert(ctx, value)
        return callback(ctx, param, plain) if callback else plain

    return process


_NOT: Final = object()


def _plain(param: Any, value: Any) -> Any:
    """What Typer would make of a value that is missing, a text, several texts, or a number; of others `_NOT`."""
    asked = getattr(param, "type_descriptor", None)  # Typers that have none convert by themselves, and quickly
    several = param.nargs != 1 or getattr(param, "multiple", False)
    if value is None or (several and len(value) == 0):
        return _NOT if param.required else [] if several else None
    if asked is None:
        return _NOT
    if several:
        texts = asked.annotation == list[str] and all(type(each) is str for each in value)
        return list(value) if texts else _NOT
    if asked.annotation is str:
        return value if type(value) is str else _NOT
    if asked.annotation in (int, float):
        return _number(asked.annotation, asked.parameter_info, value)
    return _NOT


def _number(kind: type[int] | type[float], limits: Any, value: Any) -> Any:
    """A number within its limits; of what is none, or too much, `_NOT`: it is for Typer to say what is wrong."""
    try:
        number = kind(value)
    except (TypeError, ValueError):
        return _NOT
    low, high = limits.min, limits.max
    return number if (low is None or number >= low) and (high is None or number <= high) else _NOT
