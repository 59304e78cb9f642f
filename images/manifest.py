"""What a bundle says of itself: the signed manifest, its canonical bytes, and the questions it answers alone."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from blake3 import blake3

from core.errors import BundleInvalid, SignatureInvalid
from core.image import BootFiles
from core.release import Policy, Release
from core.schema import SchemaError, structure

FORMAT: Final = 1
#: Limits of format 1. They keep a hostile file from costing memory before its signature has been checked.
MAX_CHUNK: Final = 16 << 20
MAX_CHUNKS: Final = 1 << 18
MAX_SECTIONS: Final = 16
MAX_SECTION: Final = 64 << 20

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_SECTION = re.compile(r"[a-z][a-z0-9-]{0,31}")
_VERSION = re.compile(r"[0-9]{1,6}(\.[0-9]{1,6}){0,3}")
_HASH = re.compile(r"[0-9a-f]{64}")
_TIME = "%Y-%m-%dT%H:%M:%SZ"

#: How far a node's clock may lag behind the machine that built the bundle.
CLOCK_TOLERANCE: Final = timedelta(hours=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInfo:
    """The filesystem image: `size` in bytes, `chunk_size` in bytes (multiple of 4096), `content` = its identity
    (BLAKE3, hex; see `images.payload.content_of`), `filesystem` = type such as ``ext4``.
    """

    size: int
    chunk_size: int
    content: str
    filesystem: str

    def __post_init__(self) -> None:
        if not 4096 <= self.chunk_size <= MAX_CHUNK or self.chunk_size % 4096:
            raise ValueError(f"chunk_size {self.chunk_size} is not a multiple of 4096 up to {MAX_CHUNK}")
        if not 0 < self.size <= self.chunk_size * MAX_CHUNKS:
            raise ValueError(f"size {self.size} is not within 1 byte and {MAX_CHUNKS} chunks")
        if self.size % 512:
            raise ValueError(f"size {self.size} is not a multiple of 512")
        _match(_HASH, "content", self.content)
        _match(_WORD, "filesystem", self.filesystem)

    @property
    def count(self) -> int:
        """Number of chunks; the last may be shorter."""
        return -(-self.size // self.chunk_size)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A run of bytes in the bundle: `size` in bytes, `digest` = its BLAKE3 in hex."""

    size: int
    digest: str

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_SECTION:
            raise ValueError(f"size {self.size} is not within 0 and {MAX_SECTION}")
        _match(_HASH, "digest", self.digest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """All that a bundle promises. `sections` are stored in the order of their names. Times are ISO 8601 in UTC with
    seconds, such as ``2026-09-02T01:00:00Z``. `required_free`: bytes wanted on the data partition.
    `installable_over`: see `allows`. `policy`: overrides of `core.release.Policy` that come with this release.
    """

    format: int = FORMAT
    release: str
    lts: bool = False
    compatible: str
    architecture: str
    created: str
    expires: str | None = None
    image: ImageInfo
    index: Blob
    sections: dict[str, Blob] = field(default_factory=dict)
    required_free: int = 0
    installable_over: tuple[str, ...] = ()
    minimum_agent: str = "0"
    changelog: str = ""
    boot: BootFiles
    policy: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        faults = list(self._faults())
        if faults:
            raise ValueError("; ".join(faults))

    def _faults(self) -> Iterator[str]:
        checks: list[tuple[str, Callable[[], object]]] = [
            ("release", lambda: Release.parse(self.release)),
            ("compatible", lambda: _match(_WORD, "compatible", self.compatible)),
            ("architecture", lambda: _match(_WORD, "architecture", self.architecture)),
            ("created", lambda: moment(self.created)),
            ("expires", lambda: self.expires and moment(self.expires)),
            ("installable_over", lambda: [_span(entry) for entry in self.installable_over]),
            ("minimum_agent", lambda: _match(_VERSION, "minimum_agent", self.minimum_agent)),
            ("policy", lambda: self.policy and structure(self.policy, Policy)),
        ]
        for name, check in checks:
            try:
                check()
            except ValueError as error:
                yield f"{name}: {error}"
        if self.required_free < 0:
            yield f"required_free: {self.required_free} is negative"
        if len(self.sections) > MAX_SECTIONS:
            yield f"sections: more than {MAX_SECTIONS}"
        yield from (
            f"sections: {name!r} is not a section name" for name in self.sections if not _SECTION.fullmatch(name)
        )
        if any(not (c.isprintable() or c in "\n\t") for c in self.changelog):
            yield "changelog: has control characters"

    def to_bytes(self) -> bytes:
        """The canonical form, the one that is signed: JSON, sorted keys, no spaces, UTF-8."""
        return canonical(dataclasses.asdict(self))

    @property
    def identity(self) -> str:
        """BLAKE3 of the canonical form, in hex: what slots and records of rehearsals know a bundle by."""
        return blake3(self.to_bytes()).hexdigest()

    def allows(self, installed: Release) -> bool:
        """Whether `installable_over` lets this release follow `installed`. An empty list leaves it to the policy.

        An entry is a release (``MR95-1``), all builds of one (``MR95``), or a range with both ends included, of
        either kind (``MR90-1..MR95-9``, ``MR90..MR95``).
        """
        at = (installed.number, installed.build)
        return not self.installable_over or any(low <= at <= high for low, high in map(_span, self.installable_over))

    def agent_suffices(self, version: str) -> bool:
        """Whether an agent of this version (such as ``0.1.0``; what follows a letter is ignored) may install it."""
        return _version(version) >= _version(self.minimum_agent)


def parse(data: bytes) -> Manifest:
    """Read a manifest's canonical bytes. Raises BundleInvalid that lists every fault by its path."""
    try:
        raw = json.loads(data)
        if canonical(raw) != data:
            raise ValueError("not in canonical form (sorted keys, each key once, no spaces)")
    except (ValueError, RecursionError) as error:
        raise BundleInvalid("the manifest is not canonical JSON", what=str(error)[:200]) from error
    if isinstance(raw, dict) and type(raw.get("format")) is int and raw["format"] != FORMAT:
        raise BundleInvalid(
            f"bundle format {raw['format']} is not known here",
            what=f"this updater reads format {FORMAT}",
            next="bring the updater itself up to date first",
        )
    try:
        manifest = structure(raw, Manifest)
        absent = list(_absent(raw, dataclasses.asdict(manifest)))
    except SchemaError as error:
        faults = [printable(fault) for fault in error.faults[:50]]
        raise BundleInvalid(f"the manifest has {len(error.faults)} fault(s)", what=faults) from error
    except RecursionError as error:
        raise BundleInvalid("the manifest is nested too deeply") from error
    if absent:
        raise BundleInvalid(f"the manifest has {len(absent)} fault(s)", what=absent)
    return manifest


def _absent(raw: dict[str, Any], whole: dict[str, Any], within: str = "") -> Iterator[str]:
    """The keys that a default would stand in for: what is signed says all, and leaves nothing to its reader."""
    for key, value in whole.items():
        if key not in raw:
            yield f"{within}{key}: missing"
        elif isinstance(value, dict):
            yield from _absent(raw[key], value, f"{within}{key}.")


def printable(text: str) -> str:
    """At most 300 characters that a terminal takes as text, whoever wrote them."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])


def canonical(data: Any) -> bytes:
    """JSON with sorted keys and no spaces, in UTF-8. Raises ValueError for NaN, infinities and broken Unicode."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8")


