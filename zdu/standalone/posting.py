"""xDRs of the delta, posted on main: a batch is one transaction there, and a mark here afterwards.

After a crash between the two the batch is read again; main then has its xDRs already, and only the mark is made.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeAlias

from core.errors import DatabaseFailed
from core.faults import point
from core.sql import SqlError
from zdu.standalone import fence as fences
from zdu.standalone.entries import Contradiction, Xdr
from zdu.standalone.rows import XDR, row_of, xdr_in
from zdu.standalone.session import DUPLICATE, ROWS, Session, marks

#: Rows of the columns `XDR`, as main stores them.
Rows: TypeAlias = list[tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """A batch. `direct`: xDRs that main had been charged with directly. `last`: number of its last xDR."""

    xdrs: int
    direct: int
    last: int


def post_batch(run: str, fence: int, main: Session, delta: Session, *, after: int, size: int) -> Posted | None:
    """Post the next `size` (at most `ROWS`) xDRs after the number `after`. None when there are no more."""
    rows = delta.retried(
        lambda: delta.rows(
            f"SELECT {XDR}, seq FROM delta_xdrs WHERE run = %s AND transferred = 0 AND seq > %s ORDER BY seq LIMIT %s",
            (run, after, min(size, ROWS)),
        )
    )
    if not rows:
        return None
    first, last = int(rows[0][7]), int(rows[-1][7])
    batch = [row_of(delta, main, row) for row in rows]
    point("sync:post")
    direct = main.transaction(lambda: _post(run, fence, main, batch))
    point("sync:posted")
    delta.transaction(lambda: _mark(run, fence, delta, first, last))
    point("sync:marked")
    return Posted(xdrs=len(rows), direct=direct, last=last)


def _post(run: str, fence: int, main: Session, batch: Rows) -> int:
    """One transaction on main: xDRs, adjustments, balances and locks. Returns how many were there already, charged
    directly: those only release their lock.
    """
    fences.require(main, "ledger_state", fence)
    direct: Rows = []
    fresh = batch
    try:
        _insert(run, main, fresh)
    except SqlError as error:  # the statement left nothing, the transaction goes on
        if error.code not in DUPLICATE:
            raise
        fresh, direct = _sorted_out(run, main, batch)
        _insert(run, main, fresh)
    if fresh:
        names = [row[0] for row in fresh]
        main.execute(
            "INSERT INTO ledger_adjustments (account, amount, kind, xdr, origin) "
            f"SELECT account, amount, 'charge', id, origin FROM ledger_xdrs WHERE id IN {marks(names)}",
            names,
        )
    if fresh or direct:
        _balance(run, main, fresh, direct)
    if direct:
        names = [row[0] for row in direct]
        main.execute(f"UPDATE ledger_xdrs SET origin = %s WHERE id IN {marks(names)}", (run, *names))
        main.execute(
            f"UPDATE ledger_adjustments SET origin = %s WHERE kind = 'charge' AND xdr IN {marks(names)}", (run, *names)
        )
    return len(direct)


def _insert(run: str, main: Session, rows: Rows) -> None:
    """All in one statement: it inserts all or none."""
    main.insert("ledger_xdrs", f"{XDR}, origin", [(*row, run) for row in rows])


def _sorted_out(run: str, main: Session, batch: Rows) -> tuple[Rows, Rows]:
    """Those that are not on main, and those that main was charged with directly; without those posted before. Raises
    Contradiction where main has one with other content.
    """
    there = _there(main, [row[0] for row in batch])
    wrong = [row[0] for row in batch if row[0] in there and there[row[0]][0] != xdr_in(main, row)]
    if wrong:
        raise Contradiction(
            f"{len(wrong)} xDRs were charged on both sites, with different content",
            what=[f"xDR {name}" for name in wrong[:10]],
            state="this batch was not posted; its funds stay locked on main",
            next="compare ledger_xdrs on main with delta_xdrs, and correct the wrong one by hand",
        )
    fresh = [row for row in batch if row[0] not in there]
    return fresh, [row for row in batch if row[0] in there and there[row[0]][1] != run]


def _balance(run: str, main: Session, fresh: Rows, direct: Rows) -> None:
    """Move the sums from the locks to the balances; of those that were charged directly only the lock goes."""
    charged: defaultdict[str, Decimal] = defaultdict(Decimal)
    released: defaultdict[str, Decimal] = defaultdict(Decimal)
    for row in fresh:
        charged[row[1]] += main.take(row[3])
    for row in (*fresh, *direct):
        released[row[1]] += main.take(row[3])
    names = sorted(released)
    found = main.rows(
        "SELECT a.id, a.balance, a.locked, l.amount FROM ledger_accounts a "
        "JOIN ledger_locks l ON l.run = %s AND l.account = a.id "
        f"WHERE a.id IN {marks(names)} ORDER BY a.id{main.locked}",
        (run, *names),
    )
    here = {row[0]: (main.take(row[1]), main.take(row[2]), main.take(row[3])) for row in found}
    short = [name for name in names if name not in here or here[name][2] < released[name]]
    if short:
        raise DatabaseFailed(
            f"less is locked for {len(short)} accounts than was charged",
            what=[f"{name}: {released[name]} to post, locked is less" for name in short[:10]],
            state="this batch was not posted",
            next="somebody wrote the ledger's tables by hand: correct that, and go on",
        )
    accounts, locks = [], []
    for name in names:
        balance, locked, lock = here[name]
        accounts.append((name, main.put(balance + charged[name]), main.put(locked - released[name])))
        locks.append((run, name, main.put(lock - released[name])))
    main.replace("ledger_accounts", "id, balance, locked", "id", accounts)
    main.replace("ledger_locks", "run, account, amount", "run, account", locks)


def _there(main: Session, names: list[str]) -> dict[str, tuple[Xdr, str]]:
    """Those of the xDRs that main has, each with where it was charged."""
    rows = main.rows(f"SELECT {XDR}, origin FROM ledger_xdrs WHERE id IN {marks(names)}", names)
    return {row[0]: (xdr_in(main, row), row[7]) for row in rows}


def _mark(run: str, fence: int, delta: Session, first: int, last: int) -> None:
    """The xDRs of a run are a fixed set once it is switched, so a range of numbers names the batch."""
    fences.require(delta, "delta_state", fence)
    delta.execute(
        "UPDATE delta_xdrs SET transferred = 1 WHERE run = %s AND transferred = 0 AND seq BETWEEN %s AND %s",
        (run, first, last),
    )
