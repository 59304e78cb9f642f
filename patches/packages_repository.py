"""Packages taken by name from a repository: a directory or URL with ``repodata``.

The repository itself is not trusted: each package is checked by its own signature when it is added. Only the packages
that were named are taken, in their newest version for this architecture; what they need and the release has not must be
named too (the check says what is missing).
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from core.errors import ConfigError, SourceUnreachable
from patches.packages_version import Evr, compare

_REPO = "{http://linux.duke.edu/metadata/repo}"
_COMMON = "{http://linux.duke.edu/metadata/common}"
_LIMIT = 1 << 30  # bytes: an index of half a million packages fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Offered:
    """A package that a repository offers. `digest`: "sha256:…" of the file."""

    name: str
    evr: Evr
    architecture: str
    place: str
    digest: str


_BY_AGE = cmp_to_key(compare)


def take(repository: str, names: Sequence[str], directory: Path, *, architecture: str = "") -> list[Path]:
    """Copy the named packages (``name`` or ``name-version-release``) to `directory`; returns their files.

    Raises ConfigError when the repository has no such package, SourceUnreachable.
    """
    wanted = (architecture or platform.machine(), "noarch")
    offered = [each for each in offers(repository) if each.architecture in wanted]
    chosen = []
    for name in names:
        found = [each for each in offered if name in (each.name, f"{each.name}-{each.evr}")]
        if not found:
            near = sorted({each.name for each in offered if name.split("-")[0] in each.name})
            raise ConfigError(f"the repository has no package {name}", what=[repository, *near[:10]])
        chosen.append(max(found, key=lambda each: _BY_AGE(each.evr)))
    files = []
    for each in dict.fromkeys(chosen):
        data = _read(repository, each.place)
        kind, _, digest = each.digest.partition(":")
        if kind not in hashlib.algorithms_guaranteed or hashlib.new(kind, data).hexdigest() != digest:
            raise SourceUnreachable(f"{each.place} is not what the repository's index says", what=repository)
        file = directory / PurePosixPath(each.place).name
        file.write_bytes(data)
        files.append(file)
    return files


def offers(repository: str) -> list[Offered]:
    """All packages in the repository's index. Raises SourceUnreachable."""
    try:
        index = ElementTree.fromstring(_read(repository, "repodata/repomd.xml"))
        place = index.find(f"{_REPO}data[@type='primary']/{_REPO}location")
        if place is None:
            raise ValueError("no list of packages (primary) in repomd.xml")
        href = place.attrib["href"]
        primary = ElementTree.fromstring(_unpacked(href, _read(repository, href)))
        return [_offered(each) for each in primary.iter(f"{_COMMON}package")]
    except (ElementTree.ParseError, OSError, ValueError, KeyError, AttributeError, EOFError, lzma.LZMAError) as error:
        raise SourceUnreachable(f"the index of {repository} cannot be read", what=str(error)) from error


def _offered(package: ElementTree.Element) -> Offered:
    def of(tag: str) -> ElementTree.Element:
        found = package.find(f"{_COMMON}{tag}")
        if found is None:
            raise ValueError(f"a package without {tag}")
        return found

    version = of("version").attrib
    return Offered(
        name=of("name").text or "",
        evr=Evr(int(version.get("epoch", "0")), version["ver"], version["rel"]),
        architecture=of("arch").text or "",
        place=of("location").attrib["href"],
        digest=f"{of('checksum').attrib['type']}:{of('checksum').text}",
    )


def _unpacked(name: str, data: bytes) -> bytes:
    if name.endswith(".gz"):
        return gzip.decompress(data)
    if name.endswith(".xz"):
        return lzma.decompress(data)
    if name.endswith(".zst"):
        import zstandard

        try:
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        except zstandard.ZstdError as error:
            raise ValueError(f"{name}: {error}") from error
    return data


def _read(repository: str, place: str) -> bytes:
    path = PurePosixPath(place)
    if path.is_absolute() or ".." in path.parts or "://" in place:
        raise SourceUnreachable(f"the index of {repository} leads out of it", what=place)
    if "://" not in repository or repository.startswith("file://"):
        file = Path(repository.removeprefix("file://"), path)
        try:
            return file.read_bytes()
        except OSError as error:
            raise SourceUnreachable(f"{file} cannot be read", what=error.strerror or str(error)) from error
    return _fetch(f"{repository.rstrip('/')}/{path}")


def _fetch(url: str) -> bytes:
    import urllib3

    try:
        with urllib3.PoolManager(timeout=30.0, retries=urllib3.Retry(3, redirect=3)) as pool:
            answer = pool.request("GET", url, preload_content=False)
            data: bytes = answer.read(_LIMIT + 1, decode_content=False)
            answer.release_conn()
    except urllib3.exceptions.HTTPError as error:
        raise SourceUnreachable(f"{url} cannot be read", what=str(error)) from error
    if answer.status != 200 or len(data) > _LIMIT:
        raise SourceUnreachable(f"{url} cannot be read", what=f"HTTP status {answer.status}")
    return data
