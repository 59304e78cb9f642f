"""What a rehearsal needs of this node, in one file."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from updater.cli.context import config_path, interruptible, print_json, settings

if TYPE_CHECKING:
    from updater.exported import Manifest


class DataForm(StrEnum):
    """What becomes of databases in an export."""

    EMPTY = "empty"
    ANONYMISED = "anonymised"
    NONE = "none"


def export(
    file: Annotated[Path | None, typer.Argument(metavar="FILE", help="Where to write it.")] = None,
    without_content: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Files whose content stays here, such as '/etc/tls/*'.")
    ] = None,
    data: Annotated[
        DataForm | None, typer.Option(help="What becomes of SQLite databases.", show_default="empty")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would be in it, write nothing.")] = False,
) -> None:
    """Write what a rehearsal of an upgrade needs of this node: node.toml and keys, packages, patches, kept files, the
    configuration, and databases without their rows. Secrets stay here. Changes nothing.

    Example: updater export bil-a-03.export --without-content '/etc/acme/customers/*'
    """
    from core.scratch import scratch
    from updater import exporting
    from updater.checks import root
    from updater.node import open_node

    if file is None and not dry_run:
        raise typer.BadParameter("where to? Name a file, or say --dry-run", param_hint="FILE")
    wishes = exporting.Wishes(without_content=tuple(without_content or ()), data=(data or DataForm.EMPTY).value)
    with interruptible(), open_node(config_path()) as node:
        root()
        with scratch(node.config.data, "export") as work:
            manifest, blobs = exporting.collect(node, wishes, work)
            if file is not None and not dry_run:
                exporting.write(file, manifest, blobs)
    if settings.json:
        print_json(told(manifest))
        return
    _print(manifest)
    if file is not None and not dry_run:
        print(f"{file} is written, for its owner only: {len(blobs)} contents, {file.stat().st_size >> 10} KiB")


def told(manifest: Manifest) -> dict[str, object]:
    """The manifest for machines, with the parts of the fingerprint."""
    from dataclasses import asdict

    from updater.exported import carried_hash, kept_hash

    parts = {"carried": carried_hash(manifest.carried), "kept": kept_hash(manifest.kept)}
    return {**asdict(manifest), "fingerprint": {**parts, "configuration": manifest.configured}}


def _print(manifest: Manifest) -> None:
    kinds = [each.kind for each in manifest.carried]
    files = [each for each in manifest.kept if each.kind == "file"]
    size = sum(each.size for each in files)
    print(f"node            {manifest.node.name}, {manifest.node.release or 'release unknown'}")
    print(f"carried         {kinds.count('package')} packages, {kinds.count('patch')} patches, "
          f"{len(files)} kept files ({size >> 10} KiB)")  # fmt: skip
    print(f"its own files   {sum(each.kind == 'file' for each in manifest.files)}")
    print(f"configuration   {'yes' if manifest.configuration else 'none applied'}")
    for name, each in manifest.databases.items():
        print(f"database        {name}: {each.data}")
    for line in manifest.left_out:
        print(f"stays here      {line}")


def register(app: typer.Typer) -> None:
    """Put it into the command line."""
    app.command()(export)
