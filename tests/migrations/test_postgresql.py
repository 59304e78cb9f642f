"""The PostgreSQL side of the runner, on a real server: locks, limits, what breaks off, and what is there afterwards."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from core.errors import DatabaseFailed
from core.run import run
from core.sql import Connection, Database, Engine, Reason, SqlError
from migrations.catalogue import Statement
from migrations.engines import Effect, Guard, Server, Work
from migrations.engines.postgresql import PostgreSQLServer
from migrations.scratch import ScratchServer, program, scratch_server
from tests.migrations.traffic import writers

ONLINE = Guard(online=True)
OFFLINE = Guard()


@pytest.fixture
def server(postgresql: Database) -> Iterator[PostgreSQLServer]:
    made = PostgreSQLServer(postgresql)
    _: Server = made  # it has all that the runner asks for
    yield made
    made.close()


@pytest.fixture
def own(postgresql_template: Path) -> Iterator[ScratchServer]:
    """A server of the test's own, to be killed."""
    settings = ["max_prepared_transactions=2"]
    with scratch_server(Engine.POSTGRESQL, template=postgresql_template, options=settings) as made:
        yield made


def nothing() -> None:
    pass


def work(sql: str, record: Callable[[], None] = nothing) -> list[Work]:
    return [Work(statement=Statement(sql=sql), record=record)]


def fill(server: PostgreSQLServer, rows: int = 1000) -> None:
    server.connection.execute("CREATE TABLE cdr (id bigint PRIMARY KEY, account int, note text)")
    server.connection.execute(f"INSERT INTO cdr SELECT n, n % 100, md5(n::text) FROM generate_series(1, {rows}) AS n")
    server.connection.execute("ANALYZE cdr")


def update(connection: Connection, number: int) -> None:
    connection.execute("UPDATE cdr SET account = account + 1 WHERE id = %s", (number % 1000 + 1,))


# -- statement and record are one


def test_a_statement_and_its_record_are_one_transaction(server: PostgreSQLServer) -> None:
    fill(server)
    server.connection.execute("CREATE TABLE ledger (n int)")

    def record() -> None:
        server.connection.execute("INSERT INTO ledger VALUES (1)")

    def refused() -> None:
        record()
        raise RuntimeError("another runner took over")

    for guard in (ONLINE, OFFLINE):
        with pytest.raises(RuntimeError):
            server.execute(work("ALTER TABLE cdr ADD COLUMN price numeric", refused), guard)
        assert server.presence(Statement(sql="ALTER TABLE cdr ADD COLUMN price numeric")).effect is Effect.ABSENT
    assert server.connection.one("SELECT count(*) FROM ledger") == (0,)
    server.execute(work("ALTER TABLE cdr ADD COLUMN price numeric", record), ONLINE)
    assert server.presence(Statement(sql="ALTER TABLE cdr ADD COLUMN price numeric")).effect is Effect.THERE
    assert server.connection.one("SELECT count(*) FROM ledger") == (1,)


def test_what_runs_in_a_transaction_and_what_does_not(server: PostgreSQLServer) -> None:
    for sql in (
        "CREATE INDEX CONCURRENTLY i ON t (a)", "create unique index concurrently i on t (a)",
        "DROP INDEX CONCURRENTLY i", "REINDEX TABLE CONCURRENTLY t", "REINDEX (VERBOSE) INDEX CONCURRENTLY i",
        "VACUUM ANALYZE t", "-- why\n/* and how */ VACUUM t", "ALTER TABLE t DETACH PARTITION p CONCURRENTLY",
        "ALTER SYSTEM SET work_mem = '1MB'", "CREATE DATABASE x",
    ):  # fmt: skip
        assert not server.atomic(Statement(sql=sql)), sql
    for sql in (
        "CREATE INDEX i ON t (a)", "ALTER TABLE t ADD COLUMN concurrently int", "UPDATE t SET a = 1",
        "ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES u (a) NOT VALID", "DO $$ BEGIN END $$",
        "REFRESH MATERIALIZED VIEW CONCURRENTLY v", "INSERT INTO t VALUES ('VACUUM')",
    ):  # fmt: skip
        assert server.atomic(Statement(sql=sql)), sql


# -- locks and limits


