"""What the operator carries into a release: packages, patches, files and configuration.

All four are decided, and tried on the bundle's own root, before the first byte of a slot is written (`examine`). Then
each is a step of `stage`, between the image and the boot entry. Files that are edited after staging are copied again
by `activate`.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blake3 import blake3

from core.errors import ConfigError, UpdaterError
from core.faults import point
from core.journal import Facts, StepRecord
from core.release import Release
from core.report import Report
from core.steps import Step
from images import sections
from images.read import Bundle
from partitions import mounts
from partitions.boot.state import Slot, other
from patches import keep, patch
from patches.carried import (
    base_of,
    choose_keeps,
    choose_patches,
    earlier_of,
    note_patches,
    stage_keeps,
    take_out,
)
from patches.kept_record import changed_since
from patches.lifetime import Decision
from patches.packages import Packages, outcomes
from patches.registry import Kind, Registry
from templates import manifest
from templates.history import History
from templates.store import Store
from updater import configuring
from updater.bundle_root import bundle_root
from updater.checks import Check
from updater.checks import examine as examine_checks
from updater.layout import running_root
from updater.node import Node
from updater.staging import Target, seal_holds, seal_of
from updater.status import CARRIED


def carried_kinds(node: Node) -> list[str]:
    """Which of the four there is anything of, so that the others need not be looked at."""
    found = []
    if (node.config.data / "carried.sqlite").exists():
        with Registry.of(node.config.data) as registry:
            kinds = {entry.kind for entry in registry.entries()}
        names = {Kind.PACKAGE: "packages", Kind.PATCH: "patches", Kind.FILE: "files"}
        found = [name for kind, name in names.items() if kind in kinds]
    path = configuring.store_path(node.config)
    if path.exists():
        with Store.open(path) as store:
            found += ["configuration"] if store.active() is not None else []
    return found


def fingerprint(node: Node) -> str:
    """Changes whenever something that is carried does: then a slot that was staged before is out of date."""
    whole: list[object] = []
    if (node.config.data / "carried.sqlite").exists():
        with Registry.of(node.config.data) as registry:
            whole = [(e.kind, e.name, e.place, str(e.lifetime), e.blob, e.facts) for e in registry.entries()]
    path = configuring.store_path(node.config)
    if path.exists():
        with Store.open(path) as store:
            active = store.active()
            whole.append(active.version if active else None)
    return blake3(json.dumps(whole, sort_keys=True).encode()).hexdigest(16)


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What came of trying: a check for each kind, and every decision in words."""

    checks: list[Check] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    @property
    def packages(self) -> list[str]:
        """The packages to install, by name: what the plan records, and the step takes."""
        return [each.name for each in self.decisions if each.kind == "package" and each.carried]


def examine(node: Node, bundle: Bundle, without: Collection[str]) -> Examined:
    """Decide on everything that is carried, and try it on the bundle's root; nothing is changed anywhere.

    Raises NoSpace where the bundle's image cannot be looked into, and ConfigError when `without` names nothing.
    """
    kinds = carried_kinds(node)
    if not kinds:
        if without:
            raise ConfigError(f"nothing is carried, so nothing can be left out: {', '.join(without)}")
        return Examined()
    release = Release.parse(bundle.manifest.release)
    decisions: list[Decision] = []
    with Registry.of(node.config.data) as registry, bundle_root(bundle, node.config.data / "scratch") as root:
        left = by_kind(registry, without)
        looks: dict[str, Callable[[], str]] = {
            "packages": lambda: _try_packages(node, registry, release, root, left[Kind.PACKAGE], decisions),
            "patches": lambda: _try_patches(registry, release, root, left[Kind.PATCH], decisions),
            "files": lambda: _try_files(node, registry, release, root, left[Kind.FILE], decisions),
            "configuration": lambda: _try_configuration(node, bundle, root),
        }
        checks = examine_checks({name: look for name, look in looks.items() if name in kinds})
    return Examined(checks=checks, decisions=decisions, kinds=kinds)


