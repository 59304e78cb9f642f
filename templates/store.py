"""Saved configurations: numbered (v41), each complete, and never changed once it was applied. SQLite, mode 0600.

A new one begins as a draft, a clone of another. Applying freezes it: triggers in the file itself refuse any change
from then on, and its digest is checked whenever it is read. Going back is applying an earlier one again. The form of
the file only ever grows: an older program can read it.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from core import store
from core.errors import ConfigError, NotReady, UpdaterError, WrongState
from core.faults import point
from templates.options import Value
from templates.tree import Instance, Place, Tree

_FROZEN = "\n".join(
    f"CREATE TRIGGER IF NOT EXISTS frozen_{table}_{verb.lower()} BEFORE {verb} ON {table} "
    f"WHEN (SELECT digest FROM configurations WHERE version = {row}.version) IS NOT NULL "
    "BEGIN SELECT RAISE(ABORT, 'frozen'); END;"
    for table in ("settings", "instances")
    for verb, row in (("INSERT", "NEW"), ("UPDATE", "OLD"), ("DELETE", "OLD"))
)
_FORM = f"""
CREATE TABLE IF NOT EXISTS store (oldest_reader INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS configurations (
    version INTEGER PRIMARY KEY, parent INTEGER, created TEXT NOT NULL, who TEXT NOT NULL, why TEXT NOT NULL,
    digest TEXT);
CREATE TABLE IF NOT EXISTS settings (
    version INTEGER NOT NULL REFERENCES configurations (version), place TEXT NOT NULL, option TEXT NOT NULL,
    value TEXT NOT NULL, PRIMARY KEY (version, place, option)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS instances (
    version INTEGER NOT NULL REFERENCES configurations (version), name TEXT NOT NULL, application TEXT NOT NULL,
    server TEXT NOT NULL, PRIMARY KEY (version, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS history (
    id INTEGER PRIMARY KEY, at TEXT NOT NULL, version INTEGER NOT NULL, what TEXT NOT NULL, who TEXT NOT NULL,
    why TEXT NOT NULL, detail TEXT NOT NULL);
CREATE TRIGGER IF NOT EXISTS frozen_configuration BEFORE UPDATE ON configurations WHEN OLD.digest IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'frozen'); END;
CREATE TRIGGER IF NOT EXISTS kept_configuration BEFORE DELETE ON configurations WHEN OLD.digest IS NOT NULL
    BEGIN SELECT RAISE(ABORT, 'frozen'); END;
{_FROZEN}
CREATE TABLE IF NOT EXISTS secrets (
    version INTEGER NOT NULL REFERENCES configurations (version), option TEXT NOT NULL,
    PRIMARY KEY (version, option)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Author:
    """Who changes something, and why."""

    who: str
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """What is known of a configuration beside its content. `digest`: None while it is a draft."""

    version: int
    parent: int | None
    created: datetime
    who: str
    why: str
    digest: str | None
    active: bool

    @property
    def name(self) -> str:
        """As people write it: v41."""
        return f"v{self.version}"

    @property
    def is_draft(self) -> bool:
        """Whether it may still be changed."""
        return self.digest is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A line of the history. `what`: cloned, set, unset, imported, received, applied. Never holds a value."""

    at: datetime
    version: int
    what: str
    who: str
    why: str
    detail: str


def digest(tree: Tree) -> str:
    """The tree's identity: equal exactly for equal values and instances, in whatever order they were set."""
    from blake3 import blake3

    whole = {
        "values": {str(place): dict(own) for place, own in tree.values.items() if own},
        "instances": {name: [each.application, each.server] for name, each in tree.instances.items()},
    }
    return blake3(json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class Store(store.Store):
    """The configurations' file, opened. Use as a context manager."""

    WHAT = "the configuration store"
    FORM = _FORM
    NEWEST = "secrets"
    READERS = "store"

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open the store; where there is none it is made. Nobody else can read it, whatever the umask is.

        Raises NotReady (damaged, or too new), NotPermitted, NoSpace, Busy.
        """
        with store.translated(path, cls.WHAT):
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
                raise NotReady(
                    f"{cls.WHAT} {path} cannot be opened",
                    what=str(error),
                    state="nothing was changed",
                    next=f"ls -ld {path.parent}",
                ) from error
            try:
                os.fchmod(handle, 0o600)
            finally:
                os.close(handle)
        opened = super().open(path)
        with store.translated(path, cls.WHAT):
            opened._db.execute("PRAGMA foreign_keys = ON")
            opened._db.execute("PRAGMA secure_delete = ON")  # an unset secret does not linger in free pages
        return opened

    # -- reading

    def listed(self) -> list[Saved]:
        """All configurations, newest first."""
        active = self._active()
        return [_saved(row, active) for row in self._all("SELECT * FROM configurations ORDER BY version DESC")]

    def saved(self, version: int) -> Saved:
        """What is known of one. Raises WrongState when there is none."""
        rows = self._all("SELECT * FROM configurations WHERE version = ?", version)
        if not rows:
            raise WrongState(
                f"there is no configuration v{version}",
                state="nothing was changed",
                next="updater config list    lists those there are",
            )
        return _saved(rows[0], self._active())

    def active(self) -> Saved | None:
        """The one that was applied last."""
        version = self._active()
        return None if version is None else self.saved(version)

    def draft(self) -> Saved | None:
        """The newest draft."""
        return next((each for each in self.listed() if each.is_draft), None)

    def tree(self, version: int) -> Tree:
        """The whole content. Raises WrongState when there is none, NotReady when it is not what was applied."""
        saved = self.saved(version)
        values: dict[Place, dict[str, Value]] = {}
        try:
            for row in self._all("SELECT place, option, value FROM settings WHERE version = ?", version):
                values.setdefault(Place.parse(row["place"]), {})[row["option"]] = json.loads(row["value"])
        except ValueError as error:
            raise self._damaged(saved) from error
        instances = {
            row["name"]: Instance(application=row["application"], server=row["server"])
            for row in self._all("SELECT * FROM instances WHERE version = ?", version)
        }
        tree = Tree(values=values, instances=instances)
        if saved.digest is not None and digest(tree) != saved.digest:
            raise self._damaged(saved)
        return tree

    def withheld(self, version: int) -> frozenset[str]:
        """The options that were handled as secrets when it was applied: servers that they are not for do not get them.
        Another release may call others so, and must not send something else under the same number. Empty: none were,
        or an older agent applied it.
        """
        return frozenset(row["option"] for row in self._all("SELECT option FROM secrets WHERE version = ?", version))

    def history(self, limit: int = 100) -> list[Entry]:
        """What was done, newest first."""
        return [
            Entry(**{**dict(row), "at": datetime.fromisoformat(row["at"])})
            for row in self._all(
                "SELECT at, version, what, who, why, detail FROM history ORDER BY id DESC LIMIT ?", limit
            )
        ]

    def every_value(self, options: Set[str]) -> set[str]:
        """All values that these options have in any configuration, drafts and damaged ones too: secrets to hide."""
        marks = ", ".join("?" * len(options))
        rows = self._all(f"SELECT DISTINCT value FROM settings WHERE option IN ({marks})", *options)
        found: set[str] = set()
        for row in rows:
            with suppress(ValueError):
                found |= _texts(json.loads(row["value"]))
        return found

    # -- changing

    def clone(self, version: int | None, author: Author) -> Saved:
        """A new draft with the content of another (None: an empty one). Its number is the next free one."""
        if version is not None:
            self.tree(version)
        with self._transaction():
            new = self._insert(version, author)
            if version is not None:
                for table, columns in (
                    ("settings", "place, option, value"),
                    ("instances", "name, application, server"),
                ):
                    self._db.execute(
                        f"INSERT INTO {table} (version, {columns}) SELECT ?, {columns} FROM {table} WHERE version = ?",
                        (new, version),
                    )
            self._note(new, "cloned", author, f"from v{version}" if version is not None else "empty")
        return self.saved(new)

    def set(self, version: int, place: Place, option: str, value: Value, author: Author) -> None:
        """Set one value of a draft. Raises WrongState when it is frozen."""
        with self._changing(version):
            self._db.execute(
                "INSERT INTO settings (version, place, option, value) VALUES (?, ?, ?, ?) "
                "ON CONFLICT (version, place, option) DO UPDATE SET value = excluded.value",
                (version, str(place), option, json.dumps(value)),
            )
            self._note(version, "set", author, f"{place} {option}")

    def unset(self, version: int, place: Place, option: str, author: Author) -> bool:
        """Have a value of a draft inherited again. Returns whether it was set."""
        with self._changing(version):
            done = self._db.execute(
                "DELETE FROM settings WHERE version = ? AND place = ? AND option = ?", (version, str(place), option)
            )
            if done.rowcount:
                self._note(version, "unset", author, f"{place} {option}")
        return bool(done.rowcount)

    def set_instance(self, version: int, name: str, instance: Instance | None, author: Author) -> None:
        """Add, change or (None) remove an instance of a draft; the values set for it go with it."""
        with self._changing(version):
            self._db.execute("DELETE FROM instances WHERE version = ? AND name = ?", (version, name))
            if instance is None:
                self._db.execute("DELETE FROM settings WHERE version = ? AND place = ?", (version, f"instance:{name}"))
            else:
                self._db.execute(
                    "INSERT INTO instances (version, name, application, server) VALUES (?, ?, ?, ?)",
                    (version, name, instance.application, instance.server),
                )
            self._note(version, "set" if instance else "unset", author, f"instance {name}")

    def save(self, tree: Tree, author: Author, *, parent: int | None = None, what: str = "imported") -> Saved:
        """A new draft with this content."""
        with self._transaction():
            new = self._insert(parent, author)
            self._fill(new, tree)
            self._note(new, what, author)
        return self.saved(new)

    def receive(self, version: int, tree: Tree, author: Author) -> bool:
        """Take over a configuration that another host applied under this number, and make it the active one.

        Returns whether it was not active before. Raises WrongState when there is another one of that number.
        """
        wanted = digest(tree)
        with self._transaction():
            known = {each.version: each for each in self.listed()}
            if version in known and known[version].digest != wanted:
                raise WrongState(
                    f"there is another configuration v{version} here already",
                    what=f"{self.path} holds one that is not the one sent",
                    state="nothing was changed",
                    next="have one configuration host only; clone the wanted one there, and apply the clone",
                )
            if version in known and known[version].active:
                return False
            if version not in known:
                self._insert(None, author, version)
                self._fill(version, tree)
                self._freeze(version, wanted)
            self._note(version, "applied", author, "received")
        return True

    def apply(self, version: int, author: Author, *, expected: str = "", secrets: Set[str] = frozenset()) -> Saved:
        """Freeze it, if it is a draft, and make it the active one. `expected`: the digest of what the caller has
        validated. `secrets`: the options that are handled as secrets in it, for `withheld`.

        Raises WrongState when it was changed since.
        """
        point("config:apply")
        with self._transaction():
            saved, found = self.saved(version), digest(self.tree(version))
            if expected and found != expected:
                raise WrongState(
                    f"{saved.name} was changed while it was being applied",
                    what="somebody set a value after it was looked at",
                    state="nothing was changed",
                    next=[f"updater config show {saved.name}", f"updater config apply {saved.name}"],
                )
            if saved.is_draft:
                self._freeze(version, found)
                rows = ((version, name) for name in secrets)
                self._db.executemany("INSERT INTO secrets (version, option) VALUES (?, ?)", rows)
            self._note(version, "applied", author)
        return self.saved(version)

    def earlier(self) -> Saved:
        """The one to go back to: active before the present one. Raises WrongState when there is none."""
        # Going back twice in a row goes back twice, not there and back again: what comes after the target is skipped.
        stack: list[int] = []
        for row in self._all("SELECT version FROM history WHERE what = 'applied' ORDER BY id"):
            if row["version"] in stack:
                del stack[stack.index(row["version"]) + 1 :]
            else:
                stack.append(row["version"])
        if len(stack) < 2:
            raise WrongState(
                "there is no earlier configuration to go back to",
                state="nothing was changed",
                next="updater config list    lists those there are",
            )
        return self.saved(stack[-2])

    # -- inside

    def _active(self) -> int | None:
        rows = self._all("SELECT version FROM history WHERE what = 'applied' ORDER BY id DESC LIMIT 1")
        return int(rows[0]["version"]) if rows else None

    def _insert(self, parent: int | None, author: Author, version: int | None = None) -> int:
        done = self._db.execute(
            "INSERT INTO configurations (version, parent, created, who, why) VALUES "
            "(coalesce(?, (SELECT coalesce(max(version), 0) + 1 FROM configurations)), ?, ?, ?, ?)",
            (version, parent, datetime.now(UTC).isoformat(), author.who, author.why),
        )
        return int(done.lastrowid or 0)

    def _fill(self, version: int, tree: Tree) -> None:
        self._db.executemany(
            "INSERT INTO settings (version, place, option, value) VALUES (?, ?, ?, ?)",
            (
                (version, str(place), name, json.dumps(value))
                for place, own in tree.values.items()
                for name, value in own.items()
            ),
        )
        self._db.executemany(
            "INSERT INTO instances (version, name, application, server) VALUES (?, ?, ?, ?)",
            ((version, name, each.application, each.server) for name, each in tree.instances.items()),
        )

    def _freeze(self, version: int, identity: str) -> None:
        self._db.execute("UPDATE configurations SET digest = ? WHERE version = ?", (identity, version))

    def _note(self, version: int, what: str, author: Author, detail: str = "") -> None:
        self._db.execute(
            "INSERT INTO history (at, version, what, who, why, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (datetime.now(UTC).isoformat(), version, what, author.who, author.why, detail),
        )

    @contextmanager
    def _changing(self, version: int) -> Iterator[None]:
        saved = self.saved(version)
        try:
            with self._transaction():
                yield
        except sqlite3.IntegrityError as error:
            raise WrongState(
                f"{saved.name} was applied and cannot be changed",
                state="nothing was changed",
                next=f"updater config clone {saved.name}    makes a draft of it, to change and apply",
            ) from error

    def _damaged(self, saved: Saved) -> UpdaterError:
        return NotReady(
            f"configuration {saved.name} is not what was applied",
            what=f"{self.path} was changed behind our back: the digest differs",
            state="nothing was changed",
            next=["restore the file from a backup", "updater config list    lists the others"],
        )


def parse_version(text: str) -> int:
    """Read v41 or 41. Raises ConfigError."""
    digits = text.removeprefix("v")
    if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
        raise ConfigError(f"{text!r} is no configuration such as v41", next="updater config list")
    return int(digits)


def secrets_in(trees: Iterable[Tree], options: Set[str]) -> set[str]:
    """All values of these options in the trees: what must never be shown."""
    found: set[str] = set()
    for tree in trees:
        for own in tree.values.values():
            for name, value in own.items():
                if name in options:
                    found |= _texts(value)
    return found


def _texts(value: object) -> set[str]:
    return {str(each) for each in (value if isinstance(value, list) else [value])} - {""}


def _saved(row: sqlite3.Row, active: int | None) -> Saved:
    return Saved(
        version=row["version"],
        parent=row["parent"],
        created=datetime.fromisoformat(row["created"]),
        who=row["who"],
        why=row["why"],
        digest=row["digest"],
        active=row["version"] == active,
    )
