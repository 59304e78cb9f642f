"""Two sites in miniature: a main database, its replica, a delta database, and ledgers on all of them."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from core import faults
from core.sql import Database
from zdu.standalone import alone
from zdu.standalone.audit import Sums, audit_delta, audit_main
from zdu.standalone.delta import DeltaLedger
from zdu.standalone.entries import Answer, Grant, Xdr
from zdu.standalone.ledger import Ledger, Site
from zdu.standalone.main import MainLedger
from zdu.standalone.schema import install_delta, install_main
from zdu.standalone.session import Session
from zdu.standalone.sync import Synchronisation

NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
PRICE = Decimal("0.10")


@dataclass
class World:
    """`base`: the replica. The main database itself stands for one that never lags; an SQLite file is copied."""

    main: Database
    delta: Database
    base: Database
    patience: float = 5.0
    batch: int = 1000
    lease: float = 5.0
    open: dict[tuple[Any, ...], Session] = field(default_factory=dict)

    def installed(self) -> World:
        """Make the tables."""
        install_main(self.session(self.main))
        install_delta(self.session(self.delta))
        self.replicate()
        return self

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        faults.arm(None)
        self.close()

    def close(self) -> None:
        """Close all sessions."""
        while self.open:
            self.open.popitem()[1].close()

    def session(self, database: Database, **options: Any) -> Session:
        """A session that is closed with the world, and shared by all who ask for the same."""
        key = (database, *sorted(options.items()))
        if key not in self.open:
            self.open[key] = Session(database, patience=self.patience, **options)
        return self.open[key]

    def again(self) -> World:
        """The same databases, with sessions of its own: for another thread or process."""
        return replace(self, open={})

    def replicate(self) -> None:
        """Bring an SQLite replica up to date."""
        if self.base != self.main:
            assert self.main.path and self.base.path
            with closing(sqlite3.connect(self.main.path)) as source, closing(sqlite3.connect(self.base.path)) as to:
                source.backup(to)

    def ledger(self, site: Site = Site.SECONDARY, patience: float = 0.0) -> Ledger:
        """What an engine on the site holds, with connections of its own."""
        return Ledger(site=site, main=self.main_ledger(), delta=self.delta_ledger(), patience=patience)

    def main_ledger(self) -> MainLedger:
        return MainLedger(self.session(self.main))

    def delta_ledger(self) -> DeltaLedger:
        return DeltaLedger(self.session(self.delta), self.session(self.base, read_only=True))

    @contextmanager
    def replicating(self) -> Iterator[None]:
        """Whoever waits for the replica finds it up to date."""
        faults.arm(lambda name: self.replicate() if name == "standalone:await-replica" else None)
        yield
        faults.arm(None)

    def enter(self, run: str = "r1", fence: int = 1, patience: float = 5.0) -> None:
        """Into stand-alone mode."""
        with self.replicating():
            self.enter_without_replication(run, fence, patience)

    def enter_without_replication(self, run: str = "r1", fence: int = 1, patience: float = 5.0) -> None:
        main, delta, base = self.session(self.main), self.session(self.delta), self.session(self.base, read_only=True)
        alone.enter(run, fence, main=main, delta=delta, base=base, patience=patience)

    def enter_alone(self, run: str = "r1", fence: int = 1) -> None:
        """Into stand-alone mode, with the main site gone."""
        alone.enter(run, fence, main=None, delta=self.session(self.delta), base=self.session(self.base, read_only=True))

    def sync(self, run: str = "r1", fence: int = 1) -> Synchronisation:
        """A controller's hold on the run."""
        main, delta = self.session(self.main), self.session(self.delta)
        return Synchronisation(run, fence, main=main, delta=delta, batch=self.batch, lease=self.lease)

    def leave(self, run: str = "r1", fence: int = 1) -> Sums:
        """All of the synchronisation."""
        sync = self.sync(run, fence)
        sync.lock()
        sync.switch()
        sync.transfer()
        return sync.close()

    def audit(self) -> list[str]:
        """Everything that is wrong on either side."""
        return audit_main(self.session(self.main)) + audit_delta(self.session(self.delta))

    def charges(self) -> dict[str, Decimal]:
        """Every xDR that was ever charged, with its amount, wherever it is."""
        main, delta = self.session(self.main), self.session(self.delta)
        rows = delta.retried(lambda: delta.rows("SELECT id, amount FROM delta_xdrs"))
        here = {name: delta.take(amount) for name, amount in rows}
        rows = main.retried(lambda: main.rows("SELECT id, amount FROM ledger_xdrs"))
        there = {name: main.take(amount) for name, amount in rows}
        assert all(there[name] == here[name] for name in here.keys() & there.keys())
        return here | there


def call(ledger: Any, name: str, seconds: int, account: str = "alice", price: Decimal = PRICE) -> tuple[Grant, Answer]:
    """A call from its authorization to its charge."""
    grant = ledger.authorize(account, call=name, price=price)
    return grant, ledger.charge(xdr(name, seconds, account, price))


def xdr(name: str, seconds: int, account: str = "alice", price: Decimal = PRICE) -> Xdr:
    """The record of the call of that name."""
    return Xdr.of_call(f"x-{name}", call=name, account=account, price=price, seconds=seconds, started=NOON)
