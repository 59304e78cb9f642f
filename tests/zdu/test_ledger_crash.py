"""Deaths between any two statements, on real MariaDB: killed processes, killed connections, commits without an answer.

A recording run finds the points; nothing lists them. Each that is drawn is then tried by itself.
"""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Callable
from decimal import Decimal
from typing import TypeVar

import pytest

from core import faults
from core.sql import Connection, Database, Reason, SqlError
from tests.conftest import Drawn
from tests.zdu.ledgerlab import PRICE, World, xdr
from zdu.standalone.delta import Mode
from zdu.standalone.entries import Answer
from zdu.standalone.ledger import Ledger

T = TypeVar("T")

#: What the story charges, in the end and exactly once.
EXPECTED = {
    "x-early": Decimal("0.05"),
    "x-a1": Decimal("1.00"),
    "x-b1": Decimal("0.10"),
    "x-a2": Decimal("0.10"),
    "x-late": Decimal("0.10"),
}
TABLES = {
    "main": ("accounts", "reservations", "xdrs", "adjustments", "locks", "runs"),
    "delta": ("accounts", "reservations", "taken", "xdrs", "adjustments", "runs"),
}


def begin(world: World) -> None:
    """Two accounts, and a call that runs since before the site was on its own."""
    for (place, names), prefix in zip(TABLES.items(), ("ledger", "delta"), strict=True):
        session = world.session(getattr(world, place))
        for name in names:
            session.execute(f"DELETE FROM {prefix}_{name}")
        mode = "mode = 'open', pending = ''" if place == "main" else "mode = 'normal'"
        session.execute(f"UPDATE {prefix}_state SET {mode}, run = '', fence = 0")
    main = world.main_ledger()
    main.open_account("alice", credit_limit=Decimal(100), balance=Decimal(98))
    main.open_account("bob", credit_limit=Decimal(1))
    world.ledger().authorize("alice", call="early", price=PRICE, at_most=60)


def story(world: World, fence: int = 1) -> None:
    """From the entry to the end of the run, engines in between. Told again from the start, it goes on where it was."""
    ledger = world.ledger(patience=5)
    delta = world.session(world.delta)
    state = delta.retried(lambda: delta.one("SELECT state FROM delta_runs WHERE run = 'r1'"))
    if state in (None, ("open",)):
        world.enter_without_replication("r1", fence)
    sync = world.sync("r1", fence)
    make_call(world, ledger, "a1", 600, "alice")
    make_call(world, ledger, "b1", 60, "bob")
    ledger.charge(xdr("early", 30))
    if not charged(world, "late"):
        ledger.authorize("alice", call="late", price=PRICE, at_most=60)
    sync.lock()
    make_call(world, ledger, "a2", 60, "alice")
    sync.switch()
    ledger.charge(xdr("late", 60))
    sync.transfer()
    sync.close()


def make_call(world: World, ledger: Ledger, name: str, seconds: int, account: str) -> None:
    """An engine that begins anew knows which calls are over: it does not authorize those, but charges them again."""
    over = charged(world, name)
    if not over:
        ledger.authorize(account, call=name, price=PRICE, at_most=seconds)
    answer = ledger.charge(xdr(name, seconds, account))
    assert answer is Answer.REPEATED or not over


def charged(world: World, name: str) -> bool:
    """Is the call over? Asked behind the ledger's back, as an engine asks its own records."""
    return f"x-{name}" in unarmed(world.charges)


def unarmed(action: Callable[[], T]) -> T:
    """Do what is the test's own without passing points."""
    armed, faults._armed = faults._armed, None
    try:
        return action()
    finally:
        faults._armed = armed


def check_at_rest(world: World) -> None:
    """What holds whoever died, before anybody has repaired anything."""
    assert world.audit() == []
    assert world.charges().items() <= EXPECTED.items()
    main, delta = world.session(world.main), world.session(world.delta)
    posted = {name for (name,) in main.rows("SELECT id FROM ledger_xdrs")}
    alone = world.delta_ledger().mode() is not Mode.NORMAL
    for name in ("alice", "bob"):
        account = world.main_ledger().account(name)
        rows = delta.rows("SELECT id, amount FROM delta_xdrs WHERE account = %s", (name,))
        elsewhere = sum((delta.take(amount) for xdr_id, amount in rows if xdr_id not in posted), Decimal(0))
        assert account.balance + elsewhere <= account.credit_limit
        assert alone or account.locked == elsewhere


