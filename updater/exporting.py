"""What a rehearsal needs of this node, written into one file (`exported`); and the fingerprint of what it carries."""

from __future__ import annotations

import fnmatch
import io
import json
import os
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from blake3 import blake3

from core.files import fsync_dir
from core.sql import Engine
from partitions import disks, mounts
from patches.carried import base_of, keep_of
from patches.kept_paths import Found, Keep, walk
from patches.registry import Entry, Kind, Registry
from templates import exchange
from templates.store import Store
from updater import configuring, export_data, exported
from updater.exported import Base, Carried, Data, Manifest, carried_hash, digest_of, kept_hash
from updater.layout import running_root
from updater.node import Node
from zdu.rehearsal import Fingerprint, hashed

#: How each blob of an archive is read, by its BLAKE3.
Blobs = dict[str, Callable[[], IO[bytes]]]

DataWish = Literal["empty", "anonymised", "none"]

#: Never in an export, whoever keeps them.
_SHADOWS = frozenset({"/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-"})
_PRIVATE = b"PRIVATE KEY-----"
_LOOKED_AT = 64 << 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """`without_content`: patterns of paths whose content stays here. `data`: what becomes of the databases."""

    without_content: tuple[str, ...] = ()
    data: DataWish = "empty"


@dataclass(kw_only=True)
class _Content:
    """How each of the archive's blobs is read when it is written, by its BLAKE3. Files are copied to `scratch`: they
    may change meanwhile, and may be large.
    """

    scratch: Path
    known: Blobs = field(default_factory=dict)

    def add(self, data: bytes) -> str:
        digest = blake3(data).hexdigest()
        self.known[digest] = lambda: io.BytesIO(data)
        return digest

    def add_file(self, path: Path) -> str:
        copy = self.scratch / "copy"
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            digest = digest_of(file)
        kept = copy.rename(self.scratch / digest)
        self.known[digest] = _opens(kept)
        return digest


def _opens(path: Path) -> Callable[[], IO[bytes]]:
    return lambda: path.open("rb")


# -- what the fingerprint is made of


def carried(registry: Registry) -> tuple[Carried, ...]:
    """All that is carried, in its order."""
    return tuple(_carried(entry) for entry in registry.entries())


def _carried(entry: Entry) -> Carried:
    return Carried(
        kind=str(entry.kind),
        name=entry.name,
        since=entry.lifetime.since,
        until=entry.lifetime.until,
        superseded_by=entry.lifetime.superseded_by,
        reason=entry.reason,
        blob=entry.blob or "",
        facts=entry.facts,
    )


def configuration(node: Node) -> dict[str, Any] | None:
    """The active configuration as plain data, the values of secrets left out; None where none was applied."""
    path = configuring.store_path(node.config)
    if not path.exists():
        return None
    with Store.open(path) as store:
        active = store.active()
        if active is None:
            return None
        secrets = configuring.shipped_with(node.config, node.booted).schema.secrets
        return exchange.export(store.tree(active.version), active.version, secrets)


def configured_hash(document: dict[str, Any] | None) -> str:
    """For a fingerprint. The number of a configuration does not count, its content does."""
    return "" if document is None else hashed({key: each for key, each in document.items() if key != "version"})


def fingerprint(node: Node, bundle: str) -> Fingerprint:
    """Of this node as it is now, with a bundle (BLAKE3 of its manifest). Reads all kept files."""
    things: tuple[Carried, ...] = ()
    kept: tuple[exported.File, ...] = ()
    with _registry(node) as registry:
        if registry is not None:
            things = carried(registry)
            kept = tuple(_files(_keeps(registry), running_root(node.config), lambda *_: ""))
    return Fingerprint(
        bundle=bundle,
        carried=carried_hash(things),
        kept=kept_hash(kept),
        configuration=configured_hash(configuration(node)),
    )


def _keeps(registry: Registry) -> list[Keep]:
    return [keep_of(entry) for entry in registry.entries(Kind.FILE)]


@contextmanager
def _registry(node: Node) -> Iterator[Registry | None]:
    if not (node.config.data / "carried.sqlite").exists():
        yield None
        return
    with Registry.of(node.config.data) as registry:
        yield registry


# -- the whole


def collect(node: Node, wishes: Wishes, scratch: Path) -> tuple[Manifest, Blobs]:
    """What an export would have: its manifest, and how each of its blobs is read. `scratch`: an empty directory that
    must outlive the reading. Raises UpdaterError, OSError.
    """
    content, root, config = _Content(scratch=scratch), running_root(node.config), node.config
    secret = _secrets(node, wishes.without_content)
    with _registry(node) as registry:
        things = carried(registry) if registry else ()
        keeps = _keeps(registry) if registry else []
        shipped: dict[str, str] = {}
        kept = tuple(_files(keeps, root, secret, content))
        if registry is not None:
            for entry in registry.entries():
                if entry.blob:
                    content.known[entry.blob] = _opens(registry.blob(entry))
            base = base_of(registry, node.booted)
            for each in kept:
                if each.kind == "file" and not each.left_out and (original := base(each.path)) is not None:
                    shipped[each.path] = content.add(original)
    document = configuration(node)
    carry = [Keep(pattern=str(path)) for path in config.stage.carry]
    files = tuple(_files(carry, root, secret, content))
    databases, unsaid = _databases(node, wishes.data, scratch, content)
    record = node.journal.slot(node.booted)
    omitted = document.get("omitted", {}) if document else {}
    manifest = Manifest(
        format=exported.FORMAT,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        agent=version("updater"),
        node=exported.Node(
            name=config.name,
            site=config.site,
            role=config.role,
            compatible=config.compatible,
            config=str(node.path.absolute()),
            release=str(node.release(node.booted) or ""),
            content=record.get("content", ""),
            manifest=record.get("manifest", ""),
            source=record.get("source", ""),
        ),
        base=_base(node),
        toml=content.add(node.path.read_bytes()),
        keys={str(path): content.add(path.read_bytes()) for path in config.trust.keys},
        files=files,
        carried=things,
        kept=kept,
        shipped=shipped,
        configuration=content.add(exchange.dumps(document, toml=False).encode()) if document else "",
        configured=configured_hash(document),
        databases=databases,
        left_out=(
            *(f"{each.path}: {each.left_out}" for each in (*files, *kept) if each.left_out),
            *(f"option {option} of {place}: a secret" for place, own in omitted.items() for option in own),
            *unsaid,
        ),
        data_release=str(node.data_release or ""),
    )
    return manifest, {digest: read for digest, read in content.known.items() if digest in manifest.blobs}


