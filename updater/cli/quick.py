"""Commands that start quickly. Typer converts every value with pydantic, whose import takes longer than all of
`updater status`: so what is not given is not converted, and the global options are taken here.
"""

from __future__ import annotations

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


class Root(TyperGroup):
    """The whole command line. Takes the global options, wherever they stand; Typer only shows them."""

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
