"""By what a file that differs from the release is explained: patches, packages, kept paths, rendered files."""

from __future__ import annotations

import fnmatch
import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from core.files import inside
from core.run import run
from patches.drift import Difference, Drift, Explain, FileState
from patches.packages_rpm import LONG, database_of

_GHOST = 64
_ITEM, _END = "\x1e", "\x1d"
_QUERY = f"%{{NAME}} %{{FILEDIGESTALGO}}{_ITEM}[%{{FILEFLAGS}} %{{FILEDIGESTS}} %{{FILENAMES}}{_ITEM}]{_END}"

#: As rpm numbers them; packages without the tag have MD5.
_ALGORITHMS: Final = {"1": "md5", "2": "sha1", "8": "sha256", "9": "sha384", "10": "sha512", "11": "sha224"}


class _Owned(NamedTuple):
    package: str
    algorithm: str
    digest: str  # empty: anything goes


def declared_by(root: Path, exact: Mapping[str, tuple[str | None, str]], kept: Mapping[str, str]) -> Explain:
    """For `compare`. `exact`: path → the BLAKE3 that it was left with (None: it was removed), and by what. `kept`: path
    or pattern as of `updater keep` → by what it and all below is explained, whatever is in it; but not that it is
    missing, for then there is nothing to keep. Paths may lead through symlinks of the root.
    """
    left = {real_path(root, path): told for path, told in exact.items()}
    tops = [(PurePosixPath(_real_pattern(root, each)).parts[1:], why) for each, why in kept.items()]
    above = {str(parent) for path, (digest, _) in left.items() if digest for parent in PurePosixPath(path).parents}

    def explain(drift: Drift, now: FileState | None) -> str:
        digest, why = left.get(drift.path, ("", ""))
        if why and digest == (now.digest if now else None):
            return why
        if now is None:
            return ""
        parts = PurePosixPath(drift.path).parts[1:]
        found = next((why for pattern, why in tops if _covers(pattern, parts)), "")
        holds = drift.how is Difference.ADDED and now.kind == "d"
        if holds and (drift.path in above or any(_leads(pattern, parts) for pattern, _ in tops)):
            return found or "holds what is declared"
        return found

    return explain


def real_path(root: Path, path: str) -> str:
    """The path as the walk comes upon it: symlinks above it are followed inside the root. Raises UpdaterError."""
    pure = PurePosixPath(path)
    return f"/{(inside(root, pure.parent) / pure.name).relative_to(root.resolve())}"


def _real_pattern(root: Path, pattern: str) -> str:
    parts = PurePosixPath(pattern).parts
    plain = next((n for n, part in enumerate(parts) if set(part) & set("*?[")), len(parts))
    if plain == len(parts):
        return real_path(root, pattern)
    top = inside(root, PurePosixPath(*parts[:plain])).relative_to(root.resolve())
    return str(PurePosixPath("/", top, *parts[plain:]))


def _covers(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether a pattern means the path, or a directory that it is in."""
    if not pattern:
        return True
    if pattern[0] == "**":
        return _covers(pattern[1:], parts) or (bool(parts) and _covers(pattern, parts[1:]))
    return bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _covers(pattern[1:], parts[1:])


def _leads(pattern: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    """Whether what a pattern means may be in the directory."""
    if not parts or pattern[:1] == ("**",):
        return True
    return bool(pattern) and fnmatch.fnmatchcase(parts[0], pattern[0]) and _leads(pattern[1:], parts[1:])


def of_packages(root: Path, names: Iterable[str]) -> Explain:
    """For `compare`: files of these packages, as the package database of the root has them. A file that was changed
    after it was installed is not explained by it, nor is one that is missing. Raises CommandFailed, NotPermitted.
    """
    wanted = sorted(set(names))
    database = database_of(root) if wanted else None
    owned: dict[str, _Owned] = {}
    if database is not None:
        told = run(*database.rpm, "-qa", "--qf", _QUERY, *wanted, timeout=LONG).stdout
        for package in told.split(_END)[:-1]:
            head, *files = package.split(_ITEM)[:-1]
            name, _, algorithm = head.partition(" ")
            for flags, digest, path in (each.split(" ", 2) for each in files):
                kept = "" if int(flags) & _GHOST else digest
                owned[real_path(root, path)] = _Owned(name, _ALGORITHMS.get(algorithm, "md5"), kept)
    above = {str(parent) for path in owned for parent in PurePosixPath(path).parents}

    def explain(drift: Drift, now: FileState | None) -> str:
        if now is None:
            return ""
        file = owned.get(drift.path)
        if file is None:
            return "holds what is declared" if drift.path in above and drift.how is Difference.ADDED else ""
        as_installed = not file.digest or now.kind != "f" or _hashed(root, drift.path, file.algorithm) == file.digest
        return f"package {file.package}" if as_installed else ""

    return explain


def _hashed(root: Path, path: str, algorithm: str) -> str:
    try:
        with open(os.open(root / path.lstrip("/"), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:  # gone since it was listed
        return ""
