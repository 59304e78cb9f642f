"""What the commands for carried modifications share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import config_path, interruptible

if TYPE_CHECKING:
    from images.read import Bundle
    from patches.lifetime import Lifetime
    from patches.registry import Entry, Registry

Reason = Annotated[str, typer.Option(help="Why; kept with it.")]
Since = Annotated[str, typer.Option("--from", metavar="RELEASE", help="Carry it from this release or build on.")]
Until = Annotated[str, typer.Option(metavar="RELEASE", help="Carry it until this release or build (exclusive).")]
SupersededBy = Annotated[str, typer.Option(help="What takes its place: another one's name, or a reference.")]


@contextmanager
def registry() -> Iterator[Registry]:
    """The node's registry of what is carried."""
    from patches.registry import Registry
    from updater.node_toml import load_node

    node = load_node(config_path())
    with interruptible(), Registry.of(node.data) as opened:
        yield opened


@contextmanager
def looked_into(source: str) -> Iterator[tuple[Bundle, Path]]:
    """A bundle whose signatures hold, and its root, mounted read-only for a while."""
    from images.keys import load_trust
    from images.read import Bundle
    from updater.bundle_root import bundle_root
    from updater.node_toml import load_node

    node = load_node(config_path())
    trust = load_trust(node.trust.keys, node.trust.threshold)
    with interruptible(), Bundle.open(source, trust) as bundle, bundle_root(bundle, node.data / "scratch") as root:
        yield bundle, root


def lifetime(since: str, until: str, superseded_by: str = "", before: Lifetime | None = None) -> Lifetime:
    """The lifetime of the options; where one is not given, as `before`. Raises ConfigError."""
    from core.errors import ConfigError
    from patches.lifetime import Lifetime

    old = before or Lifetime()
    try:
        return Lifetime(
            since=since or old.since, until=until or old.until, superseded_by=superseded_by or old.superseded_by
        )
    except ValueError as error:
        raise ConfigError("it cannot be carried so", what=str(error), state="nothing was changed") from error


def as_json(entry: Entry) -> dict[str, object]:
    """An entry for machines."""
    from dataclasses import asdict

    return {key: value for key, value in asdict(entry).items() if key != "lifetime"} | asdict(entry.lifetime)


def table(rows: Sequence[tuple[str, ...]]) -> None:
    """Columns as wide as they need, two blanks apart."""
    widths = [max((len(row[n]) for row in rows), default=0) for n in range(max(map(len, rows), default=0))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


def added(entry: Entry) -> str:
    """When, by whom and why."""
    return f"{entry.added:%Y-%m-%d} {entry.added_by}{f': {entry.reason}' if entry.reason else ''}"