def test_an_idle_transaction_stalls_writers_for_one_try_only(server: PostgreSQLServer) -> None:
    fill(server)
    with Connection.open(server.database) as idle:
        idle.execute("BEGIN")
        idle.execute("SELECT count(*) FROM cdr")
        with writers(server.database, update) as traffic:
            for guard in (ONLINE, OFFLINE):
                traffic.reset()
                begun = time.monotonic()
                with pytest.raises(SqlError) as caught:
                    server.execute(work("ALTER TABLE cdr ADD COLUMN price numeric"), guard)
                assert caught.value.reason is Reason.LOCKED
                assert 0.9 < time.monotonic() - begun < 10
            deadline = time.monotonic() + 5
            before = traffic.acknowledged
            while traffic.acknowledged < before + 10 and time.monotonic() < deadline:
                time.sleep(0.01)
        assert traffic.longest < 10
        assert not traffic.failures
        (holder,) = server.holders(["cdr"])
        assert holder.idle and holder.certain and holder.seconds > 1.8
        assert holder.who == "scratch@localhost (updater)"
        assert "SELECT count(*) FROM cdr" in str(holder)
        assert not server.free(["cdr"]) and server.free(["other"]) and server.free([])
        idle.execute("ROLLBACK")
    assert server.free(["cdr"]) and server.holders(["cdr"]) == []
    server.execute(work("ALTER TABLE cdr ADD COLUMN price numeric"), ONLINE)


def test_a_rewrite_is_broken_off_while_writers_are_served(server: PostgreSQLServer) -> None:
    fill(server, 20_000)
    before = server.connection.one("SELECT pg_relation_filenode('cdr')")
    with writers(server.database, update) as traffic:
        with pytest.raises(SqlError) as caught:
            # at least 20 s on any machine
            server.execute(
                work("ALTER TABLE cdr ALTER COLUMN account TYPE text USING account || pg_sleep(0.001)::text"), ONLINE
            )
        assert caught.value.reason is Reason.OVERRAN
    assert traffic.longest < 10 and not traffic.failures
    assert server.connection.one("SELECT pg_relation_filenode('cdr')") == before


def test_a_busy_table_is_changed_without_a_stall(server: PostgreSQLServer) -> None:
    fill(server)
    with writers(server.database, update, count=4, pause=0) as traffic:
        traffic.reset()
        assert server.free(["cdr"])
        server.execute(work("ALTER TABLE cdr ADD COLUMN price numeric DEFAULT 0"), ONLINE)
        server.execute(work("CREATE INDEX CONCURRENTLY cdr_account ON cdr (account)"), ONLINE)
        server.execute(work("ALTER TABLE cdr ADD CONSTRAINT cdr_positive CHECK (account >= 0) NOT VALID"), ONLINE)
        server.execute(work("ALTER TABLE cdr VALIDATE CONSTRAINT cdr_positive"), ONLINE)
    assert traffic.longest < 10 and not traffic.failures


def test_the_time_limit_of_the_blocking_phase(server: PostgreSQLServer) -> None:
    with pytest.raises(SqlError) as caught:
        server.execute(work("SELECT pg_sleep(30)"), Guard(time_limit=0.2))
    assert caught.value.reason is Reason.OVERRAN
    server.execute(work("SELECT pg_sleep(0.3)"), OFFLINE)


def test_tables_that_foreign_keys_point_at_are_locked_in_time_too(server: PostgreSQLServer) -> None:
    fill(server)
    server.connection.execute("CREATE TABLE account (id int PRIMARY KEY)")
    with Connection.open(server.database) as idle:
        idle.execute("BEGIN")
        idle.execute("INSERT INTO account VALUES (1)")
        add = "ALTER TABLE cdr ADD CONSTRAINT f FOREIGN KEY (account) REFERENCES account (id) NOT VALID"
        begun = time.monotonic()
        with pytest.raises(SqlError) as caught:
            server.execute(work(add), ONLINE)
        assert caught.value.reason is Reason.LOCKED and time.monotonic() - begun < 10
        idle.execute("ROLLBACK")
    server.execute(work(add), ONLINE)
    assert server.presence(Statement(sql=add)).effect is Effect.THERE


