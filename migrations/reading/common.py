"""What all engines share: CREATE and DROP TABLE, views, routines, and statements that work on rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Verb
from migrations.reading.elements import index
from migrations.reading.words import Reader, Stuck, keywords

_ROUTINES: Final = ("PROCEDURE", "FUNCTION", "TRIGGER", "EVENT", "AGGREGATE", "RULE", "PACKAGE")
_TYPES: Final = ("TYPE", "SEQUENCE", "SCHEMA", "EXTENSION", "DOMAIN", "COLLATION", "ROLE", "USER")

Options = dict[str, str]


def read_common(reader: Reader, options: Options) -> Iterator[Change]:
    """A statement that is no ALTER. Raises Stuck."""
    verb = reader.peek()
    if verb in _ROWS:
        yield from _rows(reader)
    elif reader.accept("CREATE"):
        yield from _create(reader, options)
    elif reader.accept("DROP"):
        yield from _drop(reader, options)
    elif reader.accept("TRUNCATE"):
        yield from _truncate(reader)
    elif reader.accept("COMMENT", "ON"):
        kind = reader.next().upper
        name = reader.qualified()
        table, _, column = name.rpartition(".") if kind == "COLUMN" else (name, "", "")
        yield reader.change(Verb.COMMENT, table if kind in ("TABLE", "COLUMN", "VIEW") else "", column or name)
    elif reader.any_of("GRANT", "REVOKE"):
        yield reader.change(Verb.GRANT)
    elif reader.accept("RENAME", "TABLE") and reader.engine is Engine.MARIADB:
        yield from _rename_tables(reader, options)
    else:
        raise Stuck(verb)


def waits(reader: Reader, options: Options) -> None:
    """MariaDB's WAIT n and NOWAIT."""
    if reader.engine is Engine.MARIADB:
        if reader.accept("WAIT"):
            options["WAIT"] = reader.next().upper
        elif reader.accept("NOWAIT"):
            options["NOWAIT"] = "YES"


def exists(reader: Reader, options: Options) -> tuple[str, ...]:
    """IF EXISTS or IF NOT EXISTS, as words of a change."""
    for words in (("IF", "EXISTS"), ("IF", "NOT", "EXISTS")):
        if reader.accept(*words):
            options[" ".join(words)] = "YES"
            return (" ".join(words),)
    return ()


def algorithm(reader: Reader, options: Options) -> bool:
    """MariaDB's ALGORITHM and LOCK."""
    if reader.peek() in ("ALGORITHM", "LOCK") and (reader.peek(1) == "=" or len(reader.left) == 2):
        key = reader.next().upper
        reader.accept("=")
        options[key] = reader.next().upper
        return True
    return False


# -- CREATE


def _create(reader: Reader, options: Options) -> Iterator[Change]:
    replace = reader.accept("OR", "REPLACE")
    words: tuple[str, ...] = ("OR REPLACE",) if replace else ()
    if reader.engine is Engine.MARIADB:
        _skip_view_and_routine_options(reader)
        reader.any_of("ONLINE", "OFFLINE")
    kinds = tuple(iter(lambda: reader.any_of("TEMPORARY", "TEMP", "UNLOGGED", "GLOBAL", "LOCAL"), ""))
    if kinds:
        options["TEMPORARY" if "UNLOGGED" not in kinds else "UNLOGGED"] = "YES"
    words += kinds
    if reader.accept("TABLE"):
        yield _create_table(reader, options, words)
    elif reader.peek() in ("INDEX", "UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR"):
        yield _create_index(reader, options, words)
    elif reader.any_of("VIEW", "MATERIALIZED", "RECURSIVE"):
        reader.accept("VIEW")
        words += exists(reader, options)
        yield reader.change(Verb.CREATE_VIEW, "", reader.qualified(), words=words)
    elif (kind := reader.any_of(*_ROUTINES, "CONSTRAINT")) or (kind := reader.any_of(*_TYPES)):
        if kind == "CONSTRAINT":
            reader.expect("TRIGGER")
        if kind == "PACKAGE":
            reader.accept("BODY")
        words += exists(reader, options)
        verb = Verb.CREATE_TYPE if kind in _TYPES else Verb.CREATE_ROUTINE
        table = _on(reader) if kind in ("TRIGGER", "CONSTRAINT", "RULE") else ""
        yield reader.change(verb, table, reader.qualified(), words=(*words, kind))
    else:
        raise Stuck("CREATE")


