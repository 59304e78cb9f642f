"""Columns, indexes and constraints: what stands in CREATE TABLE, and behind ALTER TABLE … ADD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Verb
from migrations.reading.words import Reader, Stuck, Word

_KINDS_OF_INDEX: Final = ("FULLTEXT", "SPATIAL", "VECTOR")


def table_elements(reader: Reader, table: str, words: Sequence[Word]) -> Iterator[Change]:
    """What the parentheses of a CREATE TABLE hold."""
    for each in reader.clauses(words):
        yield each.change(Verb.TABLE_OPTION, table, "like") if each.accept("LIKE") else element(each, table)


def element(reader: Reader, table: str) -> Change:
    """One column, index or constraint, at its beginning. All that is left belongs to it."""
    found = constraint(reader, table)
    return found if found else column(reader, table)


def column(reader: Reader, table: str, verb: Verb = Verb.ADD_COLUMN) -> Change:
    """A column: its name, then its definition."""
    not_exists = ("IF NOT EXISTS",) if reader.accept("IF", "NOT", "EXISTS") else ()
    name = reader.name()
    if reader.done and reader.engine is not Engine.SQLITE:
        raise Stuck("a column without a type")
    return reader.change(verb, table, name, references=_references(reader), words=not_exists)


def constraint(reader: Reader, table: str) -> Change | None:
    """An index or constraint; None when a column follows."""
    begin = reader.at
    name = ""
    if reader.accept("CONSTRAINT"):
        named = reader.peek() not in ("PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "EXCLUDE") or reader.peek(1) in (
            "PRIMARY", "UNIQUE", "FOREIGN", "CHECK", "EXCLUDE"
        )  # fmt: skip
        name = _maybe_name(reader) if named else ""
    if reader.accept("PRIMARY", "KEY"):
        return _keyed(reader, Verb.ADD_PRIMARY_KEY, table, name)
    if reader.accept("UNIQUE"):
        if reader.engine is Engine.MARIADB:
            reader.any_of("INDEX", "KEY")
        return _keyed(reader, Verb.ADD_INDEX, table, name, "UNIQUE")
    if reader.accept("FOREIGN", "KEY"):
        return _foreign_key(reader, table, name)
    if reader.peek() == "CHECK" and reader.peek(1) == "(":
        reader.accept("CHECK")
        return reader.change(Verb.ADD_CHECK, table, name)
    if reader.accept("EXCLUDE"):
        return reader.change(Verb.ADD_INDEX, table, name, words=("EXCLUDE", "CONSTRAINT"))
    if reader.engine is Engine.MARIADB and not name:
        kind = reader.any_of(*_KINDS_OF_INDEX)
        if reader.any_of("INDEX", "KEY") or kind:
            return _keyed(reader, Verb.ADD_INDEX, table, name, *((kind,) if kind else ()))
    if reader.at != begin:
        raise Stuck("CONSTRAINT")
    return None


def _keyed(reader: Reader, verb: Verb, table: str, name: str, *words: str) -> Change:
    """From the optional name on: ``[name] [USING x] (columns) options``, or PostgreSQL's ``USING INDEX name``."""
    if reader.accept("IF", "NOT", "EXISTS"):
        words = (*words, "IF NOT EXISTS")
    if reader.engine is Engine.MARIADB and reader.peek() not in ("(", "USING"):
        own = reader.name()  # of the index: it is called after this, not after the constraint
        name = own if verb is Verb.ADD_INDEX else name
    if reader.engine is not Engine.MARIADB:
        if reader.accept("NULLS", "NOT", "DISTINCT"):
            words = (*words, "NULLS NOT DISTINCT")
        reader.accept("NULLS", "DISTINCT")
    return index(reader, verb, table, name, *words, "CONSTRAINT")


def index(reader: Reader, verb: Verb, table: str, name: str, *words: str) -> Change:
    """From behind the name of an index on."""
    columns: tuple[str, ...] = ()
    ahead = reader.over(reader.left)
    if ahead.accept("USING"):
        if ahead.accept("INDEX"):
            return reader.change(verb, table, name or ahead.name(), words=words)
        ahead.name()
    columns = ahead.names()
    return reader.change(verb, table, name, columns=columns, words=words)


def _foreign_key(reader: Reader, table: str, name: str) -> Change:
    words = ("IF NOT EXISTS",) if reader.accept("IF", "NOT", "EXISTS") else ()
    if reader.peek() != "(":
        name = name or reader.name()
        reader.at += reader.peek() != "("
    columns = reader.over(reader.left).names()
    points_at = _references(reader)
    if not points_at:
        raise Stuck("FOREIGN KEY without REFERENCES")
    return reader.change(Verb.ADD_FOREIGN_KEY, table, name, columns=columns, references=points_at, words=words)


def _references(reader: Reader) -> str:
    """The table behind REFERENCES; empty when there is none."""
    depth = 0
    for at, word in enumerate(reader.left):
        depth += (word.upper == "(") - (word.upper == ")")
        if word.upper == "REFERENCES" and not depth:
            return reader.over(reader.left[at + 1 :]).qualified()
    return ""


def _maybe_name(reader: Reader) -> str:
    reader.accept("IF", "NOT", "EXISTS")
    return reader.name()
