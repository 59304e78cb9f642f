"""A node made of plain files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="A node made of plain files, to try the verbs in seconds: no VM, no root partition, no reboot.",
)


@app.command()
def create(
    directory: Annotated[Path, typer.Argument(help="Where to make it; must not exist, or be empty.")],
    key: Annotated[list[Path], typer.Option(help="Public key whose signatures it trusts. Several are allowed.")],
    slot_size: Annotated[int, typer.Option(help="Bytes per slot; the files are sparse.", min=1 << 20)] = 4 << 30,
    release: Annotated[str, typer.Option(help="The release that slot a is said to run.")] = "MR95-1",
    compatible: Annotated[str, typer.Option(help="What bundles must be compatible with.")] = "sandbox",
) -> None:
    """Make a sandbox: two slots, an environment, data, and a model of the boot loader.

    Example: updater sandbox create /tmp/node --key release.pub && updater --config /tmp/node/node.toml status
    """
    from updater import sandbox

    try:
        config = sandbox.create(directory, slot_size=slot_size, keys=key, release=release, compatible=compatible)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--release") from error
    print(f"a sandbox, made of plain files: {config}")
    print(f"next   updater --config {config} status")
    print(f"       updater --config {config} stage BUNDLE && updater --config {config} activate")
    print(f"       echo MR96-1 >> {directory}/unhealthy    makes the health check of MR96-1 fail")


@app.command()
def boot(
    slot: Annotated[str, typer.Option(help="Pick a slot by hand, as an operator at the boot menu would.")] = "",
) -> None:
    """Power the sandbox off and on: the model of the boot loader picks a slot; then confirm runs.

    Example: updater --config /tmp/node/node.toml sandbox boot
    """
    from core.errors import WrongState
    from updater import recovery
    from updater.cli.context import finish, opened
    from updater.cli.node import followed
    from updater.machine import Sandbox

    if slot not in ("", "a", "b"):
        raise typer.BadParameter(f"{slot!r} is not a or b", param_hint="--slot")
    with opened() as (node, report):
        if not isinstance(node.machine, Sandbox):
            raise WrongState("this node is a real machine, no sandbox", next="systemctl reboot")
        if slot:
            node.machine.start("a" if slot == "a" else "b")
        else:
            node.machine.reboot()
        report.note(f"the model of the boot loader boots slot {node.booted}")
        finish(followed(node, recovery.confirm(node, report), report))
