"""A column's definition taken apart: type, whether it may be null, default, character set, …"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from core.sql import Engine
from migrations.changes import Change

if TYPE_CHECKING:
    from migrations.reading.words import Reader, Word

#: Types by the one name we compare them under.
_SAME: Final = {
    Engine.MARIADB: {
        "INTEGER": "INT", "INT4": "INT", "INT8": "BIGINT", "INT2": "SMALLINT", "INT1": "TINYINT", "INT3": "MEDIUMINT",
        "MIDDLEINT": "MEDIUMINT", "BOOL": "TINYINT", "BOOLEAN": "TINYINT", "DEC": "DECIMAL", "NUMERIC": "DECIMAL",
        "FIXED": "DECIMAL", "CHARACTER": "CHAR", "REAL": "DOUBLE", "FLOAT8": "DOUBLE", "FLOAT4": "FLOAT",
        "NVARCHAR": "VARCHAR", "NCHAR": "CHAR", "SERIAL": "BIGINT",
    },
    Engine.POSTGRESQL: {
        "INTEGER": "INT", "INT4": "INT", "INT8": "BIGINT", "INT2": "SMALLINT", "DECIMAL": "NUMERIC", "BOOL": "BOOLEAN",
        "CHARACTER": "CHAR", "BPCHAR": "CHAR", "FLOAT8": "DOUBLE", "FLOAT4": "REAL", "FLOAT": "DOUBLE",
        "TIMESTAMPTZ": "TIMESTAMP WITH TIME ZONE", "TIMETZ": "TIME WITH TIME ZONE", "VARBIT": "BIT VARYING",
    },
    Engine.SQLITE: {},
}  # fmt: skip

#: What ends a type (or a default).
_ATTRIBUTES: Final = frozenset({
    "NOT", "NULL", "DEFAULT", "AUTO_INCREMENT", "COMMENT", "COLLATE", "CHARACTER", "CHARSET", "PRIMARY", "UNIQUE",
    "KEY", "CHECK", "REFERENCES", "GENERATED", "AS", "VIRTUAL", "STORED", "PERSISTENT", "FIRST", "AFTER", "ON",
    "INVISIBLE", "VISIBLE", "COMPRESSED", "UNSIGNED", "SIGNED", "ZEROFILL", "CONSTRAINT", "USING", "COLUMN_FORMAT",
    "STORAGE", "AUTOINCREMENT", "WITH", "WITHOUT", "BINARY", "ASCII", "UNICODE", "REF_SYSTEM_ID", "IDENTITY",
})  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """`type` in capitals under its usual name, `args` what stands behind it in parentheses. `default`: its words as
    they were written; None without one. `generated`: VIRTUAL or STORED. `words`: all attributes, in capitals.
    """

    name: str
    type: str = ""
    args: tuple[str, ...] = ()
    unsigned: bool = False
    nullable: bool = True
    default: str | None = None
    default_words: tuple[str, ...] = ()
    charset: str = ""
    collation: str = ""
    generated: str = ""
    words: frozenset[str] = frozenset()

    @property
    def auto(self) -> bool:
        """Whether it counts by itself."""
        return bool(self.words & {"AUTO_INCREMENT", "AUTOINCREMENT", "SERIAL"})


@lru_cache(maxsize=2048)
def column_of(change: Change, engine: Engine) -> Column:
    """The column that the change adds, or leaves behind. What cannot be read leaves the type empty."""
    from migrations.reading.words import Reader, Stuck, text_of, words_of
    from migrations.text import SqlUnreadable

    name = change.new_name or change.name
    try:
        words = words_of(change.definition, engine)
        reader = Reader(change.definition, words, engine)
        kind, args = _type(reader, engine)
        found = change.words - {"IF NOT EXISTS", "IF EXISTS"}
        default, default_words = _default(reader)
        charset, collation = _charset(words), _after(words, "COLLATE")
        if engine is Engine.MARIADB and not charset and collation and "_" in collation:
            charset = collation.partition("_")[0].upper()
        return Column(
            name=name,
            type=kind,
            args=args,
            unsigned=bool(found & {"UNSIGNED", "ZEROFILL", "SERIAL"}),
            nullable="NOT NULL" not in found and "PRIMARY KEY" not in found and "SERIAL" not in found,
            default=text_of(change.definition, default) if default is not None else None,
            default_words=default_words,
            charset=_known_charset(charset),
            collation=collation.upper(),
            generated=_generated(found, engine),
            words=found,
        )
    except (Stuck, SqlUnreadable):
        return Column(name=name, words=change.words)


def _type(reader: Reader, engine: Engine) -> tuple[str, tuple[str, ...]]:
    if reader.peek() in ("AS", "GENERATED", ""):
        return "", ()
    kind = reader.next().upper
    if kind in ("DOUBLE", "CHARACTER", "CHAR", "BIT", "LONG", "NATIONAL", "NCHAR"):
        follows = reader.any_of("PRECISION", "VARYING", "VARCHAR", "CHAR", "CHARACTER")
        kind = {"PRECISION": "DOUBLE", "VARYING": "BIT VARYING" if kind == "BIT" else "VARCHAR"}.get(
            follows, follows or kind
        )
    args: tuple[str, ...] = ()
    if reader.peek() == "(":
        args = tuple(each.rest() for each in reader.clauses(reader.group()))
    if kind in ("TIMESTAMP", "TIME") and engine is Engine.POSTGRESQL:
        if reader.accept("WITH", "TIME", "ZONE"):
            kind += " WITH TIME ZONE"
        else:
            reader.accept("WITHOUT", "TIME", "ZONE")
    while reader.accept("[") or reader.peek() == "]" or (kind.endswith("[]") and reader.peek().isdigit()):
        kind += "" if kind.endswith("[]") else "[]"
        if not reader.done:
            reader.next()
    kind = _SAME[engine].get(kind, kind)
    if kind in ("TINYINT", "SMALLINT", "MEDIUMINT", "INT", "BIGINT", "YEAR") and engine is Engine.MARIADB:
        args = ()  # the width on a screen
    if kind in ("CHAR", "BINARY", "BIT") and not args:
        args = ("1",)
    if kind in ("DECIMAL",) and engine is Engine.MARIADB:
        args = (args + ("10", "0")[len(args) :]) if len(args) < 2 else args
    if kind in ("DATETIME", "TIMESTAMP", "TIME") and args == ("0",):
        args = ()
    return kind, args


def _default(reader: Reader) -> tuple[Sequence[Word] | None, tuple[str, ...]]:
    """The words of DEFAULT's value, and which of them are names (of columns or functions)."""
    depth = 0
    left = reader.left
    for at, word in enumerate(left):
        depth += (word.upper == "(") - (word.upper == ")")
        if word.upper == "DEFAULT" and not depth:
            end = at + 2
            while end < len(left) and (depth or left[end].upper not in _ATTRIBUTES):
                depth += (left[end].upper == "(") - (left[end].upper == ")")
                end += 1
            value = left[at + 1 : end]
            depth = sum((each.upper == "(") - (each.upper == ")") for each in value)
            while depth > 0 and end < len(left):
                depth += (left[end].upper == "(") - (left[end].upper == ")")
                end += 1
            value = left[at + 1 : end]
            return value, tuple(each.upper or each.text for each in value if each.nameable)
    return None, ()


def _charset(words: Sequence[Word]) -> str:
    return _after(words, "CHARSET") or _after(words, "CHARACTER", "SET")


def _after(words: Sequence[Word], *keywords: str) -> str:
    for at in range(len(words) - len(keywords)):
        if all(words[at + n].upper == keyword for n, keyword in enumerate(keywords)):
            return words[at + len(keywords)].text
    return ""


def _known_charset(name: str) -> str:
    return {"UTF8": "UTF8MB3"}.get(name.upper(), name.upper())


def _generated(words: frozenset[str], engine: Engine) -> str:
    if "AS" not in words or words & {"IDENTITY"}:
        return ""
    return "STORED" if words & {"STORED", "PERSISTENT"} else "VIRTUAL"
