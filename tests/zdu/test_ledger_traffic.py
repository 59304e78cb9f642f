"""Engines on both sites charge without a pause while the site goes on its own and comes back; on two real MariaDB
servers with real replication between them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import pytest

from core.errors import GateNotPassed
from core.sql import Connection, Database, Engine
from migrations.scratch import scratch_server
from tests.zdu.ledgerlab import PRICE, xdr
from zdu.standalone import alone
from zdu.standalone.audit import audit_delta, audit_main
from zdu.standalone.delta import DeltaLedger
from zdu.standalone.entries import Answer
from zdu.standalone.ledger import Ledger, Site
from zdu.standalone.main import MainLedger
from zdu.standalone.schema import install_delta, install_main
from zdu.standalone.session import Binlog, Session
from zdu.standalone.sync import Synchronisation

ACCOUNTS = 6
LIMIT = Decimal(3)


@dataclass
class Pair:
    """The main server and its replica; the delta database lies on the replica's server."""

    main: Database
    replica: Database
    delta: Database
    opened: list[Session] = field(default_factory=list)

    def sessions(self) -> tuple[Session, Session, Session]:
        """New ones: main, delta, base."""
        made = (
            Session(self.main),
            Session(self.delta, binlog=Binlog.DOMAIN),
            Session(self.replica, read_only=True),
        )
        self.opened.extend(made)
        return made

    def ledger(self, site: Site) -> Ledger:
        main, delta, base = self.sessions()
        return Ledger(site=site, main=MainLedger(main), delta=DeltaLedger(delta, base), patience=20)


@pytest.fixture
def pair(mariadb_template: Path) -> Iterator[Pair]:
    """GTID replication from main to the replica, as two sites have it."""

    def options(number: int) -> list[str]:
        return [f"--server-id={number}", "--log-bin=bin", "--log-slave-updates=ON", "--gtid-strict-mode=ON",
                "--innodb-flush-log-at-trx-commit=0", "--sync-binlog=0"]  # fmt: skip

    with ExitStack() as stack:
        main, replica = (
            stack.enter_context(
                scratch_server(Engine.MARIADB, template=mariadb_template, options=options(number), tcp=number == 1)
            ).database
            for number in (1, 2)
        )
        with Connection.open(main) as source:
            source.execute("RESET MASTER")
        with Connection.open(replica) as follower:
            follower.execute("RESET MASTER")
            follower.execute("SET GLOBAL gtid_slave_pos = ''")
            follower.execute(
                f"CHANGE MASTER TO master_host = '127.0.0.1', master_port = {main.port}, master_user = '{main.user}', "
                f"master_password = '{main.password()}', master_use_gtid = slave_pos, master_connect_retry = 1"
            )
            follower.execute("START SLAVE")
            follower.execute("SET SESSION gtid_domain_id = 7")
            follower.execute("CREATE DATABASE delta")
        made = Pair(main=main, replica=replica, delta=replace(replica, database="delta"))
        main_session, delta, _ = made.sessions()
        install_main(main_session)
        install_delta(delta)
        yield made
        for session in made.opened:
            session.close()


def slave_status(replica: Database) -> dict[str, str]:
    with Connection.open(replica) as follower:
        cursor = follower.raw.cursor()
        cursor.execute("SHOW SLAVE STATUS")
        return dict(zip((column[0] for column in cursor.description), cursor.fetchone(), strict=True))


class Engines:
    """Threads that make calls, each with a ledger of its own, until they are stopped."""

    def __init__(self, pair: Pair) -> None:
        self.stop = threading.Event()
        self.charged: dict[str, Decimal] = {}
        self.waits: list[float] = []
        self.errors: list[BaseException] = []
        self.threads = [
            threading.Thread(target=self._work, args=(pair, site, number)) for site in Site for number in range(2)
        ]
        self.auditor = threading.Thread(target=self._audit, args=(pair,))

    def _work(self, pair: Pair, site: Site, number: int) -> None:
        try:
            ledger, turn = pair.ledger(site), 0
            while not self.stop.is_set():
                turn += 1
                name, account = f"{site}-{number}-{turn}", f"a{turn % ACCOUNTS}"
                begun = time.monotonic()
                grant = ledger.authorize(account, call=name, price=PRICE, at_most=7)
                self.waits.append(time.monotonic() - begun)
                if not grant.seconds:
                    continue
                if turn % 5 == 0:
                    ledger.release(name)
                    continue
                if turn % 3 == 0:  # a longer call, which asks again
                    grant = ledger.authorize(account, call=name, price=PRICE, at_most=11)
                record = xdr(name, grant.seconds, account)
                ledger.charge(record)
                self.charged[record.id] = record.amount
                if turn % 4 == 0:
                    assert ledger.charge(record) is Answer.REPEATED
        except BaseException as error:
            self.errors.append(error)

    def _audit(self, pair: Pair) -> None:
        try:
            main, delta, _ = pair.sessions()
            while not self.stop.is_set():
                assert audit_main(main) == []
                assert audit_delta(delta) == []
                time.sleep(0.02)
        except BaseException as error:
            self.errors.append(error)

    def __enter__(self) -> Engines:
        for thread in (*self.threads, self.auditor):
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        for thread in (*self.threads, self.auditor):
            thread.join()

    def make(self, calls: int) -> None:
        """Wait until so many more calls are charged."""
        until, goal = time.monotonic() + 60, len(self.charged) + calls
        while len(self.charged) < goal and not self.errors and time.monotonic() < until:
            time.sleep(0.01)


