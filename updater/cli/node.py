"""The verbs of one node."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import finish, opened, print_json, settings

if TYPE_CHECKING:
    from core.report import Report
    from updater.execution import Outcome, Plan
    from updater.node import Node

Source = Annotated[str, typer.Argument(metavar="BUNDLE", help="Path or http(s) URL of a release bundle.")]
Downgrade = Annotated[bool, typer.Option("--allow-downgrade", help="Install an older release on purpose.")]
Jump = Annotated[bool, typer.Option("--allow-jump", help="Pass over more releases than the policy allows.")]
Without = Annotated[
    list[str] | None, typer.Option(metavar="NAME", help="Leave this package, patch or file out this once. Repeatable.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Make all checks, show the plan, change nothing.")]
NoReboot = Annotated[bool, typer.Option("--no-reboot", help="Flip only; you reboot when it suits.")]


class Form(StrEnum):
    """Forms of `status`."""

    TABLE = "table"
    JSON = "json"
    NAGIOS = "nagios"
    PROMETHEUS = "prometheus"


def status(
    form: Annotated[Form | None, typer.Option("--format", help="How to print it.", show_default="table")] = None,
) -> None:
    """Show both slots, what boots next, the upgrade in progress, and whether one can go back.

    With --format nagios the exit code is 0 (OK), 1 (WARNING), 2 (CRITICAL) or 3 (UNKNOWN: the node cannot be read).

    Example: updater status --json
    """
    from core.errors import UpdaterError
    from updater import status as look
    from updater.cli.context import config_path
    from updater.node import open_node

    try:
        with open_node(config_path()) as node:
            found = look.status_of(node)
    except UpdaterError as error:
        if form is not Form.NAGIOS or settings.json:
            raise
        print(f"UPDATER UNKNOWN - {error.message}")
        raise typer.Exit(3) from error
    if settings.json or form is Form.JSON:
        print_json(found.as_json())
    elif form is Form.NAGIOS:
        print(look.nagios(found))
        raise typer.Exit(found.indicator.exit_code)
    elif form is Form.PROMETHEUS:
        print(look.prometheus(found), end="")
    else:
        from updater.cli.screen import print_status

        print_status(found)


def plan(source: Source, allow_downgrade: Downgrade = False, allow_jump: Jump = False, without: Without = None) -> None:
    """Show what staging and activating a bundle would do here, with every check made. Changes nothing.

    Example: updater plan mr96-1.bundle
    """
    stage(source, dry_run=True, allow_downgrade=allow_downgrade, allow_jump=allow_jump, without=without)


def stage(
    source: Source,
    dry_run: DryRun = False,
    allow_downgrade: Downgrade = False,
    allow_jump: Jump = False,
    rate_limit: Annotated[
        str, typer.Option(help="At most so many bytes a second, such as 150M (0: no limit).", show_default="node.toml")
    ] = "",
    without: Without = None,
    again: Annotated[bool, typer.Option("--again", help="Write the slot anew even if it holds this release.")] = False,
) -> None:
    """Install a release on the inactive slot, while this one serves.

    Example: updater stage https://releases.example/mr96-1.bundle --rate-limit 150M
    """
    from updater import upgrade
    from updater.checks import Purposes

    wishes = upgrade.Wishes(
        purposes=Purposes(downgrade=allow_downgrade, jump=allow_jump),
        rate_limit=_bytes(rate_limit) if rate_limit else None,
        without=tuple(without or ()),
        again=again,
    )
    with opened() as (node, report):
        if dry_run:
            with upgrade.open_bundle(node, source) as bundle:
                _show(upgrade.plan_stage(node, bundle, source, wishes), "cannot stage")
            return
        finish(upgrade.stage(node, source, report, wishes))


def activate(
    window: Annotated[str, typer.Option(help="Only within this time of day, such as 02:00-04:00.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Wait for the window to open.")] = False,
    no_reboot: NoReboot = False,
    accept_no_rollback: Annotated[
        bool, typer.Option("--accept-no-rollback", help="Go on although there will be no way back.")
    ] = False,
    require_rehearsal: Annotated[
        Path | None,
        typer.Option(metavar="RECORD", help="Only with the record of a rehearsal of this: a file, or a directory."),
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Boot the staged slot. It has three tries to prove itself healthy; else the node falls back to this one.

    Example: updater activate --window 02:00-04:00
    """
    from core.window import Window
    from updater import upgrade
    from updater.checks import raise_first

    try:
        hours = Window.parse(window) if window else None
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--window") from error
    with opened() as (node, report):
        wishes = {"by_hand": no_reboot, "accept_no_rollback": accept_no_rollback}
        if hours is not None and wait and not dry_run:
            planned = upgrade.plan_activate(node, window=None, rehearsal=require_rehearsal, **wishes)
            raise_first(list(planned.checks), "cannot activate")  # now, and not in the night
            _wait_for(hours, report)
        if dry_run:
            planned = upgrade.plan_activate(node, window=hours, rehearsal=require_rehearsal, **wishes)
            _show(planned, "cannot activate")
            return
        outcome = upgrade.activate(node, report, window=hours, rehearsal=require_rehearsal, **wishes)
        finish(followed(node, outcome, report))


