"""What a statement of SQL does to tables, in words of our own. `migrations.ddl` reads it from the text."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from core.sql import Engine


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
    def is_nameless(self) -> bool:
        """Whether it builds an index CONCURRENTLY without a name: what a broken try leaves cannot be told then, and the
        next one builds another.
        """
        return any(
            each.verb is Verb.ADD_INDEX and "CONCURRENTLY" in each.words and not each.name for each in self.changes
        )

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables it works on, each once."""
        return tuple(dict.fromkeys(each.table for each in self.changes if each.table))
