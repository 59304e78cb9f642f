"""Commands of this package on the command line of `updater`; each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

rehearse = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    add_completion=False,
    help="Rehearse an upgrade on machines of your own, before the night.",
)
prove_rollback = typer.Typer(rich_markup_mode=None, add_completion=False)

Current = Annotated[str, typer.Option(metavar="BUNDLE", help="The bundle of the release that runs on the node now.")]
From = Annotated[Path, typer.Option("--from", metavar="EXPORT", help="What `updater export` wrote on the node.")]
Report = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Write the report here, and as JSON beside it.")]
Record = Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write the record for `updater activate` here.")]
Sign = Annotated[str, typer.Option(metavar="KEY", help="Sign the record with this key.")]
Keep = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Work in this new directory, and leave the machine's disk there.")
]
Memory = Annotated[int, typer.Option(metavar="MIB", help="Memory of the machine.", min=256)]


@rehearse.command()
def node(
    bundle: Annotated[str, typer.Argument(metavar="BUNDLE", help="The release to go to: a path or a URL.")],
    current: Current,
    export: From,
    fault: Annotated[
        list[str] | None, typer.Option(metavar="FAULT", help="unhealthy: at first the new release fails its checks.")
    ] = None,
    cut: Annotated[
        list[str] | None, typer.Option(metavar="power@STEP", help="Cut the power while this step runs. Repeatable.")
    ] = None,
    prove: Annotated[
        bool, typer.Option("--prove-rollback", help="Prove the way back on the machine before it is gone.")
    ] = False,
    accept_no_rollback: Annotated[
        bool, typer.Option("--accept-no-rollback", help="There is no way back, and you know; then none is rehearsed.")
    ] = False,
    report: Report = None,
    record: Record = None,
    sign: Sign = "",
    keep: Keep = None,
    memory: Memory = 1024,
) -> None:
    """Rehearse a node's upgrade in a virtual machine, with its own modifications: stage, activate, confirm, roll back,
    forward again. Exits with 0 if nothing would fail on the night, else with 29.

    Example: updater rehearse node mr96-1.bundle --current mr95-1.bundle --from bil-a-03.export --report night.html
    """
    from vagrant.rehearsal.options import Options, parse_cuts, parse_faults

    options = Options(
        bundle=bundle,
        current=current,
        export=export,
        faults=parse_faults(fault or []),
        cuts=parse_cuts(cut or [], way_back=not accept_no_rollback),
        prove=prove,
        accept_no_rollback=accept_no_rollback,
        report=report,
        record=record,
        sign=sign,
        keep=keep,
        memory=memory,
    )
    with _equipped():
        from vagrant.rehearsal.node import rehearse_node

        rehearse_node(options)


@rehearse.command()
def custom(
    scripts: Annotated[
        list[str], typer.Argument(metavar="SCRIPT…", help="Programs on this host, or .toml files with steps.")
    ],
    current: Current,
    export: From,
    bundle: Annotated[str, typer.Option(help="A bundle to be put on the machine, for the scripts to stage.")] = "",
    report: Report = None,
    record: Record = None,
    sign: Sign = "",
    keep: Keep = None,
    memory: Memory = 1024,
) -> None:
    """Rehearse steps of your own on such a machine. Each is judged by its exit code; the first that fails ends it.

    Example: updater rehearse custom steps.toml --current mr95-1.bundle --from bil-a-03.export
    """
    from vagrant.rehearsal.options import Options

    options = Options(
        bundle=bundle,
        current=current,
        export=export,
        report=report,
        record=record,
        sign=sign,
        keep=keep,
        memory=memory,
    )
    with _equipped():
        from vagrant.rehearsal.custom import rehearse_custom

        rehearse_custom([Path(each) for each in scripts], options)


@rehearse.command()
def sites(
    rate: Annotated[
        float | None, typer.Option(metavar="CALLS", help="Calls a second.", show_default="1", min=0.01)
    ] = None,
    cut: Annotated[
        list[str] | None,
        typer.Option(
            metavar="power:SITE/SERVER@STEP", help="Cut this machine's power when this step begins. Repeatable."
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIRECTORY", help="Leave the report there, as a page and as JSON.")
    ] = None,
) -> None:
    """Rehearse a whole zero-downtime upgrade on machines: two sites, calls all the time, real reboots.

    Example: updater rehearse sites --report night
    """
    words = [] if rate is None else [f"--rate={rate:g}"]
    words += [f"--cut={each}" for each in cut or []]
    words += [] if report is None else [f"--report={report}"]
    with _equipped():
        from vagrant.rehearsal.sites import main

        raise typer.Exit(main(words))


@prove_rollback.command()
def prove(
    without: Annotated[
        list[str] | None, typer.Option(metavar="DATABASE", help="Leave this database out of the proof. Repeatable.")
    ] = None,
) -> None:
    """Prove that there is a way back: boot the other slot's release in a container, on copies of slot and data, and see
    it become healthy there. Changes nothing on the node.

    Example: updater prove-rollback
    """
    from vagrant.prove import prove as boot_old

    boot_old(tuple(without or ()))


@contextmanager
def _equipped() -> Iterator[None]:
    """Where the machines of rehearsals are not installed, or their programs are not, say so."""
    from core.errors import NotReady
    from updater.cli.context import interruptible

    try:
        with interruptible():
            yield
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("vagrant"):
            raise
        raise NotReady(
            "nothing can be rehearsed on this machine: it has the node's part of the program only",
            state="nothing was changed",
            next="install updater whole on a machine for rehearsals, and take the export there",
        ) from error
