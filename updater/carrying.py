"""What the operator carries into a release: packages, patches, files and configuration.

All four are decided, and tried on the bundle's own root, before the first byte of a slot is written (`examine`). Then
each is a step of `stage`, between the image and the boot entry. What becomes of kept files that are
edited after staging is in `kept`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path

from blake3 import blake3

from core.errors import ConfigError, ModificationConflict
from core.journal import Facts, StepRecord
from core.release import Release
from core.report import Report
from core.steps import Step
from images import sections
from images.read import Bundle
from partitions import mounts
from patches import keep, patch
from patches.carried import base_of, by_kind, choose_keeps, choose_patches, named, note_patches
from patches.kept_paths import Policy
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
from updater.kept import copy_kept
from updater.layout import running_root
from updater.node import Node
from updater.staging import Target
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
    patched: dict[str, str] = {}
    with Registry.of(node.config.data) as registry, bundle_root(bundle, node.config.data / "scratch") as root:
        left = by_kind(registry, without)
        looks: dict[str, Callable[[], str]] = {
            "packages": lambda: _try_packages(node, registry, release, root, left[Kind.PACKAGE], decisions),
            "patches": lambda: _try_patches(registry, release, root, left[Kind.PATCH], decisions, patched),
            "files": lambda: _try_files(node, registry, release, root, left[Kind.FILE], decisions, patched),
            "configuration": lambda: _try_configuration(node, bundle, root),
        }
        checks = examine_checks({name: look for name, look in looks.items() if name in kinds})
    return Examined(checks=checks, decisions=decisions, kinds=kinds)


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


def _try_patches(
    registry: Registry,
    release: Release,
    root: Path,
    without: list[str],
    told: list[Decision],
    patched: dict[str, str],
) -> str:
    chosen = choose_patches(registry, release, without)
    reports = patch.check(chosen.patches, root)
    how = {report.name: str(report) for report in reports}
    patched |= {file.to or file.path: report.name for report in reports for file in report.files}
    told += [
        Decision(kind=each.kind, name=each.name, carried=each.carried, why=how.get(each.name, each.why))
        for each in chosen.decisions
    ]
    if any(report.conflicts() for report in reports):
        raise patch.conflict(reports, str(release))
    return _count(chosen.decisions)


def _try_files(
    node: Node,
    registry: Registry,
    release: Release,
    root: Path,
    without: list[str],
    told: list[Decision],
    patched: dict[str, str],
) -> str:
    chosen = choose_keeps(registry, release, without)
    fates: dict[str, int] = {}
    conflicts = []
    for kept in keep.check(chosen.keeps, running_root(node.config), root, base_of(registry, node.booted)):
        fates[kept.fate] = fates.get(kept.fate, 0) + 1
        if kept.path in patched and kept.policy is not Policy.THEIRS:
            raise _both(kept.path, patched[kept.path], release)
        if kept.fate is keep.Fate.CONFLICT:
            conflicts.append(kept)
        elif kept.fate is not keep.Fate.KEPT:
            told.append(Decision(kind="file", name=kept.path, carried=kept.fate is not keep.Fate.THEIRS, why=str(kept)))
    told += [decision for decision in chosen.decisions if not decision.carried]
    if conflicts:
        raise keep.conflict(conflicts, str(release))
    return ", ".join(f"{count} {fate}" for fate, count in fates.items()) or "none found"


def _both(path: str, name: str, release: Release) -> ModificationConflict:
    """A file that a patch changes and that is kept too: one of the two would be lost."""
    return ModificationConflict(
        f"{path} is both patched and kept in {release}",
        what=f"patch {name} changes the release's file, and keeping yours would undo it",
        state="nothing was changed",
        next=[
            f"updater keep add {path} --policy theirs    takes the release's, patched",
            f"updater stage … --without {name}    leaves the patch out this once",
        ],
    )


def _try_configuration(node: Node, bundle: Bundle, root: Path) -> str:
    with tempfile.TemporaryDirectory(prefix="updater-templates-") as scratch:
        shipped = _unpacked(bundle, Path(scratch) / "templates")
        history = History(Path(scratch) / "history")
        place = configuring.Place(root=root, history=history, slot=node.inactive, running=False)
        return _rendered(node, bundle, place, shipped, dry_run=True).summary()


def _unpacked(bundle: Bundle, into: Path) -> manifest.Shipped:
    """The bundle's own templates, or those that come with this program."""
    if configuring.SECTION not in bundle.manifest.sections:
        return manifest.load(manifest.builtin())
    into.mkdir()
    sections.unpack(bundle.section(configuring.SECTION), into)
    return manifest.load(into)


def _rendered(
    node: Node, bundle: Bundle, place: configuring.Place, shipped: manifest.Shipped, *, dry_run: bool = False
) -> configuring.Report:
    with Store.open(configuring.store_path(node.config)) as store:
        return configuring.render_into(
            node.config, place, store, shipped=shipped, release=bundle.manifest.release, dry_run=dry_run
        )


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
            chosen = choose_patches(registry, self.release, named(registry, Kind.PATCH, self.target.without))
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
        """Render, and note what: the configuration may be another one by the time the slot is sealed, or activated."""
        node, slot = self.target.node, self.target.slot
        with (
            tempfile.TemporaryDirectory(prefix="updater-templates-") as scratch,
            mounts.mounted(self.target.device, read_only=False) as root,
        ):
            shipped = _unpacked(self.target.bundle, Path(scratch) / "templates")
            place = configuring.in_slot(node.config, slot, root)
            place.history.forget()  # the slot was written anew: nothing that was rendered before is in it
            done = _rendered(node, self.target.bundle, place, shipped)
        node.journal.set_slot(slot, node.journal.slot(slot) | {"rendered": done.rendered})
        return done.summary()
