"""SQLite: one writer at a time in the whole database, so what counts is how long a statement takes."""

from __future__ import annotations

from collections.abc import Iterator

from migrations.changes import Change, Parsed, Verb
from migrations.classify import Impact, Verdict, Version, always, on_new_table, on_rows, selects
from migrations.tables import Schema

_WRITER = "nobody else writes to the whole database meanwhile"


def judge(parsed: Parsed, version: Version, schema: Schema) -> Iterator[Verdict]:
    """One verdict per change."""
    for change in parsed.changes:
        yield on_new_table(change, schema) or _judge(change, version, schema)


def _judge(change: Change, version: Version, schema: Schema) -> Verdict:
    if change.verb in (Verb.DROP_TABLE, Verb.TRUNCATE):
        return _long(change, "frees every page of the table")
    if found := always(change):
        return found
    if change.verb in (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT):
        found = on_rows(change, schema)
        if change.verb is Verb.INSERT and found.impact is Impact.ONLINE:
            return _long(change, "adds all that it selects in one transaction: use a batch")
        return found
    if change.verb is Verb.CREATE_TABLE:
        if selects(change):
            return _long(change, "copies rows into the new table")
        return _short(change, "a new table, empty")
    if change.verb is Verb.ADD_COLUMN:
        if change.words & {"CHECK", "GENERATED", "AS"}:
            return _long(change, "reads every row to see whether the new column's rules hold")
        return _short(change, "only the description changes")
    if change.verb in (Verb.RENAME_COLUMN, Verb.RENAME_TABLE):
        return _short(change, "only the description changes")
    if change.verb is Verb.ADD_INDEX:
        return _long(change, "reads and sorts the whole table")
    if change.verb is Verb.DROP_COLUMN:
        return _long(change, "writes every row anew")
    if change.verb is Verb.DROP_INDEX:
        return _long(change, "frees every page of the index")
    return Verdict(impact=Impact.BLOCKS_ALL, reason="no known form of SQLite's", change=change, certain=False)


def _long(change: Change, why: str) -> Verdict:
    return Verdict(impact=Impact.BLOCKS_WRITES, reason=f"{why}; {_WRITER}", change=change, copies=False)


def _short(change: Change, why: str) -> Verdict:
    return Verdict(impact=Impact.INSTANT, reason=why, change=change)
