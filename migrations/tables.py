"""What tables there are: the schema of the old release, and how migrations change it. Enough of it for judging them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.columns import Column, column_of
from migrations.ddl import elements, parse
from migrations.text import SqlUnreadable, split


@dataclass(slots=True, kw_only=True)
class Index:
    """An index; a primary key or a constraint that is kept by one, too."""

    name: str
    columns: tuple[str, ...]
    words: frozenset[str] = frozenset()


@dataclass(slots=True, kw_only=True)
class Table:
    """A table. `foreign`: the tables it points at, by the name of the key. `fresh`: made by a migration, so that no
    release in the field has rows in it.
    """

    name: str
    columns: dict[str, Column] = field(default_factory=dict)
    indexes: list[Index] = field(default_factory=list)
    primary: tuple[str, ...] = ()
    foreign: dict[str, str] = field(default_factory=dict)
    cascades: bool = False
    checks: dict[str, str] = field(default_factory=dict)
    charset: str = ""
    engine: str = ""
    row_format: str = ""
    partitioned: bool = False
    versioned: bool = False
    fresh: bool = False

    def copy(self) -> Table:
        """One that changes apart from this."""
        return replace(
            self,
            columns=dict(self.columns),
            indexes=[replace(index) for index in self.indexes],
            foreign=dict(self.foreign),
            checks=dict(self.checks),
        )

    def indexed(self, column: str) -> bool:
        """Whether an index is over the column."""
        return column in self.primary or any(column in index.columns for index in self.indexes)

    def has_index(self, kind: str) -> bool:
        """Whether it has an index of this kind: FULLTEXT, SPATIAL."""
        return any(kind in index.words for index in self.indexes)

    def has_generated(self, kind: str) -> bool:
        """Whether it has a VIRTUAL or STORED column."""
        return any(column.generated == kind for column in self.columns.values())

    def unique(self, column: str) -> bool:
        """Whether the column alone tells the rows apart."""
        return self.primary == (column,) or any(
            index.columns == (column,) and "UNIQUE" in index.words for index in self.indexes
        )


class Schema:
    """Tables by name, without the name of their database or schema."""

    def __init__(self, engine: Engine, tables: Iterable[Table] = (), *, complete: bool = False) -> None:
        self.engine = engine
        self.tables = {table.name: table for table in tables}
        self.complete = complete  # whether a table that is not in it does not exist
        self.index_tables: dict[str, str] = {}

    def table(self, name: str) -> Table | None:
        """The table, if it is known."""
        return self.tables.get(_bare(name))

    def table_of_index(self, name: str) -> Table | None:
        """PostgreSQL and SQLite drop and rename indexes without naming the table."""
        return next((t for t in self.tables.values() if any(i.name == _bare(name) for i in t.indexes)), None)

    def pointing_at(self, name: str) -> list[str]:
        """The tables whose foreign keys point at this one."""
        return [each.name for each in self.tables.values() if _bare(name) in each.foreign.values()]

    def apply(self, parsed: Parsed, *, fresh: bool = False) -> None:
        """Take over what a statement changes. What is not understood changes nothing."""
        for change in parsed.changes:
            self._apply(change, fresh=fresh)

    def _apply(self, change: Change, *, fresh: bool) -> None:
        if change.verb is Verb.CREATE_TABLE:
            self._create(change, fresh=fresh)
        elif change.verb is Verb.DROP_INDEX and not change.table:
            if table := self.table_of_index(change.name):
                _drop_index(table, _bare(change.name))
        elif (table := self.table(change.table)) is not None:
            if change.verb is Verb.DROP_TABLE:
                del self.tables[table.name]
            elif change.verb is Verb.RENAME_TABLE:
                del self.tables[table.name]
                table.name = _bare(change.new_name)
                self.tables[table.name] = table
            else:
                apply_to(table, change, self.engine)

    def _create(self, change: Change, *, fresh: bool) -> None:
        name = _bare(change.table)
        if name in self.tables and "IF NOT EXISTS" in change.words:
            return
        table = Table(name=name, fresh=fresh)
        for each in elements(change, self.engine):
            apply_to(table, each, self.engine)
        _options(table, change.definition, self.engine)
        self.tables[name] = table


def read_schema(path: Path, engine: Engine) -> Schema:
    """The schema that a file of SQL makes. Raises SqlUnreadable, OSError, UnicodeDecodeError."""
    schema = Schema(engine, complete=True)
    for piece in split(path.read_text(encoding="utf-8"), engine):
        schema.apply(parse(piece.sql, engine))
    return schema


def apply_to(table: Table, change: Change, engine: Engine) -> None:
    """Change one table."""
    verb, name = change.verb, change.name
    if verb is Verb.ADD_COLUMN:
        _add_column(table, change, engine)
    elif verb is Verb.CHANGE_COLUMN and engine is Engine.MARIADB:
        table.columns.pop(name, None)
        _add_column(table, change, engine)
        _renamed(table, name, change.new_name or name)
    elif verb is Verb.CHANGE_COLUMN and name in table.columns:
        old, new = table.columns[name], column_of(change, engine)
        table.columns[name] = Column(name=name, type=new.type, args=new.args, nullable=old.nullable)
    elif verb is Verb.DROP_COLUMN:
        table.columns.pop(name, None)
        for index in table.indexes:
            index.columns = tuple(each for each in index.columns if each != name)
        table.indexes = [index for index in table.indexes if index.columns]
    elif verb is Verb.RENAME_COLUMN:
        table.columns = {change.new_name if key == name else key: value for key, value in table.columns.items()}
        _renamed(table, name, change.new_name)
    elif verb in (Verb.SET_NOT_NULL, Verb.DROP_NOT_NULL) and name in table.columns:
        old = table.columns[name]
        table.columns[name] = Column(
            name=name, type=old.type, args=old.args, nullable=verb is Verb.DROP_NOT_NULL, words=old.words
        )
    elif verb is Verb.ADD_PRIMARY_KEY:
        table.primary = change.columns
    elif verb is Verb.DROP_PRIMARY_KEY:
        table.primary = ()
    elif verb is Verb.ADD_INDEX:
        own = name or (change.columns[0] if change.columns else "")
        table.indexes.append(Index(name=own, columns=change.columns, words=change.words))
    elif verb in (Verb.DROP_INDEX, Verb.DROP_CONSTRAINT, Verb.DROP_FOREIGN_KEY):
        _drop_index(table, name)
        table.foreign.pop(name, None)
        table.checks.pop(name, None)
    elif verb is Verb.RENAME_INDEX:
        for index in table.indexes:
            index.name = change.new_name if index.name == name else index.name
    elif verb is Verb.ADD_FOREIGN_KEY:
        table.foreign[name or f"#{len(table.foreign)}"] = _bare(change.references)
        table.cascades |= bool(change.words & {"CASCADE", "SET"})
        if engine is Engine.MARIADB and not any(
            i.columns[: len(change.columns)] == change.columns for i in table.indexes
        ):
            table.indexes.append(Index(name=name, columns=change.columns))
    elif verb is Verb.ADD_CHECK:
        table.checks[name or f"#{len(table.checks)}"] = change.definition
    elif verb is Verb.VALIDATE and name in table.checks:
        table.checks[name] = re.sub(r"(?i)\s+NOT\s+VALID\s*\Z", "", table.checks[name])
    elif verb is Verb.TABLE_OPTION and name in ("engine", "row_format", "character set", "convert"):
        _options(table, f"{name} {change.definition}", engine)
    elif verb is Verb.PARTITION:
        table.partitioned = name != "remove"
    elif verb is Verb.TABLE_OPTION and name == "system versioning":
        table.versioned = True


def _add_column(table: Table, change: Change, engine: Engine) -> None:
    column = column_of(change, engine)
    table.columns[column.name] = column
    if "CHECK" in column.words:
        table.checks[f"#{column.name}"] = change.definition
    if "PRIMARY KEY" in column.words:
        table.primary = (column.name,)
    elif column.words & {"UNIQUE", "SERIAL"} and not (engine is Engine.POSTGRESQL and "UNIQUE" not in column.words):
        table.indexes.append(Index(name=column.name, columns=(column.name,), words=frozenset({"UNIQUE"})))
    if change.references:
        table.foreign[f"#{len(table.foreign)}"] = _bare(change.references)
        if engine is Engine.MARIADB:
            table.indexes.append(Index(name=column.name, columns=(column.name,)))


def _renamed(table: Table, old: str, new: str) -> None:
    for index in table.indexes:
        index.columns = tuple(new if each == old else each for each in index.columns)
    table.primary = tuple(new if each == old else each for each in table.primary)


def _drop_index(table: Table, name: str) -> None:
    table.indexes = [index for index in table.indexes if index.name != name]


def _options(table: Table, text: str, engine: Engine) -> None:
    """What stands behind the columns of CREATE TABLE."""
    from migrations.reading.words import Stuck, words_of

    try:
        words = [each for each in words_of(text, engine) if each.upper != "="]
    except (Stuck, SqlUnreadable):
        return
    depth = 0
    for at, word in enumerate(words):
        depth += (word.upper == "(") - (word.upper == ")")
        follows = words[at + 1].upper if at + 1 < len(words) else ""
        if depth:
            continue
        if word.upper == "ENGINE":
            table.engine = follows
        elif word.upper == "ROW_FORMAT":
            table.row_format = follows
        elif word.upper in ("CHARSET", "CONVERT") or (word.upper == "SET" and words[at - 1].upper == "CHARACTER"):
            table.charset = {"UTF8": "UTF8MB3"}.get(follows, follows)
        elif word.upper == "COLLATE" and not table.charset:
            table.charset = follows.partition("_")[0]
        elif word.upper == "PARTITION" and follows == "BY":
            table.partitioned = True
        elif word.upper == "VERSIONING":
            table.versioned = True


def _bare(name: str) -> str:
    return name.rpartition(".")[2]
