"""The runner's story, on all engines where it is the same."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from core.errors import MigrationFailed, MigrationStopped, RollbackRefused
from core.sql import Database, Engine
from migrations.catalogue import Direction, Phase, Statement
from migrations.guards import Limits
from migrations.history import Progress
from migrations.ledger import Ledger, LockHeld, Superseded, Who
from migrations.servers import open_server
from tests.migrations.runlab import ALL, Hands, Lab, batch, migration

TABLE = "CREATE TABLE accounts (id INTEGER NOT NULL PRIMARY KEY, balance INTEGER NOT NULL)"


def test_runs_in_order_and_only_once(database: Database) -> None:
    lab = Lab(
        database,
        migration(2, ["ALTER TABLE accounts ADD COLUMN note VARCHAR(20)", "UPDATE accounts SET balance = balance + 1"]),
        migration(1, [TABLE, "INSERT INTO accounts VALUES (1, 10)"]),
    )
    assert [each.migration.number for each in lab.runner().pending()] == [1, 2]
    assert lab.run() == ["0001-m1", "0002-m2"]
    assert lab.sql("SELECT * FROM accounts") == [(1, 11, None)]
    assert lab.run() == []
    assert lab.sql("SELECT * FROM accounts") == [(1, 11, None)]
    assert lab.runner().pending() == []
    entry = lab.entries()[2, Direction.UP, 1]
    assert (entry.state, entry.release, entry.run_id, entry.total, entry.fence) == ("finished", "MR96-1", "run", 2, 1)
    assert entry.started_at and entry.finished_at and entry.finished_at >= entry.started_at
    assert entry.seconds is not None and 0 <= entry.seconds < 10


def test_phases_are_apart(database: Database) -> None:
    lab = Lab(
        database,
        migration(1, [TABLE]),
        migration(2, ["CREATE TABLE b (id INTEGER PRIMARY KEY)"], phase=Phase.BLOCKING),
        migration(3, ["CREATE TABLE c (id INTEGER PRIMARY KEY)"]),
        migration(4, ["DROP TABLE c"], phase=Phase.CLEANUP),
    )
    assert lab.run([Phase.NON_BLOCKING]) == ["0001-m1", "0003-m3"]
    assert lab.run([Phase.BLOCKING]) == ["0002-m2"]
    with pytest.raises(MigrationStopped, match="clean-up cannot run yet"):
        lab.run([Phase.CLEANUP])
    assert lab.run([Phase.CLEANUP], limits=Limits(cleanup_allowed=True)) == ["0004-m4"]


def test_pending_touches_nothing(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE]))
    assert [each.progress for each in lab.runner().pending()] == [Progress.PENDING]
    assert lab.look() == {}
    server = open_server(database)
    assert not Ledger(server.connection).exists()
    assert Ledger(server.connection).runner() is None


def test_a_late_number_runs_and_is_mentioned(database: Database) -> None:
    lab = Lab(database, migration(5, [TABLE]))
    lab.run()
    lab.migrations.append(migration(3, ["CREATE TABLE late (id INTEGER PRIMARY KEY)"]))
    assert lab.run() == ["0003-m3"]
    assert "0003-m3 runs now, after migrations with higher numbers" in lab.texts()


def test_a_failing_statement_says_so_and_can_be_mended(database: Database) -> None:
    first, bad = migration(1, [TABLE]), migration(2, ["INSERT INTO accounts VALUES (1, 1)", "SELECT nonsense FROM"])
    lab = Lab(database, first, bad)
    with pytest.raises(MigrationFailed) as caught:
        lab.run()
    assert caught.value.message == "migrate 0002-m2 failed"
    assert caught.value.what and caught.value.state and caught.value.next
    lab.migrations[1] = migration(2, ["INSERT INTO accounts VALUES (1, 1)", "UPDATE accounts SET balance = 2"])
    assert lab.run() == ["0002-m2"]
    assert lab.sql("SELECT * FROM accounts") == [(1, 2)]


@pytest.mark.parametrize(
    "change, said",
    [
        (["INSERT INTO accounts VALUES (1, 2)"], "was changed after it ran"),
        ([], "has no such statement any more"),
        (["INSERT INTO accounts VALUES (1, 1)", "DELETE FROM accounts"], "has 3 statements, and had 2"),
    ],
)
def test_edited_history(sqlite: Database, change: list[str], said: str) -> None:
    lab = Lab(sqlite, migration(1, [TABLE, "INSERT INTO accounts VALUES (1, 1)"]), migration(2, ["SELECT 1"]))
    lab.run()
    lab.migrations = [migration(1, [TABLE, *change]), migration(3, ["DROP TABLE accounts"])]
    with pytest.raises(MigrationFailed, match="was edited") as caught:
        lab.run()
    assert any(said in line for line in caught.value.what)
    assert any("is not in the catalogue any more" in line for line in caught.value.what)
    assert lab.sql("SELECT * FROM accounts") == [(1, 1)]


def test_numbers_of_other_releases_are_none_of_our_business(sqlite: Database) -> None:
    Lab(sqlite, migration(1, [TABLE]), release="MR95-1").run()
    lab = Lab(sqlite, migration(2, ["DROP TABLE accounts"]))
    assert lab.run() == ["0002-m2"]


def test_comments_and_spaces_are_no_edit(sqlite: Database) -> None:
    lab = Lab(sqlite, migration(1, [TABLE]))
    lab.run()
    lab.migrations = [migration(1, [TABLE.replace(" ", "\n  ")])]
    assert lab.run() == []


def test_undo_and_again(database: Database) -> None:
    one = migration(1, [TABLE], ["DROP TABLE accounts"])
    two = migration(
        2, ["ALTER TABLE accounts ADD COLUMN a INTEGER", "INSERT INTO accounts VALUES (1, 2, 3)"],
        ["DELETE FROM accounts WHERE id = 1", "ALTER TABLE accounts DROP COLUMN a"],
    )  # fmt: skip
    lab = Lab(database, one, two)
    lab.run()
    whole = lab.look()
    assert lab.undo() == ["0002-m2", "0001-m1"]
    assert lab.look() == {}
    assert lab.undo() == []
    assert lab.run() == ["0001-m1", "0002-m2"]
    assert lab.look() == whole
    assert lab.undo(two) == ["0002-m2"]
    assert set(lab.look()) == {"accounts"}


def test_no_way_back_is_said_before_anything_is_done(sqlite: Database) -> None:
    lab = Lab(sqlite, migration(1, [TABLE], ["DROP TABLE accounts"]), migration(2, ["DELETE FROM accounts"]))
    lab.run()
    whole = lab.look()
    with pytest.raises(RollbackRefused, match="not all"):
        lab.undo()
    assert lab.look() == whole


def test_half_undone_is_not_run_over(database: Database) -> None:
    one = migration(1, [TABLE], ["DELETE FROM accounts", "UPDATE nonsense SET a = 1"])
    lab = Lab(database, one)
    lab.run()
    with pytest.raises(MigrationFailed, match="undo 0001-m1 failed"):
        lab.undo()
    if database.engine is Engine.SQLITE:  # there the whole undoing is one transaction
        assert lab.run() == []
        return
    with pytest.raises(MigrationFailed, match="taken back by half"):
        lab.run()
    lab.migrations = [migration(1, [TABLE], ["DELETE FROM accounts", "DROP TABLE accounts"])]
    lab.undo()
    assert lab.run() == ["0001-m1"]


def test_done_by_hand_is_found(database: Database) -> None:
    lab = Lab(
        database,
        migration(1, [TABLE, "CREATE INDEX by_balance ON accounts (balance)"]),
        migration(2, ["ALTER TABLE accounts ADD COLUMN a INTEGER", "ALTER TABLE accounts DROP COLUMN a"]),
    )
    lab.sql(TABLE, "CREATE INDEX by_balance ON accounts (balance)")
    assert lab.run() == ["0001-m1", "0002-m2"]
    assert "statement 1 is done already" in lab.texts()
    assert lab.entries()[1, Direction.UP, 1].detail.startswith("found there")


def test_an_explicit_probe_decides(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE, Statement(sql="INSERT INTO accounts VALUES (1, 1)", probe="SELECT 1")]))
    lab.run()
    assert lab.sql("SELECT * FROM accounts") == []


def test_something_else_by_that_name(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE]))
    lab.sql("CREATE TABLE accounts (id INTEGER PRIMARY KEY, other VARCHAR(7))")
    with pytest.raises(MigrationFailed) as caught:
        lab.run()
    assert "accounts" in "\n".join(caught.value.what)


def test_one_runner_at_a_time(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE]))
    lab.run()
    server = open_server(database)
    ledger = Ledger(server.connection)
    assert server.hold()
    other = Who(run_id="theirs", host="elsewhere", pid=4711, release="MR96-1")
    ledger.claim(other)
    with pytest.raises(LockHeld) as caught:
        lab.run()
    assert caught.value.exit_code == 13
    assert caught.value.what[0].startswith("process 4711 on elsewhere, run theirs since 20")
    server.release()
    assert lab.run() == []
    with pytest.raises(Superseded, match="taken over"), ledger.writing():
        raise AssertionError
    server.close()


def test_the_fence_lets_nothing_late_through(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE]))
    lab.run()
    slow, quick = open_server(database), open_server(database)
    old, new = Ledger(slow.connection), Ledger(quick.connection)
    old.claim(Who.here("slow", "MR96-1"))
    new.claim(Who.here("quick", "MR96-1"))
    with pytest.raises(Superseded), old.writing():
        slow.connection.execute("DELETE FROM updater_migrations")
    assert len(lab.entries()) == 1
    slow.close()
    quick.close()


def test_the_window_and_the_deadline() -> None:
    assert Limits(deadline=1).deadline == 1
    with pytest.raises(ValueError, match="deadline"):
        Limits(deadline=0)


def test_what_does_not_fit_into_the_window_is_not_begun(database: Database) -> None:
    hands = Hands()
    lab = Lab(
        database,
        migration(1, [TABLE], phase=Phase.BLOCKING, expected=10),
        migration(2, ["DROP TABLE accounts"], phase=Phase.BLOCKING, expected=100),
    )
    limits = Limits(window_end=hands.now() + timedelta(seconds=60))
    with pytest.raises(MigrationStopped, match="0002-m2 is not begun") as caught:
        lab.run(limits=limits, clock=hands)
    assert "it takes about 100 s, and the window ends at 02:01:00 UTC" in caught.value.what[0]
    assert caught.value.state == "done in this run: 0001-m1; the next was not begun"
    assert set(lab.look()) == {"accounts"}


def test_transaction_words_are_refused(database: Database) -> None:
    lab = Lab(database, migration(1, [TABLE, "COMMIT"]))
    with pytest.raises(MigrationFailed, match="runner's own affair"):
        lab.run()
    assert lab.look() == {}


def test_an_index_without_a_name_is_refused(postgresql: Database) -> None:
    lab = Lab(postgresql, migration(1, [TABLE, "CREATE UNIQUE INDEX CONCURRENTLY ON accounts (balance)"]))
    with pytest.raises(MigrationFailed, match="needs a name") as caught:
        lab.run()
    assert "CREATE UNIQUE INDEX" in caught.value.what[0]
    assert lab.look() == {}


def test_a_batch(database: Database) -> None:
    lab = Lab(
        database,
        migration(1, [TABLE, *[f"INSERT INTO accounts VALUES ({n}, {n})" for n in (-5, 0, 3, 7, 8, 9, 100, 101)]]),
        migration(2, [batch("accounts", "UPDATE accounts SET balance = balance + 1000 WHERE id > :low AND id <= :high",
                            rows=3)]),
    )  # fmt: skip
    lab.run()
    assert lab.sql("SELECT id, balance - id FROM accounts ORDER BY id") == [
        (n, 1000) for n in (-5, 0, 3, 7, 8, 9, 100, 101)
    ]
    entry = lab.entries()[2, Direction.UP, 0]
    assert (entry.position, entry.rows, entry.detail) == ("101", 8, "8 rows")
    assert lab.run(ALL) == []


MILLIS = "UPDATE accounts SET balance = balance * 1000 WHERE id > :low AND id <= :high"


def cut_in_a_batch(database: Database) -> Lab:
    """A batch over 40 rows, with a way back, that was stopped behind the first 20."""
    lab = Lab(
        database,
        migration(1, [TABLE, *[f"INSERT INTO accounts VALUES ({n}, {n})" for n in range(1, 41)]]),
        migration(2, [batch("accounts", MILLIS)], [batch("accounts", MILLIS.replace("*", "/"))]),
    )
    lab.run(migrations=lab.migrations[:1])
    lab.migrations[1] = replace(lab.migrations[1], up=(batch("accounts", MILLIS, pause=40.0),))
    with pytest.raises(MigrationStopped):
        lab.run(clock=Hands())
    assert lab.entries()[2, Direction.UP, 0].rows == 20
    return lab


@pytest.mark.parametrize("done", [True, False])
def test_how_far_a_batch_is_nobody_has_to_say(database: Database, done: bool) -> None:
    lab = cut_in_a_batch(database)
    with pytest.raises(MigrationFailed, match="nothing to settle") as caught:
        lab.runner().settle(2, Direction.UP, 0, done=done)
    assert "the ledger knows" in caught.value.what[0]
    lab.run(clock=Hands(), limits=Limits(deadline=600))
    assert lab.sql("SELECT min(balance / id), max(balance / id) FROM accounts") == [(1000, 1000)]


def test_what_is_one_with_its_record_nobody_has_to_settle(sqlite: Database) -> None:
    lab = Lab(sqlite, migration(1, [TABLE]))
    lab.run()
    lab.sql("UPDATE updater_migrations SET state = 'started'", "DROP TABLE accounts")
    with pytest.raises(MigrationFailed, match="nothing to settle"):
        lab.runner().settle(1, Direction.UP, 0, done=True)
    assert lab.run() == ["0001-m1"]


def test_a_half_done_migration_is_not_taken_back_over_rows_it_never_changed(database: Database) -> None:
    lab = cut_in_a_batch(database)
    whole = lab.look()
    with pytest.raises(RollbackRefused, match="not all") as caught:
        lab.undo(*lab.migrations[1:])
    assert caught.value.what == ("0002-m2: is done by half, and its way back (down) changes rows",)
    assert caught.value.next[0].startswith("updater migrate run --phase non-blocking ")
    assert lab.look() == whole
    lab.run(clock=Hands(), limits=Limits(deadline=600))
    assert lab.undo(*lab.migrations[1:]) == ["0002-m2"]
    assert lab.sql("SELECT min(balance / id), max(balance / id) FROM accounts") == [(1, 1)]


def test_a_half_done_migration_whose_way_back_changes_no_rows_is_taken_back(database: Database) -> None:
    lab = cut_in_a_batch(database)
    lab.migrations[1] = replace(lab.migrations[1], down=migration(2, [], ["DROP TABLE accounts"]).down)
    assert lab.undo(*lab.migrations[1:]) == ["0002-m2"]
