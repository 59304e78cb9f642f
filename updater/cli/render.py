"""Rendering this node's local files from the active configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from updater.configuring import Report


def render(
    slot: Annotated[str, typer.Option("--slot", help="active (the running system) or inactive.")] = "active",
    root: Annotated[
        Path | None, typer.Option("--root", help="Another root: a directory. Units are left alone.")
    ] = None,
    diff: Annotated[bool, typer.Option("--diff", help="Show what changes in each file; secrets are hidden.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Render and validate, but write nothing.")] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Give the files back what they held before the latest time.")
    ] = False,
) -> None:
    """Write the local files from the active configuration; restart or reload exactly the units whose files changed.

    Example: updater render --diff --dry-run
    """
    from core.errors import CommandFailed
    from updater.cli.config_apply import show_files

    if slot not in ("active", "inactive"):
        raise typer.BadParameter("is active or inactive", param_hint="--slot")
    if root is not None and not root.is_dir():
        raise typer.BadParameter(f"{root} is no directory", param_hint="--root")
    if slot == "inactive" and root is None:
        report = _in_staged_slot(undo=undo, dry_run=dry_run)
    else:
        report = _here(slot, root, undo=undo, dry_run=dry_run)
    if settings.json:
        print_json({"kind": "result", "text": report.summary(), "data": report.as_json()})
    else:
        show_files(report, diff=diff)
        print(report.summary())
    if report.faults:
        raise CommandFailed(
            f"{len(report.faults)} unit{'s' * (len(report.faults) != 1)} did not come back",
            what=report.faults,
            state="the files are written",
            next=["journalctl -xe", "updater render --undo    gives the files back what they held"],
        )


def _in_staged_slot(*, undo: bool, dry_run: bool) -> Report:
    from updater.configured import render_staged
    from updater.node import open_node

    with interruptible(), open_node(config_path()) as node:
        return render_staged(node, undo=undo, dry_run=dry_run)


def _here(slot: str, root: Path | None, *, undo: bool, dry_run: bool) -> Report:
    from partitions.boot.state import other
    from updater.cli.config_common import opened_store, release_in
    from updater.configuring import directory_place, render_into, running_place, undo_in
    from updater.machine import machine_of

    with opened_store() as (config, store):
        booted = machine_of(config).booted_slot()
        place = (
            directory_place(config, root, booted if slot == "active" else other(booted))
            if root is not None
            else running_place(config)
        )
        if undo:
            return undo_in(config, place, store, dry_run=dry_run)
        return render_into(config, place, store, release=release_in(place.slot), dry_run=dry_run)


def register(app: typer.Typer) -> None:
    """Put the command into the command line."""
    app.command()(render)
