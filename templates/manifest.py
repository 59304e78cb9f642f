"""What a release renders: ``manifest.toml`` beside the schema in the bundle's section ``templates``. Format:
docs/templates.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from core.errors import ConfigError
from core.schema import load_toml
from templates import schema
from templates.schema import Schema

MANIFEST = "manifest.toml"
_MODE = re.compile(r"0[0-7]{3}")
_OWNER = re.compile(r"[a-z_][a-z0-9_.-]{0,31}|[0-9]{1,9}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@{}-]+\.[a-z]+")
_VARIABLE = re.compile(r"\{([^{}]*)\}")

#: What may stand in braces in a target or in the name of a unit.
VARIABLES = frozenset({"instance", "node"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Validator:
    """A program that looks at a file before it is put in place. ``{file}`` in `command` is the new file.

    It runs in the target root, in a mount namespace of its own in which /run is empty but for `directories`. `needs`:
    globs in the root; where one matches nothing, the validator is left out with a note.
    """

    command: tuple[str, ...]
    directories: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    timeout: int = 30

    def __post_init__(self) -> None:
        if not self.command or "{file}" not in " ".join(self.command[1:]):
            raise ValueError("command: must be a program and its arguments, {file} among them")
        for key in ("directories", "needs"):
            for path in getattr(self, key):
                if not path.startswith("/") or ".." in PurePosixPath(path).parts:
                    raise ValueError(f"{key}: {path} must be absolute and without '..'")
        if any(not path.startswith("/run/") for path in self.directories):
            raise ValueError("directories: must be below /run")
        if not 1 <= self.timeout <= 300:
            raise ValueError("timeout: must be from 1 to 300 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileSpec:
    """One file. `template`: its path in the section. `application`: rendered once for each instance of it on the
    node (with ``{instance}`` in `target`); without one, once for the node. `when`: a Jinja expression. `comment`: what
    begins a comment line in it (empty: the file gets no header). `restart`, `reload`: units, when it changed.
    """

    template: str
    target: str
    owner: str = "root"
    group: str = "root"
    mode: str = "0644"
    application: str = ""
    when: str = ""
    comment: str = "#"
    restart: tuple[str, ...] = ()
    reload: tuple[str, ...] = ()
    validate: Validator | None = None

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.target).parts
        if not self.target.startswith("/") or ".." in parts or len(parts) < 2 or self.target.endswith("/"):
            raise ValueError("target: must be the absolute path of a file, without '..'")
        if PurePosixPath(self.template).is_absolute() or ".." in PurePosixPath(self.template).parts:
            raise ValueError("template: must be a path in the section, without '..'")
        if not _MODE.fullmatch(self.mode):
            raise ValueError("mode: must be four octal digits such as 0644, without setuid or setgid")
        for key in ("owner", "group"):
            if not _OWNER.fullmatch(getattr(self, key)):
                raise ValueError(f"{key}: is no name of a user or group")
        for key in ("restart", "reload"):
            if wrong := [unit for unit in getattr(self, key) if not _UNIT.fullmatch(unit)]:
                raise ValueError(f"{key}: {wrong[0]!r} is no unit")
        for key, text in (("target", self.target), *(("restart", unit) for unit in (*self.restart, *self.reload))):
            if unknown := set(_VARIABLE.findall(text)) - VARIABLES:
                raise ValueError(f"{key}: {{{unknown.pop()}}} is not known; there are {{instance}} and {{node}}")
        if self.application and "{instance}" not in self.target:
            raise ValueError("target: needs {instance}, for there may be several instances of an application")


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The whole of manifest.toml."""

    files: tuple[FileSpec, ...] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        targets = [each.target for each in self.files]
        if doubles := sorted({target for target in targets if targets.count(target) > 1}):
            raise ValueError(f"files: {doubles[0]} is written by two templates; make them one with a condition")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shipped:
    """What a release ships for configuration. `texts`: every template, by its path in the section."""

    schema: Schema
    manifest: Manifest
    texts: dict[str, str]


def load(directory: Path) -> Shipped:
    """Read an unpacked section: ``schema/*.toml``, ``manifest.toml``, and templates. Raises ConfigError with all faults
    of the file that has some.
    """
    known = schema.load(directory / "schema")
    manifest = load_toml(directory / MANIFEST, Manifest, what="the list of templates")
    texts: dict[str, str] = {}
    wrong: list[str] = []
    for path in sorted(directory.rglob("*.j2")):
        name = path.relative_to(directory).as_posix()
        try:
            texts[name] = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            wrong.append(f"{name}: {error}")
    wrong += [f"{each.target}: there is no {each.template}" for each in manifest.files if each.template not in texts]
    if wrong:
        raise ConfigError("the templates do not hold together", what=wrong, state="nothing was changed")
    return Shipped(schema=known, manifest=manifest, texts=texts)


def builtin() -> Path:
    """The section that comes with this program, for releases that ship none."""
    return Path(__file__).parent / "files"
