"""PostgreSQL: the lock that a statement takes, and whether it holds it for as long as it takes to read or write the
whole table.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.classify import Impact, Verdict, Version, always, on_new_table, on_rows, selects
from migrations.columns import Column, column_of
from migrations.tables import Schema, Table

_ROWS: Final = (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT)

_DESCRIBES: Final = frozenset({
    "owner", "schema", "storage", "without", "cluster", "replica identity", "inherit", "row security", "of", "trigger",
    "rule", "constraint", "statistics", "storage of a column", "compression", "options of a column", "expression",
})  # fmt: skip

#: Functions that are computed once for the whole statement, as a default of a new column.
_STABLE: Final = frozenset({
    "NOW", "CURRENT_TIMESTAMP", "CURRENT_DATE", "CURRENT_TIME", "LOCALTIMESTAMP", "LOCALTIME", "TRANSACTION_TIMESTAMP",
    "STATEMENT_TIMESTAMP", "CURRENT_USER", "SESSION_USER", "TRUE", "FALSE", "NULL", "ARRAY", "INTERVAL", "TEXT", "INT",
    "INTEGER", "BIGINT", "JSONB", "JSON", "NUMERIC", "DATE", "TIMESTAMP", "TIMESTAMPTZ", "VARCHAR", "BOOLEAN", "UUID",
    "SMALLINT", "CHARACTER", "VARYING", "E", "B", "X",
})  # fmt: skip


def judge(parsed: Parsed, version: Version, schema: Schema) -> Iterator[Verdict]:
    """One verdict per change."""
    for change in parsed.changes:
        yield on_new_table(change, schema) or _judge(change, parsed, version, schema)


def _judge(change: Change, parsed: Parsed, version: Version, schema: Schema) -> Verdict:
    if change.verb is Verb.CREATE_VIEW and "MATERIALIZED" in parsed.sql.upper().split():
        return _verdict(change, Impact.ONLINE, "reads what it keeps; nobody waits")
    if found := always(change):
        return found
    if change.verb in _ROWS:
        return on_rows(change, schema)
    table = schema.table(change.table)
    rule = {
        Verb.ADD_COLUMN: _add_column,
        Verb.CHANGE_COLUMN: _change_type,
        Verb.SET_NOT_NULL: _set_not_null,
        Verb.ADD_INDEX: _add_index,
        Verb.ADD_PRIMARY_KEY: _add_primary_key,
        Verb.ADD_FOREIGN_KEY: _add_foreign_key,
        Verb.ADD_CHECK: _add_check,
        Verb.PARTITION: _partition,
        Verb.TABLE_OPTION: _option,
        Verb.CREATE_TABLE: _create,
    }.get(change.verb)
    if rule is not None:
        return rule(change, table, version)
    if change.verb is Verb.VALIDATE:
        return _verdict(change, Impact.ONLINE, "reads every row while everybody goes on")
    if change.verb is Verb.DROP_INDEX and "CONCURRENTLY" in change.words:
        return _verdict(change, Impact.ONLINE, "waits for the queries that use it, while everybody goes on")
    if change.verb is Verb.ALTER_TYPE:
        return _alter_type(change)
    if change.verb in _SHORT:
        return _verdict(change, Impact.INSTANT, "only the description changes")
    return _verdict(change, Impact.BLOCKS_ALL, "no form that we know", certain=False)


_SHORT: Final = frozenset({
    Verb.DROP_COLUMN, Verb.RENAME_COLUMN, Verb.SET_DEFAULT, Verb.DROP_DEFAULT, Verb.DROP_NOT_NULL, Verb.DROP_INDEX,
    Verb.RENAME_INDEX, Verb.DROP_CONSTRAINT, Verb.RENAME_CONSTRAINT,
})  # fmt: skip


def _verdict(change: Change, impact: Impact, reason: str, *, copies: bool = False, certain: bool = True) -> Verdict:
    return Verdict(impact=impact, reason=reason, change=change, copies=copies, certain=certain)


def _add_column(change: Change, table: Table | None, version: Version) -> Verdict:
    column = column_of(change, Engine.POSTGRESQL)
    rewrites = ""
    if column.generated == "STORED" or (column.generated and version.number < (18,)):
        rewrites = "its value is computed for every row"
    elif column.generated:
        return _verdict(change, Impact.INSTANT, "computed when it is read")
    elif (
        column.type in ("BIGSERIAL", "SMALLSERIAL", "SERIAL", "SERIAL4", "SERIAL8", "SERIAL2")
        or "IDENTITY" in column.words
    ):
        rewrites = "every row gets its number"
    elif not set(column.default_words) <= _STABLE:
        rewrites = "its default is computed for every row"
    elif column.default is not None and column.default.upper() != "NULL" and version.number < (11,):
        rewrites = "its default is written into every row before PostgreSQL 11"
    if rewrites:
        return _verdict(change, Impact.BLOCKS_ALL, rewrites, copies=True)
    if not _builtin(column):
        return _verdict(
            change,
            Impact.BLOCKS_ALL,
            "its type may be a domain with rules: every row is written anew",
            copies=True,
            certain=False,
        )
    if column.words & {"UNIQUE", "PRIMARY KEY"}:
        return _verdict(change, Impact.BLOCKS_ALL, "makes its index while nobody may use the table")
    if "CHECK" in column.words or (change.references and column.default is not None):
        return _verdict(change, Impact.BLOCKS_ALL, "checks every row while nobody may use the table")
    return _verdict(change, Impact.INSTANT, "rows that are there get it when they are read")


_BUILTIN: Final = frozenset({
    "INT", "BIGINT", "SMALLINT", "NUMERIC", "REAL", "DOUBLE", "TEXT", "VARCHAR", "CHAR", "BOOLEAN", "DATE", "TIMESTAMP",
    "TIMESTAMP WITH TIME ZONE", "TIME", "TIME WITH TIME ZONE", "INTERVAL", "UUID", "JSON", "JSONB", "BYTEA", "INET",
    "CIDR", "MACADDR", "XML", "POINT", "BIT", "BIT VARYING", "TSVECTOR", "MONEY", "INT4RANGE", "INT8RANGE", "TSRANGE",
    "TSTZRANGE", "DATERANGE", "NUMRANGE", "OID", "NAME", "HSTORE", "CITEXT", "LTREE",
})  # fmt: skip


def _builtin(column: Column) -> bool:
    return column.type.removesuffix("[]") in _BUILTIN


def _change_type(change: Change, table: Table | None, version: Version) -> Verdict:
    new = column_of(change, Engine.POSTGRESQL)
    old = table.columns.get(change.name) if table else None
    if "USING" in change.words:
        return _verdict(change, Impact.BLOCKS_ALL, "every value is computed anew", copies=True)
    if old is None or not old.type:
        return _verdict(
            change, Impact.BLOCKS_ALL, "its present type is not known: name the old release's schema in catalogue.toml",
            copies=True, certain=False,
        )  # fmt: skip
    if "COLLATE" in change.words:
        return _verdict(change, Impact.BLOCKS_ALL, "indexes on it are sorted anew while nobody may use the table")
    if _kept(old, new):
        return _verdict(change, Impact.INSTANT, "the values stay as they are")
    return _verdict(change, Impact.BLOCKS_ALL, f"every row is written anew as {new.type}", copies=True)


def _kept(old: Column, new: Column) -> bool:
    """Whether the bytes of all values stay."""
    if (old.type, old.args) == (new.type, new.args):
        return True
    texts = ("VARCHAR", "TEXT")
    if old.type in texts and new.type in texts:
        return new.type == "TEXT" or not new.args or (bool(old.args) and int(new.args[0]) >= int(old.args[0]))
    if old.type == new.type == "NUMERIC":
        if not new.args:
            return True
        scale = [args[1] if len(args) > 1 else "0" for args in (old.args, new.args)]
        return bool(old.args) and scale[0] == scale[1] and int(new.args[0]) >= int(old.args[0])
    if old.type == new.type and old.type in ("TIMESTAMP", "TIME", "TIMESTAMP WITH TIME ZONE", "BIT VARYING"):
        return not new.args or (bool(old.args) and int(new.args[0]) >= int(old.args[0]))
    return {old.type, new.type} == {"CIDR", "INET"} and new.type == "INET"


def _set_not_null(change: Change, table: Table | None, version: Version) -> Verdict:
    column = table.columns.get(change.name) if table else None
    if column is not None and not column.nullable:
        return _verdict(change, Impact.INSTANT, "is so already")
    checks = (table.checks.values() if table else ()) if version.number >= (12,) else ()
    if any(_proves(text, change.name) and "NOT VALID" not in text.upper() for text in checks):
        return _verdict(change, Impact.INSTANT, "a check has proved it")
    return _verdict(
        change, Impact.BLOCKS_ALL,
        "reads every row while nobody may use the table: add CHECK (… IS NOT NULL) NOT VALID, validate it, then set it",
    )  # fmt: skip


def _proves(check: str, column: str) -> bool:
    """Whether a constraint, or one in the definition of a column, is CHECK (column IS NOT NULL) and nothing else."""
    from migrations.reading.words import Reader, Stuck, words_of
    from migrations.text import SqlUnreadable

    try:
        reader = Reader(check, words_of(check, Engine.POSTGRESQL), Engine.POSTGRESQL)
        while not reader.done:
            if reader.accept("CHECK") or (reader.at == 0 and reader.peek() == "("):
                words = reader.group()
                while words and words[0].upper == "(" and words[-1].upper == ")":
                    words = words[1:-1]
                name, rest = words[:1], [each.upper for each in words[1:]]
                if [each.text for each in name if each.nameable] == [column] and rest == ["IS", "NOT", "NULL"]:
                    return True
            else:
                reader.next()
    except (Stuck, SqlUnreadable):
        pass
    return False


def _add_index(change: Change, table: Table | None, version: Version) -> Verdict:
    if "CONCURRENTLY" in change.words:
        return _verdict(change, Impact.ONLINE, "reads and sorts the table while everybody goes on")
    if "INDEX" in change.words and "USING" in change.words:
        return _verdict(change, Impact.INSTANT, "takes an index that is there")
    if "ONLY" in change.words:
        return _verdict(change, Impact.INSTANT, "only the description of a partitioned table")
    if change.definition.upper().startswith("USING INDEX"):
        return _verdict(change, Impact.INSTANT, "takes an index that is there")
    if change.words & {"CONSTRAINT"}:
        return _verdict(change, Impact.BLOCKS_ALL, "makes its index while nobody may use the table")
    return _verdict(change, Impact.BLOCKS_WRITES, "reads and sorts the table while writers wait: use CONCURRENTLY")


def _add_primary_key(change: Change, table: Table | None, version: Version) -> Verdict:
    if change.definition.upper().startswith("USING INDEX"):
        missing = [
            name for index in (table.indexes if table else []) for name in index.columns
            if f"USING INDEX {index.name}".upper() in change.definition.upper()
            and (name not in table.columns or table.columns[name].nullable)  # type: ignore[union-attr]
        ]  # fmt: skip
        if table is None or missing:
            return _verdict(
                change, Impact.BLOCKS_ALL, "reads every row unless the columns are NOT NULL", certain=table is not None
            )
        return _verdict(change, Impact.INSTANT, "takes an index that is there")
    return _verdict(
        change, Impact.BLOCKS_ALL,
        "makes its index while nobody may use the table: make a unique index CONCURRENTLY, then USING INDEX",
    )  # fmt: skip


def _add_foreign_key(change: Change, table: Table | None, version: Version) -> Verdict:
    if "NOT VALID" in change.words:
        return _verdict(change, Impact.INSTANT, "holds for new rows; old ones are checked by VALIDATE CONSTRAINT")
    return _verdict(
        change, Impact.BLOCKS_WRITES, "checks every row while writers of both tables wait: NOT VALID, then VALIDATE"
    )


def _add_check(change: Change, table: Table | None, version: Version) -> Verdict:
    if "NOT VALID" in change.words:
        return _verdict(change, Impact.INSTANT, "holds for new rows; old ones are checked by VALIDATE CONSTRAINT")
    return _verdict(
        change, Impact.BLOCKS_ALL, "checks every row while nobody may use the table: NOT VALID, then VALIDATE"
    )


def _partition(change: Change, table: Table | None, version: Version) -> Verdict:
    if change.name == "attach":
        return _verdict(change, Impact.BLOCKS_ALL, "reads every row of the new part while nobody may use that")
    if "CONCURRENTLY" in change.words:
        return _verdict(change, Impact.ONLINE, "waits for the queries that use it, while everybody goes on")
    return _verdict(change, Impact.INSTANT, "only the description changes")


def _option(change: Change, table: Table | None, version: Version) -> Verdict:
    if change.name in _DESCRIBES or (change.name == "identity" and "ADD" not in change.words):
        return _verdict(change, Impact.INSTANT, "only the description changes")
    if change.name == "identity":
        return _verdict(change, Impact.INSTANT, "only new rows are numbered")
    return _verdict(change, Impact.BLOCKS_ALL, f"{change.name}: every row is written anew", copies=True)


def _create(change: Change, table: Table | None, version: Version) -> Verdict:
    if selects(change):
        return _verdict(change, Impact.ONLINE, "reads what it copies; nobody waits")
    return _verdict(change, Impact.INSTANT, "a new table, empty")


def _alter_type(change: Change) -> Verdict:
    words = change.words
    if "DOMAIN" in words and "ADD" in words and "NOT VALID" not in words:
        return _verdict(change, Impact.BLOCKS_ALL, "reads every table that uses the domain")
    if "ATTRIBUTE" in words or ("DOMAIN" in words and words & {"VALIDATE", "SET"}):
        return _verdict(change, Impact.BLOCKS_ALL, "may read or write every table that uses the type", certain=False)
    return _verdict(change, Impact.INSTANT, "only the description changes")
