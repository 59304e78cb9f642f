"""The drivers of a site's replica, on two real MariaDB servers, and by a program of the operator's."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import CommandFailed, DatabaseFailed, GateNotPassed, ZduRefused
from core.run import run
from core.sql import Connection, Engine, Reason, SqlError
from migrations.scratch import scratch_server
from tests.zdu.replicalab import Pair, options, pair, user
from tests.zdu.sitelab import installation, site
from tests.zdu.sshlab import until
from zdu import gtid
from zdu.consistency import Match, compare
from zdu.databases import CommandReplica
from zdu.drivers import StandaloneConfig, StandaloneKind
from zdu.hands import Hands
from zdu.mariadb import MariaReplica, refuse_two_writable, writable
from zdu.reseed import INFO, follow, position_of
from zdu.sites import SiteKind
from zdu.standalone.schema import install_delta
from zdu.traffic.shell import LocalShell

real = pytest.mark.skipif(
    shutil.which("mariadbd", path="/usr/sbin:/usr/bin:/usr/libexec") is None, reason="MariaDB is not installed"
)


@pytest.fixture
def both(mariadb_template: Path) -> Iterator[Pair]:
    with pair(mariadb_template) as made:
        until(lambda: made.driver.status().applied)
        yield made


@real
def test_stand_alone_and_back(both: Pair) -> None:
    """The replica is held with everything applied; the delta is written beside it; it joins again, and is the same."""
    driver = both.driver
    seen = driver.status()
    assert (seen.read_only, seen.replicates, seen.applied, seen.broken, seen.problems) == (True, True, True, "", ())
    assert seen.lag is not None
    assert seen.lag < 1
    both.on_main(*(f"INSERT INTO scratch.xdrs (account) VALUES ({n})" for n in range(50)))
    assert "with everything applied" in driver.hold()
    assert driver.hold().startswith("the replica of B stands still"), "safe to repeat"
    held = driver.status()
    assert (held.replicates, held.applied, held.lag) == (False, True, None)
    assert both.value(both.here, "SELECT COUNT(*) FROM scratch.xdrs") == 50

    with Connection.open(both.here.database) as delta:  # as a ledger does
        delta.execute("SET SESSION gtid_domain_id = 7")
        delta.execute("CREATE DATABASE delta")
        delta.execute("CREATE TABLE delta.adjustments (id INT PRIMARY KEY, amount DECIMAL(12,4))")
        delta.execute("INSERT INTO delta.adjustments VALUES (1, 1.20), (2, 0.50)")
    alone = driver.status()
    assert (alone.own_writes, alone.applied) == ((), True)
    assert "7-2-" in str(both.value(both.here, "SELECT @@gtid_binlog_pos"))

    both.on_main("ALTER TABLE scratch.accounts ADD COLUMN note TEXT", "UPDATE scratch.accounts SET balance = 96.30")
    assert driver.status().applied is False
    assert driver.join().startswith("the replica of B follows")
    assert driver.join().startswith("the replica of B follows"), "safe to repeat"
    after = driver.status()
    assert (after.replicates, after.applied, after.problems) == (True, True, ())
    assert both.value(both.here, "SELECT SUM(amount) FROM delta.adjustments") == Decimal("1.7000")
    found = compare(both.main.database, both.here.database)
    assert {each.table: each.match for each in found} == {"scratch.accounts": Match.SAME, "scratch.xdrs": Match.SAME}


@real
def test_a_delta_in_another_domain(both: Pair) -> None:
    """What the sites file says is what the ledger's connections do, and what the replica's driver knows of."""
    here, main = both.here.database, both.main.database
    alone = StandaloneConfig(command=("stand-alone",), delta=replace(here, database="delta"), gtid_domain=23)
    b = site("B", SiteKind.SECONDARY, database=here, standalone=alone)
    sites = installation(sites=(site("A", SiteKind.MAIN, database=main, billing=None), b))
    hands = Hands(sites, 1)
    assert hands.replica(b).hold()
    both.on_replica("SET SESSION gtid_domain_id = 23", "CREATE DATABASE delta")
    with hands.delta_ledger(b) as delta:
        install_delta(delta)
        assert delta.one("SELECT @@SESSION.gtid_domain_id, @@SESSION.sql_log_bin") == (23, 1)
    assert "23-2-" in str(both.value(both.here, "SELECT @@gtid_binlog_pos"))
    assert hands.replica(b).status().own_writes == ()
    assert hands.replica(b).join().startswith("the replica of B follows")


@real
def test_a_position_that_knows_the_delta_is_set_right(both: Pair) -> None:
    """With Current_Pos the replica would ask the main database for domain 7, which that does not know."""
    both.on_replica("STOP SLAVE", "CHANGE MASTER TO MASTER_USE_GTID = current_pos")
    both.on_replica("SET SESSION gtid_domain_id = 7", "CREATE DATABASE delta")
    assert both.driver.join().startswith("the replica of B follows")
    assert both.driver.status().problems == ()


@real
def test_writes_in_the_domain_of_the_main_database_are_found_and_refused(both: Pair) -> None:
    both.driver.hold()
    both.on_replica("INSERT INTO scratch.xdrs (account) VALUES (666)")
    seen = both.driver.status()
    assert len(seen.own_writes) == 1
    assert any("changes of its own" in problem for problem in seen.problems)
    with pytest.raises(ZduRefused, match="changes of its own") as told:
        both.driver.join()
    assert any("seed it anew" in line for line in told.value.next)
    assert both.driver.status().replicates is False
    found = {each.table: each for each in compare(both.main.database, both.here.database)}
    differs = found["scratch.xdrs"]
    assert (differs.match, differs.main_rows, differs.replica_rows) == (Match.DIFFERS, 0, 1)
    assert found["scratch.accounts"].match is Match.SAME


@real
def test_a_broken_replica_is_found(both: Pair) -> None:
    """A row that is there already: replication stops, and nothing here calls that healthy."""
    both.on_replica("SET SESSION sql_log_bin = 0", "INSERT INTO scratch.accounts VALUES (9, 1)")
    both.on_main("INSERT INTO scratch.accounts VALUES (9, 2)")
    until(lambda: both.driver.status().broken)
    seen = both.driver.status()
    assert (seen.replicates, seen.applied, seen.lag) == (False, False, None)
    assert "1062" in seen.broken
    for act in (both.driver.hold, both.driver.join):
        with pytest.raises(DatabaseFailed, match="the replica of B is broken") as told:
            act()
        assert "1062" in told.value.what[0]


@real
def test_a_replica_that_lost_its_place_is_found(both: Pair) -> None:
    """What it needs next is purged on the main database."""
    both.driver.hold()
    both.on_main(
        "INSERT INTO scratch.accounts VALUES (7, 1)", "FLUSH BINARY LOGS", "INSERT INTO scratch.xdrs VALUES (1, 1)"
    )
    last = str(both.value(both.main, "SHOW MASTER STATUS"))
    until(lambda: _purged(both, last))
    with pytest.raises(DatabaseFailed, match="is broken") as told:
        both.driver.join()
    assert "1236" in told.value.what[0]
    assert any("Seeding a replica anew" in line for line in told.value.next)


def _purged(both: Pair, last: str) -> bool:
    both.on_main(f"PURGE BINARY LOGS TO '{last}'")
    with Connection.open(both.main.database) as main:
        return len(main.execute("SHOW BINARY LOGS").rows) == 1


@real
def test_lag_is_seen_and_the_hold_waits_for_it(both: Pair) -> None:
    with Connection.open(both.here.database) as blocker:
        blocker.execute("BEGIN")
        blocker.execute("SELECT * FROM scratch.accounts WHERE id = 1 FOR UPDATE")
        both.on_main("UPDATE scratch.accounts SET balance = 1 WHERE id = 1")
        seen = both.driver.status()
        assert (seen.replicates, seen.applied) == (True, False)
        assert seen.lag is not None
        assert seen.lag > 1
        short = MariaReplica("B", both.here.database, both.main.database, timeout=0.2)
        with pytest.raises(GateNotPassed, match="not done within"):
            short.hold()
        assert both.driver.status().replicates is True, "it replicates on"
        told = both.driver.join()
        assert "behind" in told
        timer = threading.Timer(0.5, lambda: blocker.execute("ROLLBACK"))
        timer.start()
        assert "with everything applied" in both.driver.hold()
        timer.join()
    assert both.value(both.here, "SELECT balance FROM scratch.accounts WHERE id = 1") == Decimal(1)


@real
def test_a_main_database_that_never_rests_is_no_place_to_hold_at(both: Pair) -> None:
    stop = threading.Event()

    def write() -> None:
        with Connection.open(both.main.database) as main:
            while not stop.is_set():
                main.execute("INSERT INTO scratch.xdrs (account) VALUES (1)")

    writing = threading.Thread(target=write)
    writing.start()
    try:
        with pytest.raises(GateNotPassed) as told:
            both.driver.hold()
        assert told.value.state == "it replicates on"
    finally:
        stop.set()
        writing.join()
    assert both.driver.hold()


@real
def test_a_controller_that_is_to_end_waits_no_longer(both: Pair) -> None:
    asked: list[float] = []

    def check() -> None:
        asked.append(time.monotonic())
        if len(asked) == 4:
            raise KeyboardInterrupt

    with Connection.open(both.here.database) as blocker:
        blocker.execute("BEGIN")
        blocker.execute("SELECT * FROM scratch.accounts WHERE id = 1 FOR UPDATE")
        both.on_main("UPDATE scratch.accounts SET balance = 1 WHERE id = 1")
        driver = MariaReplica("B", both.here.database, both.main.database, timeout=60, check=check)
        with pytest.raises(KeyboardInterrupt):
            driver.hold()
        assert asked[-1] - asked[0] < 30
        blocker.execute("ROLLBACK")
    assert both.driver.status().replicates is True


@real
@pytest.mark.parametrize("act", ["hold", "join"])
def test_a_controller_that_lost_the_installation_leaves_the_replica_alone(both: Pair, act: str) -> None:
    """It slept before it stopped the replica. Another one has held it since, and migrates the main database."""
    asked: list[str] = []

    def check() -> None:
        asked.append("")
        if len(asked) > 3:
            raise KeyboardInterrupt
        if len(asked) == 3:
            both.driver.hold()
            both.on_main("ALTER TABLE scratch.accounts ADD COLUMN note TEXT")

    if act == "join":
        both.driver.hold()
        asked += [""] * 3
    driver = MariaReplica("B", both.here.database, both.main.database, timeout=5, check=check)
    with pytest.raises(KeyboardInterrupt):
        getattr(driver, act)()
    assert both.driver.status().replicates is False
    columns = "SELECT count(*) FROM information_schema.columns WHERE table_name = 'accounts' AND column_name = 'note'"
    assert both.value(both.here, columns) == 0


@real
def test_the_main_database_is_away(both: Pair) -> None:
    both.main.kill()
    until(lambda: both.driver.status().replicates is None)
    seen = both.driver.status()
    assert (seen.applied, seen.lag, seen.read_only) == (None, None, True)
    assert any("cannot be asked" in problem for problem in seen.problems)
    assert any("cannot reach" in problem for problem in seen.problems)
    with pytest.raises(SqlError):
        both.driver.hold()
    assert writable(both.main.database) is None
    with pytest.raises(ZduRefused, match="two databases would be writable") as told:
        both.driver.promote({"A": writable(both.main.database)})
    assert "cannot be asked" in " ".join(told.value.what)
    assert writable(both.here.database) is False
    assert "takes writes" in both.driver.promote({"A": False})
    assert writable(both.here.database) is True
    assert both.value(both.here, "SELECT SUM(balance) FROM scratch.accounts") == Decimal(103)


@real
def test_never_two_writable_databases(both: Pair) -> None:
    assert (writable(both.main.database), writable(both.here.database)) == (True, False)
    with pytest.raises(ZduRefused, match="two databases"):
        both.driver.promote({"A": writable(both.main.database)})
    assert writable(both.here.database) is False
    both.driver.set_read_only(False)
    assert any("read_only is off" in problem for problem in both.driver.status().problems)
    both.driver.set_read_only(True)
    assert both.driver.status().problems == ()


@real
def test_a_database_that_follows_nobody(both: Pair) -> None:
    both.on_replica("STOP SLAVE", "RESET SLAVE ALL")
    seen = both.driver.status()
    assert (seen.replicates, seen.broken) == (False, "it was never told whom to follow")
    for act in (both.driver.hold, both.driver.join):
        with pytest.raises(DatabaseFailed):
            act()


@real
def test_consistency_of_tables_that_are_written_to(both: Pair) -> None:
    both.on_main(
        "CREATE TABLE scratch.`odd ``name` (id INT PRIMARY KEY)", "INSERT INTO scratch.`odd ``name` VALUES (1)"
    )
    stop = threading.Event()

    def write() -> None:
        with Connection.open(both.main.database) as main:
            while not stop.wait(0.02):
                main.execute("INSERT INTO scratch.xdrs (account) VALUES (1)")

    writing = threading.Thread(target=write)
    writing.start()
    try:
        found = {each.table: each.match for each in compare(both.main.database, both.here.database, tries=3)}
    finally:
        stop.set()
        writing.join()
    assert found["scratch.accounts"] is Match.SAME
    assert found["scratch.odd `name"] is Match.SAME
    assert found["scratch.xdrs"] in (Match.SAME, Match.UNSETTLED), "never called different"
    both.driver.hold()
    both.on_main("CREATE TABLE scratch.new (id INT PRIMARY KEY)")
    both.driver.join()
    both.on_replica("SET SESSION sql_log_bin = 0", "DROP TABLE scratch.new")
    found = {each.table: each.match for each in compare(both.main.database, both.here.database, ["scratch"])}
    assert (found["scratch.xdrs"], found["scratch.new"]) == (Match.SAME, Match.MISSING)


@real
def test_the_rights_that_are_needed(both: Pair, tmp_path: Path) -> None:
    """The controller's user, and that of the ledger, who writes to the delta although the replica is read-only."""
    password = tmp_path / "password"
    password.write_text("secret")
    password.chmod(0o600)
    grants = {
        "controller": "REPLICA MONITOR, REPLICATION SLAVE ADMIN, BINLOG MONITOR ON *.*",
        "ledger": "READ_ONLY ADMIN, BINLOG REPLAY ON *.*",
        "service": "SELECT, INSERT, UPDATE, DELETE ON scratch.*",
    }
    for name, rights in grants.items():
        both.on_replica(
            "SET SESSION sql_log_bin = 0", f"CREATE USER {name} IDENTIFIED BY 'secret'", f"GRANT {rights} TO {name}"
        )
    both.on_replica("SET SESSION sql_log_bin = 0", "GRANT SELECT ON scratch.* TO controller")
    both.on_replica(
        "SET SESSION gtid_domain_id = 7", "CREATE DATABASE delta", "CREATE TABLE delta.t (id INT PRIMARY KEY)"
    )
    both.on_replica("SET SESSION sql_log_bin = 0", "GRANT ALL ON delta.* TO ledger")
    both.on_main("CREATE USER asker IDENTIFIED BY 'secret'", "GRANT SELECT ON scratch.* TO asker")
    until(lambda: both.driver.status().applied)

    main = user(both.main.database, "asker", password)
    driver = MariaReplica("B", user(both.here.database, "controller", password), main, timeout=5)
    assert driver.status().problems == ()
    assert driver.hold()
    with Connection.open(replace(user(both.here.database, "ledger", password), database="delta")) as delta:
        delta.execute("SET SESSION gtid_domain_id = 7")
        delta.execute("INSERT INTO t VALUES (1)")
    with Connection.open(user(both.here.database, "service", password)) as service, pytest.raises(SqlError) as told:
        service.execute("INSERT INTO xdrs (account) VALUES (1)")
    assert told.value.reason is Reason.READ_ONLY
    assert driver.join().startswith("the replica of B follows")


