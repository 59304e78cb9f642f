"""What the operator carries: packages, patches and files, kept in one way, with who, when and why.

``<data>/carried.sqlite`` has the entries, ``<data>/carried/<BLAKE3>`` the bytes of packages and patches. No entry is
ever deleted: what was removed or replaced stays as history.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from core.errors import ConfigError, NotReady
from core.faults import point
from core.files import fsync_dir, write_atomic
from core.release import Release
from core.store import Store, translated
from patches.lifetime import Decision, Lifetime, decide_all, supersedes_itself

Facts = dict[str, Any]

_FORM = """
CREATE TABLE IF NOT EXISTS readers (oldest_reader INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS carried (
    id INTEGER PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, place INTEGER NOT NULL,
    since TEXT, until TEXT, superseded_by TEXT, reason TEXT NOT NULL, blob TEXT, facts TEXT NOT NULL,
    added TEXT NOT NULL, added_by TEXT NOT NULL,
    ended TEXT, ended_by TEXT, ended_why TEXT);
CREATE UNIQUE INDEX IF NOT EXISTS one_of_a_name ON carried (kind, name) WHERE ended IS NULL;
CREATE TABLE IF NOT EXISTS outcomes (
    slot TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, facts TEXT NOT NULL,
    at TEXT NOT NULL, PRIMARY KEY (slot, kind, name));
"""


class Kind(StrEnum):
    """What can be carried. The words stand in the registry's file."""

    PACKAGE = "package"
    PATCH = "patch"
    FILE = "file"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that is carried, or was. `place`: its order among its kind. `blob`: BLAKE3 of its bytes, in hex.
    `facts`: what its kind knows of it, as JSON. Times are UTC.
    """

    kind: Kind
    name: str
    place: int
    lifetime: Lifetime
    reason: str
    blob: str | None
    facts: Facts
    added: datetime
    added_by: str
    ended: datetime | None = None
    ended_by: str | None = None
    ended_why: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Became:
    """What became of a carried thing in a slot. `state`: a word of its kind (installed, applied, superseded, ...)."""

    kind: Kind
    name: str
    state: str
    facts: Facts
    at: datetime


class Registry(Store):
    """The registry's file, opened. Use as a context manager."""

    WHAT = "the registry of what is carried"
    FORM = _FORM
    NEWEST = "outcomes"
    READERS = "readers"

    @classmethod
    def of(cls, data: Path) -> Registry:
        """The registry in the node's data directory. Raises NotReady, NotPermitted."""
        return cls.open(data / "carried.sqlite")

    @property
    def blobs(self) -> Path:
        """The directory of the bytes."""
        return self.path.parent / "carried"

    # -- what is carried

    def entries(self, kind: Kind | None = None, *, ended: bool = False) -> list[Entry]:
        """All that is carried, in its order; with `ended` all that ever was."""
        rows = self._all(
            "SELECT * FROM carried WHERE (? IS NULL OR kind = ?) AND (? OR ended IS NULL) ORDER BY kind, place, id",
            kind,
            kind,
            ended,
        )
        return [_entry(row) for row in rows]

    def get(self, kind: Kind, name: str) -> Entry:
        """The carried thing of this name; of packages and patches also the only one whose name begins so.

        Raises ConfigError.
        """
        known = self.entries(kind)
        found = matching(kind, known, name)
        if len(found) == 1:
            return found[0]
        several = bool(found)
        raise ConfigError(
            f"{'several' if several else 'no'} {_PLURAL[kind]} {'begin with' if several else 'of the name'} {name}",
            what=[entry.name for entry in (found or known)][:20] or f"no {_PLURAL[kind]} are carried",
            state="nothing was changed",
            next=f"updater {_VERB[kind]} list",
        )

    def add(
        self,
        kind: Kind,
        name: str,
        *,
        lifetime: Lifetime | None = None,
        reason: str = "",
        facts: Facts | None = None,
        content: bytes | Path | None = None,
        replace: bool = False,
    ) -> Entry:
        """Carry something from now on, after all others of its kind; its `content` is kept, durably.

        `replace`: take the place of the one of the same name, which becomes history. Raises ConfigError when the name
        is taken (or, with `replace`, is not), or the lifetime makes no sense among the others; OSError.
        """
        lifetime = lifetime or Lifetime()
        known = {entry.name: entry for entry in self.entries(kind)}
        if (name in known) is not replace:
            raise ConfigError(
                f"{kind} {name} is {'not carried yet' if replace else 'carried already'}",
                state="nothing was changed",
                next=f"updater {_VERB[kind]} list" if replace else f"updater {_VERB[kind]} add … --replace",
            )
        self._check_circle(name, lifetime, known)
        blob = None if content is None else self.keep(content)
        point("carried:kept")
        now = datetime.now(UTC).isoformat(timespec="seconds")
        place = known[name].place if replace else max((entry.place for entry in known.values()), default=0) + 1
        with self._transaction() as db:
            if replace:
                db.execute(
                    "UPDATE carried SET ended = ?, ended_by = ?, ended_why = ? "
                    "WHERE kind = ? AND name = ? AND ended IS NULL",
                    (now, who(), f"replaced{f': {reason}' if reason else ''}", kind, name),
                )
            db.execute(
                "INSERT INTO carried (kind, name, place, reason, blob, facts, added, added_by, since, until, "
                "superseded_by) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (kind, name, place, reason, blob, json.dumps(facts or {}), now, who(), *_bounds(lifetime)),
            )
        return self.get(kind, name)

    def expire(self, kind: Kind, name: str, until: str, *, superseded_by: str | None = None, reason: str = "") -> Entry:
        """End the lifetime at a release or build; why is added to the reason. Raises ConfigError."""
        entry = self.get(kind, name)
        try:
            lifetime = Lifetime(
                since=entry.lifetime.since,
                until=until,
                superseded_by=entry.lifetime.superseded_by if superseded_by is None else superseded_by,
            )
        except ValueError as error:
            raise ConfigError(f"{kind} {entry.name} cannot expire so", what=str(error)) from error
        self._check_circle(entry.name, lifetime, {each.name: each for each in self.entries(kind)})
        told = f"{entry.reason}; expires at {until}: {reason}" if reason else entry.reason
        with self._transaction() as db:
            db.execute(
                "UPDATE carried SET until = ?, superseded_by = ?, reason = ? "
                "WHERE kind = ? AND name = ? AND ended IS NULL",
                (until, lifetime.superseded_by, told.removeprefix("; "), kind, entry.name),
            )
        return self.get(kind, entry.name)

    def remove(self, kind: Kind, name: str, *, why: str = "") -> Entry:
        """Carry it no longer. Its bytes stay while its history may be asked for. Raises ConfigError."""
        entry = self.get(kind, name)
        with self._transaction() as db:
            db.execute(
                "UPDATE carried SET ended = ?, ended_by = ?, ended_why = ? "
                "WHERE kind = ? AND name = ? AND ended IS NULL",
                (datetime.now(UTC).isoformat(timespec="seconds"), who(), why, kind, entry.name),
            )
        return entry

    def decide(self, kind: Kind, target: Release) -> list[Decision]:
        """The decision on each thing of the kind, by lifetimes, in its order."""
        return decide_all(kind, ((entry.name, entry.lifetime) for entry in self.entries(kind)), target)

    # -- the bytes

    def blob(self, entry: Entry) -> Path:
        """Where the entry's bytes are; checked against their hash, by reading them once.

        Raises NotReady when they are missing or damaged.
        """
        from blake3 import blake3

        path = self.blobs / str(entry.blob)
        reason = "its bytes have another BLAKE3"
        try:
            if entry.blob is not None and blake3().update_mmap(path).hexdigest() == entry.blob:
                return path
        except OSError as error:
            reason = error.strerror or str(error)
        raise NotReady(
            f"the kept copy of {entry.kind} {entry.name} is damaged or gone",
            what=f"{path}: {reason}",
            state="nothing was changed",
            next=f"updater {_VERB[entry.kind]} add … --replace    with the original",
        )

    def kept(self, digest: str) -> bytes | None:
        """The bytes of a BLAKE3 that `keep` returned; None where they are gone or damaged."""
        from blake3 import blake3

        with suppress(OSError):
            data = (self.blobs / digest).read_bytes()
            return data if blake3(data).hexdigest() == digest else None
        return None

    def content(self, entry: Entry) -> bytes:
        """The entry's bytes, verified. Raises NotReady."""
        return self.blob(entry).read_bytes()

    def keep(self, content: bytes | Path) -> str:
        """Keep bytes, durably, once however often they come; returns their BLAKE3 in hex. Raises OSError."""
        from blake3 import blake3

        with translated(self.path, self.WHAT):  # a directory without rights says so as the file does
            if not self.blobs.is_dir():
                self.blobs.mkdir(mode=0o700)
                fsync_dir(self.blobs.parent)
        data = content if isinstance(content, bytes) else content.read_bytes()
        digest = blake3(data).hexdigest()
        path = self.blobs / digest
        known = None
        with suppress(OSError):
            known = blake3().update_mmap(path).hexdigest()
        if known != digest:
            write_atomic(path, data, mode=0o600)
        return digest

    # -- what became of it in a slot

    def set_outcomes(self, slot: str, kind: Kind, outcomes: Iterable[tuple[str, str, Facts]]) -> None:
        """Replace what is recorded of a kind in a slot: (name, state, facts) of each. Empty when it is written anew."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        point(f"carried:outcomes:{kind}")
        with self._transaction() as db:
            db.execute("DELETE FROM outcomes WHERE slot = ? AND kind = ?", (slot, kind))
            db.executemany(
                "INSERT INTO outcomes (slot, kind, name, state, facts, at) VALUES (?, ?, ?, ?, ?, ?)",
                [(slot, kind, name, state, json.dumps(facts), now) for name, state, facts in outcomes],
            )

    def outcomes(self, slot: str, kind: Kind | None = None) -> list[Became]:
        """What became of the carried things in a slot, as recorded when it was staged."""
        rows = self._all(
            "SELECT * FROM outcomes WHERE slot = ? AND (? IS NULL OR kind = ?) ORDER BY kind, rowid", slot, kind, kind
        )
        return [
            Became(
                kind=Kind(row["kind"]),
                name=row["name"],
                state=row["state"],
                facts=json.loads(row["facts"]),
                at=datetime.fromisoformat(row["at"]),
            )
            for row in rows
        ]

    def _check_circle(self, name: str, lifetime: Lifetime, known: dict[str, Entry]) -> None:
        lifetimes = {each: entry.lifetime for each, entry in known.items()} | {name: lifetime}
        if lifetime.superseded_by and supersedes_itself(name, lifetimes):
            raise ConfigError(
                f"{name} cannot be superseded by {lifetime.superseded_by}",
                what="they would supersede each other, and none would be carried",
                state="nothing was changed",
            )


def matching(kind: Kind, entries: Iterable[Entry], name: str) -> list[Entry]:
    """The entry of this name, else those whose names begin so. A path means itself alone: what begins so is in it."""
    known = list(entries)
    found = [entry for entry in known if entry.name == name]
    if found or kind is Kind.FILE or not name:
        return found
    return [entry for entry in known if entry.name.startswith(name)]


_VERB = {Kind.PACKAGE: "rpm", Kind.PATCH: "patch", Kind.FILE: "keep"}
_PLURAL = {Kind.PACKAGE: "packages", Kind.PATCH: "patches", Kind.FILE: "kept files"}


def _bounds(lifetime: Lifetime) -> tuple[str | None, str | None, str | None]:
    return lifetime.since, lifetime.until, lifetime.superseded_by


def who() -> str:
    """The person at the keyboard, as far as the system knows: the one before sudo, else the login, else the user id."""
    if os.environ.get("SUDO_USER"):
        return os.environ["SUDO_USER"]
    import pwd

    with suppress(OSError):
        return os.getlogin()
    with suppress(KeyError):
        return pwd.getpwuid(os.getuid()).pw_name
    return str(os.getuid())


def _entry(row: Any) -> Entry:
    return Entry(
        kind=Kind(row["kind"]),
        name=row["name"],
        place=row["place"],
        lifetime=Lifetime(since=row["since"], until=row["until"], superseded_by=row["superseded_by"]),
        reason=row["reason"],
        blob=row["blob"],
        facts=json.loads(row["facts"]),
        added=datetime.fromisoformat(row["added"]),
        added_by=row["added_by"],
        ended=datetime.fromisoformat(row["ended"]) if row["ended"] else None,
        ended_by=row["ended_by"],
        ended_why=row["ended_why"],
    )
