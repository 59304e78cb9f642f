"""Which files of a slot are neither as its release nor as the declared modifications have them."""

from __future__ import annotations

import shlex
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from core.errors import Drifted, UpdaterError, WrongState
from images.read import Bundle
from partitions import mounts
from partitions.boot.state import Slot
from patches.carried import patched_files
from patches.declared import declared_by, of_packages
from patches.drift import SKIPPED, Difference, Drift, Explain, FileState, compare, load, save, snapshot
from patches.registry import Kind, Registry
from templates.history import History
from updater import pristine
from updater.bundle_root import bundle_root
from updater.checks import Check
from updater.checks import root as need_root
from updater.node import Node

#: Seconds that the look of `plan` and `stage` may take.
QUICK = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An undeclared change. `below`: how many more there are in a directory that is new, or gone, as a whole."""

    drift: Drift
    below: int = 0

    def __str__(self) -> str:
        more = f", and {self.below} more in it" if self.below else ""
        return f"{self.drift.path} ({self.drift.how.value}{more})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What differs. `declared`: how many files are explained by what; `explained`: these files."""

    slot: Slot
    release: str
    changes: tuple[Change, ...]
    declared: dict[str, int] = field(default_factory=dict)
    explained: tuple[Drift, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "slot": self.slot,
            "release": self.release,
            "clean": not self.changes,
            "changes": [{**asdict(change.drift), "below": change.below} for change in self.changes],
            "declared": self.declared,
        }

    def error(self) -> Drifted:
        """For a slot that has undeclared changes: how many, and how to declare them."""
        count = len(self.changes)
        files = [c.drift for c in self.changes if c.drift.kind == "f"]
        text = next((d for d in files if d.how in (Difference.CHANGED, Difference.MISSING)), None)
        there = next((c.drift for c in self.changes if c.drift.how is not Difference.MISSING), None)
        offers = [f"updater keep add {shlex.quote(there.path)}    carries it as it is"] if there else []
        offers += [f"updater patch capture {shlex.quote(text.path)}    makes a patch of the change"] if text else []
        return Drifted(
            f"{count} undeclared change{'s' * (count != 1)} in slot {self.slot} ({self.release})",
            state="nothing was changed; the next release comes without what is not declared",
            next=offers,
        )


@contextmanager
def root_of(node: Node, slot: Slot, directory: Path | None = None) -> Iterator[Path]:
    """The root to look at: a directory, the running system, or the slot, mounted read-only for the while.

    In a sandbox nothing runs, so there it is always the slot. Raises NotPermitted, DeviceFailed.
    """
    if directory is not None:
        yield directory
        return
    need_root()
    if node.config.machine == "host" and slot == node.booted:
        yield Path("/")
        return
    with mounts.mounted(node.device(slot), read_only=True) as mounted:
        yield mounted


def verify(node: Node, slot: Slot, root: Path, book: Path) -> Found:
    """Read all files of the root and compare them with the slot's list, the file `book`. Raises NotReady, OSError."""
    told: list[Drift] = []
    drifts = compare(root, load(book), explained(node, slot, root), _skipped(node))
    changes = tuple(collapsed(_sorted_out(drifts, told)))
    return Found(
        slot=slot,
        release=str(node.release(slot) or "unknown"),
        changes=changes,
        declared=dict(Counter(each.declared.partition(" ")[0] for each in told)),
        explained=tuple(told),
    )


def take(node: Node, slot: Slot, bundle: Bundle) -> None:
    """Keep the list of the bundle that the slot was made from; one that has no list is opened, and its files are read.

    Raises WrongState when it is another bundle, NoSpace, BundleInvalid, OSError.
    """
    _require_same(node, slot, bundle)
    if pristine.SECTION in bundle.manifest.sections:
        pristine.keep(node.config, slot, bundle)
        return
    place = pristine.path_of(node.config, slot)
    pristine.make_home(place)
    with bundle_root(bundle, node.config.data / "scratch") as root:
        save(snapshot(root), place)