@real
@pytest.mark.skipif(shutil.which("mariadb-backup") is None, reason="mariadb-backup is not installed")
def test_seeding_a_replica_anew(both: Pair, mariadb_template: Path, tmp_path: Path) -> None:
    """The procedure of docs/zdu-databases.md: backup while calls go on, prepare, put in place, follow."""
    both.on_main(*(f"INSERT INTO scratch.xdrs (account) VALUES ({n})" for n in range(20)))
    secret = tmp_path / "client.cnf"
    secret.write_text(f"[client]\nuser={both.main.database.user}\npassword={both.main.database.password()}\n")
    secret.chmod(0o600)
    target = tmp_path / "backup"
    where = f"--socket={both.main.own / 's'}"
    how = ["mariadb-backup", f"--defaults-file={secret}", f"--target-dir={target}"]
    run(*how, "--backup", where, f"--datadir={both.main.data}", timeout=120)
    both.on_main("INSERT INTO scratch.xdrs (account) VALUES (21)", "FLUSH BINARY LOGS")
    run(*how, "--prepare", timeout=120)
    info = next(target / name for name in INFO if (target / name).exists())
    with scratch_server(Engine.MARIADB, template=mariadb_template, tcp=True, options=options(3), empty=True) as fresh:
        shutil.copytree(target, fresh.data)
        run("chown", "-R", f"--reference={fresh.own}", fresh.data)
        fresh.start()
        follow(fresh.database, both.main.database, position_of(info.read_text()))
        driver = MariaReplica("B", fresh.database, both.main.database, timeout=20)
        assert driver.join().startswith("the replica of B follows")
        assert driver.status().problems == ()
        found = compare(both.main.database, fresh.database)
        assert {each.match for each in found} == {Match.SAME}
        with pytest.raises(ZduRefused, match="replicates already"):
            follow(fresh.database, both.main.database, "0-1-1")