def by_kind(registry: Registry, without: Collection[str]) -> dict[Kind, list[str]]:
    """The names that are to be left out, sorted by what they name. Raises ConfigError for one that names nothing."""
    left: dict[Kind, list[str]] = {kind: [] for kind in Kind}
    for word in without:
        kinds = [kind for kind in Kind if _knows(registry, kind, word)]
        if not kinds:
            raise ConfigError(
                f"nothing that is carried is called {word}",
                state="nothing was changed",
                next=["updater rpm list", "updater patch list", "updater keep list"],
            )
        for kind in kinds:
            left[kind].append(word)
    return left


def _knows(registry: Registry, kind: Kind, word: str) -> bool:
    names = [entry.name for entry in registry.entries(kind)]
    return word in names or sum(name.startswith(word) for name in names) == 1


def _packages(node: Node, registry: Registry) -> Packages:
    return Packages(registry, node.path.parent / "rpm-keys")


def _count(decisions: list[Decision]) -> str:
    carried = sum(decision.carried for decision in decisions)
    left = len(decisions) - carried
    return f"{carried} carried{f', {left} not' if left else ''}"


def _try_packages(
    node: Node, registry: Registry, release: Release, root: Path, without: list[str], told: list[Decision]
) -> str:
    packages = _packages(node, registry)
    choices = packages.decide(release, root, without)
    decisions = [choice.decision for choice in choices]
    told += decisions
    packages.examine(choices, root)
    return _count(decisions)


def _try_patches(registry: Registry, release: Release, root: Path, without: list[str], told: list[Decision]) -> str:
    chosen = choose_patches(registry, release, without)
    reports = patch.check(chosen.patches, root)
    how = {report.name: str(report) for report in reports}
    told += [
        Decision(kind=each.kind, name=each.name, carried=each.carried, why=how.get(each.name, each.why))
        for each in chosen.decisions
    ]
    if any(report.conflicts() for report in reports):
        raise patch.conflict(reports, str(release))
    return _count(chosen.decisions)


def _try_files(
    node: Node, registry: Registry, release: Release, root: Path, without: list[str], told: list[Decision]
) -> str:
    chosen = choose_keeps(registry, release, without)
    fates: dict[str, int] = {}
    conflicts = []
    for kept in keep.check(chosen.keeps, running_root(node.config), root, base_of(registry, node.booted)):
        fates[kept.fate] = fates.get(kept.fate, 0) + 1
        if kept.fate is keep.Fate.CONFLICT:
            conflicts.append(kept)
        elif kept.fate is not keep.Fate.KEPT:
            told.append(Decision(kind="file", name=kept.path, carried=kept.fate is not keep.Fate.THEIRS, why=str(kept)))
    told += [decision for decision in chosen.decisions if not decision.carried]
    if conflicts:
        raise keep.conflict(conflicts, str(release))
    return ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "none found"


def _try_configuration(node: Node, bundle: Bundle, root: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="updater-templates-") as scratch:
        shipped = _unpacked(bundle, Path(scratch) / "templates")
        place = configuring.Place(root=root, history=History(Path(scratch) / "history"), slot="", running=False)
        return _rendered(node, bundle, place, shipped, dry_run=True)


def _unpacked(bundle: Bundle, into: Path) -> manifest.Shipped:
    """The bundle's own templates, or those that come with this program."""
    if "templates" not in bundle.manifest.sections:
        return manifest.load(manifest.builtin())
    into.mkdir(parents=True, exist_ok=True)
    sections.unpack(bundle.section("templates"), into)
    return manifest.load(into)


def _rendered(
    node: Node, bundle: Bundle, place: configuring.Place, shipped: manifest.Shipped, *, dry_run: bool = False
) -> str:
    with Store.open(configuring.store_path(node.config)) as store:
        done = configuring.render_into(
            node.config, place, store, shipped=shipped, release=bundle.manifest.release, dry_run=dry_run
        )
    return done.summary()


