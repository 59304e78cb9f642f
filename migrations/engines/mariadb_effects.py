"""Whether the effect of a statement is there already, found out by trying it on an empty copy of the table: what leaves
the copy as it was, is there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Final

from core.sql import Connection, Reason, SqlError
from migrations.changes import Change, Parsed, Verb
from migrations.engines import Effect, Presence
from migrations.probes import Clause, clauses, joined

#: The empty copy; a temporary table where that is possible, else one that is dropped again.
COPY: Final = "_updater_probe"

#: To do these once more does no harm.
_REPEATABLE: Final = frozenset({Verb.GRANT, Verb.COMMENT})

_CLASH: Final = (Reason.EXISTS, Reason.MISSING)

#: What MariaDB says about dropping any partition, where there is only one.
_LAST_PARTITION: Final = "1508"


class Verdict(StrEnum):
    """What was found out about one clause."""

    THERE = "there"
    MISSING = "not there"
    DIFFERS = "there, but differs"
    UNKNOWN = "cannot be told"


def derived(connection: Connection, parsed: Parsed) -> Presence:
    """Look for the effect of a statement that has no probe."""
    verbs = {change.verb for change in parsed.changes}
    if parsed.options.get("TEMPORARY"):
        return Presence(effect=Effect.UNKNOWN, text="temporary tables leave nothing behind")
    if verbs <= _REPEATABLE or any("OR REPLACE" in change.words for change in parsed.changes):
        return Presence(effect=Effect.ABSENT, text="it can be repeated")
    if found := clauses(parsed.sql):
        return _altered(connection, parsed, *found)
    if verbs == {Verb.RENAME_TABLE}:
        return _renamed(connection, parsed.changes)
    if verbs == {Verb.CREATE_TABLE}:
        return _created(connection, parsed)
    if verbs == {Verb.DROP_TABLE}:  # some of them may be: the rest is dropped then
        return _all_gone("table", [c.table for c in parsed.changes], lambda name: _table(connection, name))
    if verbs == {Verb.DROP_VIEW}:
        return _all_gone("view", [c.name or c.table for c in parsed.changes], lambda name: _table(connection, name))
    if verbs == {Verb.TRUNCATE}:
        return _emptied(connection, parsed.changes[0].table)
    if verbs in ({Verb.CREATE_VIEW}, {Verb.CREATE_ROUTINE}, {Verb.CREATE_TYPE}):
        return _said(parsed.changes[0], _object(connection, parsed.changes[0]), made=True)
    if verbs in ({Verb.DROP_ROUTINE}, {Verb.DROP_TYPE}):
        return _said(parsed.changes[0], _object(connection, parsed.changes[0]), made=False)
    return Presence(effect=Effect.UNKNOWN, text="nothing in the schema tells whether it ran")


def quoted(name: str) -> str:
    """A name, or one with its database before it, quoted."""
    return ".".join(f"`{part.replace('`', '``')}`" for part in name.split("."))


# -- ALTER TABLE, CREATE INDEX, DROP INDEX


def _altered(connection: Connection, parsed: Parsed, written: str, parts: list[Clause]) -> Presence:
    table = parsed.changes[0].table
    renames = [change for change in parsed.changes if change.verb is Verb.RENAME_TABLE]
    if not _table(connection, table):
        if renames and _table(connection, renames[0].new_name):
            return Presence(effect=Effect.THERE, text=f"{table} is {renames[0].new_name} already")
        there = parsed.options.get("IF EXISTS") and not renames
        return Presence(effect=Effect.THERE if there else Effect.ABSENT, text=f"table {table} is not there")
    if renames and _table(connection, renames[0].new_name):
        return Presence(effect=Effect.HALF, text=f"both {table} and {renames[0].new_name} are there")
    if any(c.verb is Verb.PARTITION and c.name.lower() not in ("add", "drop") for c in parsed.changes):
        return Presence(effect=Effect.UNKNOWN, text="nothing in the schema tells whether it ran")
    foreign = [part for part in parts if _is_foreign(connection, part)]
    plain = [part for part in parts if part not in foreign and part.changes[0].verb is not Verb.RENAME_TABLE]
    verdicts: list[tuple[Clause, Verdict]] = []
    if plain:
        answer, verdicts = _tried(connection, table, plain)
        if answer is not None and not foreign and not renames:
            return answer
    verdicts += [(part, _foreign_key(connection, part.changes[0])) for part in foreign]
    verdicts += [(part, Verdict.MISSING) for part in parts if part.changes[0].verb is Verb.RENAME_TABLE]
    return _summed(written, verdicts)


def _tried(
    connection: Connection, table: str, parts: list[Clause]
) -> tuple[Presence | None, list[tuple[Clause, Verdict]]]:
    """Try the clauses on a copy: all at once, which tells most; one by one, where they clash with what is there."""
    rebuilds = [part for part in parts if part.changes[0].verb is Verb.TABLE_OPTION and _rebuilds(part.changes[0])]
    for temporary in (True, False):
        try:
            whole = joined(COPY, parts)
            with _copy(connection, table, temporary) as before:
                if whole is None:
                    raise AssertionError("an index statement has one clause")
                connection.execute(whole)
                same = _form(connection, COPY) == before
            if same and rebuilds:
                return Presence(effect=Effect.ABSENT, text="a rebuild can be repeated"), []
            if same:
                return Presence(effect=Effect.THERE, text=f"it changes nothing in {table}"), [
                    (part, Verdict.THERE) for part in parts
                ]
            return Presence(effect=Effect.ABSENT, text=f"it would change {table}"), [
                (part, Verdict.MISSING) for part in parts
            ]
        except SqlError as error:
            if error.reason in _CLASH or error.code == _LAST_PARTITION:
                return None, _one_by_one(connection, table, parts, temporary)
            if not temporary:
                said = Presence(effect=Effect.UNKNOWN, text=f"it cannot be tried on an empty copy: {error}")
                return said, [(part, Verdict.UNKNOWN) for part in parts]
    raise AssertionError


def _one_by_one(
    connection: Connection, table: str, parts: list[Clause], temporary: bool
) -> list[tuple[Clause, Verdict]]:
    verdicts = []
    with _copy(connection, table, temporary) as form:
        for part in parts:
            try:
                connection.execute(part.on(COPY))
                now = _form(connection, COPY)
                verdicts.append((part, Verdict.THERE if now == form else Verdict.MISSING))
                form = now
            except SqlError as error:
                clash = error.reason in _CLASH or error.code == _LAST_PARTITION
                verdict = _clash(connection, part, form) if clash else Verdict.UNKNOWN
                verdicts.append((part, verdict))
                form = _form(connection, COPY)
    return verdicts


def _clash(connection: Connection, part: Clause, form: str) -> Verdict:
    """A clause that clashes with the copy: is what it makes there in the same form, is what it removes gone?"""
    change = part.changes[0]
    match change.verb:
        case Verb.DROP_COLUMN | Verb.DROP_INDEX | Verb.DROP_PRIMARY_KEY | Verb.DROP_CONSTRAINT:
            return Verdict.THERE
        case Verb.PARTITION:
            named = [name for name in re.findall(r"[\w$]+", change.definition) if f"PARTITION `{name}`" in form]
            return Verdict.THERE if bool(named) == (change.name.lower() == "add") else Verdict.UNKNOWN
        case Verb.ADD_COLUMN:
            return _again(connection, [f"MODIFY COLUMN {quoted(change.name)} {change.definition}"], form)
        case Verb.CHANGE_COLUMN if change.new_name:
            return _again(connection, [f"MODIFY COLUMN {quoted(change.new_name)} {change.definition}"], form)
        case Verb.RENAME_COLUMN | Verb.RENAME_INDEX:
            return Verdict.THERE if f"`{change.new_name}`" in form else Verdict.DIFFERS
        case Verb.ADD_INDEX if change.name:
            return _again(connection, [f"DROP INDEX {quoted(change.name)}", part], form)
        case Verb.ADD_PRIMARY_KEY:
            return _again(connection, ["DROP PRIMARY KEY", part], form)
        case Verb.ADD_CHECK if change.name:
            return _again(connection, [f"DROP CONSTRAINT {quoted(change.name)}", part], form)
    return Verdict.UNKNOWN


def _again(connection: Connection, doings: Sequence[str | Clause], form: str) -> Verdict:
    """Whether the copy is the same after taking something away and making it anew; the order of lines is free."""
    try:
        for each in doings:
            connection.execute(each.on(COPY) if isinstance(each, Clause) else f"ALTER TABLE {COPY} {each}")
    except SqlError:
        return Verdict.DIFFERS
    return Verdict.THERE if _lines(_form(connection, COPY)) == _lines(form) else Verdict.DIFFERS


def _summed(written: str, verdicts: list[tuple[Clause, Verdict]]) -> Presence:
    kinds = {verdict for _, verdict in verdicts}
    text = "\n".join(f"{verdict}: {part.text}" for part, verdict in verdicts)
    if kinds == {Verdict.THERE}:
        return Presence(effect=Effect.THERE, text=text)
    if kinds == {Verdict.MISSING}:
        return Presence(effect=Effect.ABSENT, text=text)
    if Verdict.UNKNOWN in kinds:
        return Presence(effect=Effect.UNKNOWN, text=text)
    missing = [part for part, verdict in verdicts if verdict is Verdict.MISSING]
    whole = Verdict.DIFFERS not in kinds
    return Presence(effect=Effect.HALF, text=text, rest=(joined(written, missing) or "") if whole else "")


def _rebuilds(change: Change) -> bool:
    return change.name.lower() in ("force", "engine")


# -- foreign keys, which copies do not have


def _is_foreign(connection: Connection, part: Clause) -> bool:
    change = part.changes[0]
    return change.verb in (Verb.ADD_FOREIGN_KEY, Verb.DROP_FOREIGN_KEY) or (
        change.verb is Verb.DROP_CONSTRAINT and _foreign_key(connection, change) is Verdict.MISSING
    )


def _foreign_key(connection: Connection, change: Change) -> Verdict:
    rows = connection.execute(
        "SELECT k.constraint_name, k.column_name, k.referenced_table_name FROM information_schema.key_column_usage k "
        "WHERE k.table_schema = coalesce(%s, database()) AND k.table_name = %s AND k.referenced_table_name IS NOT NULL "
        "ORDER BY k.constraint_name, k.ordinal_position",
        list(_split(change.table)),
    ).rows
    keys: dict[str, tuple[tuple[str, ...], str]] = {}
    for name, column, target in rows:
        keys[name.lower()] = ((*keys.get(name.lower(), ((), ""))[0], column.lower()), target.lower())
    found = keys.get(change.name.lower())
    if change.verb is not Verb.ADD_FOREIGN_KEY:
        return Verdict.MISSING if found else Verdict.THERE
    wanted = (tuple(column.lower() for column in change.columns), change.references.split(".")[-1].lower())
    if found is None and (change.name or wanted not in keys.values()):
        return Verdict.MISSING
    return Verdict.THERE if found in (None, wanted) else Verdict.DIFFERS


# -- tables and other things


def _created(connection: Connection, parsed: Parsed) -> Presence:
    """A table of the name that has all that the statement makes, foreign keys aside; it may have more by now."""
    table = parsed.changes[0].table
    if not _table(connection, table):
        return Presence(effect=Effect.ABSENT, text=f"table {table} is not there")
    there = Presence(effect=Effect.THERE, text=f"table {table} is there")
    definition = parsed.changes[0].definition
    if not definition.startswith("(") or re.search(r"(?i)\bFOREIGN\s+KEY\b|\bREFERENCES\b", definition):
        return there
    try:
        _drop(connection)
        connection.execute(f"CREATE TABLE {COPY} {definition}")
        made = _lines(_form(connection, COPY))
    except SqlError:
        return there
    finally:
        _drop(connection)
    found = _lines(_form(connection, table))
    lacks = [line for line in made if line not in found]
    if not lacks:
        return there
    differs = [f"table {table} is there, but differs", *(f"only in the statement: {line}" for line in lacks)]
    differs += [f"only in the table: {line}" for line in found if line not in made]
    return Presence(effect=Effect.HALF, text="\n".join(differs))


def _renamed(connection: Connection, changes: tuple[Change, ...]) -> Presence:
    """RENAME TABLE moves all or none: what has to vanish, and what has to appear."""
    names = {change.table: change.table for change in changes}
    for change in changes:
        origin = names.pop(change.table, change.table)
        names[change.new_name] = origin
    origins = set(names.values())
    appear, vanish = set(names) - origins, origins - set(names)
    states = {_table(connection, name) for name in appear} | {not _table(connection, name) for name in vanish}
    text = ", ".join(f"{c.table} is {'' if _table(connection, c.table) else 'not '}there" for c in changes)
    if not states:
        return Presence(effect=Effect.UNKNOWN, text="tables that only swap names look the same before and after")
    effect = Effect.HALF if len(states) > 1 else Effect.THERE if states.pop() else Effect.ABSENT
    return Presence(effect=effect, text=text)


def _all_gone(kind: str, names: list[str], there: Callable[[str], bool]) -> Presence:
    left = [name for name in names if there(name)]
    text = f"{kind} {', '.join(left)} is still there" if left else f"{kind} {', '.join(names)} is not there"
    return Presence(effect=Effect.ABSENT if left else Effect.THERE, text=text)


def _emptied(connection: Connection, table: str) -> Presence:
    if not _table(connection, table):
        return Presence(effect=Effect.ABSENT, text=f"table {table} is not there")
    full = connection.one(f"SELECT 1 FROM {quoted(table)} LIMIT 1") is not None
    return Presence(effect=Effect.ABSENT if full else Effect.THERE, text=f"{table} is {'not ' if full else ''}empty")


def _object(connection: Connection, change: Change) -> bool:
    name = change.name or change.table
    if change.verb is Verb.CREATE_VIEW or "SEQUENCE" in change.words:
        return _table(connection, name)
    table = next((kind for kind in ("trigger", "event") if kind.upper() in change.words), "routine")
    ask = (
        f"SELECT 1 FROM information_schema.{table}s WHERE {table}_schema = coalesce(%s, database()) "
        f"AND {table}_name = %s"
    )
    return connection.one(ask, list(_split(name))) is not None


def _said(change: Change, there: bool, *, made: bool) -> Presence:
    text = f"{change.name or change.table} is {'' if there else 'not '}there"
    return Presence(effect=Effect.THERE if there == made else Effect.ABSENT, text=text)


# -- small things


def _table(connection: Connection, name: str) -> bool:
    """Whether a table or view of the name exists."""
    ask = "SELECT 1 FROM information_schema.tables WHERE table_schema = coalesce(%s, database()) AND table_name = %s"
    return connection.one(ask, list(_split(name))) is not None


def _split(name: str) -> tuple[str | None, str]:
    database, dot, table = name.rpartition(".")
    return (database if dot else None), table


@contextmanager
def _copy(connection: Connection, table: str, temporary: bool) -> Iterator[str]:
    """An empty copy, while in the context; gives its form."""
    _drop(connection)
    try:
        connection.execute(f"CREATE {'TEMPORARY ' if temporary else ''}TABLE {COPY} LIKE {quoted(table)}")
        yield _form(connection, COPY)
    finally:
        with suppress(SqlError):
            _drop(connection)


def _drop(connection: Connection) -> None:
    connection.execute(f"DROP TABLE IF EXISTS {COPY}")


def _form(connection: Connection, table: str) -> str:
    """How a table is made; its name and the next number of its AUTO_INCREMENT left out."""
    row = connection.one(f"SHOW CREATE TABLE {quoted(table)}")
    assert row is not None
    body = str(row[1]).partition("(")[2]
    return re.sub(r" AUTO_INCREMENT=\d+", "", body)


def _lines(form: str) -> list[str]:
    return sorted(line.strip().rstrip(",") for line in form.splitlines())