@pytest.mark.parametrize("info", ["", "bin.000001\t4711", "bin.000001\t4711\tnonsense", "bin.000001 4711 "])
def test_a_backup_without_a_position(info: str) -> None:
    with pytest.raises(DatabaseFailed, match="at which GTID"):
        position_of(info)


# -- of kind command


PROGRAM = """#!/bin/sh
echo "$1" >> {log}
case "$1" in
replica) cat {answer} ;;
hold|join) [ -e {fails} ] && {{ echo "cannot $1" >&2; exit 3; }}; echo "done: $1" ;;
esac
"""


def command(tmp_path: Path) -> CommandReplica:
    program = tmp_path / "switch"
    places = {name: tmp_path / name for name in ("log", "answer", "fails")}
    program.write_text(PROGRAM.format(**places))
    program.chmod(0o755)
    config = StandaloneConfig(kind=StandaloneKind.COMMAND, command=(str(program),), timeout=5)
    return CommandReplica("B", config, LocalShell())


def test_a_program_of_the_operator(tmp_path: Path) -> None:
    driver = command(tmp_path)
    answer = {"read_only": True, "replicates": True, "applied": None, "lag": 2, "problems": ["slow"], "more": 1}
    (tmp_path / "answer").write_text(json.dumps(answer))
    seen = driver.status()
    assert (seen.read_only, seen.replicates, seen.applied, seen.lag, seen.problems) == (
        True,
        True,
        None,
        2.0,
        ("slow",),
    )
    assert driver.hold() == "done: hold"
    assert driver.join() == "done: join"
    assert (tmp_path / "log").read_text().split() == ["replica", "hold", "join"]
    (tmp_path / "fails").touch()
    with pytest.raises(CommandFailed, match="hold fails with exit code 3") as told:
        driver.hold()
    assert told.value.what == ("cannot hold",)


