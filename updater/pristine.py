"""The list of a release's files, as they were when it was built: made by `bundle build`, kept by `stage` beside the
node's journal, and read by `verify`.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from blake3 import blake3

from core.errors import NotReady, UpdaterError, WrongState
from core.files import fsync_dir, inside, write_atomic
from core.report import Report
from images.manifest import MAX_SECTION
from images.read import Bundle
from partitions import mounts
from partitions.boot.state import Slot, other
from patches.carried import base_of
from patches.declared import real_path
from patches.drift import SKIPPED, load, save, snapshot
from patches.registry import Registry
from updater.layout import running_root
from updater.node import Node
from updater.node_toml import NodeConfig

#: The bundle's section.
SECTION = "files"

ADVICE = "updater verify --bundle BUNDLE    with the bundle of the release in the slot"


@contextmanager
def listed(tree: Path | None, image: Path | None, report: Report) -> Iterator[dict[str, Path]]:
    """The section for a bundle that is built from this input, as a file while in the context: name → path. Empty where
    no list can be made; the report says why, and the bundle is as good, but for `verify`.
    """
    with TemporaryDirectory(prefix="updater-files-") as scratch, ExitStack() as stack:
        book = Path(scratch) / SECTION
        why = "a bundle from packages gets none"
        try:
            root = stack.enter_context(mounts.mounted(image, read_only=True)) if image is not None else tree
            if root is not None and root.is_dir():
                with report.phase(SECTION, "list the files, with their hashes"):
                    save(snapshot(root), book)
                why = f"it would have {book.stat().st_size} bytes, {MAX_SECTION} are allowed"
        except (UpdaterError, OSError) as error:  # if it matters, the build is about to say so
            why = str(error)
        if book.exists() and book.stat().st_size <= MAX_SECTION:
            yield {SECTION: book}
            return
        report.warning(f"no list of files for `updater verify`, which will have to open the bundle: {why}")
        yield {}


def path_of(config: NodeConfig, slot: Slot) -> Path:
    """Where the list for the release in a slot is kept."""
    return config.data / "pristine" / f"{slot}.zst"


def keep(config: NodeConfig, slot: Slot, bundle: Bundle) -> None:
    """Keep the bundle's list for the slot, durably; where the bundle has none, neither has the slot. Raises OSError."""
    place = path_of(config, slot)
    if SECTION in bundle.manifest.sections:
        make_home(place)
        write_atomic(place, bundle.section(SECTION), mode=0o600)
    else:
        place.unlink(missing_ok=True)


def known(node: Node, slot: Slot) -> Path:
    """The file with the list for the slot. Raises WrongState while the slot is incomplete, NotReady without one."""
    record = node.journal.slot(slot)
    if "partial" in record:
        raise WrongState(
            f"slot {slot} is not complete",
            what=f"{record.get('release', 'a release')} was not staged to the end",
            state="nothing was changed",
            next="updater status",
        )
    place = path_of(node.config, slot)
    if not place.exists():
        raise NotReady(
            f"which files {node.release(slot) or f'the release in slot {slot}'} has is not known",
            what="it was not put there by `updater stage`, or its bundle has no list of files",
            state="nothing was changed",
            next=ADVICE,
        )
    return place


def content_of(node: Node, path: str) -> bytes | None:
    """What the release that runs has at the path (None: nothing), told without its bundle: from what `stage` kept of
    it, or from the other slot, if that is the content that the list promises. Raises NotReady, UpdaterError.
    """
    slot = node.booted
    book = known(node, slot)
    real = real_path(running_root(node.config), path)
    if not any(real == each or real.startswith(f"{each}/") for each in SKIPPED):
        listed = next((each for each in load(book) if each.path == real), None)
        if listed is None:
            return None
        for data in _candidates(node, slot, path) if listed.kind == "f" else ():
            if len(data) == listed.size and blake3(data).hexdigest() == listed.digest:
                return data
    raise NotReady(
        f"what {node.release(slot)} has at {path} is not known here",
        what="the other slot has something else there, and its bundle is not given",
        state="nothing was changed",
        next=f"updater patch capture {shlex.quote(path)} --bundle BUNDLE    with the bundle of the release that runs",
    )


def _candidates(node: Node, slot: Slot, path: str) -> Iterator[bytes]:
    if (node.config.data / "carried.sqlite").exists():
        with Registry.of(node.config.data) as registry:
            kept = base_of(registry, slot)(path)
        if kept is not None:
            yield kept
    data: bytes | None = None
    with suppress(UpdaterError, OSError), mounts.mounted(node.device(other(slot)), read_only=True) as root:
        place = inside(root, path)
        data = place.read_bytes() if place.is_file() else None
    if data is not None:
        yield data


def make_home(place: Path) -> None:
    """The directory of the lists."""
    if not place.parent.is_dir():
        place.parent.mkdir(mode=0o700)
        fsync_dir(place.parent.parent)
