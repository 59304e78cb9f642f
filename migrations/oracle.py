"""The sure answer: a scratch server with the old release's schema is asked what it really does for each statement.

MariaDB: the cheapest ALGORITHM and LOCK that it accepts, with rows in the table. PostgreSQL: the locks that a
transaction holds after the statement, whether tables were written anew, and how many rows were read. The statements
are applied in order, so that each is asked on the schema that it will find. SQLite: how its work grows with the rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final

from core.errors import DatabaseFailed
from core.sql import Connection, Engine, Reason, SqlError
from migrations.catalogue import About
from migrations.changes import Parsed, Verb
from migrations.classify import Impact
from migrations.text import SqlUnreadable, split

#: What MariaDB is asked for, the cheapest first.
_WAYS: Final = (
    ("INSTANT", "NONE", Impact.INSTANT),
    ("NOCOPY", "NONE", Impact.ONLINE),
    ("INPLACE", "NONE", Impact.ONLINE),
    ("COPY", "NONE", Impact.ONLINE),
    ("INPLACE", "SHARED", Impact.BLOCKS_WRITES),
    ("COPY", "SHARED", Impact.BLOCKS_WRITES),
    ("COPY", "EXCLUSIVE", Impact.BLOCKS_ALL),
)

#: Rows that a table gets, if it has none: an empty one can be changed in ways that a full one cannot.
ROWS: Final = 20

#: PostgreSQL's locks that stop readers, and those that stop writers.
_STOPS_ALL: Final = frozenset({"AccessExclusiveLock"})
_STOPS_WRITES: Final = frozenset({"ShareLock", "ShareRowExclusiveLock", "ExclusiveLock"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What the server did. `impact`: None when it cannot say (`how` tells why)."""

    impact: Impact | None
    how: str
    failed: bool = False


@contextmanager
def oracle(about: About) -> Iterator[Oracle]:
    """A scratch server with the schema of `about` in it. Raises DatabaseFailed, CommandFailed (no server here)."""
    from migrations.scratch import scratch

    with scratch(about.engine) as database, Connection.open(database) as connection:
        made = Oracle(connection)
        if about.schema is not None:
            try:
                made.load(about.schema.read_text(encoding="utf-8"))
            except (SqlUnreadable, OSError, UnicodeDecodeError) as error:
                raise DatabaseFailed(
                    f"the schema {about.schema.name} cannot be loaded",
                    what=str(error),
                    state="only the scratch server was touched; it is gone",
                ) from error
        yield made


