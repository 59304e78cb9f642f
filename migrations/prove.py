"""The proof that a release works on the data of another: statements that it was seen to send are replayed against the
migrated schema, on a scratch server, each in a transaction that is rolled back.

Only what is different counts: a statement that failed on the old schema as well, in the same way, proves nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from typing import Any, Final

from core.errors import CatalogueInvalid, MigrationFailed
from core.report import Report
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Action, Catalogue, Migration, Phase, Statement
from migrations.oracle import Oracle
from migrations.recorded import Recorded, read_recorded
from migrations.scratch import scratch
from migrations.text import SqlUnreadable
from migrations.transient import transient_directory

#: What is there when the new release has been activated, and the old one may come back.
BEFORE_CLEANUP: Final = (Phase.NON_BLOCKING, Phase.BLOCKING)

#: Why a statement fails, when it is because of the schema rather than of the rows that a scratch server lacks.
_LACKING: Final = frozenset({Reason.MISSING, Reason.SYNTAX, Reason.REFUSED})

#: Seconds that a recorded statement may take.
LONGEST: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """A statement that the migrated schema refuses. `says`: the server's message. `blame`: the migration after which it
    fails first, and `statement` where in it.
    """

    where: str
    sql: str
    says: str
    code: str
    blame: str = ""
    statement: str = ""


@dataclass(frozen=True, kw_only=True)
class Proof:
    """What came of it. `migrations`: those that were applied. `replayed`: statements that were judged; `skipped`: those
    that work on no rows; `unjudged`: those that failed without the migrations too, in the same way.
    """

    database: str
    version: str
    migrations: tuple[str, ...]
    replayed: int
    skipped: int
    unjudged: tuple[Failure, ...] = ()
    failures: tuple[Failure, ...] = field(default=())

    @property
    def holds(self) -> bool:
        """Whether every statement that was judged works."""
        return not self.failures

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        lists = {name: [_json(each) for each in getattr(self, name)] for name in ("unjudged", "failures")}
        plain = {name: getattr(self, name) for name in ("database", "version", "replayed", "skipped", "holds")}
        return {**plain, "migrations": list(self.migrations), **lists}

    def require(self) -> None:
        """Raises CatalogueInvalid that tells the first failure, unless it holds."""
        if self.holds:
            return
        first = self.failures[0]
        more = len(self.failures) - 1
        raise CatalogueInvalid(
            f"the release that was recorded does not work on the migrated data: {first.where}",
            what=[
                _shortened(first.sql),
                f"{first.code}: {first.says}",
                f"it works before {first.blame} ({first.statement}), and fails after it" if first.blame else "",
                f"{more} other statement{'s' * (more != 1)} fail{'s' * (more == 1)} too" if more else "",
            ],
            state="only a scratch server was used; it is gone",
            next=["move what takes this away into the phase cleanup", "updater migrate lint DIR"],
        )


def prove(
    catalogue: Catalogue,
    name: str,
    queries: Path,
    *,
    phases: Sequence[Phase] = BEFORE_CLEANUP,
    server: Database | None = None,
    report: Report | None = None,
) -> Proof:
    """Replay the statements of `queries` against the schema of database `name` after the migrations of these phases
    (none: against the old schema, for the statements of the new release).

    `server`: a server where databases may be made and dropped (default: a scratch server of its own). Raises
    CatalogueInvalid for files that cannot be read, MigrationFailed when a migration itself does not run,
    DatabaseFailed, CommandFailed when no server can be started.
    """
    report = report or Report()
    engine = catalogue.databases[name].engine
    recorded = read_recorded(queries, engine)
    judged = [each for each in recorded if each.replayable]
    migrations = catalogue.of(*phases, database=name) if phases else ()
    with _server(engine, server) as place:
        with _loaded(place, catalogue, name) as connection:
            version = Oracle(connection).version
            before = _replay(connection, judged, report, 0, 2 * len(judged))
            for migration in migrations:
                for action in migration.up:
                    _apply(connection, migration, action)
            after = _replay(connection, judged, report, len(judged), 2 * len(judged))
        if migrations:
            changed = [sql for sql, fault in after.items() if fault and not _same(fault, before[sql])]
            blamed = _blame(place, catalogue, name, migrations, changed, before) if changed else {}
        else:  # there is nothing to compare with, only what the schema lacks
            changed = [sql for sql, fault in after.items() if fault and fault.reason in _LACKING]
            blamed = {}
    failures = [_failure(each, after[each.sql], blamed.get(each.sql)) for each in judged if each.sql in changed]
    faulty = [each for each in judged if after[each.sql] and each.sql not in changed]
    return Proof(
        database=name,
        version=version,
        migrations=tuple(each.id for each in migrations),
        replayed=len(judged) - len(faulty),
        skipped=len(recorded) - len(judged),
        unjudged=tuple(_failure(each, after[each.sql], None) for each in faulty),
        failures=tuple(failures),
    )


# -- replaying

_number = count()

#: What came of each statement: None when it worked.
Outcomes = dict[str, SqlError | None]


def _replay(connection: Connection, recorded: Sequence[Recorded], report: Report, done: int, total: int) -> Outcomes:
    outcomes: Outcomes = {}
    for index, each in enumerate(recorded, 1):
        outcomes[each.sql] = _try(connection, each)
        report.progress("prove", done + index, total, "statements")
    return outcomes


def _try(connection: Connection, recorded: Recorded) -> SqlError | None:
    """Run it and take it back; with placeholders the server is only asked to prepare it."""
    sql, engine = recorded.sql, connection.engine
    begin = "BEGIN IMMEDIATE" if engine is Engine.SQLITE else "BEGIN"
    try:
        connection.execute(begin)
        if not recorded.is_open(engine):
            connection.execute(sql)
        elif engine is Engine.MARIADB:
            connection.execute("PREPARE updater_proof FROM %s", (sql,))
            connection.execute("DEALLOCATE PREPARE updater_proof")
        elif engine is Engine.POSTGRESQL:
            connection.execute(f"PREPARE updater_proof AS {sql}")
            connection.execute("DEALLOCATE updater_proof")
        else:  # never the same text twice: an EXPLAIN that is kept does not notice that the schema has changed
            connection.execute(f"EXPLAIN /* {next(_number)} */ {recorded.closed(engine)}")
    except SqlError as error:
        return error
    finally:
        with suppress(SqlError):
            connection.execute("ROLLBACK")
    return None


def _same(one: SqlError, other: SqlError | None) -> bool:
    return other is not None and (one.code, one.message.partition(": ")[2]) == (
        other.code,
        other.message.partition(": ")[2],
    )


def _blame(
    place: Database,
    catalogue: Catalogue,
    name: str,
    migrations: Sequence[Migration],
    failing: Sequence[str],
    before: Outcomes,
) -> dict[str, tuple[Migration, Action]]:
    """For each statement the migration after which it first fails, found by applying them once more, one by one."""
    blamed: dict[str, tuple[Migration, Action]] = {}
    with _loaded(place, catalogue, name) as connection:
        for migration in migrations:
            for action in migration.up:
                _apply(connection, migration, action)
                for sql in failing:
                    if sql not in blamed:
                        fault = _try(connection, Recorded(sql=sql, where=""))
                        if fault and not _same(fault, before[sql]):
                            blamed[sql] = (migration, action)
    return blamed


def _apply(connection: Connection, migration: Migration, action: Action) -> None:
    """Make one change; batches as one statement, and an online copy by the engine itself: it is about the result."""
    from migrations.batches import render

    try:
        if isinstance(action, Statement):
            connection.execute(action.sql)
        else:
            rendered, names = render(action.statement, connection.engine)
            bounds = connection.one(f"SELECT min({action.key}), max({action.key}) FROM {action.table}")
            if bounds and bounds[0] is not None:
                # The rows above `low`: the first one is left out, as everything is about the schema.
                values = {"low": bounds[0], "high": bounds[1]}
                connection.execute(rendered, [values[each.strip(":")] for each in names])
    except SqlError as error:
        raise MigrationFailed(
            f"{migration.id} does not run on the schema of the old release",
            what=[f"{action.where}: {error.message.partition(': ')[2] or error.message}", *error.what[:1]],
            state="only a scratch server was used; it is gone",
            next=[f"mend {migration.id}.toml, or the schema that catalogue.toml names", "updater migrate lint DIR"],
        ) from error


# -- where


@contextmanager
def _server(engine: Engine, given: Database | None) -> Iterator[Database]:
    if given is not None:
        yield given
        return
    with scratch(engine) as made:
        yield made


@contextmanager
def _loaded(place: Database, catalogue: Catalogue, name: str) -> Iterator[Connection]:
    """A fresh database with the old release's schema."""
    schema = catalogue.databases[name].schema
    with _fresh(place) as connection:
        if schema is not None:
            try:
                Oracle(connection).load(schema.read_text(encoding="utf-8"))
            except (SqlUnreadable, OSError, UnicodeDecodeError) as error:
                raise CatalogueInvalid(
                    f"the schema {schema.name} cannot be read", what=str(error), state="nothing was changed"
                ) from error
        yield connection


