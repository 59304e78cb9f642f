"""Setting up a node, and finding out what is wrong with one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from updater.cli.context import config_path, print_json, settings


def doctor() -> None:
    """Check everything that an upgrade relies on, and say how to mend each fault. Changes nothing.

    Example: updater doctor
    """
    from updater.doctor import examine_node

    findings = examine_node(config_path())
    faults = [each for each in findings if each.mend]
    if settings.json:
        print_json([{"name": f.name, "found": f.found, "ok": not f.mend, "mend": list(f.mend)} for f in findings])
    else:
        for each in findings:
            print(f" {'✗' if each.mend else '✓'} {each.name:<27}{each.found}")
            for line in each.mend:
                print(f"     mend: {line}")
        print(f"{len(faults)} fault{'s' * (len(faults) != 1)} in {len(findings)} checks")
    if faults:
        raise typer.Exit(11)


def init(
    install: Annotated[
        bool, typer.Option("--install", help="Also install systemd units and the boot loader's configuration.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be written.")] = False,
    compatible: Annotated[str, typer.Option(help="What bundles for this node say under `compatible`.")] = "server",
    root: Annotated[Path, typer.Option(help="Install into another root (for building images).")] = Path("/"),
    units_only: Annotated[
        bool, typer.Option("--units-only", help="With --install: the systemd units and nothing else.")
    ] = False,
) -> None:
    """Write a first node.toml from what is found on the disks; with --install also units and boot configuration.

    An existing node.toml is kept.

    Example: updater init --dry-run
    """
    from updater import init as setup

    if not units_only:
        path = config_path()
        if path.exists() and not dry_run:
            print(f"{path} exists and is kept")
        else:
            text = setup.propose(compatible)
            print(text if dry_run else f"{setup.write(path, text)} is written: look it over, then: updater doctor")
    if install:
        for written in setup.install(config_path(), root, units_only=units_only, dry_run=dry_run):
            print(f"{'would write' if dry_run else 'wrote'} {written}")


def register(app: typer.Typer) -> None:
    """Put the commands into the command line."""
    for command in (doctor, init):
        app.command()(command)
