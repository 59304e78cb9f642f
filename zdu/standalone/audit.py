"""The sums that must hold, looked at: on main at every moment, on the delta at every moment, and between the two when
all is transferred. Each look is one snapshot of a database, so it may be taken while others charge.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from core.errors import DatabaseFailed
from zdu.standalone.session import Session

#: Differences named at most.
_MOST: Final = 10


class SumsDiffer(DatabaseFailed):
    """The two sides of a synchronisation, or the tables of a ledger, do not hold together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """What a run came to."""

    xdrs: int
    amount: Decimal
    accounts: int


#: What is wrong, and the query that finds it: rows (what, found, wanted). `{run}` is bound where it stands.
_MAIN: Final = (
    (
        "balance is not the sum of the adjustments of account",
        "SELECT a.id, a.balance, coalesce(j.total, 0) FROM ledger_accounts a LEFT JOIN "
        "(SELECT account, sum(amount) AS total FROM ledger_adjustments GROUP BY account) j ON j.account = a.id "
        "WHERE a.balance <> coalesce(j.total, 0)",
    ),
    (
        "an xDR without an adjustment that charges it:",
        "SELECT x.id, x.amount, coalesce(j.amount, 0) FROM ledger_xdrs x LEFT JOIN ledger_adjustments j "
        "ON j.kind = 'charge' AND j.xdr = x.id WHERE j.xdr IS NULL OR j.amount <> x.amount OR j.account <> x.account",
    ),
    (
        "an adjustment without its xDR:",
        "SELECT j.xdr, j.amount, 0 FROM ledger_adjustments j LEFT JOIN ledger_xdrs x ON x.id = j.xdr "
        "WHERE j.kind = 'charge' AND x.id IS NULL",
    ),
    (
        "reserved is not the sum of the reservations of account",
        "SELECT a.id, a.reserved, coalesce(r.total, 0) FROM ledger_accounts a LEFT JOIN "
        "(SELECT account, sum(amount) AS total FROM ledger_reservations GROUP BY account) r ON r.account = a.id "
        "WHERE a.reserved <> coalesce(r.total, 0)",
    ),
    (
        "locked is not the sum of the locks of account",
        "SELECT a.id, a.locked, coalesce(l.total, 0) FROM ledger_accounts a LEFT JOIN "
        "(SELECT account, sum(amount) AS total FROM ledger_locks GROUP BY account) l ON l.account = a.id "
        "WHERE a.locked <> coalesce(l.total, 0)",
    ),
    (
        "beyond its credit limit: account",
        "SELECT id, balance + reserved + locked, credit_limit FROM ledger_accounts "
        "WHERE balance + reserved + locked > credit_limit",
    ),
)
_DELTA: Final = (
    (
        "charged is not the sum of the xDRs of account",
        "SELECT a.account, a.charged, coalesce(x.total, 0) FROM delta_accounts a LEFT JOIN "
        "(SELECT run, account, sum(amount) AS total FROM delta_xdrs GROUP BY run, account) x "
        "ON x.run = a.run AND x.account = a.account WHERE a.charged <> coalesce(x.total, 0)",
    ),
    (
        "an xDR without an adjustment that charges it:",
        "SELECT x.id, x.amount, coalesce(j.amount, 0) FROM delta_xdrs x LEFT JOIN delta_adjustments j ON j.xdr = x.id "
        "WHERE j.xdr IS NULL OR j.amount <> x.amount OR j.account <> x.account OR j.run <> x.run",
    ),
    (
        "an adjustment without its xDR:",
        "SELECT j.xdr, j.amount, 0 FROM delta_adjustments j LEFT JOIN delta_xdrs x ON x.id = j.xdr WHERE x.id IS NULL",
    ),
    (
        "reserved is not the sum of the reservations of account",
        "SELECT a.account, a.reserved, coalesce(r.total, 0) FROM delta_accounts a "
        "JOIN delta_runs u ON u.run = a.run AND u.state = 'open' LEFT JOIN "
        "(SELECT run, account, sum(amount) AS total FROM delta_reservations GROUP BY run, account) r "
        "ON r.run = a.run AND r.account = a.account WHERE a.reserved <> coalesce(r.total, 0)",
    ),
)