@contextmanager
def _fresh(place: Database) -> Iterator[Connection]:
    """An empty database beside the given one, gone at the end."""
    if place.engine is Engine.SQLITE:
        with transient_directory() as directory:
            path = directory / "proof.sqlite"
            path.touch()
            with Connection.open(replace(place, path=path)) as connection:
                yield connection
        return
    name = f"updater_proof_{secrets.token_hex(4)}"
    with Connection.open(place) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            with Connection.open(replace(place, database=name)) as connection:
                limit = (
                    f"SET SESSION max_statement_time = {LONGEST}"
                    if place.engine is Engine.MARIADB
                    else f"SET statement_timeout = '{LONGEST}s'"
                )
                connection.execute(limit)
                yield connection
        finally:
            admin.execute(f"DROP DATABASE IF EXISTS {name}")


# -- small things


def _failure(recorded: Recorded, fault: SqlError | None, blamed: tuple[Migration, Action] | None) -> Failure:
    assert fault is not None
    return Failure(
        where=recorded.where,
        sql=recorded.sql,
        says=fault.message.partition(": ")[2] or fault.message,
        code=fault.code,
        blame=blamed[0].id if blamed else "",
        statement=blamed[1].where if blamed else "",
    )


def _json(failure: Failure) -> dict[str, str]:
    return {name: getattr(failure, name) for name in Failure.__slots__}


def _shortened(sql: str) -> str:
    text = " ".join(sql.split())
    return f"{text[:300]}…" if len(text) > 300 else text
