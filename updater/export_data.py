"""Databases for a rehearsal, without what is nobody's business: empty, or with every text made unreadable. SQLite.

Empty: all tables, indexes, views and triggers, and no rows but those in which the data remembers its migrations.
Anonymised: as many rows; each text of three characters or more becomes another one of the same form (letters for
letters, digits for digits, the same for the same text, different ones for different texts), bytes become zeros, and
numbers stay what they are.
"""

from __future__ import annotations

import secrets
import sqlite3
import string
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

from blake3 import blake3

from core.errors import DatabaseFailed
from migrations.ledger import MIGRATIONS, RUNNER

#: Shorter texts are codes more often than names, and programs know them.
SHORT: Final = 3

_MARK: Final = "\x01"


def empty(source: Path, target: Path) -> None:
    """Make `target` of the form of `source`, with no rows. Raises DatabaseFailed."""
    with _read_only(source) as old, _fresh(target) as new:
        for pragma in ("encoding", "page_size", "user_version", "application_id"):
            value = old.execute(f"PRAGMA {pragma}").fetchone()[0]
            new.execute(f"PRAGMA {pragma} = {_quoted(value) if isinstance(value, str) else value}")
        order = "CASE type WHEN 'table' THEN 0 WHEN 'index' THEN 1 WHEN 'view' THEN 2 ELSE 3 END, rowid"
        made = old.execute(f"SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY {order}").fetchall()
        for name, sql in made:
            known = new.execute("SELECT 1 FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
            if not known and not name.startswith("sqlite_"):  # a virtual table makes others by itself
                new.execute(sql)
        for table in (MIGRATIONS, RUNNER):
            if any(name == table for name, _ in made):
                rows = old.execute(f"SELECT * FROM {table}").fetchall()
                if rows:
                    new.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        new.commit()


def anonymised(source: Path, target: Path) -> None:
    """Make `target` a copy of `source` in which nobody can be found. Raises DatabaseFailed."""
    with _read_only(source) as old, _fresh(target) as new:
        old.backup(new)
        new.execute("PRAGMA journal_mode = DELETE")
        new.execute("PRAGMA foreign_keys = OFF")
        new.execute("PRAGMA ignore_check_constraints = ON")
        masks = Masks()
        new.create_function("mask", 1, masks, deterministic=True)
        triggers = new.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            new.execute(f"DROP TRIGGER {_quoted(name)}")
        tables = new.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'table'").fetchall()
        for name, sql in tables:
            if name.startswith("sqlite_") or name in (MIGRATIONS, RUNNER) or sql.upper().startswith("CREATE VIRTUAL"):
                continue
            # 2, 3: generated columns
            columns = [row[1] for row in new.execute(f"PRAGMA table_xinfo({_quoted(name)})") if row[6] == 0]
            # A text may become what another one still is, and unique columns would refuse that: first all are marked.
            for changed in ("CASE typeof({0}) WHEN 'text' THEN char(1) || {0} ELSE {0} END", "mask({0})"):
                changes = ", ".join(f"{_quoted(each)} = {changed.format(_quoted(each))}" for each in columns)
                if changes:
                    new.execute(f"UPDATE {_quoted(name)} SET {changes}")
        for _, sql in triggers:
            new.execute(sql)
        new.commit()
        new.execute("VACUUM")  # nothing lingers in free pages


class Masks:
    """One replacement for each text, under a key that nobody keeps."""

    def __init__(self, key: bytes | None = None) -> None:
        self._key = key or secrets.token_bytes(32)
        self._known: dict[str, str] = {}
        self._given: set[str] = set()

    def __call__(self, value: Any) -> Any:
        if isinstance(value, bytes):
            return bytes(len(value))
        if not isinstance(value, str):
            return value
        value = value.removeprefix(_MARK)
        if len(value) < SHORT or not any(letter.isalnum() for letter in value):
            return value
        found = self._known.get(value)
        if found is None:
            found = self._fresh(value)
            self._known[value] = found
            self._given.add(found.casefold())
        return found

    def _fresh(self, text: str) -> str:
        for attempt in range(1000):
            made = self._made(text, attempt)
            if made.casefold() not in self._given:
                return made
        return f"{self._made(text, 0)}{len(self._given)}"  # so many of so short a form: then a longer one

    def _made(self, text: str, attempt: int) -> str:
        stream = blake3(attempt.to_bytes(4, "big") + text.encode("utf-8", "surrogatepass"), key=self._key)
        letters = stream.digest(length=2 * len(text))
        return "".join(
            _like(letter, int.from_bytes(letters[2 * at : 2 * at + 2], "big")) for at, letter in enumerate(text)
        )


def _like(letter: str, number: int) -> str:
    if not letter.isalnum():
        return letter
    if letter.isdigit():
        return string.digits[number % 10]
    alphabet = string.ascii_uppercase if letter.isupper() else string.ascii_lowercase
    return alphabet[number % 26]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


@contextmanager
def _read_only(path: Path) -> Iterator[sqlite3.Connection]:
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as db:
            yield db
    except sqlite3.Error as error:
        raise DatabaseFailed(
            f"{path} cannot be exported",
            what=str(error),
            state="it is as it was",
            next="updater export --data none    leaves the data out",
        ) from error


@contextmanager
def _fresh(path: Path) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(path)) as db:
        db.text_factory = _lenient
        yield db


def _lenient(raw: bytes) -> str:
    return raw.decode("utf-8", errors="surrogateescape")
