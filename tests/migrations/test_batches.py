"""Batches: every row exactly once, at a pace that the server can bear."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from core import faults
from core.errors import MigrationFailed, MigrationStopped
from core.sql import Database, Engine
from migrations.batches import SLOW, Pace, below, decode, encode, render
from migrations.catalogue import Direction
from migrations.engines import Load
from migrations.guards import Limits
from migrations.servers import open_server
from tests.migrations.runlab import Hands, Lab, batch, migration

KEYS = st.one_of(
    st.integers(-(2**63) + 1, 2**64),
    st.text(),
    st.binary(),
    st.decimals(allow_nan=False, allow_infinity=False),
    st.datetimes(),
    st.dates(),
    st.uuids(),
    st.floats(allow_nan=False, allow_infinity=False),
)

TABLE = "CREATE TABLE accounts (id INTEGER NOT NULL PRIMARY KEY, balance INTEGER NOT NULL)"
ADD = "UPDATE accounts SET balance = balance + 1000 WHERE id > :low AND id <= :high"


@given(KEYS)
def test_keys_come_back_as_they_went(value: Any) -> None:
    assert decode(encode(value)) == value
    assert type(decode(encode(value))) is type(value)


@given(KEYS)
@example(Decimal("10963637945907810892601360376"))  # more digits than Python's default context has
def test_there_is_something_below(value: Any) -> None:
    try:
        assert below(value, "t.id") < value
    except MigrationFailed:
        assert value in ("", b"", uuid.UUID(int=0), dt.datetime.min, dt.date.min)


def test_nothing_is_below_what_is_infinite() -> None:
    with pytest.raises(MigrationFailed, match="a batch cannot begin at the smallest value"):
        below(Decimal("-Infinity"), "t.id")


@pytest.mark.parametrize("value", [True, None, float("nan"), [1]])
def test_no_keys(value: Any) -> None:
    with pytest.raises(MigrationFailed):
        encode(value)


@pytest.mark.parametrize("engine", list(Engine))
def test_placeholders(engine: Engine) -> None:
    sql = "UPDATE t SET a = '5% :low', b = b % 2 WHERE id > :low AND id <= :high AND :low < 3 AND :lower"
    assert render(sql, engine) == (
        "UPDATE t SET a = '5%% :low', b = b %% 2 WHERE id > %s AND id <= %s AND %s < 3 AND :lower",
        ["low", "high", "low"],
    )


@given(st.lists(st.floats(0, 5), max_size=60), st.integers(1, 100_000))
def test_the_pace_stays_within_its_bounds(seconds: list[float], most: int) -> None:
    pace = Pace(most=most, pause=0.01)
    for each in seconds:
        rows = pace.rows
        assert pace.took(each) >= 0.01
        assert 1 <= pace.rows <= most
        if each > SLOW:
            assert pace.rows <= max(1, rows // 2)
        if each > 1:
            assert pace.took(each) == each


def rows(count: int) -> list[str]:
    return [f"INSERT INTO accounts VALUES {', '.join(f'({n}, 0)' for n in range(first, min(first + 500, count)))}"
            for first in range(0, count, 500)]  # fmt: skip


def test_an_error_in_the_middle_keeps_what_is_done(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE, *rows(100)]))
    lab.run()
    lab.migrations.append(migration(2, [batch("accounts", ADD, rows=7)]))
    count = 0

    def stop(name: str) -> None:
        nonlocal count
        if name == "migrate:chunk-committing":
            count += 1
            if count == 5:
                raise KeyboardInterrupt

    faults.arm(stop)
    try:
        with pytest.raises(KeyboardInterrupt):
            lab.run()
    finally:
        faults.arm(None)
    assert lab.entries()[2, Direction.UP, 0].position == "27"
    assert lab.sql("SELECT count(*) FROM accounts WHERE balance = 1000") == [(28,)]
    whole = lab.migrations.pop()
    lab.migrations.append(migration(2, [batch("accounts", ADD.replace("1000", "2000"), rows=7)]))
    with pytest.raises(MigrationFailed, match="was edited"):
        lab.run()
    lab.migrations[1] = whole
    lab.run()
    assert lab.sql("SELECT min(balance), max(balance) FROM accounts") == [(1000, 1000)]
    assert lab.entries()[2, Direction.UP, 0].rows == 100


def test_text_keys_and_per_cent_signs(database: Database) -> None:
    lab = Lab(
        database,
        migration(1, ["CREATE TABLE texts (id VARCHAR(20) NOT NULL PRIMARY KEY, seen INTEGER NOT NULL)",
                      *[f"INSERT INTO texts VALUES ('{word}', 0)" for word in ("a", "b%s", "c%%", "d'' :low", "e")]]),
        migration(2, [batch("texts", "UPDATE texts SET seen = seen + 1 "
                            "WHERE id > :low AND id <= :high AND id NOT LIKE 'zz%'", rows=2)]),
    )  # fmt: skip
    lab.run()
    assert lab.sql("SELECT min(seen), max(seen), count(*) FROM texts") == [(1, 1, 5)]


def test_deleting_and_copying(database: Database) -> None:
    lab = Lab(
        database,
        migration(1, [TABLE, "CREATE TABLE archive (id INTEGER NOT NULL PRIMARY KEY, balance INTEGER)", *rows(50)]),
        migration(2, [batch("accounts", "INSERT INTO archive SELECT id, balance FROM accounts "
                            "WHERE id > :low AND id <= :high AND id < 25", rows=8)]),
        migration(3, [batch("accounts", "DELETE FROM accounts WHERE id > :low AND id <= :high AND id < 25", rows=8)]),
    )  # fmt: skip
    lab.run()
    assert lab.sql("SELECT count(*), max(id) FROM archive") == [(25, 24)]
    assert lab.sql("SELECT count(*), min(id) FROM accounts") == [(25, 25)]


def test_an_empty_table(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE]), migration(2, [batch("accounts", ADD)]))
    lab.run()
    assert lab.entries()[2, Direction.UP, 0].detail == "0 rows"


def test_ddl_is_no_batch(sqlite: Database) -> None:
    lab = Lab(
        sqlite, migration(1, [TABLE]), migration(2, [batch("accounts", "CREATE TABLE x (a CHECK (:low < :high))")])
    )
    with pytest.raises(MigrationFailed, match="not an INSERT"):
        lab.run()


def test_tables_without_transactions_are_refused(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [f"{TABLE} ENGINE=MyISAM", *rows(5)]), migration(2, [batch("accounts", ADD)]))
    with pytest.raises(MigrationFailed, match="exactly once") as caught:
        lab.run()
    assert caught.value.what == ("the storage engine of accounts has no transactions",)


def test_it_waits_for_calm_and_stops_at_the_deadline(sqlite: Database) -> None:
    hands = Hands()
    loads = [Load(running=90), Load(running=5, lag=20.0), Load(running=5, lag=1.0)]

    lab = Lab(sqlite, migration(1, [TABLE, *rows(20)]))
    lab.run()
    lab.migrations.append(migration(2, [batch("accounts", ADD, rows=10, max_running=50)]))
    server = open_server(sqlite)
    server.load = lambda: loads.pop(0) if len(loads) > 1 else loads[0]  # type: ignore[method-assign]
    lab.run(server=server, clock=hands)
    assert "migrate 0002-m2 waits: 90 statements are running, of 50" in lab.texts()
    assert hands.slept[:2] == [1.0, 1.0]
    assert lab.sql("SELECT min(balance) FROM accounts") == [(1000,)]

    lab.migrations.append(migration(3, [batch("accounts", ADD, rows=10, max_running=50)]))
    server = open_server(sqlite)
    server.load = lambda: Load(running=90)  # type: ignore[method-assign]
    with pytest.raises(MigrationStopped, match=r"the deadline of 5 s has passed"):
        lab.run(server=server, clock=hands, limits=Limits(deadline=5))
    assert lab.run() == ["0003-m3"]


def test_decimal_and_date_keys(mariadb: Database) -> None:
    values = [Decimal("-1.50"), Decimal("0.00"), Decimal("7.25")]
    lab = Lab(
        mariadb,
        migration(1, ["CREATE TABLE d (id DECIMAL(10,2) NOT NULL PRIMARY KEY, n INT NOT NULL)",
                      *[f"INSERT INTO d VALUES ({value}, 0)" for value in values],
                      "CREATE TABLE w (id DATETIME(6) NOT NULL PRIMARY KEY, n INT NOT NULL)",
                      *[f"INSERT INTO w VALUES ('2026-01-0{n} 00:00:00.00000{n}', 0)" for n in (1, 2, 3)],
                      "CREATE TABLE u (id BIGINT UNSIGNED NOT NULL PRIMARY KEY, n INT NOT NULL)",
                      "INSERT INTO u VALUES (0, 0), (18446744073709551615, 0)",
                      "CREATE TABLE h (id BINARY(16) NOT NULL PRIMARY KEY, n INT NOT NULL)",
                      "INSERT INTO h VALUES (unhex(md5('1')), 0), (unhex(md5('2')), 0), (unhex(md5('3')), 0)"]),
        migration(2, [batch(t, f"UPDATE {t} SET n = n + 1 WHERE id > :low AND id <= :high", rows=1) for t in "dwuh"]),
    )  # fmt: skip
    lab.run()
    for table in "dwuh":
        assert lab.sql(f"SELECT min(n), max(n) FROM {table}") == [(1, 1)], table