def write(path: Path, manifest: Manifest, blobs: Blobs) -> None:
    """Write an export: whole or not at all, for its owner only. Raises OSError."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.absolute().parent)  # of mode 0600
    try:
        with os.fdopen(fd, "wb") as file:
            with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as archive:
                _put(archive, exported.MANIFEST, io.BytesIO(json.dumps(asdict(manifest), indent=1).encode()))
                for digest in sorted(blobs):
                    with blobs[digest]() as blob:
                        _put(archive, f"{exported.BLOBS}{digest}", blob)
            file.flush()
            os.fsync(file.fileno())
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    fsync_dir(path.absolute().parent)


def _put(archive: tarfile.TarFile, name: str, data: IO[bytes]) -> None:
    about = tarfile.TarInfo(name)
    about.size, about.mode = data.seek(0, os.SEEK_END), 0o600
    data.seek(0)
    archive.addfile(about, data)


Secret = Callable[[str, Path], str]


def _secrets(node: Node, patterns: Sequence[str]) -> Secret:
    """Tells why the content of a file stays here; empty if it may go."""
    databases = (*node.config.databases.values(), *node.config.migrations.replicas)
    passwords = {str(each.password_file) for each in databases if each.password_file}

    def why(path: str, at: Path) -> str:
        if any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns):
            return "left out by the operator"
        if path in passwords:
            return "a password"
        if path in _SHADOWS:
            return "password hashes"
        with at.open("rb") as file:
            return "a private key" if _PRIVATE in file.read(_LOOKED_AT) else ""

    return why


def _files(keeps: Iterable[Keep], root: Path, why: Secret, content: _Content | None = None) -> Iterator[exported.File]:
    """What is kept, with hashes; what is neither file, directory nor symlink is no configuration."""
    for found in walk(keeps, root):
        kind = _KINDS.get(stat.S_IFMT(found.stat.st_mode))
        if kind is None:
            continue
        about: dict[str, Any] = {
            "path": found.path,
            "kind": kind,
            "mode": stat.S_IMODE(found.stat.st_mode),
            "uid": found.stat.st_uid,
            "gid": found.stat.st_gid,
        }
        if kind == "symlink":
            about["target"] = str(found.at.readlink())
        elif kind == "file":
            about |= _file(found, why, content)
        yield exported.File(**about)


_KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}


def _file(found: Found, why: Secret, content: _Content | None) -> dict[str, Any]:
    left_out = why(found.path, found.at)
    if content is not None and not left_out:
        return {"size": found.stat.st_size, "digest": content.add_file(found.at)}
    with found.at.open("rb") as file:
        return {"size": found.stat.st_size, "digest": digest_of(file), "left_out": left_out}


def _databases(node: Node, wish: DataWish, scratch: Path, content: _Content) -> tuple[dict[str, Data], list[str]]:
    """The databases of node.toml, and in words what is not in the export."""
    found: dict[str, Data] = {}
    unsaid = []
    for name, database in node.config.databases.items():
        path = database.path
        if wish == "none" or database.engine is not Engine.SQLITE or path is None or not path.exists():
            why = (
                "not wanted"
                if wish == "none"
                else "a server's"
                if database.engine is not Engine.SQLITE
                else "not there"
            )
            unsaid.append(f"database {name}: {why}")
            found[name] = Data(engine=str(database.engine), data="left out", path=str(path or ""))
            continue
        copy = scratch / f"{name}.sqlite"
        (export_data.empty if wish == "empty" else export_data.anonymised)(path, copy)
        found[name] = Data(engine=str(database.engine), data=wish, path=str(path), blob=content.add_file(copy))
        copy.unlink()
    return found, unsaid


def _base(node: Node) -> Base:
    config = node.config
    data = os.statvfs(config.data)
    esp = os.statvfs(config.boot.esp) if config.boot.esp.exists() else None
    return Base(
        architecture=node.machine.architecture(),
        slot=max(disks.size_of(config.slots[slot].device) for slot in ("a", "b")),
        esp=esp.f_frsize * esp.f_blocks if esp else 0,
        data=data.f_frsize * data.f_blocks,
        data_used=data.f_frsize * (data.f_blocks - data.f_bfree),
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        cpus=os.cpu_count() or 1,
        data_mount=str(mount_of(config.data)) if config.machine == "host" else "",
    )


def mount_of(path: Path) -> Path:
    """Where the filesystem of a path is mounted."""
    points = [each.point for each in mounts.mounts() if path.resolve().is_relative_to(each.point)]
    return max(points, key=lambda point: len(point.parts), default=Path("/"))
