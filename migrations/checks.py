"""The checks behind the rules: each looks at one migration and yields what is wrong in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from core.sql import Engine
from migrations.catalogue import Batch, Migration, Phase, Statement, Strategy
from migrations.changes import Change, Parsed, Verb
from migrations.classify import Impact, Judgement
from migrations.columns import Column, column_of
from migrations.ddl import parse
from migrations.old_names import OldRelease
from migrations.oracle import Answer
from migrations.places import Place, Places
from migrations.rules import RULES, Severity
from migrations.tables import Schema, Table

#: Rule, severity, what is wrong here, place, table.
Wrong = tuple[str, Severity, str, Place, str]

_ROWS: Final = (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.SELECT)


@dataclass(slots=True, kw_only=True)
class Seen:
    """An action with all that is known of it; `table`: the first table that it changes, as it was before."""

    action: Statement | Batch
    parsed: Parsed
    judgement: Judgement
    impact: Impact
    answer: Answer | None
    place: Place
    tables: dict[str, Table]


@dataclass(slots=True, kw_only=True)
class Context:
    """A migration and what is around it. `schema`: as it is behind its last action so far."""

    migration: Migration
    schema: Schema
    old: OldRelease
    places: Places
    seen: list[Seen] = field(default_factory=list)

    def add(
        self, action: Statement | Batch, parsed: Parsed, judgement: Judgement, impact: Impact, answer: Answer | None
    ) -> None:
        """Note an action, before its effect is taken over into the schema."""
        tables = {name: found.copy() for name in parsed.tables if (found := self.schema.table(name))}
        if isinstance(action, Batch) and (found := self.schema.table(action.table)):
            tables[action.table] = found.copy()
        self.seen.append(
            Seen(
                action=action, parsed=parsed, judgement=judgement, impact=impact, answer=answer,
                place=self.places.of(self.migration, action.where), tables=tables,
            )
        )  # fmt: skip

    @property
    def phase(self) -> Phase:
        """When it runs."""
        return self.migration.phase

    @property
    def serving(self) -> bool:
        """Whether the old release serves meanwhile."""
        return self.phase is Phase.NON_BLOCKING


def check(context: Context) -> Iterator[Wrong]:
    """All that is wrong in the migration."""
    for seen in context.seen:
        for look in _PER_ACTION:
            yield from look(context, seen)
    for look_at_all in _PER_MIGRATION:
        yield from look_at_all(context)


def _wrong(rule: str, message: str, place: Place, table: str = "", severity: Severity | None = None) -> Wrong:
    return rule, severity or RULES[rule].severity, message, place, table


def _short(sql: str, length: int = 80) -> str:
    text = " ".join(sql.split())
    return text if len(text) <= length else f"{text[: length - 1]}…"


# -- one action


def _blocking(context: Context, seen: Seen) -> Iterator[Wrong]:
    verdict = seen.judgement.verdict
    if verdict.change is not None and any(each.verb is Verb.UNKNOWN for each in seen.parsed.changes):
        severity = Severity.ERROR if context.serving else Severity.WARNING
        yield _wrong("not-understood", _short(seen.parsed.sql), seen.place, severity=severity)
        if seen.answer is None or seen.answer.impact is None:
            return
    if context.serving and seen.impact.blocks:
        told = seen.answer.how if seen.answer and seen.answer.impact else verdict.reason
        yield _wrong("blocking-while-serving", f"{seen.impact} {verdict.table}: {told}", seen.place, verdict.table)


def _server(context: Context, seen: Seen) -> Iterator[Wrong]:
    if seen.answer is not None and seen.answer.failed:
        yield _wrong("server-refuses", f"{seen.answer.how}: {_short(seen.parsed.sql)}", seen.place)


def _destroys(context: Context, seen: Seen) -> Iterator[Wrong]:
    if context.phase is Phase.CLEANUP or isinstance(seen.action, Batch):
        return
    for change in seen.parsed.changes:
        table = seen.tables.get(change.table)
        if table is not None and table.fresh:
            continue
        if what := _destroyed(change, table, context.schema.engine):
            yield _wrong("destroys-data", what, seen.place, change.table)


def _destroyed(change: Change, table: Table | None, engine: Engine) -> str:
    if change.verb is Verb.DROP_TABLE and "TEMPORARY" not in change.words:
        return f"drops table {change.table}"
    if change.verb is Verb.CREATE_TABLE and "OR REPLACE" in change.words:
        return f"replaces table {change.table}"
    if change.verb is Verb.DROP_TYPE and "SCHEMA" in change.words:
        return f"drops all that is in {change.name}"
    if change.verb is Verb.DROP_COLUMN:
        return f"drops column {change.table}.{change.name}"
    if change.verb is Verb.TRUNCATE:
        return f"empties table {change.table}"
    if change.verb is Verb.DELETE and not change.words & {"WHERE", "LIMIT"}:
        return f"deletes all rows of {change.table}"
    if change.verb is Verb.PARTITION and change.name in ("drop", "truncate"):
        return f"{change.name}s a partition of {change.table}"
    if change.verb is Verb.CHANGE_COLUMN and table is not None and change.name in table.columns:
        old, new = table.columns[change.name], column_of(change, engine)
        if narrower(old, new):
            return f"{change.table}.{change.name} holds less: {_said(old)} to {_said(new)}"
    return ""


_WIDTH: Final = {
    "TINYINT": 1, "SMALLINT": 2, "MEDIUMINT": 3, "INT": 4, "BIGINT": 8, "TINYTEXT": 1, "TEXT": 2, "MEDIUMTEXT": 3,
    "LONGTEXT": 4, "TINYBLOB": 1, "BLOB": 2, "MEDIUMBLOB": 3, "LONGBLOB": 4, "REAL": 4, "FLOAT": 4, "DOUBLE": 8,
}  # fmt: skip


def narrower(old: Column, new: Column) -> bool:
    """Whether values that fit before may not fit any more."""
    if old.type != new.type:
        if old.type in _WIDTH and new.type in _WIDTH:
            return _WIDTH[new.type] < _WIDTH[old.type]
        long = ("TEXT", "MEDIUMTEXT", "LONGTEXT", "BLOB", "MEDIUMBLOB", "LONGBLOB")
        return old.type in long and new.type not in long
    if old.type in ("ENUM", "SET"):
        return not set(old.args) <= set(new.args)
    if all(each.isdigit() for each in (*old.args, *new.args)):
        if len(old.args) == 2 == len(new.args):  # digits in all, digits behind the point
            whole = int(new.args[0]) - int(new.args[1]) < int(old.args[0]) - int(old.args[1])
            return whole or int(new.args[1]) < int(old.args[1])
        return bool(new.args) and (not old.args or int(new.args[0]) < int(old.args[0])) and old.type != "TINYINT"
    return False


def _said(column: Column) -> str:
    return f"{column.type}({','.join(column.args)})" if column.args else column.type


def _probe(context: Context, seen: Seen) -> Iterator[Wrong]:
    if context.schema.engine is Engine.MARIADB and isinstance(seen.action, Statement):
        yield from _no_probe(seen.action, seen.parsed, seen.place, seen.tables)


def _no_probe(action: Statement, parsed: Parsed, place: Place, tables: dict[str, Table]) -> Iterator[Wrong]:
    """Of a statement that the engine commits by itself, and whose effect the runner cannot look for."""
    if action.probe:
        return
    for change in parsed.changes:
        table = tables.get(change.table)
        unseen = (
            change.verb is Verb.UNKNOWN
            or "TEMPORARY" in parsed.options
            or (change.verb is Verb.PARTITION and change.name not in ("add", "drop"))
            or (
                change.verb in (Verb.INSERT, Verb.UPDATE, Verb.DELETE)
                and table is not None
                and table.engine not in ("", "INNODB")
            )
        )
        if unseen:
            yield _wrong("no-probe", _short(action.sql), place, change.table)
            return


def _way(context: Context, seen: Seen) -> Iterator[Wrong]:
    said = {key: value for key, value in seen.parsed.options.items() if key in ("ALGORITHM", "LOCK", "WAIT", "NOWAIT")}
    if context.serving and said.get("LOCK") in ("SHARED", "EXCLUSIVE"):
        yield _wrong("lock-while-serving", f"LOCK={said['LOCK']}: {_short(seen.parsed.sql)}", seen.place)
    elif said:
        yield _wrong("own-way", ", ".join(f"{key}={value}" for key, value in said.items()), seen.place)


def _batch(context: Context, seen: Seen) -> Iterator[Wrong]:
    action = seen.action
    table = seen.tables.get(action.table) if isinstance(action, Batch) else None
    if not isinstance(action, Batch) or table is None or table.unique(action.key):
        return
    leading = [table.primary, *(index.columns for index in table.indexes)]
    if any(columns[:1] == (action.key,) for columns in leading):
        yield _wrong("batch-key", f"{table.name}.{action.key} is not unique", seen.place, table.name, Severity.WARNING)
    else:
        yield _wrong("batch-key", f"{table.name}.{action.key} has no index", seen.place, table.name)


def _old_names(context: Context, seen: Seen) -> Iterator[Wrong]:
    if context.phase is Phase.CLEANUP:
        return
    for change in seen.parsed.changes:
        column = change.name if change.verb in (Verb.DROP_COLUMN, Verb.RENAME_COLUMN) or _renames(change) else ""
        gone = change.verb in (Verb.DROP_TABLE, Verb.RENAME_TABLE) or column
        if gone and (where := context.old.using(change.table, column)):
            name = f"{change.table}.{column}" if column else change.table
            yield _wrong("old-release-reads", f"{name} is used at {where}", seen.place, change.table)


def _renames(change: Change) -> bool:
    return change.verb is Verb.CHANGE_COLUMN and bool(change.new_name)


def _old_inserts(context: Context, seen: Seen) -> Iterator[Wrong]:
    if context.phase is Phase.CLEANUP:
        return
    for change in seen.parsed.changes:
        table = seen.tables.get(change.table)
        if change.verb is not Verb.ADD_COLUMN or (table is not None and table.fresh):
            continue
        column = column_of(change, context.schema.engine)
        given = column.default is not None or column.generated or column.auto or column.words & {"IDENTITY"}
        if not column.nullable and not given and not column.type.endswith("SERIAL"):
            yield _wrong(
                "old-release-inserts",
                f"{change.table}.{change.name} is NOT NULL and has no default",
                seen.place,
                change.table,
            )
        elif where := context.old.inserting_by_position(change.table):
            yield _wrong(
                "old-release-inserts", f"{where} gives values of {change.table} by position", seen.place, change.table
            )


# -- the whole migration


def _down(context: Context) -> Iterator[Wrong]:
    migration = context.migration
    if not migration.reversible and migration.phase is not Phase.CLEANUP:
        severity = Severity.ERROR if migration.phase is Phase.BLOCKING else Severity.WARNING
        yield _wrong("missing-down", migration.id, context.places.of(migration), severity=severity)
    for action in migration.down:
        if isinstance(action, Statement) and context.schema.engine is Engine.MARIADB:
            parsed = parse(action.sql, context.schema.engine)
            tables = {name: found for name in parsed.tables if (found := context.schema.table(name))}
            yield from _no_probe(action, parsed, context.places.of(migration, action.where), tables)


def _nameless(context: Context) -> Iterator[Wrong]:
    for action in (*context.migration.up, *context.migration.down):
        if isinstance(action, Statement) and (parsed := parse(action.sql, context.schema.engine)).is_nameless:
            place = context.places.of(context.migration, action.where)
            yield _wrong("index-without-name", _short(action.sql), place, parsed.tables[0])


def _expected(context: Context) -> Iterator[Wrong]:
    if context.phase is Phase.BLOCKING and not context.places.says(context.migration, "expected"):
        yield _wrong("expected-missing", context.migration.id, context.places.of(context.migration))


def _several_tables(context: Context) -> Iterator[Wrong]:
    tables = dict.fromkeys(
        change.table for seen in context.seen for change in seen.parsed.changes
        if change.table and change.verb not in (*_ROWS, Verb.CREATE_TABLE)
        and not (change.table in seen.tables and seen.tables[change.table].fresh)
    )  # fmt: skip
    if context.phase is Phase.BLOCKING and context.schema.engine is Engine.MARIADB and len(tables) > 1:
        yield _wrong("several-tables", ", ".join(tables), context.places.of(context.migration))


def _online_copy(context: Context) -> Iterator[Wrong]:
    if context.migration.strategy is not Strategy.ONLINE_COPY:
        return
    place = context.places.key(context.migration, "strategy")
    alters = [seen for seen in context.seen if seen.parsed.sql.lstrip()[:5].upper() == "ALTER"]
    if len(alters) != 1 or len(context.seen) != 1:
        yield _wrong("online-copy-several", f"{len(alters)} ALTER TABLE in {len(context.seen)} statements", place)
    for seen in alters:
        for name, table in seen.tables.items():
            if pointing := context.schema.pointing_at(name):
                yield _wrong("online-copy-foreign-keys", f"{name}: from {', '.join(pointing)}", place, name)
            unique = any("UNIQUE" in index.words for index in table.indexes)
            if not table.primary and not unique:
                yield _wrong("online-copy-no-primary-key", name, place, name)
        own = seen.answer.impact if seen.answer and seen.answer.impact else seen.judgement.impact
        if not own.blocks:
            yield _wrong("online-copy-not-needed", f"{own}: {seen.judgement.verdict.reason}", place)


_PER_ACTION: Final[tuple[Callable[[Context, Seen], Iterator[Wrong]], ...]] = (
    _blocking, _server, _destroys, _probe, _way, _batch, _old_names, _old_inserts,
)  # fmt: skip
_PER_MIGRATION: Final[tuple[Callable[[Context], Iterator[Wrong]], ...]] = (
    _down, _nameless, _expected, _several_tables, _online_copy,
)  # fmt: skip
