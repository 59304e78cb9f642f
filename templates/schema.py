"""The options that a release knows: TOML files in the bundle's section ``templates``, directory ``schema``. Pure but
for `load`. Format: docs/templates.md.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import ConfigError
from core.schema import SchemaError, structure
from templates.options import MASK, Option
from templates.tree import Tree

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")

#: Names that templates use for other things than groups of options.
RESERVED = frozenset({"node", "instance", "instances", "environments", "release", "header", "loop", "range", "dict"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Options that belong together."""

    title: str
    help: str = ""
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemaFile:
    """One schema file. `removed`: options of earlier releases that are gone, and why."""

    groups: dict[str, Group] = field(default_factory=dict)
    removed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Schema:
    """All options of a release by their full names (``group.option``).

    `renamed`: old name → new name. `removed`: old name → why it is gone.
    """

    options: Mapping[str, Option]
    groups: Mapping[str, Group]
    renamed: Mapping[str, str]
    removed: Mapping[str, str]

    @property
    def defaults(self) -> dict[str, object]:
        """Every option with its default; None where there is none."""
        return {name: option.default for name, option in self.options.items()}

    @property
    def secrets(self) -> frozenset[str]:
        """Names of the options that are secret, those of earlier releases with them."""
        own = {name for name, option in self.options.items() if option.is_secret}
        return frozenset(own | {old for old, new in self.renamed.items() if new in own})

    def secrets_of(self, tree: Tree) -> frozenset[str]:
        """Names in the tree that are handled as secrets: secret options, and those that nobody knows."""
        names = {name for own in tree.values.values() for name in own}
        return self.secrets | {name for name in names if self.renamed.get(name, name) not in self.options}

    def shown(self, name: str, value: object) -> str:
        """A value as people may see it: nobody knows of an unknown option whether it is secret, so it is hidden too."""
        option = self.options.get(self.renamed.get(name, name))
        return option.shown(value) if option is not None else MASK if value is not None else "–"

    def near(self, name: str) -> list[str]:
        """Names of options that somebody who typed `name` may have meant."""
        from difflib import get_close_matches

        return get_close_matches(name, list(self.options), n=3)


def load(directory: Path) -> Schema:
    """Read every ``*.toml`` of the directory. Raises ConfigError with all faults, each by file and path in it."""
    files: dict[str, SchemaFile] = {}
    faults: list[str] = []
    try:
        paths = sorted(directory.glob("*.toml"))
        texts = {path.name: path.read_bytes() for path in paths}
    except OSError as error:
        raise ConfigError(f"the schema in {directory} cannot be read", what=str(error)) from error
    for name, raw in texts.items():
        try:
            files[name] = structure(tomllib.loads(raw.decode("utf-8")), SchemaFile)
        except SchemaError as error:
            faults += [f"{name}: {fault}" for fault in error.faults]
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            faults.append(f"{name}: is not TOML: {error}")
    if not texts:
        faults.append("there is no schema file")
    try:
        schema = combine(files)
    except SchemaError as error:
        faults += error.faults
    if faults:
        raise ConfigError(
            f"the schema in {directory} has {len(faults)} fault{'s' * (len(faults) != 1)}",
            what=faults,
            state="nothing was changed",
            next="this is the release's own fault: use another build of it, or mend its section templates",
        )
    return schema


def combine(files: Mapping[str, SchemaFile]) -> Schema:
    """One schema of several files. Raises SchemaError: bad or double names, renames that contradict one another."""
    options: dict[str, Option] = {}
    groups: dict[str, Group] = {}
    renamed: dict[str, str] = {}
    removed: dict[str, str] = {}
    faults: list[str] = []
    for file, content in files.items():
        for name, group in content.groups.items():
            where = f"{file}: groups.{name}"
            if not _NAME.fullmatch(name) or name in RESERVED:
                faults.append(f"{where}: is no good name for a group")
            if name in groups:
                faults.append(f"{where}: is declared in another file too")
            groups[name] = group
            for own, option in group.options.items():
                at = f"{where}.options.{own}"
                if not _NAME.fullmatch(own):
                    faults.append(f"{at}: is no good name for an option")
                options[f"{name}.{own}"] = option
                for old in option.renamed_from:
                    if old in renamed:
                        faults.append(f"{at}.renamed_from: {old} was renamed to {renamed[old]} already")
                    renamed[old] = f"{name}.{own}"
        removed.update(content.removed)
    for old, new in renamed.items():
        if old in options:
            faults.append(f"{new}: renamed_from: {old} is an option of this release itself")
        if old in removed:
            faults.append(f"{new}: renamed_from: {old} is said to be removed")
    faults += [f"removed.{name}: is an option of this release" for name in removed if name in options]
    if faults:
        raise SchemaError(faults)
    return Schema(options=options, groups=groups, renamed=renamed, removed=removed)