def _skip_view_and_routine_options(reader: Reader) -> None:
    """``ALGORITHM=MERGE DEFINER=user@host SQL SECURITY INVOKER``, before VIEW, PROCEDURE and the like."""
    while True:
        if reader.accept("ALGORITHM", "="):
            reader.next()
        elif reader.accept("DEFINER", "="):
            reader.next()
            if reader.accept("(", ")") or not reader.accept("@"):
                continue
            reader.next()
        elif reader.accept("SQL", "SECURITY"):
            reader.next()
        else:
            return


def _on(reader: Reader) -> str:
    """The table of a trigger."""
    for at, word in enumerate(reader.left):
        if word.upper == "ON":
            return reader.over(reader.left[at + 1 :]).qualified()
    return ""


def _create_table(reader: Reader, options: Options, words: tuple[str, ...]) -> Change:
    words += exists(reader, options)
    table = reader.qualified()
    ahead = reader.over(reader.left)
    columns: tuple[str, ...] = ()
    if ahead.peek() == "(" and ahead.peek(1) not in ("LIKE", "SELECT"):
        items = [each for each in reader.clauses(ahead.group()) if each.words]
        columns = tuple(each.words[0].text for each in items if _is_column(each))
    return reader.change(Verb.CREATE_TABLE, table, columns=columns, words=words)


def _is_column(item: Reader) -> bool:
    from migrations.reading.elements import constraint

    try:
        return constraint(item.over(item.words), "") is None and item.words[0].nameable
    except Stuck:
        return False


def _create_index(reader: Reader, options: Options, words: tuple[str, ...]) -> Change:
    kind = reader.any_of("UNIQUE", "FULLTEXT", "SPATIAL", "VECTOR")
    words += (kind,) if kind else ()
    reader.expect("INDEX")
    if reader.engine is Engine.POSTGRESQL and reader.accept("CONCURRENTLY"):
        options["CONCURRENTLY"] = "YES"
        words += ("CONCURRENTLY",)
    words += exists(reader, options)
    name = ""
    if reader.peek() != "ON" or not reader.words[reader.at].upper:
        name = reader.qualified()
    if reader.engine is Engine.MARIADB and reader.accept("USING"):
        reader.next()
    reader.expect("ON")
    if reader.engine is Engine.POSTGRESQL and reader.accept("ONLY"):
        words += ("ONLY",)
    table = reader.qualified()
    made = index(_without_way(reader, options), Verb.ADD_INDEX, table, name, *words)
    reader.rest()
    return made


def _without_way(reader: Reader, options: Options) -> Reader:
    """MariaDB's way to make an index stands behind it: ``WAIT 1 ALGORITHM=INPLACE LOCK=NONE``."""
    if reader.engine is not Engine.MARIADB:
        return reader
    end = len(reader.words)
    for at in range(len(reader.words) - 1, reader.at, -1):
        ahead = reader.over(reader.words[at:end])
        said: Options = {}
        waits(ahead, said)
        if not ahead.done:
            algorithm(ahead, said)
        if said and ahead.done:
            options |= said
            end = at
    return reader.over(reader.words[reader.at : end])


# -- DROP, TRUNCATE, RENAME


def _drop(reader: Reader, options: Options) -> Iterator[Change]:
    temporary = bool(reader.any_of("TEMPORARY"))
    if temporary:
        options["TEMPORARY"] = "YES"
    if reader.accept("TABLE"):
        words = (*exists(reader, options), *(("TEMPORARY",) if temporary else ()))
        tail = _tail(reader, options)
        for each in tail.clauses():
            yield Change(verb=Verb.DROP_TABLE, table=each.qualified(), words=frozenset(words))
            each.end()
    elif reader.accept("INDEX"):
        yield from _drop_index(reader, options)
    elif reader.any_of("VIEW", "MATERIALIZED"):
        reader.accept("VIEW")
        words = exists(reader, options)
        for each in _tail(reader, options).clauses():
            yield each.change(Verb.DROP_VIEW, "", each.qualified(), words=words)
    elif kind := reader.any_of(*_ROUTINES, *_TYPES):
        words = (*exists(reader, options), kind)
        yield reader.change(
            Verb.DROP_TYPE if kind in _TYPES else Verb.DROP_ROUTINE, _on(reader), reader.qualified(), words=words
        )
    else:
        raise Stuck("DROP")


