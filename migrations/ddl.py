"""What a statement of SQL does to tables: words become changes. What is not understood is `Verb.UNKNOWN`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING

from core.sql import Engine

if TYPE_CHECKING:
    from migrations.reading.words import Reader


class Verb(StrEnum):
    """One kind of change."""

    CREATE_TABLE = "create table"
    DROP_TABLE = "drop table"
    RENAME_TABLE = "rename table"
    TRUNCATE = "truncate"
    ADD_COLUMN = "add column"
    DROP_COLUMN = "drop column"
    RENAME_COLUMN = "rename column"
    CHANGE_COLUMN = "change column"  # type, nullability, place, character set
    SET_DEFAULT = "set default"
    DROP_DEFAULT = "drop default"
    SET_NOT_NULL = "set not null"
    DROP_NOT_NULL = "drop not null"
    ADD_INDEX = "add index"  # unique, fulltext and spatial ones too
    DROP_INDEX = "drop index"
    RENAME_INDEX = "rename index"
    ADD_PRIMARY_KEY = "add primary key"
    DROP_PRIMARY_KEY = "drop primary key"
    ADD_FOREIGN_KEY = "add foreign key"
    DROP_FOREIGN_KEY = "drop foreign key"
    ADD_CHECK = "add check"
    DROP_CONSTRAINT = "drop constraint"
    RENAME_CONSTRAINT = "rename constraint"
    VALIDATE = "validate constraint"
    TABLE_OPTION = "table option"  # engine, row format, comment, auto_increment, character set
    PARTITION = "partition"
    CREATE_VIEW = "create view"
    DROP_VIEW = "drop view"
    CREATE_ROUTINE = "create routine"  # procedures, functions, triggers, events
    DROP_ROUTINE = "drop routine"
    CREATE_TYPE = "create type"  # types, sequences, schemas, extensions, domains
    DROP_TYPE = "drop type"
    ALTER_TYPE = "alter type"
    COMMENT = "comment"
    GRANT = "grant"
    INSERT = "insert"
    UPDATE = "update"
    DELETE = "delete"
    SELECT = "select"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One clause. `name`: the column, index, constraint or option; `new_name` after a rename; `definition`: the rest of
    the clause as it was written (a column's type and attributes, an index's columns, …). `words`: what is in the
    definition, in capitals, for rules (UNIQUE, CONCURRENTLY, NOT NULL, …).
    """

    verb: Verb
    table: str = ""
    name: str = ""
    new_name: str = ""
    definition: str = ""
    words: frozenset[str] = frozenset()
    columns: tuple[str, ...] = ()
    references: str = ""  # the table that a foreign key points at


@dataclass(frozen=True, slots=True, kw_only=True)
class Parsed:
    """A statement understood: its changes, and what it says of the way to make them (ALGORITHM, LOCK, WAIT,
    CONCURRENTLY, IF EXISTS, IF NOT EXISTS, NOT VALID), in capitals.
    """

    sql: str
    engine: Engine
    changes: tuple[Change, ...]
    options: dict[str, str]

    @property
    def is_ddl(self) -> bool:
        """Whether it changes the schema rather than rows."""
        return any(each.verb not in (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT) for each in self.changes)

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables it works on, each once."""
        return tuple(dict.fromkeys(each.table for each in self.changes if each.table))


@lru_cache(maxsize=1024)
def parse(sql: str, engine: Engine) -> Parsed:
    """Read one statement. Never raises for what it does not know: that is a change of `Verb.UNKNOWN`."""
    from migrations.reading.words import Reader, Stuck, keywords, words_of
    from migrations.text import SqlUnreadable

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
    from migrations.reading.elements import table_elements
    from migrations.reading.words import Reader, Stuck, words_of
    from migrations.text import SqlUnreadable

    try:
        reader = Reader(change.definition, words_of(change.definition, engine), engine)
        return tuple(table_elements(reader, change.table, reader.group()))
    except (SqlUnreadable, Stuck):
        return ()


def _statement(reader: Reader, options: dict[str, str]) -> Iterator[Change]:
    from migrations.reading import common, mariadb, postgresql, sqlite
    from migrations.reading.words import Stuck

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
