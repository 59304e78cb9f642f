"""ALTER as PostgreSQL has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from migrations.changes import Change, Verb
from migrations.reading.common import Options, exists
from migrations.reading.elements import column, constraint
from migrations.reading.words import Reader, Stuck

#: What else can be set of a table, and how we call it.
_OPTIONS: Final = (
    (("OWNER", "TO"), "owner"), (("SET", "SCHEMA"), "schema"), (("SET", "TABLESPACE"), "tablespace"),
    (("SET", "LOGGED"), "logged"), (("SET", "UNLOGGED"), "unlogged"), (("SET", "ACCESS", "METHOD"), "access method"),
    (("SET", "WITHOUT"), "without"), (("CLUSTER", "ON"), "cluster"), (("REPLICA", "IDENTITY"), "replica identity"),
    (("NO", "INHERIT"), "inherit"), (("INHERIT",), "inherit"), (("NO", "FORCE"), "row security"),
    (("FORCE", "ROW"), "row security"), (("RESET",), "storage"), (("SET",), "storage"), (("NOT", "OF"), "of"),
    (("OF",), "of"),
)  # fmt: skip


def read_alter(reader: Reader, options: Options) -> Iterator[Change]:
    """From behind ALTER on."""
    if reader.accept("TABLE"):
        yield from _alter_table(reader, options)
    elif reader.accept("INDEX"):
        yield _alter_index(reader, options)
    elif reader.any_of("VIEW", "MATERIALIZED"):
        reader.accept("VIEW")
        exists(reader, options)
        yield reader.change(Verb.CREATE_VIEW, "", reader.qualified())
    elif kind := reader.any_of("TYPE", "SEQUENCE", "SCHEMA", "EXTENSION", "DOMAIN"):
        exists(reader, options)
        yield reader.change(Verb.ALTER_TYPE, "", reader.qualified(), words=(kind,))
    elif kind := reader.any_of("FUNCTION", "PROCEDURE", "ROUTINE", "TRIGGER"):
        yield reader.change(Verb.CREATE_ROUTINE, "", reader.qualified(), words=(kind,))
    else:
        raise Stuck("ALTER")


def _alter_index(reader: Reader, options: Options) -> Change:
    words = exists(reader, options)
    name = reader.qualified()
    if reader.accept("RENAME", "TO"):
        new = reader.name()
        reader.end()
        return Change(verb=Verb.RENAME_INDEX, name=name, new_name=new, words=frozenset(words))
    if reader.accept("ATTACH", "PARTITION"):
        return reader.change(Verb.PARTITION, "", "attach index", columns=(name,))
    raise Stuck("ALTER INDEX")


def _alter_table(reader: Reader, options: Options) -> Iterator[Change]:
    exists(reader, options)
    if reader.accept("ONLY"):
        options["ONLY"] = "YES"
    table = reader.qualified()
    reader.accept("*")
    if reader.done:
        raise Stuck("nothing is altered")
    for clause in reader.clauses():
        try:
            yield _clause(clause, table, options)
        except Stuck:
            clause.at = 0
            yield clause.change(Verb.UNKNOWN, table)


def _clause(clause: Reader, table: str, options: Options) -> Change:
    if clause.accept("ADD"):
        return _add(clause, table, options)
    if clause.accept("DROP"):
        verb = Verb.DROP_CONSTRAINT if clause.accept("CONSTRAINT") else Verb.DROP_COLUMN
        clause.accept("COLUMN")
        words = exists(clause, options)
        return _ended(clause, verb, table, clause.name(), words)
    if clause.accept("ALTER"):
        if clause.accept("CONSTRAINT"):
            return clause.change(Verb.TABLE_OPTION, table, "constraint", columns=(clause.name(),))
        clause.accept("COLUMN")
        return _column(clause, table, clause.name())
    if clause.accept("RENAME"):
        return _rename(clause, table)
    if clause.accept("VALIDATE", "CONSTRAINT"):
        return clause.change(Verb.VALIDATE, table, clause.name())
    if action := clause.any_of("ATTACH", "DETACH"):
        clause.expect("PARTITION")
        made = clause.change(Verb.PARTITION, table, action.lower(), references=clause.over(clause.left).qualified())
        options |= {"CONCURRENTLY": "YES"} if "CONCURRENTLY" in made.words else {}
        return made
    if clause.any_of("ENABLE", "DISABLE"):
        clause.any_of("REPLICA", "ALWAYS")
        kind = clause.any_of("TRIGGER", "RULE", "ROW")
        if not kind:
            raise Stuck("ENABLE")
        return clause.change(Verb.TABLE_OPTION, table, "row security" if kind == "ROW" else kind.lower())
    for words, name in _OPTIONS:
        if clause.accept(*words):
            return clause.change(Verb.TABLE_OPTION, table, name)
    raise Stuck(clause.peek())


def _add(clause: Reader, table: str, options: Options) -> Change:
    made = None if clause.accept("COLUMN") else constraint(clause, table)
    made = made or column(clause, table)
    for word in ("IF NOT EXISTS", "NOT VALID"):
        if word in made.words:
            options[word] = "YES"
    return made


def _column(clause: Reader, table: str, name: str) -> Change:
    if clause.accept("SET", "DATA", "TYPE") or clause.accept("TYPE"):
        return clause.change(Verb.CHANGE_COLUMN, table, name, words=("TYPE",))
    if clause.accept("SET", "DEFAULT"):
        return clause.change(Verb.SET_DEFAULT, table, name)
    if clause.accept("DROP", "DEFAULT"):
        return _ended(clause, Verb.DROP_DEFAULT, table, name)
    if clause.accept("SET", "NOT", "NULL"):
        return _ended(clause, Verb.SET_NOT_NULL, table, name)
    if clause.accept("DROP", "NOT", "NULL"):
        return _ended(clause, Verb.DROP_NOT_NULL, table, name)
    for words, option in (
        (("SET", "STATISTICS"), "statistics"),
        (("SET", "STORAGE"), "storage of a column"),
        (("SET", "COMPRESSION"), "compression"),
        (("SET", "("), "options of a column"),
        (("RESET", "("), "options of a column"),
        (("DROP", "IDENTITY"), "identity"),
        (("ADD", "GENERATED"), "identity"),
        (("SET", "GENERATED"), "identity"),
        (("RESTART",), "identity"),
        (("DROP", "EXPRESSION"), "expression"),
    ):
        if clause.accept(*words):
            return clause.change(Verb.TABLE_OPTION, table, option, columns=(name,), words=words)
    raise Stuck("ALTER COLUMN")


def _rename(clause: Reader, table: str) -> Change:
    if clause.accept("TO"):
        return Change(verb=Verb.RENAME_TABLE, table=table, new_name=_last(clause))
    verb = Verb.RENAME_CONSTRAINT if clause.accept("CONSTRAINT") else Verb.RENAME_COLUMN
    clause.accept("COLUMN")
    name = clause.name()
    clause.expect("TO")
    return Change(verb=verb, table=table, name=name, new_name=_last(clause))


def _last(clause: Reader) -> str:
    name = clause.name()
    clause.end()
    return name


def _ended(clause: Reader, verb: Verb, table: str, name: str, words: tuple[str, ...] = ()) -> Change:
    more = clause.any_of("CASCADE", "RESTRICT")
    clause.end()
    return Change(verb=verb, table=table, name=name, words=frozenset((*words, *((more,) if more else ()))))