@pytest.mark.parametrize(
    "said", ["", "yes", "[]", '{"lag": -1}', '{"lag": "0"}', '{"replicates": "yes"}', '{"lag": true}']
)
def test_what_a_program_says_is_not_guessed_at(tmp_path: Path, said: str) -> None:
    driver = command(tmp_path)
    (tmp_path / "answer").write_text(said)
    with pytest.raises(CommandFailed, match="does not say how the replica of B stands"):
        driver.status()


# -- pure


@given(st.dictionaries(st.sampled_from("ABCD"), st.sampled_from([True, False, None])))
def test_at_most_one_database_may_be_writable(states: dict[str, bool | None]) -> None:
    risky = [name for name, state in states.items() if state is not False]
    if len(risky) > 1:
        with pytest.raises(ZduRefused):
            refuse_two_writable(states)
    else:
        refuse_two_writable(states)


POSITIONS = st.dictionaries(st.integers(0, 9), st.integers(1, 1000), max_size=5)


def text(position: dict[int, int], server: int = 1) -> str:
    return ",".join(f"{domain}-{server}-{number}" for domain, number in position.items())


@given(POSITIONS, POSITIONS)
def test_a_position_covers_another_in_every_domain_but_the_delta(
    applied: dict[int, int], written: dict[int, int]
) -> None:
    wanted = all(applied.get(domain, 0) >= number for domain, number in written.items() if domain != 7)
    assert gtid.covers(text(applied), text(written), apart_from=7) is wanted
    assert gtid.parse(text(applied)) == applied
    assert 7 not in gtid.parse(gtid.without(text(written), 7))


@given(POSITIONS, POSITIONS)
def test_own_writes(applied: dict[int, int], here: dict[int, int]) -> None:
    state = ",".join(filter(None, (text(here, 2), text(applied, 1))))
    wanted = {f"{d}-2-{n}" for d, n in here.items() if d != 7 and n > applied.get(d, 0)}
    assert set(gtid.own_writes(state, text(applied), 2, apart_from=7)) == wanted