def test_engines_on_both_sites_never_stop(pair: Pair) -> None:
    main, delta, base = pair.sessions()
    ledger = MainLedger(main)
    for number in range(ACCOUNTS):
        ledger.open_account(f"a{number}", credit_limit=LIMIT)
    with Engines(pair) as engines:
        engines.make(30)
        for run in ("r1", "r2"):
            fence = 1 if run == "r1" else 2
            alone.enter(run, fence, main=main, delta=delta, base=base)
            engines.make(40)
            sync = Synchronisation(run, fence, main=main, delta=delta, batch=7)
            sync.lock()
            engines.make(10)
            switched = sync.switch()
            assert switched.beyond == ()
            engines.make(10)
            sync.transfer()
            assert sync.close().xdrs > 0  # how many, is a matter of who was quicker
    assert engines.errors == []
    posted = {name: main.take(amount) for name, amount in main.rows("SELECT id, amount FROM ledger_xdrs")}
    assert posted == engines.charged
    assert sum(ledger.account(f"a{number}").effective for number in range(ACCOUNTS)) == sum(posted.values())
    assert audit_main(main) == []
    print(f"\n{len(posted)} calls, longest wait for a grant {max(engines.waits) * 1000:.0f} ms")


def test_delta_writes_leave_the_replica_fit_to_follow(pair: Pair) -> None:
    main, delta, base = pair.sessions()
    MainLedger(main).open_account("alice", credit_limit=Decimal(100))
    alone.enter("r1", 1, main=main, delta=delta, base=base)
    ledger = pair.ledger(Site.SECONDARY)
    ledger.authorize("alice", call="c1", price=PRICE)
    ledger.charge(xdr("c1", 60))
    with Connection.open(pair.replica) as follower:
        follower.execute("STOP SLAVE")
        position = follower.one("SELECT @@gtid_slave_pos, @@gtid_binlog_pos")
        assert position is not None
        assert "7-2-" not in position[0]
        assert "7-2-" in position[1]
        follower.execute("START SLAVE")
    sync = Synchronisation("r1", 1, main=main, delta=delta)
    sync.lock()
    sync.switch()
    sync.transfer()
    sync.close()
    wanted = main.one("SELECT balance, reserved FROM ledger_accounts")
    until = time.monotonic() + 20
    while base.one("SELECT balance, reserved FROM ledger_accounts") != wanted and time.monotonic() < until:
        time.sleep(0.02)
    assert base.one("SELECT balance, reserved FROM ledger_accounts") == wanted
    status = slave_status(pair.replica)
    assert (status["Slave_IO_Running"], status["Slave_SQL_Running"], status["Last_Error"]) == ("Yes", "Yes", "")


def test_a_replica_that_stands_still_keeps_main_open(pair: Pair) -> None:
    main, delta, base = pair.sessions()
    MainLedger(main).open_account("alice", credit_limit=Decimal(100))
    with Connection.open(pair.replica) as follower:
        follower.execute("STOP SLAVE")
        with pytest.raises(GateNotPassed):
            alone.enter("r1", 1, main=main, delta=delta, base=base, patience=0.2)
        assert pair.ledger(Site.SECONDARY).authorize("alice", call="c1", price=PRICE, at_most=60).seconds == 60
        follower.execute("START SLAVE")
    alone.enter("r1", 1, main=main, delta=delta, base=base)
    assert pair.ledger(Site.MAIN).charge(xdr("c1", 60)) is Answer.POSTED
