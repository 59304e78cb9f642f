"""Whether a configuration fits a release: values against the schema, and names carried over from older ones. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from templates.options import Value
from templates.schema import Schema
from templates.tree import GLOBAL, NAME, Instance, Place, Tree, resolve


class Change(StrEnum):
    """What becomes of a value whose option the release does not know under that name."""

    RENAMED = "renamed"
    REMOVED = "removed"
    UNKNOWN = "unknown"
    DOUBLE = "double"  # set under both names: the new one counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """One thing that `upgraded` did, in words without values."""

    change: Change
    place: Place
    option: str
    text: str

    def __str__(self) -> str:
        return f"{self.place}: {self.text}"


def upgraded(tree: Tree, schema: Schema) -> tuple[Tree, list[Note]]:
    """The tree with the names of this release, and what became of each value that had another one.

    A configuration of an older release so serves the new one; done twice it changes nothing more. Values of options
    that are unknown or removed are left out of the result: they stay in the stored configuration, for the way back.
    """
    notes: list[Note] = []
    values: dict[Place, Mapping[str, Value]] = {}
    for place, own in tree.values.items():
        kept = {name: value for name, value in own.items() if name in schema.options}
        for name, value in sorted(own.items()):
            if name not in schema.options:
                change, text = _fate(name, kept, schema)
                notes.append(Note(change=change, place=place, option=name, text=text))
                if change is Change.RENAMED:
                    kept[schema.renamed[name]] = value
        if kept:
            values[place] = kept
    return Tree(values=values, instances=tree.instances), notes


def _fate(name: str, kept: Mapping[str, Value], schema: Schema) -> tuple[Change, str]:
    new = schema.renamed.get(name)
    if new is not None and new in kept:
        return Change.DOUBLE, f"{name} is now {new}, which is set as well: the value under the new name counts"
    if new is not None:
        return Change.RENAMED, f"{name} is now {new}"
    if name in schema.removed:
        return Change.REMOVED, f"{name} is no longer an option: {schema.removed[name]}"
    near = schema.near(name)
    return Change.UNKNOWN, f"{name} is unknown to this release{f'; near: {near[0]}' if near else ''}"


def faults(tree: Tree, schema: Schema, extra: Mapping[str, Instance] | None = None) -> list[str]:
    """Everything wrong with the tree, each with its place and option; secrets are never shown.

    Required options are looked for in every instance (and those in `extra`); where there is none, in global.
    """
    told = [f"instance:{name}: is no good name" for name in tree.instances if not NAME.fullmatch(name)]
    for place, own in sorted(tree.values.items()):
        for name, value in sorted(own.items()):
            option = schema.options.get(name)
            if option is None:
                told.append(f"{place}: {_fate(name, own, schema)[1]}")
            elif not option.may_be_set_at(place.level):
                told.append(f"{place}: {name}: can be set at {', '.join(option.levels)} only")
            elif fault := option.fault(value):
                told.append(f"{place}: {name}: {fault}")
    required = [name for name, option in schema.options.items() if option.required]
    instances = {**tree.instances, **(extra or {})}
    if not required:
        return told
    if not instances:
        return told + [f"global: {name}: must be set" for name in required if name not in tree.values.get(GLOBAL, {})]
    for instance, known in instances.items():
        found = resolve(tree, tree.target(instance, application=known.application), schema.defaults)
        told += [f"instance:{instance}: {name}: must be set" for name in required if found[name] is None]
    return told
