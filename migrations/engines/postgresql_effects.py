"""Whether the effect of a statement is there in PostgreSQL, found out from the server's catalogues."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final

from core.sql import Connection, Engine, SqlError
from migrations.changes import Change, Parsed, Verb
from migrations.ddl import elements
from migrations.engines import Effect, Presence

#: None: it cannot be told.
Answer = bool | None

_CLONE: Final = "_updater_probe"


def quoted(name: str) -> str:
    """A name, quoted."""
    return '"' + name.replace('"', '""') + '"'


def regclass(table: str) -> str:
    """A table's name (with its schema, where it has one) as to_regclass reads it."""
    return ".".join(quoted(part) for part in table.split("."))


def derived(connection: Connection, parsed: Parsed) -> Presence:
    """Look for the effect of each clause."""
    if parsed.options.get("TEMPORARY"):
        return Presence(effect=Effect.UNKNOWN, text="temporary tables leave nothing behind")
    answers = [(change, _answer(connection, change)) for change in parsed.changes]
    known = [(change, there) for change, there in answers if there is not None]
    if not known:
        return Presence(effect=Effect.UNKNOWN, text="nothing in the schema tells whether it ran")
    said = "; ".join(f"{_name(change)}: {'there' if there else 'not there'}" for change, there in known)
    if len({there for _, there in known}) > 1:
        return Presence(effect=Effect.HALF, text=said)
    if len(known) < len(answers) and known[0][1]:  # what cannot be told may be missing
        return Presence(effect=Effect.UNKNOWN, text=f"{said}; for the rest nothing in the schema tells")
    return Presence(effect=Effect.THERE if known[0][1] else Effect.ABSENT, text=said)


def _name(change: Change) -> str:
    return " ".join(part for part in (change.verb.value, change.table, change.name or change.new_name) if part)


def _answer(connection: Connection, change: Change) -> Answer:
    find = _FINDERS.get(change.verb)
    return find(connection, change) if find else None


# -- finders, one per kind of change


def _yes(connection: Connection, query: str, *values: object) -> bool:
    row = connection.one(f"SELECT EXISTS ({query})", values)
    return bool(row and row[0])


def _table(connection: Connection, name: str) -> bool:
    return _yes(connection, "SELECT FROM pg_class WHERE oid = to_regclass(%s)", regclass(name))


def _column(connection: Connection, table: str, name: str, test: str = "true") -> bool:
    return _yes(
        connection,
        "SELECT FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped"
        f" AND attnum > 0 AND {test}",
        regclass(table),
        name,
    )


def _constraint(connection: Connection, table: str, name: str, test: str = "true") -> bool:
    """A constraint of this name (empty: of any name) for which the test is true."""
    query = f"SELECT FROM pg_constraint WHERE conrelid = to_regclass(%s) AND %s::text IN ('', conname::text) AND {test}"
    return _yes(connection, query, regclass(table), name)


def _gone(find: Callable[[Connection, str, str], bool]) -> Callable[[Connection, Change], Answer]:
    """Whether a part of a table is gone; where the table is gone too, it is not for us to judge."""

    def answer(connection: Connection, change: Change) -> Answer:
        return not find(connection, change.table, change.name) if _table(connection, change.table) else None

    return answer


def _beside(table: str, name: str) -> str:
    """Another object of the table's schema, as to_regclass reads it."""
    schema, dot, _ = table.rpartition(".")
    return regclass(f"{schema}{dot}{name}")


def _create_table(connection: Connection, change: Change) -> Answer:
    if not _table(connection, change.table):
        return False
    names = [each.name for each in elements(change, Engine.POSTGRESQL) if each.verb is Verb.ADD_COLUMN]
    return all(_column(connection, change.table, name) for name in names) or None


def _add_column(connection: Connection, change: Change) -> Answer:
    if not _column(connection, change.table, change.name):
        return False
    same = _on_clone(connection, change, f"ADD COLUMN {quoted(_CLONE)} {change.definition}", _CLONE)
    return True if same in (True, None) else None  # a column of this name, but another one: nobody can tell why


def _change_column(connection: Connection, change: Change) -> Answer:
    return _on_clone(connection, change, f"ALTER COLUMN {quoted(change.name)} TYPE {change.definition}", change.name)


def _set_default(connection: Connection, change: Change) -> Answer:
    clause = f"ALTER COLUMN {quoted(change.name)} SET DEFAULT {change.definition}"
    return _on_clone(connection, change, clause, change.name)


def _on_clone(connection: Connection, change: Change, clause: str, name: str) -> Answer:
    """Apply the clause to an empty copy of the table: is column `name` of the copy then like the table's own column?
    None when that cannot be tried.
    """
    copy = f"pg_temp.{quoted(_CLONE)}"
    described = (
        "SELECT format_type(atttypid, atttypmod), attnotnull, attidentity::text, attgenerated::text,"
        " pg_get_expr(adbin, adrelid) FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum"
        " WHERE attrelid = to_regclass(%s) AND attname = %s AND NOT attisdropped"
    )
    answer: Answer = None
    with suppress(SqlError):
        connection.execute("BEGIN")
        try:
            like = "INCLUDING DEFAULTS INCLUDING GENERATED INCLUDING IDENTITY"
            connection.execute(f"CREATE TEMPORARY TABLE {quoted(_CLONE)} (LIKE {regclass(change.table)} {like})")
            connection.execute(f"ALTER TABLE {copy} {clause}")
            ours = connection.one(described, (copy, name))
            theirs = connection.one(described, (regclass(change.table), change.name))
            answer = ours is not None and ours == theirs
        finally:
            connection.execute("ROLLBACK")
    return answer


