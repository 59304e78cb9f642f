"""The catalogues of migrations on this node: one per slot, unpacked from its bundle when it is staged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from core.errors import CatalogueInvalid
from images import sections
from images.read import Bundle
from migrations import catalogue as catalogues
from migrations.catalogue import Catalogue
from partitions.boot.state import Slot
from updater.node import Node
from updater.unpacking import keep_section

SECTION = "migrations"


def kept(node: Node, slot: Slot) -> Path:
    """Where the catalogue of the release in a slot is."""
    return node.config.data / "migrations" / slot


def catalogue_of(node: Node, slot: Slot) -> Catalogue:
    """The catalogue of the release in a slot; an empty one if it has none. Raises CatalogueInvalid: it is damaged."""
    path = kept(node, slot)
    try:
        return catalogues.load(path) if path.is_dir() else Catalogue()
    except CatalogueInvalid as error:  # it was in order when it was unpacked
        raise CatalogueInvalid(
            f"the catalogue of migrations that was unpacked for slot {slot} is damaged: {path}",
            what=error.what,
            state="no migration was begun by this command",
            next="updater stage --again BUNDLE    unpacks it anew",
        ) from error


def keep(node: Node, slot: Slot, bundle: Bundle) -> None:
    """Unpack the bundle's catalogue for the slot, durably, in place of what was there: all of it or nothing."""
    keep_section(bundle, SECTION, kept(node, slot))


@contextmanager
def catalogue_in(bundle: Bundle) -> Iterator[Catalogue]:
    """The bundle's catalogue, unpacked for the while; an empty one if it has none. Raises CatalogueInvalid."""
    if SECTION not in bundle.manifest.sections:
        yield Catalogue()
        return
    with TemporaryDirectory(prefix="updater-migrations-") as scratch:
        sections.unpack(bundle.section(SECTION), Path(scratch))
        yield catalogues.load(Path(scratch))


def ours(node: Node, catalogue: Catalogue) -> list[str]:
    """The databases of the catalogue that this node migrates: those that its node.toml names."""
    return [name for name in catalogue.databases if name in node.config.databases]
