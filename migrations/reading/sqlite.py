"""ALTER TABLE as SQLite has it: one change at a time."""

from __future__ import annotations

from collections.abc import Iterator

from migrations.changes import Change, Verb
from migrations.reading.common import Options
from migrations.reading.elements import column
from migrations.reading.words import Reader, Stuck


def read_alter(reader: Reader, options: Options) -> Iterator[Change]:
    """From behind ALTER on."""
    reader.expect("TABLE")
    table = reader.qualified()
    if reader.accept("RENAME", "TO"):
        yield Change(verb=Verb.RENAME_TABLE, table=table, new_name=reader.name())
    elif reader.accept("RENAME"):
        reader.accept("COLUMN")
        name = reader.name()
        reader.expect("TO")
        yield Change(verb=Verb.RENAME_COLUMN, table=table, name=name, new_name=reader.name())
    elif reader.accept("ADD"):
        reader.accept("COLUMN")
        yield column(reader, table)
    elif reader.accept("DROP"):
        reader.accept("COLUMN")
        yield Change(verb=Verb.DROP_COLUMN, table=table, name=reader.name())
    else:
        raise Stuck("ALTER TABLE")
    reader.end()
