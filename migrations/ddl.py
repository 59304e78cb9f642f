"""SQL is read: words become changes. What is not understood is `Verb.UNKNOWN`."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.reading import common, mariadb, postgresql, sqlite
from migrations.reading.elements import table_elements
from migrations.reading.words import Reader, Stuck, keywords, words_of
from migrations.text import SqlUnreadable


@lru_cache(maxsize=1024)
def parse(sql: str, engine: Engine) -> Parsed:
    """Read one statement. Never raises for what it does not know: that is a change of `Verb.UNKNOWN`."""
    options: dict[str, str] = {}
    try:
        words = words_of(sql, engine)
    except (SqlUnreadable, Stuck, RecursionError):
        return Parsed(sql=sql, engine=engine, changes=(_unknown(sql),), options=options)
    try:
        changes = tuple(_statement(Reader(sql, words, engine), options))
    except (Stuck, RecursionError):
        changes = (_unknown(sql, keywords(words)),)
    return Parsed(sql=sql, engine=engine, changes=changes or (_unknown(sql),), options=options)


def elements(change: Change, engine: Engine) -> tuple[Change, ...]:
    """The columns, indexes and constraints that a CREATE TABLE makes, as if they were added one by one. Empty when it
    copies another table, or is not understood.
    """
    try:
        reader = Reader(change.definition, words_of(change.definition, engine), engine)
        return tuple(table_elements(reader, change.table, reader.group()))
    except (SqlUnreadable, Stuck):
        return ()


def _statement(reader: Reader, options: dict[str, str]) -> Iterator[Change]:
    routine = reader.peek() == "CREATE" and any(
        word.upper in ("TRIGGER", "PROCEDURE", "FUNCTION", "EVENT", "PACKAGE") for word in reader.words[:16]
    )
    if not routine and any(word.upper == ";" for word in reader.words):
        raise Stuck("more than one statement")
    if reader.accept("ALTER"):
        alter = {
            Engine.MARIADB: mariadb.read_alter,
            Engine.POSTGRESQL: postgresql.read_alter,
            Engine.SQLITE: sqlite.read_alter,
        }
        yield from alter[reader.engine](reader, options)
    else:
        yield from common.read_common(reader, options)


def _unknown(sql: str, words: frozenset[str] = frozenset()) -> Change:
    return Change(verb=Verb.UNKNOWN, definition=sql, words=words)
