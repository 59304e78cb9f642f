"""Whether a statement's effect is there: asked before and after it, and of what somebody else left."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from core.sql import Database
from migrations.catalogue import Statement
from migrations.engines import Effect
from migrations.engines.postgresql import PostgreSQLServer

SCHEMA = (
    "CREATE TABLE account (id int PRIMARY KEY, name varchar(20) DEFAULT 'x', balance numeric(10,2) NOT NULL)",
    "CREATE TABLE cdr (id int, account int, started timestamptz, note text)",
    "ALTER TABLE cdr ADD CONSTRAINT told CHECK (note <> '') NOT VALID",
    "CREATE INDEX cdr_started ON cdr (started)",
    "CREATE TABLE spare (a int)",
    "CREATE VIEW rich AS SELECT id FROM account WHERE id > 100",
    "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
    "CREATE TYPE mood AS ENUM ('good')",
    'CREATE TABLE "Odd Name" (a int)',
    "CREATE SCHEMA app",
    "CREATE TABLE app.t (a int)",
)

#: Statements whose effect can be told before and after.
TOLD = (
    "CREATE TABLE rate (id int PRIMARY KEY, price numeric NOT NULL)",
    "CREATE TABLE app.rate (id int)",
    "CREATE TABLE IF NOT EXISTS fresh (LIKE account INCLUDING ALL)",
    "DROP TABLE spare",
    "DROP TABLE app.t",
    "ALTER TABLE spare RENAME TO kept",
    "ALTER TABLE app.t RENAME TO kept",
    "ALTER TABLE cdr ADD COLUMN price numeric(10,5) NOT NULL DEFAULT 0",
    "ALTER TABLE cdr ADD price int, ADD vat int",
    'ALTER TABLE "Odd Name" ADD COLUMN "B" text',
    "ALTER TABLE cdr DROP COLUMN note",
    "ALTER TABLE cdr RENAME COLUMN note TO remark",
    "ALTER TABLE account ALTER COLUMN name TYPE varchar(40)",
    "ALTER TABLE account ALTER name TYPE text, ALTER name SET DEFAULT 'y'",
    "ALTER TABLE cdr ALTER COLUMN account TYPE bigint USING account::bigint",
    "ALTER TABLE account ALTER COLUMN balance SET DEFAULT 0",
    "ALTER TABLE account ALTER COLUMN name DROP DEFAULT",
    "ALTER TABLE cdr ALTER COLUMN account SET NOT NULL",
    "ALTER TABLE account ALTER COLUMN balance DROP NOT NULL",
    "CREATE INDEX cdr_account ON cdr (account)",
    "CREATE INDEX ON cdr (account)",
    "CREATE UNIQUE INDEX ON cdr (lower(note), account)",
    "CREATE INDEX CONCURRENTLY cdr_account ON cdr (account)",
    "CREATE INDEX t_a ON app.t (a)",
    "DROP INDEX cdr_started",
    "DROP INDEX CONCURRENTLY IF EXISTS cdr_started",
    "ALTER INDEX cdr_started RENAME TO cdr_began",
    "ALTER TABLE cdr ADD PRIMARY KEY (id)",
    "ALTER TABLE cdr ADD CONSTRAINT cdr_unique UNIQUE (id)",
    "ALTER TABLE cdr ADD CONSTRAINT f FOREIGN KEY (account) REFERENCES account (id) NOT VALID",
    "ALTER TABLE cdr ADD CONSTRAINT c CHECK (account > 0)",
    "ALTER TABLE cdr DROP CONSTRAINT told",
    "ALTER TABLE cdr RENAME CONSTRAINT told TO said",
    "ALTER TABLE cdr VALIDATE CONSTRAINT told",
    "CREATE VIEW poor AS SELECT 1 AS a",
    "DROP VIEW rich",
    "CREATE TRIGGER tr BEFORE INSERT ON cdr FOR EACH ROW EXECUTE FUNCTION f()",
    "CREATE TYPE colour AS ENUM ('red')",
    "DROP TYPE mood",
    "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
    "CREATE SEQUENCE s",
    "CREATE SCHEMA billing",
)

#: Statements of which nobody can tell.
UNTOLD = (
    "INSERT INTO spare VALUES (1)",
    "UPDATE spare SET a = 2",
    "CREATE OR REPLACE VIEW rich AS SELECT * FROM account",
    "ALTER TABLE cdr SET (fillfactor = 70)",
    "ANALYZE cdr",
    "GRANT SELECT ON cdr TO PUBLIC",
    "CREATE FUNCTION g(int) RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "CREATE TEMPORARY TABLE tmp (a int)",
)


@pytest.fixture
def server(postgresql: Database) -> Iterator[PostgreSQLServer]:
    made = PostgreSQLServer(postgresql)
    for each in SCHEMA:
        made.connection.execute(each)
    yield made
    made.close()


def effect(server: PostgreSQLServer, sql: str, probe: str = "") -> Effect:
    return server.presence(Statement(sql=sql, probe=probe)).effect


def test_before_and_after(server: PostgreSQLServer) -> None:
    wrong = []
    for sql in TOLD:
        before = effect(server, sql)
        server.connection.execute(sql)
        after = effect(server, sql)
        if (before, after) != (Effect.ABSENT, Effect.THERE):
            wrong.append((sql, before, after))
        fresh(server)
    assert wrong == []


def fresh(server: PostgreSQLServer) -> None:
    """The schema as it was."""
    for schema in ("public", "app", "billing"):
        server.connection.execute(f"DROP SCHEMA IF EXISTS {schema} CASCADE")
    server.connection.execute("CREATE SCHEMA public")
    for each in SCHEMA:
        server.connection.execute(each)


@pytest.mark.parametrize("sql", UNTOLD)
def test_what_cannot_be_told(server: PostgreSQLServer, sql: str) -> None:
    assert effect(server, sql) is Effect.UNKNOWN


def test_half(server: PostgreSQLServer) -> None:
    server.connection.execute("ALTER TABLE cdr ADD price int")
    found = server.presence(Statement(sql="ALTER TABLE cdr ADD price int, ADD vat int"))
    assert found.effect is Effect.HALF
    assert found.text == "add column cdr price: there; add column cdr vat: not there"


def test_a_column_of_that_name_but_of_another_type(server: PostgreSQLServer) -> None:
    server.connection.execute("ALTER TABLE cdr ADD price text")
    assert effect(server, "ALTER TABLE cdr ADD price int") is Effect.UNKNOWN


def test_a_table_of_that_name_with_other_columns(server: PostgreSQLServer) -> None:
    assert effect(server, "CREATE TABLE spare (a int, b int)") is Effect.UNKNOWN
    assert effect(server, "CREATE TABLE spare (a int)") is Effect.THERE


def test_an_index_of_that_name_on_another_table(server: PostgreSQLServer) -> None:
    assert effect(server, "CREATE INDEX cdr_started ON account (name)") is Effect.ABSENT


def test_the_probe_decides(server: PostgreSQLServer) -> None:
    assert effect(server, "CREATE TABLE spare (a int)", "SELECT false") is Effect.ABSENT
    assert effect(server, "INSERT INTO spare VALUES (1)", "SELECT 1") is Effect.THERE
    assert effect(server, "INSERT INTO spare VALUES (1)", "SELECT a FROM spare") is Effect.ABSENT


def test_the_question_leaves_nothing_behind(server: PostgreSQLServer) -> None:
    effect(server, "ALTER TABLE account ALTER COLUMN name TYPE varchar(40)")
    effect(server, "ALTER TABLE account ALTER COLUMN name TYPE nonsense")
    assert server.connection.one("SELECT count(*) FROM pg_class WHERE relname = '_updater_probe'") == (0,)
    assert server.connection.one("SELECT pg_current_xact_id_if_assigned() IS NULL") == (True,)