@pytest.mark.parametrize(
    ("sql", "holds"),
    [
        ("DROP INDEX cdr_account", "SELECT count(*) FROM cdr"),
        ("UPDATE cdr SET account = 7 WHERE id = 1", "UPDATE cdr SET account = 8 WHERE id = 1"),
        ("DO $$ BEGIN LOCK TABLE cdr; END $$", "SELECT count(*) FROM cdr"),
        ("TRUNCATE cdr", "SELECT count(*) FROM cdr"),
        ("CREATE TRIGGER t BEFORE INSERT ON cdr FOR EACH ROW EXECUTE FUNCTION f()", "INSERT INTO cdr VALUES (0)"),
        ("CREATE TABLE child (cdr bigint REFERENCES cdr (id))", "INSERT INTO cdr VALUES (0)"),
        ("ALTER TABLE cdr ADD UNIQUE (id, account)", "SELECT count(*) FROM cdr"),
        ("DROP TABLE cdr", "SELECT count(*) FROM cdr"),
    ],
)
def test_whoever_waits_too_long_is_told_that_it_was_a_lock(server: PostgreSQLServer, sql: str, holds: str) -> None:
    fill(server)
    server.connection.execute("CREATE INDEX cdr_account ON cdr (account)")
    server.connection.execute("CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'")
    with Connection.open(server.database) as idle:
        idle.execute("BEGIN")
        idle.execute(holds)
        begun = time.monotonic()
        with pytest.raises(SqlError) as caught:
            server.execute(work(sql), Guard(online=True, lock_wait=0.3))
        assert caught.value.reason is Reason.LOCKED, caught.value
        assert time.monotonic() - begun < 10
        idle.execute("ROLLBACK")
    server.execute(work(sql), ONLINE)


def test_a_deadlock_is_ours_to_lose(server: PostgreSQLServer) -> None:
    fill(server)
    server.connection.execute("CREATE TABLE other (id int)")
    with Connection.open(server.database) as application:
        application.execute("BEGIN")
        application.execute("LOCK TABLE other IN ACCESS EXCLUSIVE MODE")
        seen: list[SqlError] = []

        def ours() -> None:
            try:
                server.execute(work("DO $$ BEGIN LOCK TABLE cdr; LOCK TABLE other; END $$"), Guard(lock_wait=5))
            except SqlError as error:
                seen.append(error)

        thread = threading.Thread(target=ours)
        thread.start()
        with Connection.open(server.database) as watch:
            while not watch.one("SELECT 1 FROM pg_locks WHERE NOT granted AND relation = 'other'::regclass"):
                time.sleep(0.005)
        application.execute("SELECT count(*) FROM cdr")  # it gets through
        application.execute("COMMIT")
        thread.join()
    assert [each.reason for each in seen] == [Reason.DEADLOCK]


def test_prepared_transactions_are_seen(own: ScratchServer) -> None:
    server = PostgreSQLServer(own.database)
    fill(server)
    with Connection.open(own.database) as other:
        other.execute("BEGIN")
        other.execute("UPDATE cdr SET account = 0 WHERE id = 1")
        other.execute("PREPARE TRANSACTION 'forgotten'")
    (holder,) = server.holders(["cdr"], older=0)
    assert (holder.id, holder.idle) == ("forgotten", True) and "prepared transaction" in holder.who
    server.connection.execute("ROLLBACK PREPARED 'forgotten'")
    server.close()


def test_locks_on_partitions_are_seen(server: PostgreSQLServer) -> None:
    server.connection.execute("CREATE TABLE whole (id int) PARTITION BY RANGE (id)")
    server.connection.execute("CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (9)")
    with Connection.open(server.database) as idle:
        idle.execute("BEGIN")
        idle.execute("SELECT * FROM part")
        assert len(server.holders(["whole"], older=0)) == 1


def test_two_runners(server: PostgreSQLServer, postgresql: Database) -> None:
    other = PostgreSQLServer(postgresql)
    assert server.hold() and not other.hold()
    server.release()
    assert other.hold() and not server.hold()
    other.close()
    wait_for(server.hold)
    server.reopen()
    assert server.hold()


def test_the_lock_lasts_as_long_as_the_server_works_for_a_dead_client(server: PostgreSQLServer) -> None:
    other = PostgreSQLServer(server.database)
    assert other.hold()
    pid = other.connection.one("SELECT pg_backend_pid()") or ()
    thread = threading.Thread(target=lambda: suppressed(other, "SELECT pg_sleep(60)"))
    thread.start()
    wait_for(lambda: server.connection.one("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state = 'active'", pid))
    assert not server.hold()
    copy = socket.socket(fileno=os.dup(other.connection.raw.fileno()))
    copy.shutdown(socket.SHUT_RDWR)  # as when our process dies
    copy.close()
    thread.join()
    wait_for(server.hold, 5)  # the server notices within a second or so


def suppressed(server: PostgreSQLServer, sql: str) -> None:
    with suppress(DatabaseFailed):
        server.execute(work(sql), OFFLINE)


