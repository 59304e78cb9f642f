"""MariaDB (10.4 and later) and MySQL (5.7 and later): every rule here is one that a real server was asked about, as far
as MariaDB 10.11 can tell; where versions differ, as their documentation has it, the worse in doubt.
"""

from __future__ import annotations

from collections.abc import Iterator

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.classify import Impact, Verdict, Version, always, on_new_table, on_rows, selects
from migrations.classify.mariadb_columns import change_column, constant_default
from migrations.classify.mariadb_levels import COPY, INSTANT, NOCOPY, REBUILD, SHARED, Found
from migrations.columns import column_of
from migrations.tables import Schema, Table, apply_to

_ENGINE = Engine.MARIADB

_ROWS = (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT)

#: Options of a table that are only its description.
_DESCRIBES = ("comment", "auto_increment", "character set", "collate", "stats", "rows", "checksum", "index visibility")


def judge(parsed: Parsed, version: Version, schema: Schema) -> Iterator[Verdict]:
    """One verdict per change, and one for what they are together."""
    altering: list[Change] = []
    for change in parsed.changes:
        if found := on_new_table(change, schema) or always(change):
            yield found
        elif change.verb in _ROWS:
            yield on_rows(change, schema)
        elif change.verb is Verb.CREATE_TABLE:
            yield _create(change)
        elif change.verb is Verb.PARTITION and change.name not in ("by", "remove"):
            yield _partition(change)
        else:
            altering.append(change)
    if altering:
        yield from _alter(altering, parsed, version, schema)


def _create(change: Change) -> Verdict:
    if selects(change):
        return Verdict(
            impact=Impact.BLOCKS_WRITES,
            reason="locks the rows that it copies until it ends",
            change=change,
            copies=True,
        )
    return Verdict(impact=Impact.INSTANT, reason="a new table, empty", change=change)


def _partition(change: Change) -> Verdict:
    if change.name in ("drop", "truncate"):
        return Verdict(impact=Impact.INSTANT, reason="empties parts of the table at once", change=change)
    if change.name == "add" and "VALUES" in change.definition.upper():
        return Verdict(impact=Impact.INSTANT, reason="a new part, empty", change=change)
    return Verdict(
        impact=Impact.BLOCKS_WRITES, reason="moves rows between parts of the table", change=change, copies=True
    )


# -- ALTER TABLE and indexes


def _alter(changes: list[Change], parsed: Parsed, version: Version, schema: Schema) -> Iterator[Verdict]:
    table = schema.table(changes[0].table)
    again = {each.verb for each in changes} >= {Verb.DROP_PRIMARY_KEY, Verb.ADD_PRIMARY_KEY}
    known = table or Table(name=changes[0].table, charset="UTF8MB4")
    levels: list[tuple[Change, int, str, bool]] = []
    later = known.copy()
    for change in changes:
        if change.verb is Verb.DROP_PRIMARY_KEY:
            level, reason = (
                _rebuild(known, "orders the table anew")
                if again
                else (COPY, "orders the table by nothing: add the new primary key in the same statement")
            )
            certain = True
        else:
            level, reason, certain = _level(change, later if table else known, version, known=table is not None)
        levels.append((change, level, reason, certain))
        apply_to(later, change, schema.engine)
    together = _together(changes, [level for _, level, *_ in levels], known, parsed, version)
    for change, level, reason, certain in levels:
        yield _verdict(change, (level, reason), certain, known, version, asked=table is not None)
    if together is not None:
        yield _verdict(changes[0], together, True, known, version, asked=table is not None)


def _verdict(change: Change, found: Found, certain: bool, table: Table, version: Version, *, asked: bool) -> Verdict:
    level, reason = found
    impact = {INSTANT: Impact.INSTANT, NOCOPY: Impact.ONLINE, REBUILD: Impact.ONLINE}.get(level, Impact.BLOCKS_WRITES)
    if level == COPY and asked and certain and _copies_online(change, table, version):
        impact, reason = Impact.ONLINE, f"{reason}; since 11.2 the copy is made online"
    return Verdict(
        impact=impact,
        reason=reason or "only the description changes",
        change=change,
        copies=level in (REBUILD, COPY),
        certain=certain,
    )


def _copies_online(change: Change, table: Table, version: Version) -> bool:
    """MariaDB 11.2 copies with LOCK=NONE, but for foreign keys that act by themselves, counters and the like."""
    if version.mysql or version.number < (11, 2) or table.cascades or table.versioned or table.partitioned:
        return False
    counts = any(column.auto for column in table.columns.values()) and change.verb is Verb.CHANGE_COLUMN
    kinds = (Verb.CHANGE_COLUMN, Verb.ADD_COLUMN, Verb.ADD_CHECK)
    return change.verb in kinds and bool(table.primary) and not counts and "AUTO_INCREMENT" not in change.words