class Oracle:
    """Asks a scratch server over one connection. Everything asked is done there."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.engine = connection.engine

    @property
    def version(self) -> str:
        """What the server says that it is."""
        row = self.connection.one("SELECT sqlite_version()" if self.engine is Engine.SQLITE else "SELECT version()")
        return str(row[0]) if row else ""

    def load(self, text: str) -> None:
        """Run a file of statements. Raises SqlUnreadable; DatabaseFailed naming the line that the server refuses."""
        for piece in split(text, self.engine):
            try:
                self.connection.execute(piece.sql)
            except SqlError as error:
                raise DatabaseFailed(
                    f"the schema cannot be loaded: line {piece.line}",
                    what=[error.message, *error.what],
                    state="only the scratch server was touched; it is gone",
                ) from error

    def ask(self, parsed: Parsed) -> Answer:
        """Do the statement on the scratch server and tell how it was done."""
        try:
            for table in parsed.tables:
                self._fill(table)
            if self.engine is Engine.MARIADB:
                return self._mariadb(parsed)
            if self.engine is Engine.POSTGRESQL:
                return self._postgresql(parsed)
            return self._sqlite(parsed)
        except SqlError as error:
            return Answer(impact=None, how=error.message.partition(": ")[2] or error.message, failed=True)

    # -- MariaDB

    def _mariadb(self, parsed: Parsed) -> Answer:
        from migrations.reading.way import takes_a_way, with_way

        if not takes_a_way(parsed):
            self.connection.execute(parsed.sql)
            return Answer(impact=None, how="takes no ALGORITHM and LOCK")
        refused: SqlError | None = None
        for algorithm, lock, impact in _WAYS:
            try:
                done = self.connection.execute(with_way(parsed, algorithm=algorithm, lock=lock))
            except SqlError as error:
                if error.reason not in (Reason.REFUSED, Reason.SYNTAX) and error.code != "1235":
                    raise
                refused = error
                continue
            if algorithm != "COPY" and done.changed:  # it took the word for it, and copied all the same
                return Answer(impact=Impact.BLOCKS_WRITES, how=f"copied {done.changed} rows in spite of {algorithm}")
            return Answer(impact=impact, how=f"ALGORITHM={algorithm}, LOCK={lock}")
        assert refused is not None
        raise refused

    # -- PostgreSQL

    def _postgresql(self, parsed: Parsed) -> Answer:
        if "CONCURRENTLY" in parsed.options:
            self.connection.execute(parsed.sql)
            return Answer(impact=Impact.ONLINE, how="accepted CONCURRENTLY")
        before, read = self._files(), self._read()
        with self.connection.transaction():
            self.connection.execute(parsed.sql)
            after = self._files()
            locks = self._locks(before)
            reads = self._read()
        rewritten = sorted(before[oid][0] for oid in before if oid in after and before[oid][1] != after[oid][1])
        scanned = sorted(
            before[oid][0]
            for oid in before
            if oid in locks and reads.get(oid, 0) - read.get(oid, 0) >= max(before[oid][2], 1)
        )
        return _judge_locks({before[oid][0]: modes for oid, modes in locks.items()}, rewritten, scanned, parsed)

    def _files(self) -> dict[int, tuple[str, int, int]]:
        """Tables by oid: name, file, rows."""
        rows = self.connection.execute(
            "SELECT oid::int, relname, coalesce(pg_relation_filenode(oid), 0)::int FROM pg_class "
            "WHERE relkind IN ('r', 'p', 'm') AND relnamespace NOT IN "
            "('pg_catalog'::regnamespace, 'information_schema'::regnamespace, 'pg_toast'::regnamespace)"
        ).rows
        return {oid: (name, file, ROWS // 2) for oid, name, file in rows}

    def _locks(self, tables: dict[int, tuple[str, int, int]]) -> dict[int, set[str]]:
        found: dict[int, set[str]] = {}
        for oid, mode in self.connection.execute(
            "SELECT relation::int, mode FROM pg_locks WHERE pid = pg_backend_pid() AND relation IS NOT NULL"
        ).rows:
            if oid in tables:
                found.setdefault(oid, set()).add(mode)
        return found

    def _read(self) -> dict[int, int]:
        """Rows read by whole scans, by table; counted by the server until they are reported."""
        rows = self.connection.execute("SELECT relid::int, seq_tup_read FROM pg_stat_xact_user_tables").rows
        return dict(rows)

    # -- SQLite

    def _sqlite(self, parsed: Parsed) -> Answer:
        """Count the steps of its machine: as many as rows and more, and the work grows with the table."""
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        rows = max((self._count(table) for table in parsed.tables), default=0)
        self.connection.raw.set_progress_handler(step, 1)
        try:
            self.connection.execute(parsed.sql)
        finally:
            self.connection.raw.set_progress_handler(None, 0)
        grows = rows >= SQLITE_ROWS and steps >= rows
        impact = Impact.BLOCKS_WRITES if grows else Impact.INSTANT
        return Answer(impact=impact, how=f"{steps} steps on {rows} rows")

    # -- rows

    def _fill(self, table: str) -> None:
        """Give the table rows, if it has none and they can be made up. A table that cannot be filled stays empty."""
        with suppress(SqlError):
            if self._count(table) == 0:
                fill(self.connection, table)

    def _count(self, table: str) -> int:
        try:
            row = self.connection.one(f"SELECT count(*) FROM {quoted(self.engine, table)}")
        except SqlError:
            return 0
        return int(row[0]) if row else 0


#: A table with so many rows tells work that grows from work that does not.
SQLITE_ROWS: Final = 2000


def quoted(engine: Engine, name: str) -> str:
    """A name, each of its parts in the engine's quotes."""
    mark = "`" if engine is Engine.MARIADB else '"'
    return ".".join(f"{mark}{part.replace(mark, mark * 2)}{mark}" for part in name.split("."))