# -- what breaks off


BUILD = "CREATE INDEX CONCURRENTLY cdr_note ON cdr (slowly(note))"


def slow_index(server: PostgreSQLServer) -> None:
    """An index that takes its time."""
    server.connection.execute(
        "CREATE FUNCTION slowly(text) RETURNS text IMMUTABLE LANGUAGE plpgsql AS"
        " $$ BEGIN PERFORM pg_sleep(0.01); RETURN $1; END $$"
    )


def during(server: PostgreSQLServer, sql: str, action: Callable[[int], object]) -> SqlError:
    """Run the statement, and do something to the server when it is under way."""
    (pid,) = server.connection.one("SELECT pg_backend_pid()") or (0,)
    seen: list[SqlError] = []

    def ours() -> None:
        try:
            server.execute(work(sql), ONLINE)
        except SqlError as error:
            seen.append(error)

    with Connection.open(server.database) as watch:
        thread = threading.Thread(target=ours)
        thread.start()
        building = "SELECT 1 FROM pg_stat_progress_create_index WHERE pid = %s AND phase LIKE 'building%%'"
        wait_for(lambda: watch.one(building, (pid,)))
        action(pid)
        thread.join()
    (error,) = seen
    return error


def test_a_connection_that_is_ended_in_mid_statement(server: PostgreSQLServer) -> None:
    fill(server, 300)
    slow_index(server)

    def end(pid: int) -> None:
        with Connection.open(server.database) as other:
            other.execute("SELECT pg_terminate_backend(%s)", (pid,))

    assert during(server, BUILD, end).reason is Reason.GONE
    server.reopen()
    assert server.connection.one("SELECT indisvalid FROM pg_index WHERE indexrelid = 'cdr_note'::regclass") == (False,)
    assert server.presence(Statement(sql=BUILD)).effect is Effect.ABSENT
    server.execute(work(BUILD), ONLINE)
    assert server.presence(Statement(sql=BUILD)).effect is Effect.THERE
    assert server.connection.one("SELECT count(*) FROM pg_index WHERE indrelid = 'cdr'::regclass") == (2,)


def test_a_statement_that_is_cancelled_leaves_no_broken_index(server: PostgreSQLServer) -> None:
    fill(server, 300)
    slow_index(server)

    def cancel(pid: int) -> None:
        with Connection.open(server.database) as other:
            other.execute("SELECT pg_cancel_backend(%s)", (pid,))

    assert during(server, BUILD, cancel).reason is Reason.KILLED
    assert server.connection.one("SELECT count(*) FROM pg_index WHERE indrelid = 'cdr'::regclass") == (1,)


def test_a_unique_index_over_doubles_leaves_nothing(server: PostgreSQLServer) -> None:
    fill(server)
    with pytest.raises(SqlError) as caught:
        server.execute(work("CREATE UNIQUE INDEX CONCURRENTLY u ON cdr (account)"), ONLINE)
    assert caught.value.code == "23505"
    assert server.connection.one("SELECT to_regclass('u')") == (None,)


def test_a_server_that_is_killed_in_mid_statement(own: ScratchServer) -> None:
    server = PostgreSQLServer(own.database)
    fill(server, 300)
    slow_index(server)
    assert during(server, BUILD, lambda _: own.kill()).reason is Reason.GONE
    with pytest.raises(SqlError) as caught:
        server.reopen()
    assert caught.value.reason is Reason.UNREACHABLE
    own.start()
    server.reopen()
    assert server.hold()
    assert server.presence(Statement(sql=BUILD)).effect is Effect.ABSENT
    server.execute(work(BUILD), ONLINE)
    assert server.presence(Statement(sql=BUILD)).effect is Effect.THERE
    server.close()


def test_an_index_that_somebody_else_is_building(server: PostgreSQLServer) -> None:
    fill(server, 300)
    slow_index(server)
    other = PostgreSQLServer(server.database)

    def ours(_: int) -> None:
        with pytest.raises(SqlError) as caught:
            server.execute(work(BUILD), ONLINE)
        assert caught.value.reason is Reason.LOCKED
        with Connection.open(server.database) as killer:
            killer.execute("SELECT pg_terminate_backend(%s)", (_,))

    during(other, BUILD, ours)
    other.close()


# -- who is asked