def _add_index(connection: Connection, change: Change) -> Answer:
    """A valid index of the name; without a name a valid one over the same columns."""
    if change.name:
        return _yes(
            connection,
            "SELECT FROM pg_index WHERE indexrelid = to_regclass(%s) AND indrelid = to_regclass(%s) AND indisvalid",
            _beside(change.table, change.name),
            regclass(change.table),
        )
    if not change.columns or "WHERE" in change.definition.upper():
        return None
    return _yes(
        connection,
        "SELECT FROM pg_index WHERE indrelid = to_regclass(%s) AND indisvalid AND indpred IS NULL AND indisunique = %s"
        " AND ARRAY(SELECT pg_get_indexdef(indexrelid, n, true) FROM generate_series(1, indnkeyatts) n) = %s::text[]",
        regclass(change.table),
        "UNIQUE" in change.words,
        list(change.columns),
    )


def _drop_index(connection: Connection, change: Change) -> Answer:
    return not _table(connection, change.name)


def _rename_index(connection: Connection, change: Change) -> Answer:
    schema, dot, _ = change.name.rpartition(".")
    return _moved(_table(connection, change.name), _table(connection, f"{schema}{dot}{change.new_name}"))


def _rename_table(connection: Connection, change: Change) -> Answer:
    schema, dot, _ = change.table.rpartition(".")
    return _moved(_table(connection, change.table), _table(connection, f"{schema}{dot}{change.new_name}"))


def _rename_column(connection: Connection, change: Change) -> Answer:
    return _moved(*(_column(connection, change.table, name) for name in (change.name, change.new_name)))


def _rename_constraint(connection: Connection, change: Change) -> Answer:
    return _moved(*(_constraint(connection, change.table, name) for name in (change.name, change.new_name)))


def _moved(old: bool, new: bool) -> Answer:
    """A rename is done when only the new name is there; both, or neither, is not for us to judge."""
    return new if old != new else None


def _add_constraint(kind: str) -> Callable[[Connection, Change], Answer]:
    def find(connection: Connection, change: Change) -> Answer:
        if change.name or kind == "p":
            return _constraint(connection, change.table, change.name, f"contype = '{kind}'")
        return None

    return find


def _drop_routine(connection: Connection, change: Change) -> Answer:
    there = _routine(connection, change)
    return None if there is None else not there


def _routine(connection: Connection, change: Change) -> Answer:
    if "OR REPLACE" in change.words:
        return None
    if "TRIGGER" in change.words:
        return _yes(
            connection,
            "SELECT FROM pg_trigger WHERE tgrelid = to_regclass(%s) AND tgname = %s",
            regclass(change.table),
            change.name,
        )
    return None  # functions of one name differ by their arguments


def _type(connection: Connection, change: Change) -> Answer:
    if "SEQUENCE" in change.words:
        return _table(connection, change.name)
    if change.words & {"TYPE", "DOMAIN"}:
        return _yes(connection, "SELECT 1 WHERE to_regtype(%s) IS NOT NULL", regclass(change.name))
    for word, catalogue, column in (
        ("SCHEMA", "pg_namespace", "nspname"),
        ("EXTENSION", "pg_extension", "extname"),
        ("ROLE", "pg_roles", "rolname"),
        ("USER", "pg_roles", "rolname"),
    ):
        if word in change.words:
            return _yes(connection, f"SELECT FROM {catalogue} WHERE {column} = %s", change.name)
    return None


def _drop_type(connection: Connection, change: Change) -> Answer:
    there = _type(connection, change)
    return None if there is None else not there


_FINDERS: Final[dict[Verb, Callable[[Connection, Change], Answer]]] = {
    Verb.CREATE_TABLE: _create_table,
    Verb.DROP_TABLE: lambda connection, change: not _table(connection, change.table),
    Verb.RENAME_TABLE: _rename_table,
    Verb.ADD_COLUMN: _add_column,
    Verb.DROP_COLUMN: _gone(_column),
    Verb.RENAME_COLUMN: _rename_column,
    Verb.CHANGE_COLUMN: _change_column,
    Verb.SET_DEFAULT: _set_default,
    Verb.DROP_DEFAULT: lambda connection, change: _column(connection, change.table, change.name, "NOT atthasdef"),
    Verb.SET_NOT_NULL: lambda connection, change: _column(connection, change.table, change.name, "attnotnull"),
    Verb.DROP_NOT_NULL: lambda connection, change: _column(connection, change.table, change.name, "NOT attnotnull"),
    Verb.ADD_INDEX: _add_index,
    Verb.DROP_INDEX: _drop_index,
    Verb.RENAME_INDEX: _rename_index,
    Verb.ADD_PRIMARY_KEY: _add_constraint("p"),
    Verb.ADD_FOREIGN_KEY: _add_constraint("f"),
    Verb.ADD_CHECK: _add_constraint("c"),
    Verb.DROP_CONSTRAINT: _gone(_constraint),
    Verb.RENAME_CONSTRAINT: _rename_constraint,
    Verb.VALIDATE: lambda connection, change: _constraint(connection, change.table, change.name, "convalidated"),
    Verb.CREATE_VIEW: lambda connection, change: (
        None if "OR REPLACE" in change.words else _table(connection, change.name)
    ),
    Verb.DROP_VIEW: lambda connection, change: not _table(connection, change.name),
    Verb.CREATE_ROUTINE: _routine,
    Verb.DROP_ROUTINE: _drop_routine,
    Verb.CREATE_TYPE: _type,
    Verb.DROP_TYPE: _drop_type,
}
