"""Our classes against what real servers do: never milder, and exact wherever the forms do not say otherwise."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from mariadb_forms import FORMS, SETUP, STRICTER
from postgresql_forms import FORMS as PG_FORMS
from postgresql_forms import SETUP as PG_SETUP
from postgresql_forms import STRICTER as PG_STRICTER

from core.sql import Connection, Database, Engine
from migrations.classify import Impact, classify, version_of
from migrations.ddl import parse
from migrations.oracle import Answer, Oracle
from migrations.scratch import scratch
from migrations.tables import Schema
from migrations.text import split

ALL = [*((form, ours, ours) for form, ours in FORMS), *STRICTER]


def table_of(form: str) -> str:
    """The table that a form works on."""
    return parse(form, Engine.MARIADB).tables[0]


def schema_of(text: str, engine: Engine) -> Schema:
    """The schema that a setup makes."""
    schema = Schema(engine, complete=True)
    for piece in split(text, engine):
        schema.apply(parse(piece.sql, engine))
    return schema


SCHEMA = schema_of(SETUP, Engine.MARIADB)
PG_SCHEMA = schema_of(PG_SETUP, Engine.POSTGRESQL)


def statements_for(table: str) -> list[str]:
    """What makes the table, and the one that it points at."""
    wanted = {table, *(SCHEMA.tables[table].foreign.values()), "parent"}
    pieces = [piece.sql for piece in split(SETUP, Engine.MARIADB)]
    return [sql for sql in pieces if re.search(r"(?:TABLE|INTO) (\w+)", sql)[1] in wanted]  # type: ignore[index]


@pytest.fixture(scope="module")
def hasty_mariadb(mariadb_template: Path) -> Iterator[Database]:
    """A server that does not wait for its disk: hundreds of tables are made and thrown away."""
    options = ["--innodb-flush-method=nosync", "--innodb-flush-log-at-trx-commit=0", "--sync-frm=0"]
    with scratch(Engine.MARIADB, template=mariadb_template, options=options) as database:
        yield database


def test_there_are_enough_forms() -> None:
    assert len(ALL) >= 80
    assert len(PG_FORMS) >= 40


@pytest.mark.parametrize("table", sorted({table_of(form) for form, *_ in ALL}))
def test_mariadb(table: str, hasty_mariadb: Database) -> None:
    setup = statements_for(table)
    wrong = []
    with Connection.open(hasty_mariadb) as connection:
        oracle = Oracle(connection)
        version = version_of(oracle.version, Engine.MARIADB)
        known = version.number[:2] in ((10, 6), (10, 11))
        for form, ours, theirs in ALL:
            if table_of(form) != table:
                continue
            _clean(connection)
            for sql in setup:
                connection.execute(sql)
            parsed = parse(form, Engine.MARIADB)
            answer = oracle.ask(parsed)
            wrong += _compare(form, classify(parsed, version, SCHEMA).impact, answer, theirs if known else None)
            if known and classify(parsed, version, SCHEMA).impact is not ours:
                wrong.append(f"{form}: our rules say {classify(parsed, version, SCHEMA).impact}, the table {ours}")
    assert not wrong, "\n".join(wrong)


def _clean(connection: Connection) -> None:
    connection.execute("SET foreign_key_checks = 0")
    for (name,) in connection.execute("SHOW TABLES").rows:
        connection.execute(f"DROP TABLE `{name}`")
    connection.execute("SET foreign_key_checks = 1")


def _compare(form: str, ours: Impact, answer: Answer, wanted: Impact | None) -> list[str]:
    """What is wrong: the server failed, our class is milder, or the server does other than the table has it."""
    if answer.failed:
        return [f"{form}: {answer.how}"]
    if answer.impact is None:
        return []
    if ours.rank < answer.impact.rank:
        return [f"{form}: {ours} is milder than {answer.impact} ({answer.how})"]
    if wanted is not None and wanted is not answer.impact:
        return [f"{form}: {answer.impact} ({answer.how}) rather than {wanted}"]
    return []


@pytest.mark.parametrize("part", range(4))
def test_postgresql(part: int, postgresql: Database) -> None:
    wrong = []
    with Connection.open(postgresql) as connection:
        version = version_of(Oracle(connection).version, Engine.POSTGRESQL)
        for form in [*PG_FORMS, *PG_STRICTER][part::4]:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
            oracle = Oracle(connection)
            oracle.load(PG_SETUP)
            parsed = parse(form, Engine.POSTGRESQL)
            answer, ours = oracle.ask(parsed), classify(parsed, version, PG_SCHEMA).impact
            wrong += _compare(form, ours, answer, None if form in PG_STRICTER else ours)
    assert not wrong, "\n".join(wrong)


SQLITE = """
CREATE TABLE parent (id INTEGER PRIMARY KEY);
CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b TEXT, free INT, p INT REFERENCES parent (id));
CREATE INDEX t_a ON t (a);
"""


@pytest.mark.parametrize(
    ("form", "wanted"),
    [
        ("ALTER TABLE t ADD COLUMN n INT", Impact.INSTANT),
        ("ALTER TABLE t ADD COLUMN n INT NOT NULL DEFAULT 5", Impact.INSTANT),
        ("ALTER TABLE t ADD COLUMN n INT CHECK (n > 0)", Impact.BLOCKS_WRITES),
        ("ALTER TABLE t ADD COLUMN n INT AS (a + 1)", Impact.BLOCKS_WRITES),
        ("ALTER TABLE t RENAME COLUMN b TO c", Impact.INSTANT),
        ("ALTER TABLE t RENAME TO u", Impact.INSTANT),
        ("ALTER TABLE t DROP COLUMN free", Impact.BLOCKS_WRITES),
        ("CREATE INDEX n ON t (b)", Impact.BLOCKS_WRITES),
        ("CREATE UNIQUE INDEX n ON t (id, a)", Impact.BLOCKS_WRITES),
        ("CREATE TABLE n (id INTEGER PRIMARY KEY)", Impact.INSTANT),
        ("CREATE TABLE n AS SELECT * FROM t", Impact.BLOCKS_WRITES),
        ("CREATE VIEW v AS SELECT a FROM t", Impact.INSTANT),
        ("UPDATE t SET a = 1", Impact.BLOCKS_WRITES),
        ("UPDATE t SET a = 1 WHERE id = 7", Impact.INSTANT),
        ("INSERT INTO t (a) VALUES (1)", Impact.INSTANT),
        ("DROP INDEX t_a", Impact.BLOCKS_WRITES),
        ("DROP TABLE t", Impact.BLOCKS_WRITES),
        ("DELETE FROM t", Impact.BLOCKS_WRITES),
    ],
)
def test_sqlite(form: str, wanted: Impact, sqlite: Database) -> None:
    parsed = parse(form, Engine.SQLITE)
    ours = classify(parsed, version_of("", Engine.SQLITE), schema_of(SQLITE, Engine.SQLITE)).impact
    assert ours is wanted
    with Connection.open(sqlite) as connection:
        oracle = Oracle(connection)
        oracle.load(SQLITE)
        answer = oracle.ask(parsed)
        if not answer.failed:
            assert answer.impact is not None
            assert ours.rank >= answer.impact.rank, answer.how