def _tail(reader: Reader, options: Options) -> Reader:
    """A list of names without what stands behind it (WAIT 1, CASCADE)."""
    end = len(reader.words)
    if end - reader.at > 2 and reader.words[end - 2].upper == "WAIT":
        options["WAIT"] = reader.words[end - 1].upper
        end -= 2
    elif end - reader.at > 1 and reader.words[end - 1].upper == "NOWAIT":
        options["NOWAIT"] = "YES"
        end -= 1
    if end - reader.at > 1 and reader.words[end - 1].upper in ("CASCADE", "RESTRICT"):
        options[reader.words[end - 1].upper] = "YES"
        end -= 1
    return reader.over(reader.words[reader.at : end])


def _drop_index(reader: Reader, options: Options) -> Iterator[Change]:
    words: tuple[str, ...] = ()
    if reader.engine is Engine.POSTGRESQL and reader.accept("CONCURRENTLY"):
        options["CONCURRENTLY"] = "YES"
        words += ("CONCURRENTLY",)
    words += exists(reader, options)
    if reader.engine is Engine.MARIADB:
        name = reader.name()
        reader.expect("ON")
        table = reader.qualified()
        waits(reader, options)
        while not reader.done:
            if not _way(reader, options):
                raise Stuck(reader.peek())
        primary = name.upper() == "PRIMARY"
        yield Change(
            verb=Verb.DROP_PRIMARY_KEY if primary else Verb.DROP_INDEX,
            table=table, name="" if primary else name, words=frozenset(words),
        )  # fmt: skip
        return
    for each in _tail(reader, options).clauses():
        yield each.change(Verb.DROP_INDEX, "", each.qualified(), words=words)


def _way(reader: Reader, options: Options) -> bool:
    if key := reader.any_of("ALGORITHM", "LOCK"):
        reader.accept("=")
        options[key] = reader.next().upper
    return bool(key)


def _truncate(reader: Reader) -> Iterator[Change]:
    reader.accept("TABLE")
    reader.accept("ONLY")
    options: Options = {}
    end = len(reader.words)
    while end > reader.at + 1 and reader.words[end - 1].upper in (
        "CASCADE",
        "RESTRICT",
        "IDENTITY",
        "RESTART",
        "CONTINUE",
    ):
        end -= 1
    for each in _tail(reader.over(reader.words[reader.at : end]), options).clauses():
        yield Change(verb=Verb.TRUNCATE, table=each.qualified())
        each.accept("*")
        each.end()


def _rename_tables(reader: Reader, options: Options) -> Iterator[Change]:
    exists(reader, options)
    for each in reader.clauses():
        table = each.qualified()
        waits(each, options)
        each.expect("TO")
        yield Change(verb=Verb.RENAME_TABLE, table=table, new_name=each.qualified())
        each.end()


# -- rows

_ROWS: Final = {
    "INSERT": Verb.INSERT, "REPLACE": Verb.INSERT, "UPDATE": Verb.UPDATE, "DELETE": Verb.DELETE,
    "SELECT": Verb.SELECT, "WITH": Verb.SELECT,
}  # fmt: skip


def _rows(reader: Reader) -> Iterator[Change]:
    words = keywords(reader.left)
    if reader.accept("WITH"):
        inner = any(each.upper in ("INSERT", "UPDATE", "DELETE", "MERGE", "INTO") for each in reader.left)
        if inner and not words & {"INSERT", "UPDATE", "DELETE"}:
            raise Stuck("rows changed inside of a WITH")
        while reader.peek() not in _ROWS:
            if reader.peek() == "(":
                reader.group()
            else:
                reader.next()
    verb = _ROWS[reader.next().upper]
    if verb is Verb.SELECT:
        if "INTO" in words:
            raise Stuck("SELECT … INTO")
        yield reader.change(Verb.SELECT, words=words)
        return
    yield reader.change(verb, _table_of_rows(reader, verb), words=words)


def _table_of_rows(reader: Reader, verb: Verb) -> str:
    """The table whose rows are changed (the first, where MariaDB changes several)."""
    while reader.any_of("LOW_PRIORITY", "DELAYED", "HIGH_PRIORITY", "QUICK", "IGNORE", "ONLY"):
        pass
    if reader.engine is Engine.SQLITE and reader.accept("OR"):
        reader.next()
    if verb is Verb.INSERT:
        reader.accept("INTO")
    if verb is Verb.DELETE:
        reader.accept("FROM")
        reader.accept("ONLY")
    return reader.qualified()
