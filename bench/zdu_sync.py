"""How fast the delta of a site that was on its own is posted on the main database: one MariaDB, as it ships its
durability, holds both.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

from core.sql import Connection, Database, Engine
from migrations.scratch import scratch
from zdu.standalone import alone
from zdu.standalone.entries import Xdr
from zdu.standalone.main import MainLedger
from zdu.standalone.rows import XDR, xdr_row
from zdu.standalone.schema import install_delta, install_main
from zdu.standalone.session import Session, parts
from zdu.standalone.sync import Synchronisation

PRICE = Decimal("0.10")
NOON = datetime(2026, 11, 21, 12, tzinfo=UTC)
DETAIL = '{"from": "+4315550100", "to": "+4315550199", "codec": "PCMA", "cause": 16}'


def measure_sync(xdrs: int = 40_000, accounts: int = 2_000, place: Path | None = None) -> float:
    """xDRs posted per second, marking them on the delta included. Prints nothing. `place`: where the server's directory
    is made.
    """
    with scratch(Engine.MARIADB, place) as main_database:
        with Connection.open(main_database) as admin:
            admin.execute("CREATE DATABASE delta")
        return _measure(main_database, replace(main_database, database="delta"), xdrs, accounts)


def _measure(main_database: Database, delta_database: Database, xdrs: int, accounts: int) -> float:
    with Session(main_database) as main, Session(delta_database) as delta, Session(main_database) as base:
        install_main(main)
        install_delta(delta)
        _accounts(main, accounts)
        alone.enter("bench", 1, main=main, delta=delta, base=base)
        amount = _charges(delta, xdrs, accounts)
        sync = Synchronisation("bench", 1, main=main, delta=delta)
        sync.lock()
        sync.switch()
        begun = time.perf_counter()
        sync.transfer()
        seconds = time.perf_counter() - begun
        sums = sync.close()
        if (sums.xdrs, sums.amount) != (xdrs, amount):
            raise RuntimeError(f"{sums.xdrs} xDRs came to {sums.amount}, not {xdrs} to {amount}")
        if MainLedger(main).account(_name(0)).locked:
            raise RuntimeError("locks are left")
        return xdrs / seconds


def _name(number: int) -> str:
    return f"+431555{number % 1_000_000:06d}"


def _accounts(main: Session, accounts: int) -> None:
    rows = [(_name(number), main.put(Decimal(1_000_000))) for number in range(accounts)]
    for part in parts(rows):
        main.insert("ledger_accounts", "id, credit_limit", part)


def _charges(delta: Session, xdrs: int, accounts: int) -> Decimal:
    """What engines would have charged, written many rows at a time. Returns the sum."""
    total, charged = Decimal(0), [Decimal(0)] * accounts
    for first in range(0, xdrs, 1000):
        made = [_xdr(number, number * 7919 % accounts) for number in range(first, min(first + 1000, xdrs))]
        for number, xdr in enumerate(made, first):
            charged[number * 7919 % accounts] += xdr.amount
            total += xdr.amount
        delta.insert("delta_xdrs", f"{XDR}, run, transferred", [(*xdr_row(delta, xdr), "bench", 0) for xdr in made])
        adjustments = [(xdr.id, "bench", xdr.account, delta.put(xdr.amount)) for xdr in made]
        delta.insert("delta_adjustments", "xdr, run, account, amount", adjustments)
    rows = [("bench", _name(number), delta.put(amount), 1) for number, amount in enumerate(charged) if amount]
    delta.insert("delta_accounts", "run, account, charged, changes", rows)
    return total


def _xdr(number: int, account: int) -> Xdr:
    # Identifiers of real switches come in no order.
    scrambled = number * 2_654_435_761 % 2**32
    return Xdr.of_call(
        f"{scrambled:08x}-{number}@sbc1",
        call=f"{scrambled:08x}-{number}",
        account=_name(account),
        price=PRICE,
        seconds=1 + number % 1800,
        started=NOON,
        detail=DETAIL,
    )