def fill(connection: Connection, table: str) -> None:
    """Insert rows of made-up values. Raises SqlError where checks or foreign keys do not allow them."""
    target = quoted(connection.engine, table)
    if connection.engine is Engine.SQLITE:
        _fill_sqlite(connection, table, target)
        return
    columns = connection.execute(
        "SELECT column_name, data_type, is_nullable, column_default, coalesce(character_maximum_length, 0), "
        + ("extra, column_type" if connection.engine is Engine.MARIADB else "is_generated, udt_name")
        + " FROM information_schema.columns WHERE table_name = %s AND table_schema = "
        + ("database()" if connection.engine is Engine.MARIADB else "current_schema()"),
        (table.rpartition(".")[2],),
    ).rows
    wanted = [row for row in columns if not _by_itself(row)]
    names = ", ".join(quoted(connection.engine, row[0]) for row in wanted)
    if connection.engine is Engine.MARIADB:
        connection.execute("SET SESSION foreign_key_checks = 0")
    try:
        for number in range(1, ROWS + 1):
            values = ", ".join(_value(row, number, connection.engine) for row in wanted)
            row = f"({names}) VALUES ({values})" if names else _DEFAULTS[connection.engine]
            connection.execute(f"INSERT INTO {target} {row}")
    finally:
        if connection.engine is Engine.MARIADB:
            connection.execute("SET SESSION foreign_key_checks = 1")


_DEFAULTS: Final = {
    Engine.MARIADB: "() VALUES ()",
    Engine.POSTGRESQL: "DEFAULT VALUES",
}


def _by_itself(row: Sequence[object]) -> bool:
    """Generated and numbered columns."""
    extra = str(row[5]).upper()
    return "GENERATED" in extra or "AUTO_INCREMENT" in extra or extra == "ALWAYS" or "nextval" in str(row[3])


def _value(row: Sequence[object], number: int, engine: Engine) -> str:
    kind, exact = str(row[1]).lower(), str(row[6])
    if "char" in kind or "text" in kind or "binary" in kind or "blob" in kind:
        length = int(str(row[4])) or 20
        return f"'{str(number)[-length:]}'"
    if kind in ("enum", "set"):
        return exact[exact.index("(") + 1 :].split(",")[0].rstrip(")")
    if kind == "user-defined":
        return f"(SELECT unnest(enum_range(NULL::{exact})) LIMIT 1)"
    if "timestamp" in kind or kind in ("date", "datetime"):
        return f"'2020-01-{number:02} 00:00:00'" if kind != "date" else f"'2020-01-{number:02}'"
    made = {
        "boolean": "true", "time": "'00:00:01'", "time without time zone": "'00:00:01'", "json": "'{}'",
        "jsonb": "'{}'",
        "uuid": f"'00000000-0000-4000-8000-{number:012}'", "inet": f"'10.0.0.{number}'", "inet6": f"'::{number}'",
        "bytea": "'x'", "point": "POINT(1, 1)", "geometry": "POINT(1, 1)", "interval": "'1 day'", "bit": "b'1'",
        "year": "2020", "array": "'{}'", "date": "'2020-01-01'",
    }  # fmt: skip
    return made.get(kind, str(number))


def _fill_sqlite(connection: Connection, table: str, target: str) -> None:
    columns = connection.execute(f"PRAGMA table_xinfo({target})").rows
    wanted = [row for row in columns if row[6] == 0]
    names = ", ".join(quoted(Engine.SQLITE, row[1]) for row in wanted)
    numbers = ", ".join("i" if "INT" in str(row[2]).upper() or row[5] else "'v' || i" for row in wanted)
    connection.execute(
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {SQLITE_ROWS}) "
        f"INSERT INTO {target} ({names}) SELECT {numbers} FROM n"
    )


def _judge_locks(
    locks: dict[str, set[str]], rewritten: Sequence[str], scanned: Sequence[str], parsed: Parsed
) -> Answer:
    """From locks and work to a class: a lock that is held only for a moment blocks nobody."""
    gone = any(each.verb in (Verb.TRUNCATE, Verb.DROP_TABLE) for each in parsed.changes)
    worked = set(scanned) | (set() if gone else set(rewritten))
    said = ", ".join(f"{name}: {' + '.join(sorted(modes))}" for name, modes in sorted(locks.items())) or "no lock"
    work = "; written anew" if rewritten and not gone else "; every row read" if scanned else ""
    how = f"{said}{work}"
    if any(each.verb in (Verb.UPDATE, Verb.DELETE) for each in parsed.changes):
        return Answer(impact=None, how=f"rows; {how}")
    if not worked:
        return Answer(impact=Impact.INSTANT, how=how)
    held = set().union(*(locks.get(name, set()) for name in locks))
    if held & _STOPS_ALL:
        return Answer(impact=Impact.BLOCKS_ALL, how=how)
    if held & _STOPS_WRITES:
        return Answer(impact=Impact.BLOCKS_WRITES, how=how)
    return Answer(impact=Impact.ONLINE, how=how)
