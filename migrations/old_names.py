"""The names that the old release uses: what its recorded statements read and write."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from core.sql import Engine
from migrations.reading.words import Stuck, Word, words_of
from migrations.text import SqlUnreadable, split


@dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """One statement of the old release: the names in it, and where it stands. `positional`: the table that it inserts
    into without naming columns.
    """

    names: frozenset[str]
    where: str
    positional: str = ""


class OldRelease:
    """All statements that are known of the old release."""

    def __init__(self, uses: Iterable[Use] = ()) -> None:
        self.uses = tuple(uses)

    def using(self, table: str, column: str = "") -> str:
        """Where the table (and its column) is used, or nothing."""
        wanted = {_folded(table.rpartition(".")[2])} | ({_folded(column)} if column else set())
        return next((use.where for use in self.uses if wanted <= use.names), "")

    def inserting_by_position(self, table: str) -> str:
        """Where rows are inserted without naming the columns, or nothing."""
        wanted = _folded(table.rpartition(".")[2])
        return next((use.where for use in self.uses if use.positional == wanted), "")


def read_queries(path: Path, engine: Engine) -> OldRelease:
    """Read the statements. Raises SqlUnreadable, OSError, UnicodeDecodeError. A statement that cannot be read counts as
    one that uses every word in it.
    """
    uses = []
    for piece in split(path.read_text(encoding="utf-8"), engine):
        where = f"{path.name}:{piece.line}"
        try:
            words = words_of(piece.sql, engine)
            uses.append(Use(names=_names(words), where=where, positional=_positional(words)))
        except (Stuck, SqlUnreadable):
            uses.append(Use(names=frozenset(map(_folded, piece.sql.split())), where=where))
    return OldRelease(uses)


def _names(words: list[Word]) -> frozenset[str]:
    return frozenset(_folded(word.text) for word in words if word.nameable)


def _positional(words: list[Word]) -> str:
    """``INSERT INTO t VALUES …`` or ``INSERT INTO t SELECT …``."""
    if not words or words[0].upper not in ("INSERT", "REPLACE"):
        return ""
    into = next((at for at, word in enumerate(words) if word.upper == "INTO"), None)
    if into is None:
        return ""
    at = into + 1
    while at + 2 < len(words) and words[at + 1].upper == ".":
        at += 2
    follows = words[at + 1].upper if at + 1 < len(words) else ""
    return _folded(words[at].text) if follows in ("VALUES", "VALUE", "SELECT") else ""


def _folded(name: str) -> str:
    return name.casefold()