def explained(node: Node, slot: Slot, root: Path) -> Explain:
    """By what a difference in the slot is explained: all that is declared on this node."""
    data = node.config.data
    exact: dict[str, tuple[str | None, str]] = {}
    kept = {str(path): f"carry {path}" for path in node.config.stage.carry}
    names: list[str] = []
    if (data / "carried.sqlite").exists():
        with Registry.of(data) as registry:
            exact |= {path: (digest, "patch") for path, digest in patched_files(registry, slot).items()}
            kept |= {entry.name: f"keep {entry.name}" for entry in registry.entries(Kind.FILE)}
            names = [entry.facts["header"]["name"] for entry in registry.entries(Kind.PACKAGE)]
    written = History(data / "rendered" / slot).written()
    exact |= {path: (digest, "template") for path, (digest, _) in written.items()}
    by_name, by_package = declared_by(root, exact, kept), of_packages(root, names)
    return lambda drift, now: by_name(drift, now) or by_package(drift, now)


def collapsed(drifts: Iterable[Drift]) -> Iterator[Change]:
    """One line for a directory that is new, or gone, with all in it."""
    top: Change | None = None
    for each in drifts:
        if top is not None:
            if each.path.startswith(f"{top.drift.path}/") and each.how is top.drift.how:
                top = replace(top, below=top.below + 1)
                continue
            if not each.path.startswith(f"{top.drift.path}/"):
                yield top
                top = None
        if top is None and each.kind == "d" and each.how in (Difference.ADDED, Difference.MISSING):
            top = Change(drift=each)
        else:
            yield Change(drift=each)
    if top is not None:
        yield top


class _LateError(Exception):
    """The time is up."""


def quick_look(node: Node, root: Path = Path("/"), seconds: float = QUICK) -> str:
    """What the running system would lose in an update, in a line; empty when that is nothing, or nobody knows.

    Only files that were changed after the slot was staged are read, and only for so many seconds.
    """
    slot = node.booted
    record = node.journal.slot(slot)
    book = pristine.path_of(node.config, slot)
    if not book.exists() or "written" not in record or "partial" in record:
        return ""
    since = datetime.fromisoformat(record["written"]).timestamp()
    late, end = "", time.monotonic() + seconds
    found: list[Drift] = []
    try:
        drifts = compare(root, _until(end, load(book)), explained(node, slot, root), _skipped(node), since=since)
        found.extend(_sorted_out(drifts, []))
    except _LateError:
        late = f", and not all was looked at in {seconds:.0f} s"
    except (UpdaterError, OSError) as error:
        return f"the running system could not be compared with its release: {error}"
    changes = list(collapsed(found))
    if not changes:
        return late and f"no undeclared changes found{late}: updater verify"
    some = ", ".join(map(str, changes[:3])) + (", …" if len(changes) > 3 else "")
    count = f"{len(changes)} undeclared change{'s' * (len(changes) != 1)}"
    return f"{count} of the running system will not be carried: {some}{late}: updater verify"


def undeclared(node: Node) -> list[Check]:
    """For the plan of a real node: what `quick_look` has to say, as a warning."""
    told = quick_look(node) if node.config.machine == "host" else ""
    return [Check(name="undeclared", found=told, warning=True)] if told else []


def _require_same(node: Node, slot: Slot, bundle: Bundle) -> None:
    record, manifest = node.journal.slot(slot), bundle.manifest
    held = node.release(slot)
    content = record.get("content")
    if content == manifest.image.content or (content is None and (held is None or str(held) == manifest.release)):
        return
    raise WrongState(
        f"the bundle is not the one that is in slot {slot}",
        what=[
            f"the bundle is {manifest.release}, content {manifest.image.content[:12]}…",
            f"the slot has {held or 'an unknown release'}, content {f'{content[:12]}…' if content else 'unknown'}",
        ],
        state="nothing was changed",
        next=pristine.ADVICE,
    )


def _until(end: float, states: Iterable[FileState]) -> Iterator[FileState]:
    for each in states:
        if time.monotonic() > end:
            raise _LateError
        yield each


def _sorted_out(drifts: Iterable[Drift], declared: list[Drift]) -> Iterator[Drift]:
    for each in drifts:
        if each.declared:
            declared.append(each)
        else:
            yield each


def _skipped(node: Node) -> tuple[str, ...]:
    """What is not looked at: what a system changes by itself, and what is ours on other partitions."""
    return (*SKIPPED, str(node.config.data), str(node.config.boot.esp))
