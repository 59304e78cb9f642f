"""`updater verify`: what in a slot is neither the release's nor declared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

import typer

from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from updater.verify import Found


def verify(
    slot: Annotated[str, typer.Option(help="a or b.", show_default="the one that runs")] = "",
    bundle: Annotated[str, typer.Option(help="The bundle of that release, if its files are not known here.")] = "",
    root: Annotated[Path | None, typer.Option(help="Look at this directory in place of the slot.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="List what is declared, too.")] = False,
) -> None:
    """List the files that differ from the release and are not declared. Exits with 26 when there are any.

    Example: updater verify
    """
    from updater.node import open_node
    from updater.pristine import known
    from updater.upgrade import open_bundle
    from updater.verify import root_of, take
    from updater.verify import verify as compare

    if slot not in ("", "a", "b"):
        raise typer.BadParameter("is a or b", param_hint="--slot")
    if root is not None and not root.is_dir():
        raise typer.BadParameter(f"{root} is no directory", param_hint="--root")
    with interruptible(), open_node(config_path()) as node:
        chosen = cast(Literal["a", "b"], slot or node.booted)
        if bundle:
            with open_bundle(node, bundle) as opened:
                take(node, chosen, opened)
        book = known(node, chosen)
        with root_of(node, chosen, root) as place:
            found = compare(node, chosen, place, book)
    if settings.json:
        more = {"explained": [{"path": d.path, "how": d.how.value, "by": d.declared} for d in found.explained]}
        print_json(found.as_json() | (more if everything else {}))
    else:
        _print(found, everything=everything)
    if found.changes:
        raise found.error()


def register(app: typer.Typer) -> None:
    """Put it into the command line."""
    app.command()(verify)


def _print(found: Found, *, everything: bool) -> None:
    from updater.cli.carrying import table

    rows = [
        (change.drift.how.value, _plain(change.drift.path), f"{change.drift.why}{_below(change.below)}")
        for change in found.changes
    ]
    if everything:
        rows += [("declared", _plain(each.path), f"{each.how.value}: {each.declared}") for each in found.explained]
    table(rows)
    count = sum(found.declared.values())
    if not found.changes:
        print(f"slot {found.slot} is as {found.release} and what is declared have it ({count} declared differences)")
    else:
        print(f"{len(found.changes)} undeclared, {count} declared differences from {found.release}")


def _below(count: int) -> str:
    return f", and {count} more in it" if count else ""


def _plain(path: str) -> str:
    """Nothing in a name may steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in path)