def check_end(world: World) -> None:
    """Nothing lost, nothing twice."""
    assert world.audit() == []
    assert world.charges() == EXPECTED
    for name, balance in (("alice", Decimal("99.25")), ("bob", Decimal("0.10"))):
        account = world.main_ledger().account(name)
        assert (account.balance, account.effective) == (balance, balance)


def points(world: World) -> list[str]:
    """The names of all points that the story passes, in order."""
    seen: list[str] = []
    begin(world)
    faults.arm(seen.append)
    story(world)
    faults.arm(None)
    check_end(world)
    return seen


def at(number: int, action: Callable[[], None]) -> None:
    """Do the action at the point of that number, once."""
    left = number

    def passed(_: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            unarmed(action)

    faults.arm(passed)


def in_child(world: World, action: Callable[[World], None]) -> int:
    """Run it in a process of its own, with connections of its own. Returns its exit code; negative: the signal."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            gc.disable()
            action(world.again())
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_process_killed_between_any_two_statements(mariadb_world: World, drawn: Drawn) -> None:
    world = mariadb_world
    total = len(points(world))
    assert total > 100
    for number in drawn(range(1, total + 1)):
        begin(world)

        def doomed(its: World, number: int = number) -> None:
            at(number, lambda: os.kill(os.getpid(), signal.SIGKILL))
            story(its)

        assert in_child(world, doomed) == -signal.SIGKILL
        release_locks_of_the_dead(world)
        check_at_rest(world)
        story(world, fence=2)
        check_end(world)


def release_locks_of_the_dead(world: World) -> None:
    """The server notices a dead client within moments; wait for it, so that what is seen is at rest."""
    names = (world.main.database, world.delta.database)
    query = (
        "SELECT count(*) FROM information_schema.innodb_trx t "
        "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.db IN (%s, %s)"
    )
    for _ in range(1000):
        if world.session(world.main).one(query, names) == (0,):
            return
    raise AssertionError("a transaction of the dead process stays")


def test_connections_killed_between_any_two_statements(mariadb_world: World, drawn: Drawn) -> None:
    world = mariadb_world
    total = len(points(world))
    for number in drawn(range(1, total + 1)):
        begin(world)
        at(number, lambda: kill_connections(world))
        story(world)
        faults.arm(None)
        check_end(world)
        world.close()


def kill_connections(world: World) -> None:
    """All connections to the two databases, whoever's, but this one."""
    with Connection.open(world.main) as admin:
        others = "SELECT id FROM information_schema.processlist WHERE db IN (%s, %s) AND id <> connection_id()"
        for (thread,) in admin.execute(others, (world.main.database, world.delta.database)).rows:
            try:
                admin.execute(f"KILL HARD CONNECTION {thread}")
            except SqlError as error:
                assert error.code == "1094"  # gone by itself meanwhile


def test_commits_whose_answer_is_lost(mariadb_world: World) -> None:
    world = mariadb_world
    commits = [number for number, name in enumerate(points(world), 1) if name == "ledger:committed"]
    assert len(commits) > 20

    def lose() -> None:
        raise SqlError("lost connection during COMMIT", reason=Reason.GONE, code="2013")

    for number in commits:
        begin(world)
        at(number, lose)
        story(world)
        faults.arm(None)
        check_end(world)


def test_the_server_is_killed_and_comes_back(
    mariadb_template: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As a power cut would: what was acknowledged is there, and the synchronisation goes on."""
    from dataclasses import replace
    from pathlib import Path

    from core.sql import Engine
    from migrations.scratch import scratch_server

    assert isinstance(mariadb_template, Path)
    with scratch_server(Engine.MARIADB, template=mariadb_template) as server:
        with Connection.open(server.database) as admin:
            admin.execute("CREATE DATABASE other")
        delta: Database = replace(server.database, database="other")
        with World(main=server.database, delta=delta, base=server.database, patience=60).installed() as world:
            names = points(world)
            for part in ("ledger:commit", "ledger:committed", "sync:posted", "sync:stopped"):
                number = len(names) - names[::-1].index(part) if part != "ledger:commit" else names.index(part) + 30
                begin(world)

                def cut() -> None:
                    server.kill()
                    server.start()

                at(number, cut)
                story(world)
                faults.arm(None)
                check_end(world)
