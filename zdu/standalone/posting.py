"""xDRs of the delta, posted on main: a batch is one transaction there, and a mark here afterwards.

After a crash between the two the batch is read again; main then has its xDRs already, and only the mark is made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal

from core.errors import DatabaseFailed
from core.faults import point
from zdu.standalone import fence as fences
from zdu.standalone.copying import hold_accounts, read_locks
from zdu.standalone.entries import Contradiction, Xdr
from zdu.standalone.rows import XDR, xdr_in, xdr_row
from zdu.standalone.session import Session, marks


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """A batch. `direct`: xDRs that main had been charged with directly. `last`: number of its last xDR."""

    xdrs: int
    direct: int
    last: int


def post_batch(run: str, fence: int, main: Session, delta: Session, *, after: int, size: int) -> Posted | None:
    """Post the next `size` xDRs after the number `after`. None when there are no more."""
    rows = delta.retried(
        lambda: delta.rows(
            f"SELECT {XDR}, seq FROM delta_xdrs WHERE run = %s AND transferred = 0 AND seq > %s ORDER BY seq LIMIT %s",
            (run, after, size),
        )
    )
    if not rows:
        return None
    xdrs = [xdr_in(delta, row) for row in rows]
    first, last = int(rows[0][7]), int(rows[-1][7])
    point("sync:post")
    direct = main.transaction(lambda: _post(run, fence, main, xdrs))
    point("sync:posted")
    delta.transaction(lambda: _mark(run, fence, delta, first, last))
    point("sync:marked")
    return Posted(xdrs=len(xdrs), direct=direct, last=last)


def _post(run: str, fence: int, main: Session, xdrs: list[Xdr]) -> int:
    """One transaction on main: xDRs, adjustments, balances and locks. Returns how many were there already, charged
    directly: those only release their lock.
    """
    fences.require(main, "ledger_state", fence)
    there = _there(main, [xdr.id for xdr in xdrs])
    contradictions = [xdr.id for xdr in xdrs if xdr.id in there and there[xdr.id][0] != xdr]
    if contradictions:
        raise Contradiction(
            f"{len(contradictions)} xDRs were charged on both sites, with different content",
            what=[f"xDR {name}" for name in contradictions[:10]],
            state="this batch was not posted; its funds stay locked on main",
            next="compare ledger_xdrs on main with delta_xdrs, and correct the wrong one by hand",
        )
    fresh = [xdr for xdr in xdrs if xdr.id not in there]
    direct = [xdr for xdr in xdrs if xdr.id in there and there[xdr.id][1] != run]
    if not fresh and not direct:
        return 0
    _balance(run, main, fresh, direct)
    rows = [(*xdr_row(main, xdr), run) for xdr in fresh]
    main.insert("ledger_xdrs", f"{XDR}, origin", rows)
    charges = [(xdr.account, main.put(xdr.amount), "charge", xdr.id, run) for xdr in fresh]
    main.insert("ledger_adjustments", "account, amount, kind, xdr, origin", charges)
    if direct:
        names = [xdr.id for xdr in direct]
        main.execute(f"UPDATE ledger_xdrs SET origin = %s WHERE id IN {marks(names)}", (run, *names))
        main.execute(
            f"UPDATE ledger_adjustments SET origin = %s WHERE kind = 'charge' AND xdr IN {marks(names)}", (run, *names)
        )
    return len(direct)


def _balance(run: str, main: Session, fresh: list[Xdr], direct: list[Xdr]) -> None:
    """Move the sums from the locks to the balances; of those that were charged directly only the lock goes."""
    charged: defaultdict[str, Decimal] = defaultdict(Decimal)
    released: defaultdict[str, Decimal] = defaultdict(Decimal)
    for xdr in fresh:
        charged[xdr.account] += xdr.amount
    for xdr in (*fresh, *direct):
        released[xdr.account] += xdr.amount
    names = sorted(released)
    accounts, locks = hold_accounts(main, names), read_locks(main, run, names)
    short = [name for name in names if locks.get(name, Decimal(0)) < released[name]]
    if short:
        raise DatabaseFailed(
            f"less is locked for {len(short)} accounts than was charged",
            what=[f"{name}: locked {locks.get(name, Decimal(0))}, to post {released[name]}" for name in short[:10]],
            state="this batch was not posted",
            next="somebody wrote ledger_locks or delta_xdrs by hand: correct that, and go on",
        )
    rows = []
    for name in names:
        balance, _, _, locked = accounts[name]
        rows.append((name, main.put(balance + charged[name]), main.put(locked - released[name])))
    main.replace("ledger_accounts", "id, balance, locked", "id", rows)
    main.replace(
        "ledger_locks",
        "run, account, amount",
        "run, account",
        [(run, name, main.put(locks[name] - released[name])) for name in names],
    )


def _there(main: Session, names: list[str]) -> dict[str, tuple[Xdr, str]]:
    """Those of the xDRs that main has, each with where it was charged."""
    rows = main.rows(f"SELECT {XDR}, origin FROM ledger_xdrs WHERE id IN {marks(names)}", names)
    return {row[0]: (xdr_in(main, row), str(row[7])) for row in rows}


def _mark(run: str, fence: int, delta: Session, first: int, last: int) -> None:
    """The xDRs of a run are a fixed set once it is switched, so a range of numbers names the batch."""
    fences.require(delta, "delta_state", fence)
    delta.execute(
        "UPDATE delta_xdrs SET transferred = 1 WHERE run = %s AND transferred = 0 AND seq BETWEEN %s AND %s",
        (run, first, last),
    )
