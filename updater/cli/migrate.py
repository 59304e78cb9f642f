"""Data migrations: judge a catalogue, see what is due, run a phase by hand, take back, prove."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from migrations.phase import Phase
from updater.cli import migrate_lint
from updater.cli.carrying import table
from updater.cli.context import opened, print_json, settings

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Data migrations that come with releases.")


@app.command()
def status(
    pending: Annotated[bool, typer.Option("--pending", help="Only what is left to do.")] = False,
) -> None:
    """Show every migration of the newest release on this node, and how far the databases are with it. Changes nothing.

    Example: updater migrate status --pending
    """
    _show(pending)


def _show(pending: bool, *phases: Phase) -> None:
    """The migrations (of these phases, if any is given), as a table or as JSON."""
    from updater.cli.screen import local
    from updater.migrate_verbs import choose, lines

    with opened() as (node, _):
        chosen = choose(node)
        found = [
            line
            for line in lines(node, chosen)
            if (not pending or line.progress != "done") and (not phases or line.phase in phases)
        ]
    if settings.json:
        print_json({"release": str(chosen.release), "migrations": [line.as_json() for line in found]})
        return
    print(f"{chosen.release}")
    table(
        [
            (
                line.id,
                line.database,
                line.phase,
                f"{line.progress} ({line.done} of {line.total})" if 0 < line.done < line.total else line.progress,
                f"{local(line.at)} with {line.release}, {line.seconds:.1f} s"
                if line.seconds is not None
                else f"about {line.expected:g} s",
                line.summary,
            )
            for line in found
        ]
    )
    if not found:
        where = f" in phase {phases[0]}" if phases else ""
        print(f"nothing is pending{where}" if pending else "it has no migrations")


@app.command()
def plan() -> None:
    """Show what is left to migrate for the newest release on this node; `updater plan` tells it of a bundle.

    Example: updater migrate plan --json
    """
    _show(True)


@app.command()
def run(
    phase: Annotated[Phase, typer.Option(help="Which phase.")],
    give_up_way_back: Annotated[
        bool, typer.Option("--give-up-way-back", help="Clean up although one could still go back.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would run, change nothing.")] = False,
) -> None:
    """Run what is pending of a phase, outside of an upgrade. The clean-up is always run so.

    Example: updater migrate run --phase cleanup
    """
    if dry_run:
        _show(True, phase)
        return
    from updater.migrate_verbs import run_phase

    with opened() as (node, report):
        _say(run_phase(node, phase, report, give_up=give_up_way_back))


@app.command()
def undo(
    down_to: Annotated[
        int | None, typer.Option("--to", help="The lowest number to take back.", show_default="all of the release")
    ] = None,
) -> None:
    """Take the migrations of the newest release back, the last first. Not while that release runs.

    Example: updater migrate undo --to 962
    """
    from updater.migrate_verbs import undo as take_back

    with opened() as (node, report):
        _say(take_back(node, report, down_to=down_to))


@app.command()
def settle(
    number: Annotated[int, typer.Argument(help="Of the migration.")],
    statement: Annotated[int, typer.Argument(help="Of its statements, from 1.", min=1)],
    done: Annotated[bool, typer.Option("--done/--not-done", help="Whether its effect is there.")],
    down: Annotated[bool, typer.Option("--down", help="A statement of the way back.")] = False,
) -> None:
    """Write down what you found out about a statement that was interrupted and has no probe.

    Example: updater migrate settle 963 1 --done
    """
    from updater.migrate_verbs import settle as write_down

    with opened() as (node, report):
        _say(write_down(node, number, statement, down=down, done=done, report=report))


def _say(text: str) -> None:
    if settings.json:
        print_json({"kind": "result", "data": {"text": text}})
    else:
        print(text)


@app.command()
def prove(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A catalogue of migrations.")],
    database: Annotated[str, typer.Option(help="Which of its databases.", show_default="the only one")] = "",
    old_queries: Annotated[
        Path | None, typer.Option(help="The old release's statements.", show_default="as catalogue.toml says")
    ] = None,
) -> None:
    """Prove that the old release works on the new data: replay its statements on a scratch server that was migrated.

    Example: updater migrate prove db/migrations --database billing --old-queries queries-mr95.sql
    """
    from core.errors import CatalogueInvalid
    from core.report import Report, json_lines
    from migrations.catalogue import load
    from migrations.prove import prove as replay
    from updater.cli.context import interruptible
    from updater.cli.screen import Screen

    catalogue = load(directory)
    name = database or next(iter(catalogue.databases))
    queries = old_queries or (catalogue.databases[name].queries if name in catalogue.databases else None)
    if name not in catalogue.databases or queries is None or (not database and len(catalogue.databases) > 1):
        raise CatalogueInvalid(
            "it is not clear what is to be proved",
            what=f"the catalogue has {', '.join(catalogue.databases)}",
            state="nothing was changed",
            next="updater migrate prove DIR --database NAME --old-queries FILE",
        )
    with interruptible(), Screen() as screen:
        proof = replay(catalogue, name, queries, report=Report(json_lines() if settings.json else screen.sink))
    if settings.json:
        print_json({"kind": "result", "data": proof.as_json()})
    proof.require()
    if not settings.json:
        skipped = f", {proof.skipped} skipped" if proof.skipped else ""
        unjudged = f", {len(proof.unjudged)} fail without the migrations too" if proof.unjudged else ""
        print(f"{proof.replayed} statements of the old release work after {len(proof.migrations)} migrations"
              f" on {proof.version}{skipped}{unjudged}")  # fmt: skip


migrate_lint.register(app)
