"""The ledger of a site that is on its own: it reads the accounts from a replica of the main database, which it never
writes, and keeps what it reserves and charges in a delta database.

The main ledger is closed meanwhile, so the replica stands still and is exact; to what it says the delta is added. A
call that was authorized on the main database and ends (or asks for more) here is *taken* over: what the main database
holds for it no longer counts, what the delta holds does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final, TypeVar

from zdu.standalone.entries import (
    DAY,
    Answer,
    Contradiction,
    Grant,
    NotHere,
    Xdr,
    beyond,
    grant_of,
    identifier,
    no_account,
    repeated,
    require_same_call,
    whole,
)
from zdu.standalone.money import money
from zdu.standalone.rows import RESERVATION, XDR, grant_in, reservation_row, xdr_in, xdr_row
from zdu.standalone.session import Session

T = TypeVar("T")
_ZERO: Final = Decimal(0)


class Mode(StrEnum):
    """Who charges. It stands in the state row of the delta database, which every transaction holds against change."""

    NORMAL = "normal"  # the main ledger
    STANDALONE = "standalone"  # this one
    SWITCHING = "switching"  # nobody, for some milliseconds: the last changes are copied


@dataclass(slots=True, kw_only=True)
class _Standing:
    """An account for one transaction. `base`: what the replica counts against `limit`, calls taken over left out."""

    account: str
    run: str
    limit: Decimal
    base: Decimal
    charged: Decimal
    reserved: Decimal
    earlier: Decimal
    own_here: Grant | None
    own_there: Grant | None

    @property
    def own(self) -> Grant | None:
        return self.own_here or self.own_there

    @property
    def available(self) -> Decimal:
        """What is free for the call, all that it holds included."""
        held = self.own.amount if self.own else _ZERO
        return self.limit - self.base - self.earlier - self.charged - self.reserved + held


class DeltaLedger:
    """Authorizes and charges while the site is on its own (raises NotHere while it is not).

    `delta`: the delta database. `base`: the replica, opened read-only. Methods as those of `MainLedger`.
    """

    def __init__(self, delta: Session, base: Session) -> None:
        self.session = delta
        self.base = base

    def mode(self) -> Mode:
        """Who charges at the moment."""
        row = self.session.retried(lambda: self.session.one("SELECT mode FROM delta_state WHERE id = 1"))
        return Mode(row[0]) if row else Mode.NORMAL

    def authorize(self, account: str, *, call: str, price: Decimal, at_most: int = DAY) -> Grant:
        """As `MainLedger.authorize`."""
        identifier(account, "account")
        identifier(call, "call")
        price, at_most = money(price, "price", least=_ZERO), whole(at_most, "at_most")
        session = self.session

        def work() -> Grant:
            stand = self._hold(account, call)
            require_same_call(stand.own, account, price)
            grant = grant_of(call, account, price, stand.available, at_most, stand.own)
            if grant == stand.own or not grant.seconds:
                return grant
            if stand.own_here is None:
                session.insert(
                    "delta_reservations",
                    f"{RESERVATION}, run",
                    [(*reservation_row(session, grant), stand.run)],
                )
            else:
                session.execute(
                    "UPDATE delta_reservations SET amount = %s, seconds = %s WHERE call_id = %s",
                    (session.put(grant.amount), grant.seconds, call),
                )
            held = stand.own_here.amount if stand.own_here else _ZERO
            self._take(stand)
            self._write(stand, charged=stand.charged, reserved=stand.reserved - held + grant.amount)
            return grant

        return self._transaction(work)

    def charge(self, xdr: Xdr) -> Answer:
        """As `MainLedger.charge`."""
        session = self.session

        def work() -> Answer:
            stand = self._hold(xdr.account, xdr.call)
            before = self.find(xdr.id) or self._on_main(xdr.id)
            if before is not None:
                return repeated(before, xdr)
            require_same_call(stand.own, xdr.account)
            if xdr.amount > (stand.own.amount if stand.own else _ZERO) and xdr.amount > stand.available:
                raise beyond(xdr, stand.available)
            session.insert("delta_xdrs", f"{XDR}, run, transferred", [(*xdr_row(session, xdr), stand.run, 0)])
            session.insert(
                "delta_adjustments",
                "xdr, run, account, amount",
                [(xdr.id, stand.run, xdr.account, session.put(xdr.amount))],
            )
            self._end(stand, xdr.call, xdr.amount)
            return Answer.POSTED

        return self._transaction(work)

    def release(self, call: str) -> bool:
        """As `MainLedger.release`."""

        def work() -> bool:
            self._require_standalone()
            account = self._account_of(call)
            if account is None:
                return False
            stand = self._hold(account, call)
            if stand.own is None:
                return False
            self._end(stand, call, _ZERO)
            return True

        return self._transaction(work)

    def find(self, xdr: str) -> Xdr | None:
        """The xDR, when it is in the delta database; transferred ones are kept there too."""
        row = self.session.one(f"SELECT {XDR} FROM delta_xdrs WHERE id = %s", (xdr,))
        return xdr_in(self.session, row) if row else None

    def _on_main(self, xdr: str) -> Xdr | None:
        """The xDR, when it was charged on the main database before the site was on its own."""
        row = self.base.retried(lambda: self.base.one(f"SELECT {XDR} FROM ledger_xdrs WHERE id = %s", (xdr,)))
        return xdr_in(self.base, row) if row else None

    def _transaction(self, work: Callable[[], T]) -> T:
        try:
            return self.session.transaction(work)
        except NotHere:
            if not self._reverted():
                raise
        return self.session.transaction(work)

    def _reverted(self) -> bool:
        """Where a switch was begun and then left (its controller died), the site is on its own again. The switch goes
        on from SWITCHING only, so this is safe at any moment, whatever the clock says.
        """
        statement = (
            "UPDATE delta_state SET mode = 'standalone' "
            f"WHERE id = 1 AND mode = 'switching' AND until < {now(self.session)}"
        )
        return self.session.retried(lambda: self.session.execute(statement)).changed > 0

    def _require_standalone(self) -> str:
        """The run. Holds the state row against change until the transaction ends."""
        row = self.session.one(f"SELECT mode, run FROM delta_state WHERE id = 1{self.session.shared}")
        if row is None or row[0] != Mode.STANDALONE:
            raise NotHere(
                "the site is not on its own" if row and row[0] == Mode.NORMAL else "the site is just being switched",
                state="nothing was changed",
                next="ask again: the main ledger answers",
            )
        return str(row[1])

    def _hold(self, account: str, call: str) -> _Standing:
        """The account, held against every other transaction on it until this one ends. Raises UnknownAccount."""
        run = self._require_standalone()
        session = self.session
        query = f"SELECT charged, reserved FROM delta_accounts WHERE run = %s AND account = %s{session.locked}"
        row = session.one(query, (run, account))
        if row is None:
            session.insert_missing("delta_accounts", "run, account", "run, account", [(run, account)])
            row = session.one(query, (run, account))
        assert row is not None
        own_here = self._reservation(call, run)
        names = session.rows("SELECT call_id FROM delta_taken WHERE run = %s AND account = %s", (run, account))
        taken = {name for (name,) in names}
        limit, base, open_there = self._read_base(account, run, taken)
        if call and own_here is None and call not in open_there and call not in taken:
            self._require_not_of_another(call, account)
        return _Standing(
            account=account,
            run=run,
            limit=limit,
            base=base,
            charged=session.take(row[0]),
            reserved=session.take(row[1]),
            earlier=self._earlier(account, run),
            own_here=own_here,
            own_there=None if own_here else open_there.get(call),
        )

    def _read_base(self, account: str, run: str, taken: set[str]) -> tuple[Decimal, Decimal, dict[str, Grant]]:
        """Credit limit, what counts against it on the main side, and the main side's calls; in one statement, so that
        it is one moment of the replica. What the synchronisation of this run has copied to main already is left out:
        the delta counts it.
        """
        base = self.base
        rows = base.retried(
            lambda: base.rows(
                "SELECT a.credit_limit, a.balance, a.locked, l.amount, "
                "r.call_id, r.account, r.amount, r.price, r.seconds FROM ledger_accounts a "
                "LEFT JOIN ledger_locks l ON l.run = %s AND l.account = a.id "
                "LEFT JOIN ledger_reservations r ON r.account = a.id AND r.origin <> %s "
                "WHERE a.id = %s",
                (run, run, account),
            )
        )
        if not rows:
            raise no_account(account)
        calls = {row[4]: grant_in(base, row[4:]) for row in rows if row[4] is not None and row[4] not in taken}
        limit, balance, locked, copied = (base.take(value) for value in rows[0][:4])
        return limit, balance + locked - copied + sum((each.amount for each in calls.values()), _ZERO), calls

    def _reservation(self, call: str, run: str) -> Grant | None:
        row = self.session.one(
            f"SELECT {RESERVATION} FROM delta_reservations WHERE call_id = %s AND run = %s", (call, run)
        )
        return grant_in(self.session, row) if row else None

    def _require_not_of_another(self, call: str, account: str) -> None:
        """Main would not take two calls of one name."""
        query = "SELECT account FROM ledger_reservations WHERE call_id = %s"
        row = self.base.retried(lambda: self.base.one(query, (call,)))
        if row is not None and row[0] != account:
            raise Contradiction(
                f"call {call} is one of account {row[0]}, not of {account}",
                state="nothing was changed",
                next="give each call an identifier of its own",
            )

    def _account_of(self, call: str) -> str | None:
        here = self.session.one("SELECT account FROM delta_reservations WHERE call_id = %s", (call,))
        there = here or self.base.retried(
            lambda: self.base.one("SELECT account FROM ledger_reservations WHERE call_id = %s", (call,))
        )
        return str(there[0]) if there else None

    def _earlier(self, account: str, run: str) -> Decimal:
        """Charges of earlier runs that the replica does not know of, neither as a lock nor posted."""
        row = self.session.one(
            "SELECT sum(a.charged + a.reserved) FROM delta_runs r JOIN delta_accounts a ON a.run = r.run "
            "WHERE r.counts = 1 AND r.run <> %s AND a.account = %s",
            (run, account),
        )
        return self.session.take(row[0]) if row else _ZERO

    def _end(self, stand: _Standing, call: str, amount: Decimal) -> None:
        """End the call's reservation, wherever it is, and charge the amount."""
        held = _ZERO
        if stand.own_here is not None:
            held = stand.own_here.amount
            self.session.execute("DELETE FROM delta_reservations WHERE call_id = %s", (call,))
        self._take(stand)
        self._write(stand, charged=stand.charged + amount, reserved=stand.reserved - held)

    def _take(self, stand: _Standing) -> None:
        if stand.own_there is not None:
            row = (stand.run, stand.own_there.call, stand.account)
            self.session.insert("delta_taken", "run, call_id, account", [row])

    def _write(self, stand: _Standing, *, charged: Decimal, reserved: Decimal) -> None:
        self.session.execute(
            "UPDATE delta_accounts SET charged = %s, reserved = %s, changes = changes + 1 "
            "WHERE run = %s AND account = %s",
            (self.session.put(charged), self.session.put(reserved), stand.run, stand.account),
        )


def now(session: Session) -> str:
    """The server's clock in milliseconds, as an expression."""
    if session.is_mariadb:
        return "CAST(UNIX_TIMESTAMP(NOW(6)) * 1000 AS SIGNED)"
    return "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
