"""`updater migrate lint`: judge a catalogue of migrations before it goes into a release."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import interruptible, print_json, settings

if TYPE_CHECKING:
    from core.errors import CatalogueInvalid
    from migrations.lint import LintReport


class Format(StrEnum):
    """How the findings are written."""

    TEXT = "text"
    JSON = "json"
    SARIF = "sarif"
    GITHUB = "github"


def lint(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The catalogue.")],
    oracle: Annotated[bool, typer.Option("--oracle", help="Ask a scratch server what it really does.")] = False,
    format: Annotated[Format, typer.Option(help="For people, machines, or a pull request.")] = Format.TEXT,
) -> None:
    """Judge every statement: instant, online, or blocking; and what else is wrong. Exits with 27 when there are errors.

    Example: updater migrate lint db/migrations --oracle
    """
    from migrations.catalogue import load
    from migrations.findings import as_json, as_sarif, github, text
    from migrations.lint import lint as judge
    from migrations.rules import Severity

    with interruptible():
        report = judge(load(directory), ask=oracle)
    chosen = Format.JSON if settings.json and format is Format.TEXT else format
    if chosen is Format.JSON:
        print_json(as_json(report))
    elif chosen is Format.SARIF:
        from importlib.metadata import version

        print_json(as_sarif(report, directory, version=version("updater")))
    else:
        for line in text(report) if chosen is Format.TEXT else github(report, directory):
            print(line)
    if report.count(Severity.ERROR):
        raise _invalid(report, directory)


def _invalid(report: LintReport, directory: Path) -> CatalogueInvalid:
    from core.errors import CatalogueInvalid
    from migrations.rules import Severity

    errors = [each for each in report.findings if each.severity is Severity.ERROR]
    return CatalogueInvalid(
        f"{directory} has {len(errors)} error{'s' * (len(errors) != 1)}",
        what=[f"{each.place}   {each.rule}" for each in errors[:20]],
        state="nothing was changed; a release with it would be refused",
        next=f"mend them, then: updater migrate lint {directory}",
    )


def register(app: typer.Typer) -> None:
    """Put it into the group `migrate`."""
    app.command("lint")(lint)
