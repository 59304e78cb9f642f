"""`updater zdu status`, `watch`, `history`, `report`: how a run stands, and how it went."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from updater.cli import zdu_common as common
from updater.cli.carrying import table
from updater.cli.context import interruptible, print_json, settings
from updater.cli.zdu_common import RunName, Who
from updater.cli.zdu_plan import SitesFile
from zdu.words import Word


def status(sites: SitesFile = None, name: RunName = "") -> None:
    """Show how a run stands, whether or not a controller works on it.

    Example: updater zdu status --json
    """
    import shutil
    import sys

    from zdu.overview import overview
    from zdu.screens import text

    where = common.load(sites)
    with common.tables_of(where) as tables:
        view = overview(tables, where, common.run_of(tables, where, name))
    if settings.json:
        print_json(view.as_json())
    else:
        print(text(view, shutil.get_terminal_size().columns if sys.stdout.isatty() else 0))


def watch(sites: SitesFile = None, name: RunName = "", who: Who = "") -> None:
    """Watch a run: a live view on a terminal, a line for each event elsewhere.

    Example: updater zdu watch
    """
    from zdu.watch import watch as look_on

    where = common.load(sites)
    with interruptible(), common.controller_of(where) as controller:
        known = common.run_of(controller.tables, where, name)
        look_on(
            controller.tables,
            where,
            known,
            say=lambda word: common.say_word(controller, where, Word(word), who or common.user()),
        )


def history(sites: SitesFile = None) -> None:
    """List all runs, the last one first.

    Example: updater zdu history
    """
    from dataclasses import asdict

    from updater.cli.screen import local
    from zdu.runs import Runs

    where = common.load(sites)
    with common.tables_of(where) as tables:
        found = Runs(tables).all(where.name)
    if settings.json:
        print_json([asdict(each) for each in found])
        return
    table(
        [
            (r.id, f"{r.start} → {r.target}", str(r.state), local(r.began), local(r.ended), f"by {r.who}", r.text)
            for r in found
        ]
    )
    if not found:
        print(f"no run of {where.name} is on record")


def report(
    output: Annotated[Path | None, typer.Argument(help="The page to write.", show_default="zdu-RUN.html")] = None,
    sites: SitesFile = None,
    name: RunName = "",
) -> None:
    """Write the report of a run as one HTML page; with --json, print it as JSON.

    Example: updater zdu report upgrade.html
    """
    from core.errors import NotPermitted
    from core.files import write_atomic
    from zdu.report import as_html, as_json, outcome, read
    from zdu.runs import Runs

    where = common.load(sites)
    with common.tables_of(where) as tables:
        records = read(Runs(tables), common.run_of(tables, where, name))
    if settings.json:
        print_json(as_json(records))
        return
    path = (output or Path(f"zdu-{records.run.id}.html")).absolute()
    try:
        write_atomic(path, as_html(records))
    except OSError as error:
        raise NotPermitted(f"{path} cannot be written", what=error.strerror or str(error)) from error
    print(f"{outcome(records)}\n{path}")


def register(app: typer.Typer) -> None:
    """Put them into the group `zdu`."""
    for command in (status, watch, history, report):
        app.command()(command)
