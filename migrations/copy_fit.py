"""Whether a table can be altered by copying, and what the copy is called."""

from __future__ import annotations

import shutil
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from core.errors import MigrationFailed, NoSpace
from core.sql import Connection, Engine
from migrations.catalogue import Migration, Statement
from migrations.changes import Verb
from migrations.ddl import parse

#: Part of the table's size that must be free beyond it.
MARGIN: Final = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """A table that is to be altered by copying. `alter`: what stands behind its name in the ALTER TABLE."""

    schema: str
    table: str
    alter: str
    number: int

    @property
    def new(self) -> str:
        """The altered copy."""
        return f"_updater_{self.number:04}_new"

    @property
    def old(self) -> str:
        """The table's own rows, once the copy has taken its place."""
        return f"_updater_{self.number:04}_old"

    def quoted(self, name: str) -> str:
        """A table beside it."""
        return f"{_quoted(self.schema)}.{_quoted(name)}"


def read_copy(connection: Connection, migration: Migration, statement: Statement) -> Copy:
    """What is to be copied. Raises MigrationFailed unless the statement is one ALTER TABLE that can be done so."""
    from migrations.reading.words import Reader, Stuck, words_of

    parsed = parse(statement.sql, Engine.MARIADB)
    uniques = [each for each in parsed.changes if each.verb in _UNSAFE or "UNIQUE" in each.words]
    if uniques:
        raise _refused(migration, f"{uniques[0].verb}: rows that differ in nothing else could get lost in the copy")
    try:
        reader = Reader(statement.sql, words_of(statement.sql, Engine.MARIADB), Engine.MARIADB)
        reader.expect("ALTER")
        reader.any_of("ONLINE", "OFFLINE")
        reader.accept("IGNORE")
        reader.expect("TABLE")
        reader.accept("IF", "EXISTS")
        schema, _, table = reader.qualified().rpartition(".")
        if reader.accept("WAIT"):
            reader.next()
        reader.accept("NOWAIT")
        alter = statement.sql[reader.left[0].start :].strip().rstrip(";")
    except (Stuck, ValueError, IndexError) as error:
        raise _refused(migration, "only ALTER TABLE can be done by online copy") from error
    return Copy(schema=schema or connection.database.database, table=table, alter=alter, number=migration.number)


#: Changes that a copy by INSERT IGNORE cannot make without danger to rows, or that the tool cannot make at all.
_UNSAFE: Final = frozenset({Verb.ADD_PRIMARY_KEY, Verb.RENAME_TABLE, Verb.RENAME_COLUMN, Verb.PARTITION, Verb.UNKNOWN})


def require_fit(connection: Connection, copy: Copy, migration: Migration) -> None:
    """Raises MigrationFailed for tables that lose something when a copy takes their place."""
    where = (copy.schema, copy.table)
    if not connection.one(f"SELECT 1 FROM {TABLES}", where):
        raise _refused(migration, f"the table {copy.table} does not exist")
    children = connection.execute(
        "SELECT DISTINCT table_name FROM information_schema.key_column_usage"
        " WHERE referenced_table_schema = %s AND referenced_table_name = %s",
        where,
    ).rows
    if children:
        names = ", ".join(sorted(str(name) for (name,) in children))
        raise _refused(migration, f"foreign keys point at {copy.table}, and would follow its old rows: {names}")
    if connection.one(
        "SELECT 1 FROM information_schema.key_column_usage"
        " WHERE table_schema = %s AND table_name = %s AND referenced_table_name IS NOT NULL LIMIT 1",
        where,
    ):
        raise _refused(migration, f"{copy.table} has foreign keys, whose names the copy would change")
    if connection.one(
        "SELECT 1 FROM information_schema.triggers WHERE event_object_schema = %s AND event_object_table = %s LIMIT 1",
        where,
    ):
        raise _refused(migration, f"{copy.table} has triggers, which the copy would not have")
    if not connection.one(_UNIQUE, where):
        raise _refused(migration, f"{copy.table} has no primary key, nor a unique one that is never NULL")


TABLES: Final = "information_schema.tables WHERE table_schema = %s AND table_name = %s AND table_type = 'BASE TABLE'"
_UNIQUE: Final = (
    "SELECT index_name FROM information_schema.statistics"
    " WHERE table_schema = %s AND table_name = %s AND non_unique = 0"
    " GROUP BY index_name HAVING sum(nullable = 'YES') = 0 LIMIT 1"
)


