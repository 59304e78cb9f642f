"""The configuration of this node: where it is kept, which release's templates count, and rendering it into a root."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import ModificationConflict, WrongState
from core.journal import Facts
from partitions.boot.state import Slot
from templates import check, manifest
from templates.history import History
from templates.manifest import Shipped
from templates.masking import Mask
from templates.place import Action, Outcome, place, undo
from templates.render import NodeFacts, render
from templates.store import Author, Store, digest, secrets_in
from templates.tree import Instance, Tree
from templates.units import UnitResult, act
from updater.layout import running_root
from updater.machine import machine_of
from updater.node_toml import NodeConfig

#: The bundle's section with the release's schema and templates.
SECTION = "templates"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A root to render into. `history`: where its records are. `running`: its units run now."""

    root: Path
    history: History
    slot: Slot
    running: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What rendering did: files, units, and what became of options that have other names in the release. `rendered`:
    the configuration's version and digest, as the journal keeps them of a slot.
    """

    outcome: Outcome
    rendered: Facts = field(default_factory=dict)
    units: tuple[UnitResult, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def faults(self) -> list[str]:
        """Units that did not come back."""
        return [f"{each.verb} of {each.unit}: {each.fault}" for each in self.units if each.fault]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready, without diffs."""
        return {
            "files": {str(each.target): str(each.action) for each in self.outcome.files},
            "notes": [*self.notes, *(f"{each.target}: {note}" for each in self.outcome.files for note in each.notes)],
            "units": [{"unit": each.unit, "verb": each.verb, "fault": each.fault} for each in self.units],
        }

    def summary(self) -> str:
        """One line."""
        files = self.outcome.files
        changed = len(self.outcome.changed)
        left = sum(each.action is Action.LEFT for each in files)
        parts = [f"{len(files)} files", f"{changed} changed" if changed else "none changed"]
        parts += [f"{left} left as they are"] if left else []
        parts += [f"{each.verb} {each.unit}{' FAILED' if each.fault else ''}" for each in self.units]
        return ", ".join(parts)


def store_path(config: NodeConfig) -> Path:
    """The file with all saved configurations, on the data partition."""
    return config.data / "configuration.sqlite"


def templates_of(config: NodeConfig, slot: str) -> Path:
    """Where the templates of the release in a slot were unpacked when it was staged."""
    return config.data / "templates" / slot


def shipped_with(config: NodeConfig, slot: str) -> Shipped:
    """What the release in the slot ships, or what comes with this program when it ships nothing."""
    own = templates_of(config, slot)
    return manifest.load(own if own.is_dir() else manifest.builtin())


def author(why: str = "") -> Author:
    """Who is at the keyboard: the user before sudo."""
    who = os.environ.get("SUDO_USER") or ""
    if not who:
        try:
            who = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            who = str(os.getuid())
    return Author(who=who, why=why)


def own_instance(config: NodeConfig) -> dict[str, Instance]:
    """This node as an instance, for a configuration that does not name it."""
    return {config.name: Instance(application=config.role or "server", server=config.name)}


def running_place(config: NodeConfig) -> Place:
    """The running system, to render into; in a sandbox it is a directory (`running_root`)."""
    top = running_root(config)
    top.mkdir(exist_ok=True)
    return replace(in_slot(config, machine_of(config).booted_slot(), top), running=config.machine == "host")


def directory_place(config: NodeConfig, root: Path, slot: Slot) -> Place:
    """Any directory, to render into with the templates of the release in the slot."""
    name = str(root.resolve()).strip("/").replace("/", "-") or "root"
    return Place(root=root, history=History(config.data / "rendered" / f"at-{name}"), slot=slot, running=False)


def in_slot(config: NodeConfig, slot: Slot, root: Path) -> Place:
    """A slot that does not run, mounted at `root`."""
    return Place(root=root, history=History(config.data / "rendered" / slot), slot=slot, running=False)


def mask_of(store: Store, shipped: Shipped) -> Mask:
    """Hides every secret that any saved configuration holds."""
    return Mask(store.every_value(shipped.schema.secrets))


def fitted(tree: Tree, shipped: Shipped, config: NodeConfig, name: str) -> tuple[Tree, list[check.Note]]:
    """The tree with this release's names of options. Raises ModificationConflict when a value does not fit it."""
    fitting, notes = check.upgraded(tree, shipped.schema)
    faults = check.faults(fitting, shipped.schema, None if tree.instances_on(config.name) else own_instance(config))
    if faults:
        raise ModificationConflict(
            f"configuration {name} does not fit the release: {len(faults)} fault{'s' * (len(faults) != 1)}",
            what=faults,
            state="nothing was changed",
            next=[f"updater config clone {name}    then change what is listed, and apply it"],
        )
    return fitting, notes


def render_into(
    config: NodeConfig,
    where: Place,
    store: Store,
    *,
    release: str,
    tree: Tree | None = None,
    version: int = 0,
    shipped: Shipped | None = None,
    dry_run: bool = False,
) -> Report:
    """Render into the place, and have the running units take notice. `release`: what is there, for the templates
    (empty: not known). `tree`: in place of the active configuration.

    Raises WrongState when none was ever applied, ModificationConflict when something does not fit (nothing is written).
    """
    shipped = shipped or shipped_with(config, where.slot)
    if tree is None:
        active = store.active()
        if active is None:
            raise WrongState(
                "no configuration was applied yet",
                state="nothing was changed",
                next=["updater config clone    makes an empty draft", "updater config import FILE"],
            )
        tree, version = store.tree(active.version), active.version
    fitting, notes = fitted(tree, shipped, config, f"v{version}")
    facts = NodeFacts(name=config.name, release=release, site=config.site, role=config.role)
    made = render(shipped, fitting, facts)
    secrets = secrets_in([tree], shipped.schema.secrets) | store.every_value(shipped.schema.secrets)
    outcome = place(made, where.root, where.history, Mask(secrets), dry_run=dry_run, what=f"v{version} {release}")
    units = act(outcome) if where.running and not dry_run else []
    report = Report(
        outcome=outcome,
        rendered={"version": version, "digest": digest(tree)},
        units=tuple(units),
        notes=tuple(map(str, notes)),
    )
    if not dry_run and not report.faults:
        where.history.finish()
    return report


def undo_in(config: NodeConfig, where: Place, store: Store, *, dry_run: bool = False) -> Report:
    """Take the latest rendering in the place back."""
    outcome = undo(where.root, where.history, mask_of(store, shipped_with(config, where.slot)), dry_run=dry_run)
    report = Report(outcome=outcome, units=tuple(act(outcome) if where.running and not dry_run else []))
    if not dry_run and not report.faults:
        where.history.undone(outcome.record)
    return report