def moment(text: str) -> datetime:
    """Read a time of the manifest. Raises ValueError."""
    return datetime.strptime(text, _TIME).replace(tzinfo=UTC)


def stamp(at: datetime) -> str:
    """Write a time as the manifest has it, in UTC with whole seconds."""
    return at.astimezone(UTC).strftime(_TIME)


def check_dates(manifest: Manifest, now: datetime) -> None:
    """Raises SignatureInvalid when the bundle has expired at `now`, or when `now` lies before the bundle was made: then
    the clock is wrong, and expiry could not be told.
    """
    made = moment(manifest.created)
    if now + CLOCK_TOLERANCE < made:
        raise SignatureInvalid(
            f"this node's clock is wrong: bundle {manifest.release} was made in its future",
            what=f"made {manifest.created}, the clock says {stamp(now)}",
            next="set the clock (timedatectl, chronyc makestep), then try again",
        )
    if manifest.expires is not None and now >= moment(manifest.expires):
        raise SignatureInvalid(
            f"bundle {manifest.release} has expired",
            what=f"valid until {manifest.expires}, the clock says {stamp(now)}",
            next=["get a newer bundle, or one signed again", "timedatectl    check the clock"],
        )


def _span(entry: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """First and last (number, build) that an entry of `installable_over` stands for. Raises ValueError."""
    low, dots, high = entry.partition("..")
    first, last = _end(low), _end(high if dots else low)
    start = (first[0], first[1] or 0)
    end = (last[0], last[1] if last[1] is not None else 1 << 62)
    if end < start:
        raise ValueError(f"{entry!r} is a range that ends before it begins")
    return start, end


def _end(text: str) -> tuple[int, int | None]:
    whole = re.fullmatch(r"MR([0-9]{1,6})", text)
    if whole:
        return int(whole[1]), None
    release = Release.parse(text)
    return release.number, release.build


def _version(text: str) -> tuple[int, ...]:
    numbers = re.match(r"[0-9]+(\.[0-9]+)*", text)
    parts = [int(part) for part in numbers[0].split(".")] if numbers else [0]
    while len(parts) > 1 and parts[-1] == 0:
        parts.pop()
    return tuple(parts)


def _match(pattern: re.Pattern[str], name: str, value: str) -> None:
    if not pattern.fullmatch(value):
        raise ValueError(f"{name} {value!r:.80} has not the form {pattern.pattern}")
