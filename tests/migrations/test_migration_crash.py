"""A run that dies at any point is gone on with, and nobody can tell afterwards: schema, rows, ledger are the same."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from core.sql import Connection, Database, Engine
from migrations.catalogue import Migration, Phase
from migrations.ledger import LockHeld
from migrations.scratch import scratch
from tests.conftest import Drawn
from tests.migrations.crashlab import dies_at, killed_after, points, together
from tests.migrations.runlab import Lab, batch, migration

ADD = "UPDATE accounts SET balance = balance + 1000 WHERE id > :low AND id <= :high"


def story(engine: Engine, rows: int = 30) -> list[Migration]:
    """Something of everything."""
    numbers = {
        Engine.MARIADB: f"SELECT seq - 1 AS n FROM seq_1_to_{rows}",
        Engine.POSTGRESQL: f"SELECT generate_series(0, {rows - 1}) AS n",
        Engine.SQLITE: f"WITH RECURSIVE s (n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM s WHERE n < {rows - 1}) "
        "SELECT n FROM s",
    }[engine]
    insert = f"INSERT INTO accounts (id, balance) SELECT n, n % 7 FROM ({numbers}) AS numbers"
    changes = {
        Engine.MARIADB: [
            "ALTER TABLE accounts ADD COLUMN credit DECIMAL(12,2) NOT NULL DEFAULT 0, ADD INDEX by_credit (credit)",
            "ALTER TABLE accounts RENAME COLUMN note TO remark",
            "DROP INDEX by_balance ON accounts",
        ],
        Engine.POSTGRESQL: [
            "ALTER TABLE accounts ADD COLUMN credit DECIMAL(12,2) NOT NULL DEFAULT 0",
            "CREATE INDEX CONCURRENTLY by_credit ON accounts (credit)",
            "ALTER TABLE accounts RENAME COLUMN note TO remark",
            "DROP INDEX by_balance",
        ],
        Engine.SQLITE: [
            "ALTER TABLE accounts ADD COLUMN credit DECIMAL(12,2) NOT NULL DEFAULT 0",
            "CREATE INDEX by_credit ON accounts (credit)",
            "ALTER TABLE accounts RENAME COLUMN note TO remark",
            "DROP INDEX by_balance",
        ],
    }[engine]
    blocking = {
        Engine.MARIADB: ["ALTER TABLE accounts MODIFY balance BIGINT NOT NULL"],
        Engine.POSTGRESQL: ["ALTER TABLE accounts ALTER COLUMN balance TYPE bigint"],
        Engine.SQLITE: [
            "CREATE TABLE accounts_new (id INTEGER PRIMARY KEY, balance BIGINT NOT NULL, remark TEXT, credit DECIMAL)",
            "INSERT INTO accounts_new SELECT id, balance, remark, credit FROM accounts",
            "DROP TABLE accounts",
            "ALTER TABLE accounts_new RENAME TO accounts",
        ],
    }[engine]
    return [
        migration(
            1,
            [
                "CREATE TABLE accounts (id INTEGER NOT NULL PRIMARY KEY, balance INTEGER NOT NULL, note VARCHAR(20))",
                "CREATE INDEX by_balance ON accounts (balance)",
                insert,
            ],
            ["DROP TABLE accounts"],
        ),
        migration(2, [batch("accounts", ADD, rows=max(rows // 3, 1))]),
        migration(3, ["CREATE TABLE xdrs (id INTEGER NOT NULL PRIMARY KEY)", "INSERT INTO xdrs VALUES (1)", *changes]),
        migration(4, [*blocking, "UPDATE accounts SET balance = balance + 1"], phase=Phase.BLOCKING),
    ]


@contextmanager
def fresh(database: Database, number: int) -> Iterator[Database]:
    """Another empty database beside the test's own."""
    if database.engine is Engine.SQLITE:
        assert database.path is not None
        path = database.path.with_name(f"{number}.sqlite")
        path.touch()
        yield replace(database, path=path)
        path.unlink()
        return
    name = f"{database.database}_{number}"
    with Connection.open(database) as admin:
        admin.execute(f"CREATE DATABASE {name}")
        try:
            yield replace(database, database=name)
        finally:
            admin.execute(f"DROP DATABASE {name}{' WITH (FORCE)' * (database.engine is Engine.POSTGRESQL)}")


