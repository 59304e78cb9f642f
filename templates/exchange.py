"""Configurations as files: TOML for people, JSON for machines. Secrets are left out, or sealed with a passphrase, or,
only when asked, in plain. Pure but for `write`.

Sealed: AES-256-GCM under a key that scrypt makes of the passphrase; the rest of the file is authenticated with it.
"""

from __future__ import annotations

import base64
import json
import os
import tomllib
from collections.abc import Set
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from core.errors import ConfigError
from core.files import write_atomic
from core.schema import SchemaError, structure
from templates.options import Value
from templates.tree import Instance, Place, Tree

FORMAT = 1
_UNTOUCHED = "nothing was changed"


class Secrets(StrEnum):
    """What an export does with secrets."""

    OMIT = "omit"
    SEAL = "seal"
    PLAIN = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """The file's content. `values`: place → option → value. `omitted`: place → options that are secret and left out."""

    format: int
    version: int = 0
    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    instances: dict[str, Instance] = field(default_factory=dict)
    omitted: dict[str, list[str]] = field(default_factory=dict)
    sealed: str = ""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: {self.format} is not {FORMAT}, the one that this program reads")
        for key in ("values", "omitted"):
            for place in getattr(self, key):
                try:
                    Place.parse(place)
                except ValueError as error:
                    raise ValueError(f"{key}: {error}") from error
        for place, own in self.values.items():
            for name, value in own.items():
                items = value if isinstance(value, list) else [value]
                if not all(isinstance(item, bool | int | str) for item in items):
                    raise ValueError(f"values.{place}.{name}: is no value of an option")


def export(
    tree: Tree, version: int, secrets: Set[str], how: Secrets = Secrets.OMIT, passphrase: str = ""
) -> dict[str, Any]:
    """The document as plain data. `secrets`: names of the secret options."""
    told: dict[str, Any] = {"format": FORMAT, "version": version, "values": {}, "instances": {}}
    hidden: dict[str, dict[str, Value]] = {}
    for place, own in sorted(tree.values.items()):
        plain = {name: value for name, value in sorted(own.items()) if how is Secrets.PLAIN or name not in secrets}
        if plain:
            told["values"][str(place)] = plain
        if rest := {name: value for name, value in sorted(own.items()) if name not in plain}:
            hidden[str(place)] = rest
    for name, each in sorted(tree.instances.items()):
        told["instances"][name] = {"application": each.application, "server": each.server}
    if hidden and how is Secrets.SEAL:
        told["sealed"] = _seal(hidden, passphrase, told)
    elif hidden:
        told["omitted"] = {place: list(own) for place, own in hidden.items()}
    return told


def read(text: str, *, name: str, passphrase: str = "", base: Tree | None = None) -> tuple[Tree, int, list[str]]:
    """The tree and version of an exported file (JSON when it begins with a brace, else TOML). Secrets that were left
    out are taken from `base`; returned third: those that are missing there too, as ``place: option``.

    Raises ConfigError: unreadable, unknown keys, no passphrase or a wrong one.
    """
    try:
        data = json.loads(text) if text.lstrip().startswith("{") else tomllib.loads(text)
        document = structure(data, Document)
    except SchemaError as error:
        raise ConfigError(f"{name} is no exported configuration", what=error.faults, state=_UNTOUCHED) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{name} is neither TOML nor JSON", what=str(error), state=_UNTOUCHED) from error
    values: dict[Place, dict[str, Value]] = {Place.parse(place): dict(own) for place, own in document.values.items()}
    if document.sealed:
        for text_of_place, secrets in _unseal(document.sealed, passphrase, data, name).items():
            values.setdefault(Place.parse(text_of_place), {}).update(secrets)
    missing = []
    for text_of_place, options in document.omitted.items():
        place = Place.parse(text_of_place)
        known = base.values.get(place, {}) if base else {}
        for option in options:
            if option in known:
                values.setdefault(place, {})[option] = known[option]
            else:
                missing.append(f"{place}: {option}")
    tree = Tree(values={place: own for place, own in values.items() if own}, instances=document.instances)
    return tree, document.version, missing


def dumps(document: dict[str, Any], *, toml: bool) -> str:
    """The document as text."""
    if not toml:
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    lines = ["# Exported by `updater config export`; read it with `updater config import`."]
    lines += [f"{key} = {_toml(document[key])}" for key in ("format", "version", "sealed") if key in document]
    for key in ("instances", "values"):
        for name, own in document[key].items():
            lines += ["", f"[{key}.{_toml(name)}]", *(f"{_toml(option)} = {_toml(own[option])}" for option in own)]
    if "omitted" in document:
        lines += ["", "# secrets that were left out", "[omitted]"]
        lines += [f"{_toml(place)} = {_toml(options)}" for place, options in document["omitted"].items()]
    return "\n".join(lines) + "\n"


def write(path: Path, text: str) -> None:
    """Put it into a file that nobody else can read."""
    write_atomic(path, text, mode=0o600)


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _seal(hidden: dict[str, dict[str, Value]], passphrase: str, rest: dict[str, Any]) -> str:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    salt, nonce = os.urandom(16), os.urandom(12)
    sealed = AESGCM(_key(passphrase, salt)).encrypt(nonce, json.dumps(hidden).encode(), _canonical(rest))
    return base64.b64encode(salt + nonce + sealed).decode()


def _unseal(sealed: str, passphrase: str, data: dict[str, Any], name: str) -> dict[str, dict[str, Value]]:
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    rest = {key: value for key, value in data.items() if key not in ("sealed", "omitted")}
    try:
        raw = base64.b64decode(sealed, validate=True)
        plain = AESGCM(_key(passphrase, raw[:16])).decrypt(raw[16:28], raw[28:], _canonical(rest))
        opened: dict[str, dict[str, Value]] = json.loads(plain)
    except (InvalidTag, ValueError) as error:
        raise ConfigError(
            f"the secrets in {name} cannot be read",
            what="the passphrase is wrong, or the file was changed since it was exported",
            state=_UNTOUCHED,
            next="export without secrets (--secrets omit) if the file is to be edited",
        ) from error
    return opened


def _canonical(rest: dict[str, Any]) -> bytes:
    """What the seal vouches for. TOML has no empty tables, so they do not count."""
    rest = {key: value for key, value in rest.items() if value != {}}
    return json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()


def _key(passphrase: str, salt: bytes) -> bytes:
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    if not passphrase:
        raise ConfigError("secrets need a passphrase", next="--passphrase-file FILE")
    return Scrypt(salt=salt, length=32, n=1 << 15, r=8, p=1).derive(passphrase.encode())