def test_a_standby_is_refused_and_its_lag_is_seen(postgresql_template: Path) -> None:
    settings = ["wal_level=replica", "wal_receiver_status_interval=1s"]
    with (
        scratch_server(Engine.POSTGRESQL, template=postgresql_template, options=settings, tcp=True) as primary,
        scratch_server(
            Engine.POSTGRESQL, template=primary.directory, empty=True, options=settings, tcp=True
        ) as standby,
    ):
        server = PostgreSQLServer(primary.database)
        server.require_primary()
        assert server.load().lag is None
        where = primary.database
        (standby.directory / "pass").write_text(f"*:*:*:*:{where.password()}\n")
        (standby.directory / "pass").chmod(0o600)
        standby.data.mkdir(mode=0o700)
        run("chown", "postgres", standby.directory / "pass", standby.data, check=False)
        run(
            "runuser", "-u", "postgres", "--", program(Engine.POSTGRESQL, "pg_basebackup"), "-D", standby.data, "-R",
            "-h", where.host, "-p", str(where.port), "-U", where.user, "-X", "stream", "-c", "fast",
            env={"PGPASSFILE": str(standby.directory / "pass")},
        )  # fmt: skip
        standby.start()
        with pytest.raises(DatabaseFailed, match=f"is a standby of 127.0.0.1:{where.port}, not the primary"):
            PostgreSQLServer(standby.database).require_primary()
        wait_for(lambda: server.load().lag is not None)
        assert (server.load().lag or 0) < 1
        with Connection.open(standby.database) as other:
            other.execute("SELECT pg_wal_replay_pause()")
            server.connection.execute("CREATE TABLE t AS SELECT 1 AS a")
            wait_for(lambda: (server.load().lag or 0) > 0.5)
            other.execute("SELECT pg_wal_replay_resume()")
        wait_for(lambda: (server.load().lag or 0) < 0.1)
        server.close()


def test_a_read_only_database_is_refused(server: PostgreSQLServer) -> None:
    server.require_primary()
    server.connection.execute(f"ALTER DATABASE {server.database.database} SET default_transaction_read_only = on")
    server.reopen()
    with pytest.raises(DatabaseFailed, match="is read-only") as caught:
        server.require_primary()
    assert "RESET default_transaction_read_only" in caught.value.next[0]
    with pytest.raises(SqlError) as refused:
        server.execute(work("CREATE TABLE t (a int)"), ONLINE)
    assert refused.value.reason is Reason.READ_ONLY


def test_a_user_without_rights_is_refused(server: PostgreSQLServer, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("guest")
    password.chmod(0o600)
    name = f"guest_{server.database.database}"
    server.connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'guest'")
    try:
        guest = PostgreSQLServer(replace(server.database, user=name, password_file=password))
        with pytest.raises(DatabaseFailed, match=f"user {name} may not create tables"):
            guest.require_primary()
        fill(server)
        with pytest.raises(SqlError) as caught:
            guest.execute(work("ALTER TABLE cdr ADD COLUMN x int"), ONLINE)
        assert caught.value.reason is Reason.DENIED
        guest.close()
    finally:
        server.connection.execute(f"DROP ROLE {name}")


def test_limits_of_an_administrator_do_not_apply(server: PostgreSQLServer) -> None:
    server.connection.execute(f"ALTER DATABASE {server.database.database} SET statement_timeout = '50ms'")
    server.reopen()
    server.connection.execute("SELECT pg_sleep(0.1)")


def test_version_size_load(server: PostgreSQLServer) -> None:
    fill(server, 5000)
    assert server.version().startswith("PostgreSQL 1")
    size = server.size("cdr")
    assert 4000 < size.rows < 6000 and size.bytes > 100_000
    server.connection.execute("CREATE TABLE never_analysed AS SELECT 1 AS a")
    assert server.size("never_analysed").rows > 0
    assert server.transactional("cdr")
    with Connection.open(server.database) as other:
        pid = other.one("SELECT pg_backend_pid()") or ()
        thread = threading.Thread(target=lambda: other.execute("SELECT pg_sleep(1)"))
        thread.start()
        wait_for(lambda: server.connection.one("SELECT 1 FROM pg_stat_activity WHERE pid = %s AND state='active'", pid))
        assert server.load().running >= 1
        thread.join()
    server.begin_batches(Guard(lock_wait=0.5))
    assert server.connection.one("SHOW lock_timeout") == ("500ms",)
    assert server.quoted('a"b') == '"a""b"'


def wait_for(condition: Callable[[], object], seconds: float = 15) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.02)