def require_lossless(connection: Connection, copy: Copy, migration: Migration) -> None:
    """The copying passes over a row whose unique key is in the copy already, as it must for rows that the triggers have
    brought. So no two rows may become the same in a unique key. The server is asked: an empty copy is altered, and
    dropped again. Raises MigrationFailed.
    """
    new = copy.quoted(copy.new)
    connection.execute(f"CREATE TABLE {new} LIKE {copy.quoted(copy.table)}")
    try:
        connection.execute(f"ALTER TABLE {new} {copy.alter}")
        before, keys = _described(connection, copy.schema, copy.table)
        after, new_keys = _described(connection, copy.schema, copy.new)
    finally:
        connection.execute(f"DROP TABLE IF EXISTS {new}")
    for name, key in new_keys.items():
        if not any(_at_least(key, each) for each in keys.values()):
            raise _refused(migration, f"the unique key {name} is new, or less than it was: rows could get lost")
        for column in key:
            if not _keeps_apart(before.get(column), after.get(column)):
                why = f"{column} changes, and is in the unique key {name}: rows that become the same would get lost"
                raise _refused(migration, why)


#: Type, as it is written in full, length, character set, collation, and what it is computed from.
_Form = tuple[Any, ...]

#: The columns of a unique key, with the length of a prefix (None: the whole column).
_Key = dict[str, int | None]


def _described(connection: Connection, schema: str, table: str) -> tuple[dict[str, _Form], dict[str, _Key]]:
    """A table's columns, and its unique keys by name."""
    columns = connection.execute(
        "SELECT lower(column_name), data_type, column_type, character_maximum_length, character_set_name,"
        " collation_name, generation_expression FROM information_schema.columns"
        " WHERE table_schema = %s AND table_name = %s",
        (schema, table),
    ).rows
    keys: dict[str, _Key] = {}
    for name, column, prefix in connection.execute(
        "SELECT index_name, lower(column_name), sub_part FROM information_schema.statistics"
        " WHERE table_schema = %s AND table_name = %s AND non_unique = 0",
        (schema, table),
    ).rows:
        keys.setdefault(name, {})[str(column)] = prefix
    return {str(name): tuple(form) for name, *form in columns}, keys


def _at_least(key: _Key, old: _Key) -> bool:
    """Whether rows that differ in the old key differ in this one."""
    return all(
        column in key and (key[column] is None or (prefix is not None and prefix <= (key[column] or 0)))
        for column, prefix in old.items()
    )


_INTEGERS: Final = ("tinyint", "smallint", "mediumint", "int", "bigint")
_STRINGS: Final = ("char", "varchar", "varbinary")


def _keeps_apart(old: _Form | None, new: _Form | None) -> bool:
    """Whether values that differ in a column still differ in what becomes of it: nothing changes, or it only grows."""
    if old is None or new is None or old == new:
        return old is not None and old == new
    (kind, full, length, *text), (new_kind, new_full, new_length, *new_text) = old, new
    if text != new_text:
        return False
    if kind in _INTEGERS and new_kind in _INTEGERS:
        wider = _INTEGERS.index(new_kind) - _INTEGERS.index(kind)
        signs = ["unsigned" in each for each in (full, new_full)]
        return wider >= 0 if signs[0] == signs[1] else signs[0] and wider > 0
    return kind == new_kind and kind in _STRINGS and int(new_length) >= int(length)


def require_space(connection: Connection, copy: Copy) -> None:
    """Room for a second table, where the server's disk is ours to look at. Raises NoSpace."""
    row = connection.one("SELECT @@datadir")
    if connection.database.socket is None or row is None:
        return
    with suppress(OSError):
        free = shutil.disk_usage(str(row[0])).free
        size = connection.one(f"SELECT data_length + index_length FROM {TABLES}", (copy.schema, copy.table))
        wanted = int(float(size[0] or 0) * (1 + MARGIN)) if size else 0
        if free < wanted:
            raise NoSpace(
                f"no space for a copy of {copy.table}",
                what=f"it takes about {wanted >> 20} MiB in {row[0]}, {free >> 20} MiB are free",
                state="the table was not touched",
                next=f"df -h {row[0]}",
            )


def _refused(migration: Migration, why: str) -> MigrationFailed:
    return MigrationFailed(
        f"{migration.id} cannot be done by online copy",
        what=why,
        state="the table was not touched",
        next=["take the strategy native in the blocking phase", "updater migrate lint DIR"],
    )


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"
