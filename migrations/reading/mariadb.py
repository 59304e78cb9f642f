"""ALTER TABLE as MariaDB and MySQL have it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from migrations.changes import Change, Verb
from migrations.reading.common import Options, algorithm, exists, waits
from migrations.reading.elements import column, constraint, element
from migrations.reading.words import Reader, Stuck

#: Options of a table: the words they begin with, and how we call them.
_OPTIONS: Final = (
    (("ENGINE",), "engine"), (("TYPE",), "engine"), (("ROW_FORMAT",), "row_format"), (("COMMENT",), "comment"),
    (("AUTO_INCREMENT",), "auto_increment"), (("KEY_BLOCK_SIZE",), "key_block_size"),
    (("DEFAULT", "CHARACTER", "SET"), "character set"), (("CHARACTER", "SET"), "character set"),
    (("DEFAULT", "CHARSET"), "character set"), (("CHARSET",), "character set"),
    (("DEFAULT", "COLLATE"), "collate"), (("COLLATE",), "collate"),
    (("STATS_PERSISTENT",), "stats"), (("STATS_AUTO_RECALC",), "stats"), (("STATS_SAMPLE_PAGES",), "stats"),
    (("AVG_ROW_LENGTH",), "rows"), (("MAX_ROWS",), "rows"), (("MIN_ROWS",), "rows"), (("CHECKSUM",), "checksum"),
    (("PAGE_COMPRESSED",), "page_compressed"), (("PAGE_COMPRESSION_LEVEL",), "page_compressed"),
    (("ENCRYPTED",), "encrypted"), (("ENCRYPTION_KEY_ID",), "encrypted"), (("ENCRYPTION",), "encrypted"),
    (("COMPRESSION",), "page_compressed"), (("PACK_KEYS",), "pack_keys"), (("DELAY_KEY_WRITE",), "delay_key_write"),
)  # fmt: skip

_PARTITION: Final = (
    "ADD", "DROP", "TRUNCATE", "REORGANIZE", "COALESCE", "EXCHANGE", "ANALYZE", "CHECK", "OPTIMIZE", "REBUILD",
    "REPAIR", "CONVERT", "DISCARD", "IMPORT",
)  # fmt: skip


def read_alter(reader: Reader, options: Options) -> Iterator[Change]:
    """From behind ALTER on."""
    while word := reader.any_of("ONLINE", "IGNORE"):
        options[word] = "YES"
    reader.expect("TABLE")
    exists(reader, options)
    table = reader.qualified()
    waits(reader, options)
    if reader.done:
        raise Stuck("nothing is altered")
    for clause in reader.clauses():
        if not algorithm(clause, options):
            yield from _tried(clause, table, options)
        else:
            clause.end()


def _tried(clause: Reader, table: str, options: Options) -> Iterator[Change]:
    """A clause that is not understood stays one."""
    try:
        yield from list(_clause(clause, table, options))
    except Stuck:
        clause.at = 0
        yield clause.change(Verb.UNKNOWN, table)


def _clause(clause: Reader, table: str, options: Options) -> Iterator[Change]:
    words = clause.peek()
    if clause.peek(1) in ("PARTITION", "PARTITIONS") and words in _PARTITION:
        clause.next()
        clause.next()
        yield clause.change(Verb.PARTITION, table, words.lower(), words=(words,))
    elif words == "PARTITION" and clause.peek(1) == "BY":
        yield clause.change(Verb.PARTITION, table, "by")
    elif clause.accept("REMOVE", "PARTITIONING"):
        yield clause.change(Verb.PARTITION, table, "remove")
    elif clause.accept("ADD"):
        yield from _add(clause, table, options)
    elif clause.accept("DROP"):
        yield _drop(clause, table, options)
    elif clause.accept("MODIFY"):
        clause.accept("COLUMN")
        found = exists(clause, options)
        name = clause.name()
        yield clause.change(Verb.CHANGE_COLUMN, table, name, words=found)
    elif clause.accept("CHANGE"):
        clause.accept("COLUMN")
        found = exists(clause, options)
        name, new = clause.name(), clause.name()
        yield clause.change(Verb.CHANGE_COLUMN, table, name, new_name=new if new != name else "", words=found)
    elif clause.accept("ALTER"):
        yield _alter(clause, table, options)
    elif clause.accept("RENAME"):
        yield _rename(clause, table, options)
    else:
        yield from _table_options(clause, table)


def _add(clause: Reader, table: str, options: Options) -> Iterator[Change]:
    if clause.accept("PERIOD", "FOR") or clause.accept("SYSTEM", "VERSIONING"):
        yield clause.change(Verb.TABLE_OPTION, table, "system versioning")
        return
    if not clause.accept("COLUMN") and (found := constraint(clause, table)):
        if "IF NOT EXISTS" in found.words:
            options["IF NOT EXISTS"] = "YES"
        yield found
        return
    not_exists = exists(clause, options)
    if clause.peek() == "(":
        items = clause.group()
        clause.end()
        for each in clause.clauses(items):
            yield element(each, table)
        return
    made = column(clause, table)
    yield made if not not_exists else _also(made, not_exists)


def _also(change: Change, words: tuple[str, ...]) -> Change:
    from dataclasses import replace

    return replace(change, words=change.words | frozenset(words))


def _drop(clause: Reader, table: str, options: Options) -> Change:
    if clause.accept("PRIMARY", "KEY"):
        clause.end()
        return Change(verb=Verb.DROP_PRIMARY_KEY, table=table)
    if clause.accept("SYSTEM", "VERSIONING") or clause.accept("PERIOD", "FOR", "SYSTEM_TIME"):
        return clause.change(Verb.TABLE_OPTION, table, "system versioning")
    verb = Verb.DROP_COLUMN
    if clause.accept("FOREIGN", "KEY"):
        verb = Verb.DROP_FOREIGN_KEY
    elif clause.any_of("INDEX", "KEY"):
        verb = Verb.DROP_INDEX
    elif clause.accept("CONSTRAINT") or (clause.peek() == "CHECK" and len(clause.left) > 1 and clause.accept("CHECK")):
        verb = Verb.DROP_CONSTRAINT
    else:
        clause.accept("COLUMN")
    words = exists(clause, options)
    name = clause.name()
    clause.any_of("CASCADE", "RESTRICT")
    clause.end()
    if verb is Verb.DROP_INDEX and name.upper() == "PRIMARY":
        return Change(verb=Verb.DROP_PRIMARY_KEY, table=table, words=frozenset(words))
    return Change(verb=verb, table=table, name=name, words=frozenset(words))


def _alter(clause: Reader, table: str, options: Options) -> Change:
    if clause.any_of("INDEX", "KEY"):
        exists(clause, options)
        name = clause.name()
        if not (clause.peek() in ("IGNORED", "VISIBLE", "INVISIBLE") or clause.peek(1) == "IGNORED"):
            raise Stuck("ALTER INDEX")
        return clause.change(Verb.TABLE_OPTION, table, "index visibility", columns=(name,))
    if clause.any_of("CHECK", "CONSTRAINT"):
        raise Stuck("ENFORCED")
    clause.accept("COLUMN")
    words = exists(clause, options)
    name = clause.name()
    if clause.accept("SET", "DEFAULT"):
        return clause.change(Verb.SET_DEFAULT, table, name, words=words)
    if clause.accept("DROP", "DEFAULT"):
        clause.end()
        return Change(verb=Verb.DROP_DEFAULT, table=table, name=name, words=frozenset(words))
    if clause.accept("SET") and clause.peek() in ("VISIBLE", "INVISIBLE"):
        return clause.change(Verb.TABLE_OPTION, table, "column visibility", columns=(name,))
    raise Stuck("ALTER COLUMN")


def _rename(clause: Reader, table: str, options: Options) -> Change:
    if clause.accept("COLUMN"):
        words, verb = exists(clause, options), Verb.RENAME_COLUMN
    elif clause.any_of("INDEX", "KEY"):
        words, verb = exists(clause, options), Verb.RENAME_INDEX
    else:
        clause.any_of("TO", "AS", "=")
        new = clause.qualified()
        clause.end()
        return Change(verb=Verb.RENAME_TABLE, table=table, new_name=new)
    name = clause.name()
    clause.expect("TO")
    new = clause.name()
    clause.end()
    return Change(verb=verb, table=table, name=name, new_name=new, words=frozenset(words))


def _table_options(clause: Reader, table: str) -> Iterator[Change]:
    """Options may follow one another without a comma. The last may have partitions behind it."""
    if clause.accept("CONVERT", "TO", "CHARACTER", "SET") or clause.accept("CONVERT", "TO", "CHARSET"):
        yield clause.change(Verb.TABLE_OPTION, table, "convert")
    elif clause.accept("FORCE"):
        clause.end()
        yield Change(verb=Verb.TABLE_OPTION, table=table, name="force")
    elif clause.peek() in ("ENABLE", "DISABLE") and clause.peek(1) == "KEYS":
        yield clause.change(Verb.TABLE_OPTION, table, "keys")
    elif clause.accept("ORDER", "BY"):
        yield clause.change(Verb.TABLE_OPTION, table, "order")
    else:
        while not clause.done:
            yield _option(clause, table)


def _option(clause: Reader, table: str) -> Change:
    for words, name in _OPTIONS:
        if clause.accept(*words):
            clause.accept("=")
            return Change(verb=Verb.TABLE_OPTION, table=table, name=name, definition=clause.next().text)
    raise Stuck(clause.peek())