# -- the steps


def carry_steps(target: Target) -> list[Step]:
    """The steps for what there is to carry, in their order."""
    makers: dict[str, Callable[..., Step]] = {
        "packages": InstallPackages,
        "patches": ApplyPatches,
        "files": KeepFiles,
        "configuration": Configure,
    }
    return [makers[name](target=target, name=name) for name in CARRIED if name in target.carried]


@dataclass(frozen=True, kw_only=True)
class _CarryStep:
    """What the four share: they change the slot only, which is written anew when one of them is begun again."""

    target: Target
    name: str

    @property
    def release(self) -> Release:
        """The release in the slot."""
        return Release.parse(self.target.bundle.manifest.release)

    def is_done(self, record: StepRecord | None) -> bool:
        """On resume: sealed since."""
        return record is not None and self.target.sealed()

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def undo(self, facts: Facts) -> None:
        """The slot stays bad; what is in it does not matter."""


class InstallPackages(_CarryStep):
    """The operator's packages, in one RPM transaction."""

    def describe(self) -> str:
        """What it is for."""
        return "install the operator's packages, in one transaction"

    def apply(self, facts: Facts, report: Report) -> str:
        """Install what the plan decided on, record."""
        node = self.target.node
        with Registry.of(node.config.data) as registry, mounts.mounted(self.target.device, read_only=False) as root:
            packages = _packages(node, registry)
            choices = packages.recall(self.target.packages)
            said = packages.install(choices, root, report)
            registry.set_outcomes(self.target.slot, Kind.PACKAGE, outcomes(choices, root))
        return said


class ApplyPatches(_CarryStep):
    """The operator's patches, all or none."""

    def describe(self) -> str:
        """What it is for."""
        return "apply the operator's patches, all or none"

    def apply(self, facts: Facts, report: Report) -> str:
        """Apply, record the files with their hashes."""
        node, slot = self.target.node, self.target.slot
        with Registry.of(node.config.data) as registry, mounts.mounted(self.target.device, read_only=False) as root:
            chosen = choose_patches(registry, self.release, by_kind(registry, self.target.without)[Kind.PATCH])
            replaced = patch.apply(chosen.patches, root, node.config.data / f"patching-{slot}.json")
            note_patches(registry, slot, chosen.decisions, replaced)
        return f"{_count(chosen.decisions)}, {len(replaced)} files changed"


class KeepFiles(_CarryStep):
    """The operator's files, from the running system."""

    def describe(self) -> str:
        """What it is for."""
        return "copy the operator's files from the running system"

    def apply(self, facts: Facts, report: Report) -> str:
        """Copy, merge, record."""
        return copy_kept(self.target.node, self.target.slot, self.release, self.target.without)


class Configure(_CarryStep):
    """The active configuration, rendered with the new release's templates."""

    def describe(self) -> str:
        """What it is for."""
        return "render the active configuration with the release's templates"

    def apply(self, facts: Facts, report: Report) -> str:
        """Unpack the templates for later, render."""
        node, slot = self.target.node, self.target.slot
        templates = configuring.templates_of(node.config, slot)
        shutil.rmtree(templates, ignore_errors=True)
        shipped = _unpacked(self.target.bundle, templates)
        with mounts.mounted(self.target.device, read_only=False) as root:
            history = History(node.config.data / "rendered" / slot)
            history.forget()  # the slot was written anew: nothing that was rendered before is in it
            place = configuring.Place(root=root, history=history, slot=slot, running=False)
            return _rendered(node, self.target.bundle, place, shipped)


def _book(node: Node, slot: Slot) -> Path:
    return node.config.data / f"kept-{slot}.zst"