def confirm() -> None:
    """Confirm the slot on trial when its health checks pass; else reboot. systemd runs this after every boot.

    Example: updater confirm
    """
    from updater import recovery

    with opened() as (node, report):
        finish(followed(node, recovery.confirm(node, report), report))


def rollback(no_reboot: NoReboot = False, dry_run: DryRun = False) -> None:
    """Go back to the other slot by reboot. Refused, with the reason, where there is no way back.

    Example: updater rollback --dry-run
    """
    from updater import upgrade

    with opened() as (node, report):
        if dry_run:
            _show(upgrade.plan_rollback(node, by_hand=no_reboot), "cannot roll back")
            return
        finish(followed(node, upgrade.rollback(node, report, by_hand=no_reboot), report))


def resume() -> None:
    """Go on with an upgrade that was interrupted. What is written and verified is kept.

    Example: updater resume
    """
    from updater import recovery

    with opened() as (node, report):
        finish(followed(node, recovery.resume(node, report), report))


def abort() -> None:
    """Undo an upgrade that was interrupted or waits. Reboots into the old slot if the new one runs already.

    Example: updater abort
    """
    from updater import recovery

    with opened() as (node, report):
        finish(followed(node, recovery.abort(node, report), report))


def history(run: Annotated[str, typer.Argument(metavar="[RUN]", help="One run in detail.")] = "") -> None:
    """List what was done on this node, or one run step by step.

    Example: updater history 2026-11-20-a
    """
    from updater.cli.context import config_path
    from updater.cli.history import print_run, print_runs
    from updater.node import open_node

    with open_node(config_path()) as node:
        if run:
            print_run(node.journal, node.journal.run(run))
        else:
            print_runs(node.journal)


def register(app: typer.Typer) -> None:
    """Put the verbs into the command line, in the order in which they are used."""
    for verb in (status, plan, stage, activate, confirm, rollback, resume, abort, history):
        app.command()(verb)


def _show(plan: Plan, cannot: str) -> None:
    """Print a plan; end with the error that the verb would end with."""
    from dataclasses import asdict

    from updater.checks import raise_first

    if settings.json:
        checks = [{"name": c.name, "found": c.found, "ok": c.error is None} for c in plan.checks]
        told = {"title": plan.title, "checks": checks, "steps": list(plan.steps), "way_back": plan.way_back}
        print_json(told | {"carried": [asdict(decision) for decision in plan.decisions]})
    else:
        from updater.cli.screen import print_plan

        print_plan(plan)
    raise_first(list(plan.checks), cannot)


def followed(node: Node, outcome: Outcome, report: Report) -> Outcome:
    """In a sandbox, do what systemd does after a boot: confirm, until nothing reboots any more."""
    from updater.recovery import confirm as after_boot

    while outcome.state == "rebooting" and node.config.machine == "sandbox":
        report.note(f"the model of the boot loader boots slot {node.booted}")
        outcome = after_boot(node, report)
    return outcome


def _wait_for(window: object, report: Report) -> None:
    import time
    from datetime import datetime

    from core.window import Window

    assert isinstance(window, Window)
    if not window.is_open(datetime.now()):
        report.note(f"waiting for the window {window}, which opens {window.opens(datetime.now()):%Y-%m-%d %H:%M}")
    while not window.is_open(datetime.now()):
        time.sleep(min(30.0, max(0.5, (window.opens(datetime.now()) - datetime.now()).total_seconds())))


def _bytes(text: str) -> int:
    units = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}
    number, unit = text.rstrip("kKmMgG"), text[len(text.rstrip("kKmMgG")) :].lower()
    if not (number.isascii() and number.isdigit()) or unit not in units:
        raise typer.BadParameter(f"{text!r} is not a rate such as 150M", param_hint="--rate-limit")
    return int(number) * units[unit]