def audit_main(session: Session) -> list[str]:
    """What does not hold on main, one line each; none in a ledger that only this package wrote."""
    return session.snapshot(lambda: _look(session, _MAIN))


def audit_delta(session: Session) -> list[str]:
    """What does not hold on the delta database, one line each."""
    return session.snapshot(lambda: _look(session, _DELTA))


def _look(session: Session, checks: tuple[tuple[str, str], ...]) -> list[str]:
    found = []
    for what, query in checks:
        for name, is_now, wanted in session.rows(f"{query} LIMIT {_MOST}"):
            found.append(f"{what} {name}: {session.take(is_now)}, not {session.take(wanted)}")
    return found


def compare(run: str, main: Session, delta: Session) -> Sums:
    """Compare both sides of a run whose xDRs are transferred. Raises SumsDiffer naming every difference."""
    here = delta.snapshot(lambda: _delta_sums(run, delta))
    there = main.snapshot(lambda: _main_sums(run, main))
    faults = [f"{name}: {value} on the delta" for name, value in here.items() if name.startswith("not ") and value]
    faults += [f"{name}: {value} on main" for name, value in there.items() if name.startswith("not ") and value]
    for name in ("xDRs", "sum of the xDRs", "adjustments", "sum of the adjustments"):
        if here[name] != there[name]:
            faults.append(f"{name}: {here[name]} on the delta, {there[name]} on main")
    if here["sum of the xDRs"] != here["charged"]:
        faults.append(f"charged {here['charged']} on the delta, its xDRs come to {here['sum of the xDRs']}")
    faults += [f"on the delta: {line}" for line in audit_delta(delta)]
    if faults:
        raise SumsDiffer(
            f"run {run} does not add up",
            what=faults,
            state="nothing was changed; the run stays open",
            next="transfer again; what is still named then was written by hand",
        )
    return Sums(xdrs=int(here["xDRs"]), amount=here["sum of the xDRs"], accounts=int(here["accounts"]))


def _delta_sums(run: str, delta: Session) -> dict[str, Decimal]:
    return {
        **_counted(delta, "xDRs", "delta_xdrs WHERE run = %s", run),
        **_counted(delta, "adjustments", "delta_adjustments WHERE run = %s", run),
        "not transferred": _number(delta, "SELECT count(*) FROM delta_xdrs WHERE run = %s AND transferred = 0", run),
        "not copied": _number(delta, "SELECT count(*) FROM delta_accounts WHERE run = %s AND changes <> copied", run),
        "accounts": _number(delta, "SELECT count(*) FROM delta_accounts WHERE run = %s", run),
        "charged": _money(delta, "SELECT sum(charged) FROM delta_accounts WHERE run = %s", run),
    }


def _main_sums(run: str, main: Session) -> dict[str, Decimal]:
    return {
        **_counted(main, "xDRs", "ledger_xdrs WHERE origin = %s", run),
        **_counted(
            main,
            "adjustments",
            "ledger_adjustments j JOIN ledger_xdrs x ON x.id = j.xdr WHERE j.kind = 'charge' AND x.origin = %s",
            run,
            "j.amount",
        ),
        "not released": _money(main, "SELECT sum(amount) FROM ledger_locks WHERE run = %s", run),
    }


def _counted(session: Session, name: str, rest: str, run: str, column: str = "amount") -> dict[str, Decimal]:
    return {
        name: _number(session, f"SELECT count(*) FROM {rest}", run),
        f"sum of the {name}": _money(session, f"SELECT sum({column}) FROM {rest}", run),
    }


def _number(session: Session, query: str, run: str) -> Decimal:
    row = session.one(query, (run,))
    return Decimal(int(row[0])) if row else Decimal(0)


def _money(session: Session, query: str, run: str) -> Decimal:
    row = session.one(query, (run,))
    return session.take(row[0]) if row else Decimal(0)