def copy_kept(node: Node, slot: Slot, release: Release, without: Collection[str]) -> str:
    """Copy the kept files of the running system into the slot, and write down what was copied."""
    with Registry.of(node.config.data) as registry, mounts.mounted(node.device(slot), read_only=False) as root:
        chosen = choose_keeps(registry, release, by_kind(registry, without)[Kind.FILE])
        counts = stage_keeps(
            registry,
            chosen.keeps,
            running_root(node.config),
            root,
            old_slot=other(slot),
            slot=slot,
            book=_book(node, slot),
        )
    return _fates(counts)


def _fates(counts: dict[keep.Fate, int]) -> str:
    return ", ".join(f"{count} {fate}" for fate, count in counts.items()) or "none found"


# -- edits after staging


def copy_again(node: Node, slot: Slot, release: Release, without: Collection[str]) -> str:
    """Copy the kept files into the slot that has them from staging, and take out those that are gone since.

    Raises ModificationConflict before anything is written.
    """
    source, device = running_root(node.config), node.device(slot)
    with Registry.of(node.config.data) as registry:
        keeps = choose_keeps(registry, release, by_kind(registry, without)[Kind.FILE]).keeps
        edited = list(changed_since(_book(node, slot), keeps, source))
        earlier = earlier_of(registry, slot, edited)
        with mounts.mounted(device, read_only=True) as root:
            weighed = keep.check(keeps, source, root, base_of(registry, other(slot)), earlier)
            conflicts = [kept for kept in weighed if kept.fate is keep.Fate.CONFLICT]
        if conflicts:
            raise keep.conflict(conflicts, str(release))
        with mounts.mounted(device, read_only=False) as root:
            take_out(edited, earlier, root)
            book, old = _book(node, slot), other(slot)
            counts = stage_keeps(registry, keeps, source, root, old_slot=old, slot=slot, book=book, earlier=earlier)
    return _fates(counts)


def edited_since(node: Node, slot: Slot) -> list[str]:
    """The kept files that were edited after they were staged in the slot, a line each."""
    record: dict[str, Any] = node.journal.slot(slot)
    if "seal" not in record or not _book(node, slot).exists() or "files" not in record.get("carried", ()):
        return []
    with Registry.of(node.config.data) as registry:
        without = by_kind(registry, record.get("without", ()))[Kind.FILE]
        keeps = choose_keeps(registry, Release.parse(record["release"]), without).keeps
        return [
            f"{each.path} {each.how}" for each in changed_since(_book(node, slot), keeps, running_root(node.config))
        ]


@dataclass(frozen=True, kw_only=True)
class CopyAgain:
    """Kept files that were edited after staging go into the staged slot once more, before it is flipped to."""

    node: Node
    slot: Slot
    name: str = "files-again"

    def describe(self) -> str:
        """Which."""
        edited = edited_since(self.node, self.slot)
        which = f": {', '.join(edited[:5])}{' …' if len(edited) > 5 else ''}" if edited else ""
        return f"copy kept files that were edited since{which}"

    def is_done(self, record: StepRecord | None) -> bool:
        """Nothing differs, and the slot is sealed as it is; or the slot runs, and is past that."""
        if self.node.booted == self.slot or "seal" not in self.node.journal.slot(self.slot):
            return True
        return not edited_since(self.node, self.slot) and seal_holds(self.node, self.slot)

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Copy, and seal anew."""
        record = self.node.journal.slot(self.slot)
        said = copy_again(self.node, self.slot, Release.parse(record["release"]), record.get("without", ()))
        point("files-again:copied")
        self.node.journal.set_slot(self.slot, record | {"seal": seal_of(self.node, self.slot, record["seal_size"])})
        return said

    def undo(self, facts: Facts) -> None:
        """The copies are right in any case; a slot that was left between copying and sealing gets its seal."""
        record = self.node.journal.slot(self.slot)
        if self.node.booted == self.slot or "seal" not in record or seal_holds(self.node, self.slot):
            return
        try:
            self.apply(facts, Report())
        except UpdaterError:  # then it has to be staged again
            self.node.journal.set_slot(self.slot, {key: record[key] for key in record if key != "seal"})