def _together(changes: list[Change], levels: list[int], table: Table, parsed: Parsed, version: Version) -> Found | None:
    """What several clauses are that none of them is alone."""
    if "IGNORE" in parsed.options:
        return COPY, "ALTER IGNORE copies the table"
    verbs = [change.verb for change in changes]
    adds = [each for each in changes if each.verb is Verb.ADD_COLUMN]
    drops = Verb.DROP_COLUMN in verbs
    virtual = [each for each in adds if _is_virtual(each)]
    if virtual and (len(adds) > 1 or drops):
        return COPY, "a virtual column and other columns in one statement: give each one of its own"
    if adds and drops and table.has_generated("VIRTUAL"):
        return COPY, "columns come and go at once in a table that has a virtual column"
    if drops and any(each.verb is Verb.DROP_CONSTRAINT and each.name in table.checks for each in changes):
        return COPY, "a column and a check go at once: give each a statement of its own"
    if sum(each.verb is Verb.ADD_INDEX and "FULLTEXT" in each.words for each in changes) > 1:
        return COPY, "two full-text indexes in one statement"
    if Verb.DROP_PRIMARY_KEY in verbs and Verb.ADD_PRIMARY_KEY in verbs and table.partitioned:
        return COPY, "orders a partitioned table anew"
    indexes = any(each in (Verb.ADD_INDEX, Verb.DROP_INDEX) for each in verbs)
    if (adds or drops) and indexes and max(levels) < SHARED:
        if virtual:
            return SHARED, "a virtual column and an index in one statement: give each one of its own"
        return _rebuild(table, "columns and indexes in one statement: every row is written anew")
    return None


def _is_virtual(change: Change) -> bool:
    return "AS" in change.words and not change.words & {"STORED", "PERSISTENT"}


def _rebuild(table: Table, why: str) -> Found:
    if table.has_index("FULLTEXT") or table.has_index("SPATIAL"):
        return SHARED, f"{why}; and a full-text or spatial index on the table locks writers out"
    if table.engine not in ("", "INNODB"):
        return COPY, f"{why}; {table.engine} can only copy"
    return REBUILD, why


def _level(change: Change, table: Table, version: Version, *, known: bool) -> tuple[int, str, bool]:
    """Level, reason, and whether all that matters was known."""
    if change.verb is Verb.CHANGE_COLUMN:
        return _change_column(change, table, version, known=known)
    if change.verb is Verb.TABLE_OPTION:
        return _option(change, table, version, known=known)
    rule = {
        Verb.ADD_COLUMN: _add_column,
        Verb.DROP_COLUMN: _drop_column,
        Verb.ADD_INDEX: _add_index,
        Verb.DROP_INDEX: _quick_index,
        Verb.DROP_CONSTRAINT: _drop_constraint,
        Verb.ADD_PRIMARY_KEY: lambda *_: _rebuild(table, "orders the table anew"),
        Verb.ADD_FOREIGN_KEY: lambda *_: (COPY, "checks every row against the other table"),
        Verb.ADD_CHECK: lambda *_: (COPY, "checks every row"),
        Verb.PARTITION: lambda *_: (COPY, "moves every row"),
    }.get(change.verb)
    if rule is not None:
        return (*rule(change, table, version), True)
    if change.verb is Verb.RENAME_INDEX and not version.mysql and version.number < (10, 5):
        return NOCOPY, "the index is made anew", True
    if change.verb in (
        Verb.RENAME_COLUMN,
        Verb.SET_DEFAULT,
        Verb.DROP_DEFAULT,
        Verb.RENAME_INDEX,
        Verb.DROP_FOREIGN_KEY,
    ):
        return INSTANT, "only the description changes", True
    return COPY, "no form that we know", False


def _add_column(change: Change, table: Table, version: Version) -> Found:
    column = column_of(change, _ENGINE)
    if column.generated == "STORED":
        return COPY, "its value is computed for every row"
    if column.auto:
        return SHARED, "every row gets its number"
    if change.references:
        return COPY, "checks every row against the other table"
    if column.generated != "VIRTUAL" and not constant_default(column):
        return COPY, "its default is computed for every row"
    if table.engine not in ("", "INNODB"):
        return COPY, f"{table.engine} can only copy"
    if column.words & {"UNIQUE", "PRIMARY KEY", "KEY"}:
        return _rebuild(table, "a column and an index in one: every row is written anew")
    if column.words & {"FIRST", "AFTER"} and table.has_generated("VIRTUAL"):
        return COPY, "not at the end of a table that has a virtual column"
    if table.has_index("FULLTEXT"):
        return _rebuild(table, "every row is written anew")
    if table.row_format == "COMPRESSED":
        return REBUILD, "compressed rows have no room: every row is written anew"
    if column.generated == "VIRTUAL":
        return INSTANT, "computed when it is read"
    since = ((8, 0, 29) if column.words & {"FIRST", "AFTER"} else (8, 0, 12)) if version.mysql else (10, 4)
    if version.number < since:
        return REBUILD, f"every row is written anew before {Version(number=since)}"
    return INSTANT, "rows that are there get it when they are read"


