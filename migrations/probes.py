"""An ALTER taken apart into clauses that can be tried one by one, on a table or a copy of it. MariaDB's SQL. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from core.sql import Engine
from migrations.changes import Change, Verb
from migrations.ddl import parse
from migrations.text import SqlUnreadable, tokens

if TYPE_CHECKING:
    from sqlglot.tokens import Token

_HEAD = re.compile(r"(?i)ALTER\s+(?:ONLINE\s+)?(?:IGNORE\s+)?TABLE\s+(?:IF\s+EXISTS\s+)?")
_WAIT = re.compile(r"(?i)\s*(?:WAIT\s+\d+|NOWAIT)(?=\s)")
_INDEX = re.compile(r"(?is)(?:CREATE|DROP)\s.*?\bINDEX\b.*?\sON\s+")
_NAME = re.compile(r"(?:`[^`]*`|[\w$]+)(?:\s*\.\s*(?:`[^`]*`|[\w$]+))?")
_COLUMNS = re.compile(r"(?is)ADD\s+(?:COLUMN\s+)?(?:IF\s+NOT\s+EXISTS\s+)?\(")
_WAY = re.compile(r"(?i)(?:ALGORITHM|LOCK)\b")
_WAYS = re.compile(
    r"(?i)\s*\b(?:ALGORITHM|LOCK)\s*=?\s*(?:DEFAULT|NONE|SHARED|EXCLUSIVE|INSTANT|NOCOPY|INPLACE|COPY)\s*$"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clause:
    """One change, as a statement of its own that lacks the table's name. `changes`: what it does."""

    before: str
    after: str
    changes: tuple[Change, ...]

    def on(self, table: str) -> str:
        """The statement for a table, whose name is given quoted."""
        return f"{self.before}{table}{self.after}"

    @property
    def text(self) -> str:
        """For people."""
        return " ".join(
            (self.after if self.before.upper().startswith("ALTER") else f"{self.before}…{self.after}").split()
        )


def clauses(sql: str) -> tuple[str, list[Clause]] | None:
    """The table's name as written, and the clauses of an ALTER TABLE, CREATE INDEX or DROP INDEX. What is said about
    the way (ALGORITHM, LOCK, WAIT, ONLINE) is left out. None for other statements.
    """
    if head := _HEAD.match(sql):
        name = _NAME.match(sql, head.end())
        if name is None:
            return None
        wait = _WAIT.match(sql, name.end())
        pieces = _pieces(sql, wait.end() if wait else name.end())
        if pieces is None:
            return None
        kept = [each for piece in pieces if not _WAY.match(piece) for each in _columns(name[0], piece)]
        return name[0], [_clause("ALTER TABLE ", f" {piece}", name[0]) for piece in kept]
    if index := _INDEX.match(sql):
        name = _NAME.match(sql, index.end())
        if name is None:
            return None
        wait = _WAIT.match(sql, name.end())
        rest = sql[wait.end() if wait else name.end() :]
        while shorter := _WAYS.search(rest):
            rest = rest[: shorter.start()]
        return name[0], [_clause(sql[: index.end()], rest, name[0])]
    return None


def joined(table: str, parts: list[Clause]) -> str | None:
    """Clauses of an ALTER as one statement again; None where there is no such statement."""
    if len(parts) == 1:
        return parts[0].on(table)
    if any(not part.before.startswith("ALTER") for part in parts):
        return None
    return f"ALTER TABLE {table} {', '.join(part.after.strip() for part in parts)}"


def _clause(before: str, after: str, table: str) -> Clause:
    return Clause(before=before, after=after, changes=parse(f"{before}{table}{after}", Engine.MARIADB).changes)


def _columns(table: str, piece: str) -> list[str]:
    """``ADD (a INT, b INT)`` as two clauses."""
    if not _COLUMNS.match(piece):
        return [piece]
    changes = parse(f"ALTER TABLE {table} {piece}", Engine.MARIADB).changes
    if any(change.verb is not Verb.ADD_COLUMN for change in changes):
        return [piece]
    return [f"ADD COLUMN `{change.name}` {change.definition}" for change in changes]


def _pieces(sql: str, start: int) -> list[str] | None:
    """The text from `start` on, cut at the commas that are not in brackets. Partition options have no commas of their
    own before them, and stay with the clause that they follow.
    """
    try:
        words: list[Token] = [word for word in tokens(sql, Engine.MARIADB) if word.start >= start]
    except SqlUnreadable:
        return None
    depth, cuts = 0, [start - 1]
    for word in words:
        text = sql[word.start : word.end + 1]
        depth += (text == "(") - (text == ")")
        if text == "," and depth == 0:
            cuts.append(word.start)
    return [piece for one, two in pairwise([*cuts, len(sql)]) if (piece := sql[one + 1 : two].strip())]
