"""SQLite: every statement is a transaction, and so is a whole migration. The lock is a file beside the database."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

from core.errors import Busy
from core.files import exclusive_lock
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Statement
from migrations.changes import Change, Verb
from migrations.ddl import parse
from migrations.engines import Effect, Guard, Holder, Load, Presence, Size, Work, apart, probed, together
from migrations.text import tokens

#: These cannot be part of a transaction, or do nothing there. To repeat them does no harm.
_APART: Final = frozenset({"VACUUM", "PRAGMA", "ATTACH", "DETACH"})

#: Changes of the schema for which SQLite's manual wants foreign keys to be off (and checked at the end).
_REBUILDS: Final = frozenset({Verb.DROP_TABLE, Verb.RENAME_TABLE})


class SqliteServer:
    """The file, as `migrations.engines.Server`."""

    engine = Engine.SQLITE
    whole = True

    def __init__(self, database: Database) -> None:
        """Open the file, which must exist. Raises SqlError."""
        self.connection = Connection.open(database)
        self._locks = ExitStack()

    def version(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}"

    def require_primary(self) -> None:
        """A file that can be written."""
        try:
            with self.connection.transaction():
                pass
        except SqlError as error:
            if error.reason is not Reason.LOCKED:  # whoever writes it just now shows that one can
                raise

    def hold(self) -> bool:
        assert self.connection.database.path is not None
        path = self.connection.database.path
        try:
            self._locks.enter_context(
                exclusive_lock(path.with_name(f"{path.name}.updater-lock"), purpose=f"migrate {path.name}")
            )
        except Busy:
            return False
        return True

    def release(self) -> None:
        self._locks.close()

    def reopen(self) -> None:
        self.close()
        self.connection = Connection.open(self.connection.database)

    def close(self) -> None:
        self.connection.close()
        self._locks.close()

    def holders(self, tables: Sequence[str], *, older: float = 1.0) -> list[Holder]:
        """SQLite does not know who they are."""
        return []

    def free(self, tables: Sequence[str]) -> bool:
        """SQLite has no queue in which others could wait behind us."""
        return True

    def atomic(self, statement: Statement) -> bool:
        return _first_word(statement.sql) not in _APART

    def execute(self, work: Sequence[Work], guard: Guard) -> None:
        self._wait(guard)
        with self._limited(guard):
            if not self.atomic(work[0].statement):
                apart(self.connection, work[0].statement.sql, work[0])
            elif any(change.verb in _REBUILDS for each in work for change in self._changes(each.statement)):
                self._rebuild(work)
            else:
                together(self.connection, work)

    def presence(self, statement: Statement) -> Presence:
        """Derived: an object of the same name and text; columns by the table's form."""
        if (found := probed(self.connection, statement)) is not None:
            return found
        if _first_word(statement.sql) in ("VACUUM", "PRAGMA"):
            return Presence(effect=Effect.ABSENT, text="it can be repeated")
        found_all = [self._there(change, statement) for change in self._changes(statement)]
        effects = {each.effect for each in found_all}
        effect = effects.pop() if len(effects) == 1 else Effect.HALF
        return Presence(effect=effect, text="\n".join(each.text for each in found_all))

    def load(self) -> Load:
        return Load(running=0)

    def size(self, table: str) -> Size:
        """The rows by their highest number, as a count would read the whole table; the bytes are the whole file's."""
        try:
            row = self.connection.one(f"SELECT max(rowid) FROM {self.quoted(table)}")
        except SqlError:  # WITHOUT ROWID
            row = self.connection.one(f"SELECT count(*) FROM {self.quoted(table)}")
        pages = self.connection.one("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
        return Size(rows=int(row[0] or 0) if row else 0, bytes=int(pages[0]) if pages else 0)

    def transactional(self, table: str) -> bool:
        return True

    def begin_batches(self, guard: Guard) -> None:
        self._wait(guard)

    def quoted(self, name: str) -> str:
        escaped = name.replace('"', '""')
        return f'"{escaped}"'

    # -- parts

    def _changes(self, statement: Statement) -> tuple[Change, ...]:
        return parse(statement.sql, self.engine).changes

    def _wait(self, guard: Guard) -> None:
        self.connection.execute(f"PRAGMA busy_timeout = {max(1, round(guard.lock_wait * 1000))}")

    @contextmanager
    def _limited(self, guard: Guard) -> Iterator[None]:
        """SQLite has no time limits of its own, but asks us in between."""
        if guard.time_limit is None:
            yield
            return
        end = time.monotonic() + guard.time_limit
        self.connection.raw.set_progress_handler(lambda: time.monotonic() > end, 10_000)
        try:
            yield
        finally:
            self.connection.raw.set_progress_handler(None, 0)

    def _rebuild(self, work: Sequence[Work]) -> None:
        """With foreign keys off, so that dropping a table does not delete the rows that refer to it; what does not fit
        together in the end is not committed (https://www.sqlite.org/lang_altertable.html, section 7).
        """
        self.connection.execute("PRAGMA foreign_keys = OFF")
        try:
            before = set(self._violations())

            def check() -> None:
                last.record()
                if new := [row for row in self._violations() if row not in before]:
                    raise SqlError(
                        f"{self.connection.database}: rows would refer to nothing",
                        reason=Reason.OTHER,
                        code="FOREIGN KEY",
                        what=[f"table {row[0]}, row {row[1]}: no such row in {row[2]}" for row in new[:10]],
                    )

            *others, last = work
            together(self.connection, [*others, Work(statement=last.statement, record=check, done=last.done)])
        finally:
            self.connection.execute("PRAGMA foreign_keys = ON")

    def _violations(self) -> list[tuple[object, ...]]:
        return self.connection.execute("PRAGMA foreign_key_check").rows

    def _there(self, change: Change, statement: Statement) -> Presence:
        match change.verb:
            case Verb.CREATE_TABLE:
                return self._made("table", change.table, statement)
            case Verb.ADD_INDEX if _first_word(statement.sql) == "CREATE":
                return self._made("index", change.name, statement)
            case Verb.CREATE_VIEW:
                return self._made("view", change.name or change.table, statement)
            case Verb.CREATE_ROUTINE:
                return self._made("trigger", change.name, statement)
            case Verb.DROP_TABLE:
                return self._gone("table", change.table)
            case Verb.DROP_INDEX:
                return self._gone("index", change.name)
            case Verb.DROP_VIEW:
                return self._gone("view", change.name or change.table)
            case Verb.DROP_ROUTINE:
                return self._gone("trigger", change.name)
            case Verb.RENAME_TABLE:
                return _moved("table", change, bool(self._sql(change.table)), bool(self._sql(change.new_name)))
            case Verb.ADD_COLUMN:
                return self._column(change)
            case Verb.DROP_COLUMN:
                there = change.name.lower() in self._columns(self.connection.raw, change.table)
                text = f"column {change.table}.{change.name} is {'there' if there else 'not there'}"
                return Presence(effect=Effect.ABSENT if there else Effect.THERE, text=text)
            case Verb.RENAME_COLUMN:
                columns = self._columns(self.connection.raw, change.table)
                return _moved("column", change, change.name.lower() in columns, change.new_name.lower() in columns)
        return Presence(effect=Effect.UNKNOWN, text=f"what it does cannot be seen in the schema ({change.verb})")

    def _sql(self, name: str) -> str:
        row = self.connection.one("SELECT sql FROM sqlite_master WHERE lower(name) = lower(%s)", [name])
        return "" if row is None else str(row[0] or name)

    def _made(self, kind: str, name: str, statement: Statement) -> Presence:
        """An object, compared with what the statement makes in an empty copy of the schema."""
        there = self._sql(name)
        if not there:
            return Presence(effect=Effect.ABSENT, text=f"{kind} {name} is not there")
        if kind == "table" and parse(statement.sql, self.engine).changes[0].definition.upper().startswith("AS"):
            return Presence(effect=Effect.THERE, text=f"{kind} {name} is there")
        if _words(there) == _words(_without_if(statement.sql)):
            return Presence(effect=Effect.THERE, text=f"{kind} {name} is there")
        return Presence(
            effect=Effect.HALF, text=f"{kind} {name} is there, but differs: {' '.join(there.split())[:200]}"
        )

    def _gone(self, kind: str, name: str) -> Presence:
        there = bool(self._sql(name))
        return Presence(
            effect=Effect.ABSENT if there else Effect.THERE,
            text=f"{kind} {name} is {'there' if there else 'not there'}",
        )

    def _column(self, change: Change) -> Presence:
        """A column, compared with the one that the clause adds to a table made for the question."""
        found = self._columns(self.connection.raw, change.table).get(change.name.lower())
        if found is None:
            return Presence(effect=Effect.ABSENT, text=f"column {change.table}.{change.name} is not there")
        model = sqlite3.connect(":memory:")
        try:
            model.execute("CREATE TABLE t (updater_probe)")
            model.execute(f"ALTER TABLE t ADD COLUMN {self.quoted(change.name)} {change.definition}")
            wanted = self._columns(model, "t")[change.name.lower()]
        except sqlite3.Error:
            wanted = found
        finally:
            model.close()
        if wanted == found:
            return Presence(effect=Effect.THERE, text=f"column {change.table}.{change.name} is there")
        return Presence(
            effect=Effect.HALF, text=f"column {change.table}.{change.name} is there, but is {found}, not {wanted}"
        )

    def _columns(self, raw: sqlite3.Connection, table: str) -> dict[str, tuple[object, ...]]:
        """Type, nullability and default by name."""
        rows = raw.execute(f"PRAGMA table_xinfo({self.quoted(table)})").fetchall()
        return {str(row[1]).lower(): (str(row[2]).upper(), row[3], row[4]) for row in rows}


def _moved(kind: str, change: Change, old: bool, new: bool) -> Presence:
    before, after = (change.table, change.new_name) if kind == "table" else (change.name, change.new_name)
    text = f"{kind} {before} is {'there' if old else 'not there'}, {after} is {'there' if new else 'not there'}"
    effect = Effect.HALF if old == new else Effect.ABSENT if old else Effect.THERE
    return Presence(effect=effect, text=text)


def _first_word(sql: str) -> str:
    return sql.split(None, 1)[0].upper().rstrip(";") if sql.split() else ""


def _words(sql: str) -> list[str]:
    """For comparing: SQLite keeps the text as it was given, but for its first words."""
    return [token.text.upper() for token in tokens(sql, Engine.SQLITE)]


def _without_if(sql: str) -> str:
    """CREATE TABLE IF NOT EXISTS is kept as CREATE TABLE."""
    return re.sub(
        r"(?i)\bIF\s+NOT\s+EXISTS\s+", "", re.sub(r"(?i)^(\s*CREATE\s+)(?:TEMP|TEMPORARY)\s+", r"\1", sql), count=1
    )