def _drop_column(change: Change, table: Table, version: Version) -> Found:
    if table.engine not in ("", "INNODB"):
        return COPY, f"{table.engine} can only copy"
    if table.has_index("FULLTEXT"):
        return _rebuild(table, "every row is written anew")
    if table.row_format == "COMPRESSED":
        return REBUILD, "every row is written anew"
    column = table.columns.get(change.name)
    if column is not None and column.generated == "VIRTUAL":
        return INSTANT, "only the description changes"
    if version.number < ((8, 0, 29) if version.mysql else (10, 4)):
        return REBUILD, "every row is written anew"
    if change.name in table.primary:
        return COPY, "is part of the primary key"
    indexes = [index for index in table.indexes if change.name in index.columns]
    if any(len(index.columns) > 1 for index in indexes):
        return COPY, "is part of an index over several columns"
    return (NOCOPY, "its index goes, too") if indexes else (INSTANT, "stays in the rows, unseen")


def _add_index(change: Change, table: Table, version: Version) -> Found:
    if table.engine not in ("", "INNODB"):
        return COPY, f"{table.engine} can only copy"
    for kind in ("FULLTEXT", "SPATIAL", "VECTOR"):
        if kind in change.words:
            return SHARED, f"{kind.lower()} indexes are made while writers wait"
    return NOCOPY, "reads and sorts the table while everybody goes on"


def _quick_index(change: Change, table: Table, version: Version) -> Found:
    return (COPY, f"{table.engine} can only copy") if table.engine not in ("", "INNODB") else (NOCOPY, "the index goes")


def _drop_constraint(change: Change, table: Table, version: Version) -> Found:
    if change.name in table.checks or change.name in table.foreign:
        return INSTANT, "only the description changes"
    return _quick_index(change, table, version)


def _change_column(change: Change, table: Table, version: Version, *, known: bool) -> tuple[int, str, bool]:
    new = column_of(change, _ENGINE)
    old = table.columns.get(change.name)
    if old is None:
        why = "is not in the schema" if known else "is not known: name the old release's schema in catalogue.toml"
        return COPY, f"its present definition {why}", False
    if new.auto and not known:
        return COPY, "begins to count the rows", False
    level, reason = change_column(old, new, table, version)
    if level == REBUILD:
        level, reason = _rebuild(table, reason)
    elif level and table.engine not in ("", "INNODB"):
        level, reason = COPY, f"{reason}; {table.engine} can only copy"
    return level, reason, True


def _option(change: Change, table: Table, version: Version, *, known: bool) -> tuple[int, str, bool]:
    name, value = change.name, change.definition.upper()
    if name in _DESCRIBES:
        return INSTANT, "only the description changes", True
    if name == "engine":
        same = value == (table.engine or "INNODB")
        if same and value == "INNODB":
            return (*_rebuild(table, "every row is written anew"), known or not table.engine)
        return COPY, f"every row moves to {value}", True
    if name in ("force", "row_format", "key_block_size", "page_compressed"):
        return (*_rebuild(table, "every row is written anew"), True)
    if name == "convert":
        return _convert(change, table, version, known=known)
    return COPY, f"{name}: every row may be written anew", True


def _convert(change: Change, table: Table, version: Version, *, known: bool) -> tuple[int, str, bool]:
    """CONVERT TO CHARACTER SET: each column of letters is changed."""
    from dataclasses import replace

    if not known:
        return COPY, "every value is converted, as far as we know without the schema", False
    words = change.definition.split()
    charset = {"UTF8": "UTF8MB3"}.get(words[0].upper(), words[0].upper()) if words else ""
    collation = words[-1].upper() if len(words) > 2 else ""
    worst: Found = (INSTANT, "no value changes")
    for old in table.columns.values():
        if old.type in ("CHAR", "VARCHAR", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT", "ENUM", "SET"):
            new = replace(
                old, charset=charset, collation=collation or ("" if not old.collation else f"{charset}_default")
            )
            worst = max(worst, change_column(old, new, table, version), key=lambda found: found[0])
    return (*worst, True)
