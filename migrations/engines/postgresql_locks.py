"""Which locks a statement takes in PostgreSQL, as far as they keep others from writing. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.ddl import elements

EXCLUSIVE: Final = "ACCESS EXCLUSIVE"
SHARE_ROW: Final = "SHARE ROW EXCLUSIVE"
SHARE: Final = "SHARE"

#: Statements that the server refuses inside of a transaction.
_ALONE: Final = re.compile(
    r"VACUUM\b|(CREATE|DROP)\s+(DATABASE|TABLESPACE)\b|ALTER\s+SYSTEM\b|REINDEX\s+(\(.*?\)\s*)?(DATABASE|SCHEMA|SYSTEM)\b"
    r"|(CREATE(\s+UNIQUE)?|DROP)\s+INDEX\s+CONCURRENTLY\b|REINDEX\b[^;]*\bCONCURRENTLY\b"
    r"|ALTER\s+TABLE\b[^;]*\bDETACH\s+PARTITION\b[^;]*\b(CONCURRENTLY|FINALIZE)\s*$",
    re.IGNORECASE | re.DOTALL,
)

#: Unknown to our grammar, and harmless.
_HARMLESS: Final = re.compile(r"ANALY[SZ]E\b|SET\s", re.IGNORECASE)

#: What keeps nobody from writing.
_QUIET: Final = frozenset(
    {
        Verb.SELECT, Verb.INSERT, Verb.VALIDATE, Verb.COMMENT, Verb.GRANT, Verb.CREATE_VIEW, Verb.DROP_VIEW,
        Verb.CREATE_TYPE, Verb.DROP_TYPE, Verb.ALTER_TYPE, Verb.RENAME_INDEX,
    }
)  # fmt: skip

#: Options of tables that are set under SHARE UPDATE EXCLUSIVE.
_QUIET_OPTIONS: Final = frozenset({"storage", "statistics", "options of a column", "cluster", "compression"})

#: What works on rows: their locks are the statement's own.
_ROWS: Final = frozenset({Verb.UPDATE, Verb.DELETE})


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """`alone`: it cannot run in a transaction. `stalls`: writers wait while it works (or may: it is not known).
    `locks`: tables that it locks, by mode, in the order in which they are to be taken.
    """

    alone: bool = False
    stalls: bool = False
    locks: tuple[tuple[str, tuple[str, ...]], ...] = ()


def needs(parsed: Parsed) -> Needs:
    """What the statement needs."""
    text = _without_comments(parsed.sql)
    if _ALONE.match(text):
        return Needs(alone=True)
    if _HARMLESS.match(text):
        return Needs()
    modes: dict[str, list[str]] = {EXCLUSIVE: [], SHARE_ROW: [], SHARE: []}
    stalls = False
    for change in parsed.changes:
        for mode, table in _locks(change, by_alter=text[:5].upper() == "ALTER"):
            if table and table not in modes[mode]:
                modes[mode].append(table)
        stalls = stalls or not _quiet(change)
    return Needs(stalls=stalls, locks=tuple((mode, tuple(tables)) for mode, tables in modes.items() if tables))


def _quiet(change: Change) -> bool:
    if change.verb is Verb.TABLE_OPTION:
        return change.name in _QUIET_OPTIONS
    if change.verb is Verb.CREATE_TABLE:
        return not any(True for _ in _locks(change))
    if change.verb in (Verb.CREATE_ROUTINE, Verb.DROP_ROUTINE):
        return not change.table
    return change.verb in _QUIET


def _locks(change: Change, *, by_alter: bool = False) -> list[tuple[str, str]]:
    """Modes and tables of one change. `by_alter`: it is a clause of ALTER TABLE, which locks more for an index."""
    if change.verb is Verb.CREATE_TABLE:  # the tables that its foreign keys point at
        made = elements(change, Engine.POSTGRESQL)
        return [(SHARE_ROW, each.references) for each in made if each.references and each.references != change.table]
    if _quiet(change) or change.verb in _ROWS or change.verb is Verb.UNKNOWN:
        return []
    if change.verb is Verb.DROP_INDEX:
        return [(EXCLUSIVE, change.name)]  # it stands for its table
    if change.verb is Verb.ADD_FOREIGN_KEY:
        return [(SHARE_ROW, change.table), (SHARE_ROW, change.references)]
    if change.verb in (Verb.CREATE_ROUTINE, Verb.DROP_ROUTINE):
        return [(SHARE_ROW if change.verb is Verb.CREATE_ROUTINE else EXCLUSIVE, change.table)]
    if change.verb is Verb.ADD_INDEX and not by_alter:
        return [(SHARE, change.table)]
    if change.verb is Verb.PARTITION and change.name == "attach":  # the parent is under SHARE UPDATE EXCLUSIVE only
        return [(EXCLUSIVE, change.references)]
    also = [(SHARE_ROW, change.references)] if change.verb is Verb.ADD_COLUMN and change.references else []
    return [(EXCLUSIVE, change.table), *also]


def _without_comments(sql: str) -> str:
    """Without the comments before its first word."""
    return re.sub(r"\A(\s+|--[^\n]*(\n|\Z)|/\*.*?\*/)*", "", sql, flags=re.DOTALL).rstrip().rstrip(";")
