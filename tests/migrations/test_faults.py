"""What real MariaDB servers do to a run: each ends well, or in a clear error and a way on."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest

from core.errors import DatabaseFailed, MigrationFailed, MigrationStopped
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Direction, Phase
from migrations.engines.mariadb import MariadbServer
from migrations.guards import Limits
from migrations.scratch import scratch_server
from migrations.servers import open_server
from tests.migrations.crashlab import interrupted_when, killed_when
from tests.migrations.runlab import Lab, batch, migration
from tests.migrations.traffic import writers

TABLE = "CREATE TABLE accounts (id INT NOT NULL PRIMARY KEY, balance INT NOT NULL, note VARCHAR(200) DEFAULT 'x')"
FILL = "INSERT INTO accounts (id, balance) SELECT seq, seq FROM seq_1_to_{}"
SLOW = "ALTER TABLE accounts MODIFY balance BIGINT NOT NULL"  # copies the table
REBUILD = "ALTER TABLE accounts FORCE"


@contextmanager
def running(action: Callable[[], Any]) -> Iterator[Callable[[], Any]]:
    """Run `action` in a thread; the yielded function waits for its end and returns (or raises) what it did."""
    results: list[tuple[bool, Any]] = []

    def work() -> None:
        try:
            results.append((True, action()))
        except BaseException as error:
            results.append((False, error))

    def result() -> Any:
        thread.join(90)
        assert not thread.is_alive()
        good, value = results[0]
        if good:
            return value
        raise value

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield result
    finally:
        thread.join(90)


def wait_for(connection: Connection, start: str) -> int:
    """Until a session runs a statement that has these words; its id."""
    until = time.monotonic() + 20
    while time.monotonic() < until:
        row = connection.one(
            "SELECT id FROM information_schema.processlist WHERE info LIKE %s AND id <> connection_id()", [f"%{start}%"]
        )
        if row:
            return int(row[0])
        time.sleep(0.002)
    raise AssertionError(f"nobody runs {start}")


@contextmanager
def transaction(database: Database, *statements: str) -> Iterator[Connection]:
    """A session with an open transaction."""
    with Connection.open(database) as connection:
        connection.execute("BEGIN")
        for each in statements:
            connection.execute(each)
        yield connection


def test_killed_connection_in_the_middle_of_an_alter(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(150_000)]))
    lab.run()
    lab.migrations.append(migration(2, [SLOW], phase=Phase.BLOCKING))
    with running(lab.run) as result, Connection.open(mariadb) as admin:
        admin.execute(f"KILL CONNECTION {wait_for(admin, 'ALTER')}")
        assert result() == ["0002-m2"]
    assert "was lost" in lab.texts()
    assert "connected again, and the lock is ours" in lab.texts()
    assert lab.entries()[2, Direction.UP, 0].fence > 2
    assert "bigint" in str(lab.look())


def test_killed_again_and_again_it_stops(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(1_000)]))
    lab.run()
    lab.migrations.append(migration(2, [SLOW], phase=Phase.BLOCKING))
    # whoever reads the table keeps the statement from its end
    with transaction(mariadb, "SELECT 1 FROM accounts LIMIT 1") as admin, running(lab.run) as result:
        killed = 0
        for _ in range(4):
            while (found := wait_for(admin, "ALTER TABLE accounts")) == killed:
                time.sleep(0.01)
            killed = found
            admin.execute(f"KILL CONNECTION {killed}")
        with pytest.raises(MigrationStopped, match="has lost its connection 4 times"):
            result()
    assert lab.run() == ["0002-m2"]


def test_a_killed_statement_is_not_begun_again(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(1_000)]))
    lab.run()
    lab.migrations.append(migration(2, [SLOW], phase=Phase.BLOCKING))
    # whoever reads the table keeps the statement from its end
    with transaction(mariadb, "SELECT 1 FROM accounts LIMIT 1") as admin, running(lab.run) as result:
        admin.execute(f"KILL QUERY {wait_for(admin, 'ALTER TABLE accounts')}")
        with pytest.raises(MigrationStopped, match="broken off by somebody") as caught:
            result()
    assert caught.value.state == "0 of 1 statements of 0002-m2 are done; the rest is not"
    assert lab.run() == ["0002-m2"]


def test_the_server_dies_in_mid_statement(mariadb_template: Path) -> None:
    with scratch_server(Engine.MARIADB, template=mariadb_template) as server:
        lab = Lab(server.database, migration(1, [TABLE, FILL.format(150_000)]))
        lab.run()
        lab.migrations += [
            migration(2, [SLOW], phase=Phase.BLOCKING),
            migration(3, [batch("accounts", "UPDATE accounts SET balance = balance + 1 WHERE id > :low AND id <= :high",
                                rows=20_000)], phase=Phase.BLOCKING),
        ]  # fmt: skip
        with running(lab.run) as result:
            with Connection.open(server.database) as admin:
                wait_for(admin, "ALTER TABLE accounts")
            server.kill()
            server.start()
            with Connection.open(server.database) as admin:
                wait_for(admin, "UPDATE accounts")
            server.kill()
            server.start()
            assert result() == ["0002-m2", "0003-m3"]
        assert lab.sql("SELECT count(*), sum(balance - id) FROM accounts") == [(150_000, 150_000)]


def test_a_server_that_is_gone_is_no_traceback(mariadb_template: Path) -> None:
    with scratch_server(Engine.MARIADB, template=mariadb_template) as server:
        lab = Lab(server.database, migration(1, [TABLE, FILL.format(150_000)]), migration(2, [SLOW]))
        lab.migrations[1] = migration(2, [SLOW], phase=Phase.BLOCKING)
        with running(lambda: lab.run(limits=Limits(deadline=8))) as result:
            with Connection.open(server.database) as admin:
                wait_for(admin, "ALTER TABLE accounts")
            server.kill()
            with pytest.raises(MigrationStopped, match="cannot be made again") as caught:
                result()
        assert caught.value.state.startswith("the statement under way may be done or not")
        with pytest.raises(SqlError) as unreachable:
            lab.run()
        assert unreachable.value.reason is Reason.UNREACHABLE
        server.start()
        assert lab.run() == ["0002-m2"]


def test_deadlock(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(5000)]))
    lab.run()
    lab.migrations.append(migration(2, ["UPDATE accounts SET note = 'y' WHERE id <= 1000"]))
    other = "UPDATE accounts SET note = 'z' WHERE id"
    with transaction(mariadb, f"{other} >= 900") as big, running(lab.run) as result, Connection.open(mariadb) as admin:
        wait_for(admin, "UPDATE accounts SET note = 'y'")
        time.sleep(0.1)
        big.execute(f"{other} = 1")  # a circle: ours is the smaller one
        big.execute("COMMIT")
        assert result() == ["0002-m2"]
    assert "was refused a lock (deadlock)" in lab.texts()
    assert lab.sql("SELECT count(*) FROM accounts WHERE note = 'y'") == [(1000,)]


@pytest.mark.parametrize("told", [False, True], ids=["guessing", "told by the server"])
def test_a_lock_that_is_never_granted(mariadb_template: Path, told: bool) -> None:
    """An idle transaction keeps the table: writers never wait for more than a try, and hardly ever when the server
    tells who has locked what.
    """
    options = ["--performance-schema=ON", "--performance-schema-instrument=wait/lock/metadata/sql/mdl=ON"] * told
    with scratch_server(Engine.MARIADB, template=mariadb_template, options=options) as server:
        lab = Lab(server.database, migration(1, [TABLE, FILL.format(1000)]))
        lab.run()
        lab.migrations.append(migration(2, ["ALTER TABLE accounts ADD COLUMN c INT"]))

        def write(connection: Connection, number: int) -> None:
            connection.execute("UPDATE accounts SET note = %s WHERE id = %s", [str(number), 10 + number % 900])

        with transaction(server.database, "SELECT * FROM accounts WHERE id = 1 /* the culprit */") as culprit:
            time.sleep(1.1)
            with writers(server.database, write, count=3) as traffic:
                with pytest.raises(MigrationStopped, match="was stopped: the deadline of 9 s has passed") as caught:
                    lab.run(limits=Limits(deadline=9))
                longest = traffic.longest
            assert not traffic.failures
            assert longest < 6  # not the 9 s that the other transaction lasts; how long exactly, the bench says
            print(f"longest stall {longest:.3f} s, told: {told}")
            assert any("idle in a transaction" in line and "scratch@localhost" in line for line in caught.value.what)
            assert caught.value.state == "0 of 1 statements of 0002-m2 are done; the rest is not"
            with running(lab.run) as result:
                time.sleep(0.5)
                culprit.execute("COMMIT")
                assert result() == ["0002-m2"]


def test_others_may_wait_only_so_long(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE]))
    lab.run()
    lab.migrations.append(migration(2, ["ALTER TABLE accounts ADD COLUMN c INT"]))
    with transaction(mariadb, "SELECT * FROM accounts"), pytest.raises(MigrationStopped, match="others have waited 2"):
        lab.run(limits=Limits(max_stall=2.5))
    assert sum("was refused a lock" in event.text for event in lab.events) == 2


def test_a_blocking_statement_is_broken_off_in_time(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(900_000)]))
    lab.run()
    for number, slow in ((2, SLOW), (3, REBUILD)):
        lab.migrations.append(migration(number, [slow], phase=Phase.BLOCKING))
        with pytest.raises(MigrationStopped, match=f"000{number}-m{number} took longer than it may"):
            lab.run(limits=Limits(max_stall=0.05))
        assert lab.run() == [f"000{number}-m{number}"]


def test_in_the_non_blocking_phase_nobody_is_blocked(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE]), migration(2, [SLOW]))
    with pytest.raises(MigrationFailed, match="cannot be done without blocking writers") as caught:
        lab.run()
    assert "LOCK=NONE is not supported" in caught.value.what[0]
    for own in ("ALTER TABLE accounts ADD COLUMN c INT, LOCK=SHARED", "ALTER TABLE accounts REMOVE PARTITIONING"):
        lab.migrations[1] = migration(2, [own])
        with pytest.raises(MigrationFailed, match="cannot be done without blocking writers"):
            lab.run()
    lab.migrations[1] = migration(2, [SLOW], phase=Phase.CLEANUP)
    lab.run([Phase.CLEANUP], limits=Limits(cleanup_allowed=True))
    assert "now blocks them" in lab.texts()


def test_wrong_password(mariadb: Database, tmp_path: Path) -> None:
    wrong = tmp_path / "password"
    wrong.touch(mode=0o600)
    wrong.write_text("wrong")
    with pytest.raises(SqlError, match="Access denied") as caught:
        open_server(replace(mariadb, password_file=wrong))
    assert (caught.value.reason, caught.value.exit_code) == (Reason.DENIED, 37)


def test_missing_privileges(mariadb: Database, tmp_path: Path) -> None:
    secret = tmp_path / "password"
    secret.touch(mode=0o600)
    secret.write_text("limited")
    lab = Lab(mariadb, migration(1, [TABLE]))
    lab.run()
    lab.sql("CREATE OR REPLACE USER limited IDENTIFIED BY 'limited'",
            f"GRANT SELECT, INSERT, UPDATE, DELETE ON {mariadb.database}.* TO limited")  # fmt: skip
    limited = Lab(replace(mariadb, user="limited", password_file=secret), migration(1, [TABLE]))
    limited.migrations.append(migration(2, ["ALTER TABLE accounts ADD COLUMN c INT"]))
    with pytest.raises(MigrationStopped, match="lacks a privilege") as caught:
        limited.run()
    assert "ALTER command denied" in caught.value.what[0]
    lab.sql("DROP USER limited")


def test_read_only_and_replica(mariadb_template: Path) -> None:
    with scratch_server(Engine.MARIADB, template=mariadb_template) as server:
        lab = Lab(server.database, migration(1, [TABLE]))
        lab.sql("SET GLOBAL read_only = 1")
        with pytest.raises(DatabaseFailed, match="is read-only"):
            lab.run()
        lab.sql("SET GLOBAL read_only = 0", "CHANGE MASTER TO master_host = '127.0.0.9', master_user = 'x'")
        with pytest.raises(DatabaseFailed, match=r"is a replica of 127\.0\.0\.9"):
            lab.run()
        lab.sql("RESET SLAVE ALL")
        assert lab.run() == ["0001-m1"]


def test_the_lag_of_a_replica(mariadb_template: Path) -> None:
    def start(number: int) -> Any:
        options = [f"--server-id={number}", "--log-bin=binlog"]
        return scratch_server(Engine.MARIADB, template=mariadb_template, tcp=True, options=options)

    with start(1) as primary, start(2) as second:
        where = primary.database
        Lab(second.database).sql(
            f"CHANGE MASTER TO master_host = '127.0.0.1', master_port = {where.port}, master_user = '{where.user}', "
            f"master_password = '{where.password()}', master_use_gtid = slave_pos",
            "START SLAVE",
        )
        server = MariadbServer(where, replicas=[second.database])
        until = time.monotonic() + 20
        while server.load().lag is None and time.monotonic() < until:
            time.sleep(0.02)
        assert server.load().lag == 0
        Lab(second.database).sql("STOP SLAVE")
        assert server.load().lag is None
        lab = Lab(where, migration(1, [TABLE]))
        assert lab.run(server=server) == ["0001-m1"]
        second.kill()
        assert server.load().lag is None
        with pytest.raises(DatabaseFailed):
            _ = second.pid


@pytest.mark.root
def test_a_full_disk(mariadb_template: Path) -> None:
    point = Path(mkdtemp(prefix="small-"))  # pytest's own directories are not for the database's user
    point.chmod(0o755)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m,mode=755", "none", str(point)], check=True)
    try:
        with scratch_server(
            Engine.MARIADB, point, template=mariadb_template, options=["--innodb-autoextend-increment=1"]
        ) as server:
            lab = Lab(server.database, migration(1, [TABLE, FILL.format(50_000)]))
            lab.run()
            lab.sql("UPDATE accounts SET note = repeat('x', 200)")
            before = lab.look()
            with (point / "ballast").open("wb") as ballast:
                stat = subprocess.run(["df", "--output=avail", "-B1", str(point)], capture_output=True, check=True)
                ballast.write(b"x" * (int(stat.stdout.split()[-1]) - 9_000_000))
            lab.migrations.append(migration(2, [SLOW], phase=Phase.BLOCKING))
            with pytest.raises(MigrationStopped, match="ran out of space") as caught:
                lab.run()
            assert caught.value.next[0] == "free space there"
            assert lab.look() == before
            (point / "ballast").unlink()
            assert lab.run() == ["0002-m2"]
    finally:
        subprocess.run(["umount", "-l", str(point)], check=False)
        point.rmdir()


def test_sqlite_is_full(sqlite: Database) -> None:
    lab = Lab(sqlite, migration(1, ["CREATE TABLE a (id INTEGER PRIMARY KEY, x TEXT)"]))
    lab.run()
    many = "INSERT INTO a WITH RECURSIVE s (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < 5000) " \
           "SELECT n, hex(randomblob(100)) FROM s"  # fmt: skip
    lab.migrations.append(migration(2, [many]))
    server = open_server(sqlite)
    server.connection.execute("PRAGMA max_page_count = 40")
    with pytest.raises(MigrationStopped, match="ran out of space"):
        lab.run(server=server)
    assert lab.sql("SELECT count(*) FROM a") == [(0,)]
    assert lab.run() == ["0002-m2"]


def test_half_an_alter_made_by_hand(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE]))
    lab.run()
    lab.migrations.append(migration(2, ["ALTER TABLE accounts ADD COLUMN c INT, ADD INDEX by_c (c)"]))
    lab.sql("ALTER TABLE accounts ADD COLUMN c INT")
    with pytest.raises(MigrationFailed, match="statement 1 is half there") as caught:
        lab.run()
    assert caught.value.what[:2] == ("there: ADD COLUMN c INT", "not there: ADD INDEX by_c (c)")
    assert caught.value.next[0] == "ALTER TABLE accounts ADD INDEX by_c (c);    by hand, does what is missing"
    lab.sql(caught.value.next[0].split(";")[0])
    assert lab.run() == ["0002-m2"]


def test_what_nobody_can_tell_the_operator_settles(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [f"{TABLE} ENGINE=MyISAM"]))
    lab.run()
    lab.migrations.append(migration(2, ["INSERT INTO accounts (id, balance) VALUES (1, 1)"]))
    with Connection.open(mariadb) as connection:  # as a crash leaves it
        connection.execute(
            "INSERT INTO updater_migrations (number, direction, seq, total, checksum, name, logical_database, state, "
            "release_id, run_id, fence, rows_done) "
            "VALUES (2, 'up', 0, 1, %s, 'm2', 'main', 'started', 'MR96-1', 'r', 1, 0)",
            [lab.migrations[1].up[0].checksum],
        )
    with pytest.raises(MigrationFailed, match="nobody can tell whether statement 1 was done") as caught:
        lab.run()
    assert caught.value.next[0].startswith("updater migrate settle 2 1 --done | --not-done")
    lab.runner().settle(2, Direction.UP, 0, done=False)
    assert lab.run() == ["0002-m2"]
    assert lab.sql("SELECT count(*) FROM accounts") == [(1,)]
    with pytest.raises(MigrationFailed, match="nothing to settle"):
        lab.runner().settle(2, Direction.UP, 0, done=True)


def test_the_servers_clock_goes_backwards(mariadb: Database) -> None:
    lab = Lab(mariadb, migration(1, [TABLE]), migration(2, ["INSERT INTO accounts (id, balance) VALUES (1, 1)"]))
    lab.run()
    server = open_server(mariadb)
    server.connection.execute("SET SESSION timestamp = 1000000000")
    lab.migrations.append(migration(3, ["ALTER TABLE accounts ADD COLUMN c INT", "UPDATE accounts SET c = 5"]))
    assert lab.run(server=server) == ["0003-m3"]
    entry = lab.entries()[3, Direction.UP, 1]
    assert entry.finished_at == datetime.fromtimestamp(1_000_000_000, UTC)
    assert entry.seconds is not None and 0 <= entry.seconds < 5
    assert lab.run() == []
    past = Limits(window_end=datetime.now(UTC) - timedelta(seconds=1))
    lab.migrations.append(migration(4, ["DROP TABLE accounts"], phase=Phase.BLOCKING))
    with pytest.raises(MigrationStopped, match="0004-m4 is not begun"):
        lab.run(limits=past)


def test_an_orphaned_statement_is_waited_for(mariadb: Database) -> None:
    """The client died, and the server works on: the next run waits for that, and does not do it twice."""
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(200_000)]))
    lab.run()
    lab.migrations.append(migration(2, ["ALTER TABLE accounts ADD INDEX by_note (note, balance)"]))
    with Connection.open(mariadb) as admin:
        assert killed_when(lambda: wait_for(admin, "ADD INDEX by_note"), lab.run)
    assert lab.run() == ["0002-m2"]
    assert "by_note" in str(lab.look())


def test_ctrl_c_takes_the_statement_along(mariadb: Database) -> None:
    """The server does not go on with it behind our back: the lock is free at once, and the table as it was."""
    lab = Lab(mariadb, migration(1, [TABLE, FILL.format(300_000)]))
    lab.run()
    lab.migrations.append(migration(2, [SLOW], phase=Phase.BLOCKING))
    with Connection.open(mariadb) as admin:
        said = interrupted_when(lambda: wait_for(admin, SLOW), lab.run)
        assert said.rstrip().endswith("KeyboardInterrupt")
        began = time.monotonic()
        server = open_server(mariadb)
        while not server.hold():
            assert time.monotonic() - began < 20
            time.sleep(0.01)
        server.close()
    assert "bigint" not in str(lab.sql("SHOW CREATE TABLE accounts"))
    assert lab.run() == ["0002-m2"]