@pytest.mark.parametrize("engine", list(Engine), ids=str)
def test_it_dies_at_every_point(engine: Engine, request: pytest.FixtureRequest, drawn: Drawn) -> None:
    database: Database = request.getfixturevalue(str(engine))
    lab = Lab(database, *story(engine))
    passed = points(lab.run)
    whole, states = lab.look(), lab.states()
    assert lab.sql("SELECT min(balance), max(balance), count(*) FROM accounts") == [(1001, 1007, 30)]
    assert len(set(passed)) >= 8
    for number in drawn(range(len(passed)), 3):
        with fresh(database, number) as other:
            again = Lab(other, *story(engine))
            assert dies_at(number, again.run), passed[number]
            again.run()
            assert again.look() == whole, passed[number]
            assert again.states() == states, passed[number]


@pytest.mark.parametrize("engine", list(Engine), ids=str)
def test_it_dies_twice_and_undoes_and_dies(engine: Engine, request: pytest.FixtureRequest) -> None:
    database: Database = request.getfixturevalue(str(engine))
    steps = [story(engine)[0]]
    lab = Lab(database, *steps)
    forth = len(points(lab.run))
    whole = lab.look()
    back = len(points(lab.undo))
    chance = random.Random(4)
    for number in range(back):
        with fresh(database, number) as other:
            again = Lab(other, *steps)
            dies_at(chance.randrange(forth), again.run)
            dies_at(chance.randrange(forth), again.run)
            again.run()
            assert again.look() == whole
            assert dies_at(number, again.undo)
            again.undo()
            assert again.look() == {}
            again.run()
            assert again.look() == whole


@pytest.mark.parametrize("engine", list(Engine), ids=str)
def test_it_dies_at_any_instant(engine: Engine, request: pytest.FixtureRequest) -> None:
    """In the middle of statements, too: then the server may go on with what a dead client has sent."""
    database: Database = request.getfixturevalue(str(engine))
    lab = Lab(database, *story(engine, rows=30_000))
    began = time.monotonic()
    lab.run()
    took = time.monotonic() - began
    whole = lab.look()
    chance = random.Random(11)
    died = 0
    for number in range(6):
        with fresh(database, number) as other:
            again = Lab(other, *story(engine, rows=30_000))
            for _ in range(3):
                died += killed_after(chance.uniform(0, took), again.run)
            again.run()
            assert again.look() == whole
    assert died > 3


def test_two_runners_at_once(database: Database) -> None:
    """Both start at the same moment: each migration is done once, and the loser is told who was faster."""
    lab = Lab(database, *story(database.engine, rows=2000))
    lab.run()
    whole = lab.look()

    def attempt(other: Database) -> Callable[[], list[str]]:
        def run() -> list[str]:
            try:
                return Lab(other, *story(database.engine, rows=2000)).run()
            except LockHeld as error:
                assert error.what[0].startswith(("process ", "it has not written yet"))
                return ["busy"]

        return run

    for number in range(4):
        with fresh(database, number) as other:
            results = together(*[attempt(other)] * 3)
            assert sorted(each for result in results for each in result if each != "busy") == [
                "0001-m1", "0002-m2", "0003-m3", "0004-m4",
            ]  # fmt: skip
            assert Lab(other).look() == whole


def test_a_scratch_file_outlives_a_runner_that_dies_in_it() -> None:
    with scratch(Engine.SQLITE) as database:
        lab = Lab(database, *story(Engine.SQLITE))
        assert dies_at(12, lab.run)
        lab.run()
        assert lab.runner().pending() == []
