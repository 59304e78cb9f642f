"""An export of a node: what a rehearsal needs of it, in one file. Here: its form, and reading it.

A tar archive: ``manifest.json`` first, then ``blobs/<BLAKE3>``, each once, whatever it is. The manifest says what each
is; nothing is taken from the archive that the manifest does not name, with its hash.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Literal

from blake3 import blake3

from core.errors import ConfigError
from core.schema import SchemaError, structure
from zdu.rehearsal import hashed

FORMAT: Final = 1
MANIFEST: Final = "manifest.json"
BLOBS: Final = "blobs/"

#: No manifest is larger; it is read before anything of it is believed.
_LARGEST: Final = 64 << 20
_BLOCK: Final = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file, directory or symlink. `mode`: permission bits. `digest`: BLAKE3 of a file's content, `target`: where a
    symlink points. `left_out`: why the content is not in the archive; empty if it is.
    """

    path: str
    kind: Literal["file", "directory", "symlink"]
    mode: int
    uid: int
    gid: int
    size: int = 0
    digest: str = ""
    target: str = ""
    left_out: str = ""

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or ".." in self.path.split("/"):
            raise ValueError(f"path: {self.path!r} is no absolute path")

    @property
    def identity(self) -> list[object]:
        """What counts in a fingerprint."""
        return [self.path, self.kind, self.mode, self.uid, self.gid, self.digest, self.target]


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A package, patch or kept path, as the registry has it. `blob`: BLAKE3 of its bytes; empty for a path."""

    kind: str
    name: str
    since: str | None = None
    until: str | None = None
    superseded_by: str | None = None
    reason: str = ""
    blob: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def identity(self) -> list[object]:
        """What counts in a fingerprint."""
        return [self.kind, self.name, self.since, self.until, self.superseded_by, self.blob, self.facts]


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """A database. `data`: "empty" (its form and what it knows of migrations), "anonymised", or "left out"."""

    engine: str
    data: Literal["empty", "anonymised", "left out"]
    path: str = ""
    blob: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """The machine. Sizes in bytes. `data_mount`: where the data partition is mounted."""

    architecture: str
    slot: int
    esp: int
    data: int
    data_used: int
    memory: int
    cpus: int
    data_mount: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Who it is, and what runs. `config`: path of node.toml. `manifest`: BLAKE3 of the running release's manifest,
    `content`: identity of its image, `source`: where it came from; empty where nobody noted it.
    """

    name: str
    site: str
    role: str
    compatible: str
    config: str
    release: str
    content: str = ""
    manifest: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that is in an export. `toml`, `keys`: blobs of node.toml and of the release keys (name → blob). `files`: what
    the node carries by `stage.carry`; `kept`: what the operator keeps. `configuration`: blob; empty where none was
    applied. `data_release`: what the journal knows of the data.
    """

    format: int
    made: str
    agent: str
    node: Node
    base: Base
    toml: str
    keys: dict[str, str]
    files: tuple[File, ...] = ()
    carried: tuple[Carried, ...] = ()
    kept: tuple[File, ...] = ()
    shipped: dict[str, str] = field(default_factory=dict)
    configuration: str = ""
    configured: str = ""
    databases: dict[str, Data] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    data_release: str = ""

    def __post_init__(self) -> None:
        if self.format != FORMAT:
            raise ValueError(f"format: {self.format} is not {FORMAT}, the one that this program reads")

    @property
    def blobs(self) -> set[str]:
        """Every BLAKE3 that the archive has."""
        files = (each.digest for each in (*self.files, *self.kept) if each.digest and not each.left_out)
        found = {self.toml, self.configuration, *self.keys.values(), *self.shipped.values(), *files}
        found |= {each.blob for each in self.carried} | {each.blob for each in self.databases.values()}
        return found - {""}


def carried_hash(carried: tuple[Carried, ...]) -> str:
    """For a fingerprint: packages, patches and what is kept."""
    return hashed([each.identity for each in carried])


def kept_hash(kept: tuple[File, ...]) -> str:
    """For a fingerprint: the kept files themselves."""
    return hashed([each.identity for each in kept])


class Exported:
    """An export, opened. `manifest` has been checked; each blob is when it is read."""

    def __init__(self, archive: tarfile.TarFile, path: Path, manifest: Manifest) -> None:
        self._archive, self._path = archive, path
        self.manifest = manifest

    def read(self, digest: str) -> bytes:
        """The bytes of a BLAKE3 that the manifest names. Raises ConfigError."""
        try:
            file = self._archive.extractfile(f"{BLOBS}{digest}")
            data = file.read() if file is not None else b""
        except KeyError as error:
            raise _damaged(self._path, f"{digest[:12]}… is not in it") from error
        except tarfile.TarError as error:
            raise _damaged(self._path, str(error)) from error
        except OSError as error:
            raise _unreadable(self._path, error) from error
        if blake3(data).hexdigest() != digest:
            raise _damaged(self._path, f"{digest[:12]}… has other bytes than it should")
        return data


@contextmanager
def opened(path: Path) -> Iterator[Exported]:
    """Open an export. Raises ConfigError where it cannot be read, is damaged, or is none."""
    with ExitStack() as stack:
        try:
            file = stack.enter_context(path.open("rb"))
            archive = stack.enter_context(tarfile.open(fileobj=file, mode="r:"))
            found = Exported(archive, path, _manifest(archive, path))
        except tarfile.TarError as error:
            raise _damaged(path, str(error)) from error
        except OSError as error:
            raise _unreadable(path, error) from error
        yield found


def _manifest(archive: tarfile.TarFile, path: Path) -> Manifest:
    first = archive.next()
    if first is None or first.name != MANIFEST or not first.isreg() or first.size > _LARGEST:
        raise _damaged(path, f"it does not begin with {MANIFEST}")
    file = archive.extractfile(first)
    assert file is not None
    try:
        return structure(json.loads(file.read()), Manifest)
    except SchemaError as error:
        raise ConfigError(f"{path} is no export of a node", what=error.faults[:20]) from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _unreadable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(
        f"the export {path} cannot be read", what=error.strerror or str(error), state="nothing was changed"
    )


def _damaged(path: Path, why: str) -> ConfigError:
    return ConfigError(
        f"{path} is no export of a node, or damaged",
        what=why,
        state="nothing was changed",
        next="updater export FILE    makes one, on the node",
    )


def digest_of(file: IO[bytes]) -> str:
    """BLAKE3 of an open file, in hex."""
    whole = blake3()
    while block := file.read(_BLOCK):
        whole.update(block)
    return whole.hexdigest()
