"""What MariaDB must do when a column's definition changes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from migrations.classify import Version
from migrations.classify.mariadb_levels import COPY, INSTANT, NOCOPY, REBUILD, Found
from migrations.columns import Column
from migrations.tables import Table

#: Bytes of the longest letter.
_LETTER: Final = {
    "ASCII": 1, "LATIN1": 1, "LATIN2": 1, "CP1250": 1, "CP1251": 1, "CP850": 1, "KOI8R": 1, "BINARY": 1,
    "UTF8MB3": 3, "UTF8MB4": 4, "UCS2": 2, "UTF16": 4, "UTF32": 4,
}  # fmt: skip

_TEXTS: Final = frozenset({"CHAR", "VARCHAR", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT", "ENUM", "SET"})

#: Functions whose value is known when the column is added: one for all rows.
_FIXED: Final = frozenset(
    ("NULL", "TRUE", "FALSE", "CURRENT_TIMESTAMP", "NOW", "LOCALTIME", "LOCALTIMESTAMP", "CURDATE", "CURRENT_DATE",
     "CURTIME", "CURRENT_TIME", "INTERVAL", "DAY", "HOUR", "MINUTE", "SECOND", "MONTH", "YEAR", "CONCAT", "B", "X",
     "DATE", "TIMESTAMP", "TIME")
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The least and the most bytes that a VARCHAR of this many letters may take."""

    least: int
    most: int


def constant_default(column: Column) -> bool:
    """Whether all rows that are there get the same value."""
    return set(column.default_words) <= _FIXED


def change_column(old: Column, new: Column, table: Table, version: Version) -> Found:
    """What it takes to make `new` of `old`."""
    steps = [
        _generated(old, new),
        _type(old, new, table, version),
        _null(old, new, table),
        _place(old, new, table, version),
    ]
    if new.auto and not old.auto:
        steps.append((COPY, "begins to count the rows"))
    if ("COMPRESSED" in new.words) != ("COMPRESSED" in old.words):
        steps.append((COPY, "stores its values in another way"))
    if "REFERENCES" in new.words:
        steps.append((COPY, "checks every row against the other table"))
    if "PRIMARY KEY" in new.words and table.primary != (old.name,):
        steps.append((REBUILD, "orders the table anew"))
    if "UNIQUE" in new.words:
        steps.append((NOCOPY, "makes an index"))
    return max(steps, key=lambda step: step[0])


def _generated(old: Column, new: Column) -> Found:
    if not old.generated and not new.generated:
        return INSTANT, "its values stay as they are: only the description changes"
    if old.generated == new.generated == "VIRTUAL" and not _changes_type(old, new):
        return INSTANT, "computed when it is read"
    return COPY, "its values are computed anew"


def _changes_type(old: Column, new: Column) -> bool:
    return (old.type, old.args, old.unsigned) != (new.type, new.args, new.unsigned)


def _null(old: Column, new: Column, table: Table) -> Found:
    if old.nullable == new.nullable:
        return INSTANT, ""
    if not new.nullable:
        if table.has_generated("STORED"):
            return COPY, "checks every row, and the table has a stored generated column"
        return REBUILD, "every row is written anew without NULL"
    if table.row_format == "REDUNDANT":
        return INSTANT, ""
    return REBUILD, "every row is written anew with room for NULL"


def _place(old: Column, new: Column, table: Table, version: Version) -> Found:
    if new.words & {"FIRST", "AFTER"} and (version.mysql or version.number < (10, 4)):
        return REBUILD, "columns change their places in every row"
    return INSTANT, ""


def _type(old: Column, new: Column, table: Table, version: Version) -> Found:
    if not old.type or not new.type:
        return COPY, "the type is not known to us"
    if old.type != new.type or old.unsigned != new.unsigned:
        return COPY, f"the type changes from {_said(old)} to {_said(new)}"
    if old.type in _TEXTS and (found := _charset(old, new, table, version))[0] >= COPY:
        return found
    if old.type in ("VARCHAR", "VARBINARY"):
        return max(_length(old, new, table, version), _charset(old, new, table, version))
    if old.type in ("ENUM", "SET"):
        return max(_values(old, new), _charset(old, new, table, version))
    if old.args != new.args:
        return COPY, f"the type changes from {_said(old)} to {_said(new)}"
    return _charset(old, new, table, version) if old.type in _TEXTS else (INSTANT, "")


def _said(column: Column) -> str:
    args = f"({','.join(column.args)})" if column.args and len(column.args) < 3 else ""
    return f"{column.type}{args}{' UNSIGNED' if column.unsigned else ''}"


def _charset(old: Column, new: Column, table: Table, version: Version) -> Found:
    before, after = old.charset or table.charset, new.charset or table.charset
    if old.type == "VARBINARY":
        return INSTANT, ""
    if before != after:
        widened = before == "UTF8MB3" and after == "UTF8MB4" and not version.mysql and version.number >= (10, 4)
        if widened and old.type in ("VARCHAR", "ENUM", "SET", "TINYTEXT", "TEXT", "MEDIUMTEXT", "LONGTEXT"):
            return INSTANT, "utf8mb3 is utf8mb4 already"
        return COPY, f"every value is converted from {before or 'the default'} to {after or 'the default'}"
    if (old.collation or "") == (new.collation or ""):
        return INSTANT, ""
    if version.mysql or version.number < (10, 4):
        return COPY, "the order of letters changes"
    return (NOCOPY, "its indexes are sorted anew") if table.indexed(old.name) else (INSTANT, "")


def _length(old: Column, new: Column, table: Table, version: Version) -> Found:
    before, after = _bytes(old, table), _bytes(new, table)
    if before is None or after is None:
        return COPY, "its length is not known to us"
    if int(new.args[0]) < int(old.args[0]):
        return COPY, f"becomes shorter: {_said(old)} to {_said(new)}"
    if before == after or table.row_format == "REDUNDANT":
        return INSTANT, ""
    roomy = not version.mysql and version.number >= (10, 4)
    if before.least > 255 or after.most <= 255 or (roomy and before.most <= 127):
        return INSTANT, ""
    return COPY, f"grows over 255 bytes: {_said(old)} to {_said(new)}"


def _bytes(column: Column, table: Table) -> Sizes | None:
    if len(column.args) != 1 or not column.args[0].isdigit():
        return None
    letters = int(column.args[0])
    if column.type == "VARBINARY":
        return Sizes(least=letters, most=letters)
    each = _LETTER.get(column.charset or table.charset)
    return Sizes(least=letters * (each or 1), most=letters * (each or 4))


def _values(old: Column, new: Column) -> Found:
    if new.args[: len(old.args)] != old.args:
        return COPY, "values are changed or put between the others"
    step = [255] if old.type == "ENUM" else [8, 16, 24, 32]
    if sum(len(old.args) > each for each in step) != sum(len(new.args) > each for each in step):
        return COPY, "needs more bytes for so many values"
    return INSTANT, ""
