"""The ledger on the main database: what holds while the main site is there.

Each account has a credit limit; what counts against it is its *effective balance*: balance (what it owes), what is
reserved for calls under way, and what is locked for charges that were made elsewhere and are still being copied. Only
an authorization, and a charge that goes beyond what was reserved, make it grow; both look at the limit in the same
transaction. So however many calls an account has at the same time, it never goes beyond.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from core.errors import ZduRefused
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

_ZERO: Final = Decimal(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """An account as it stands. `effective` is what counts against `credit_limit`."""

    id: str
    balance: Decimal
    credit_limit: Decimal
    reserved: Decimal
    locked: Decimal

    @property
    def effective(self) -> Decimal:
        """Owed, held for calls under way, and locked for charges that are still being copied."""
        return self.balance + self.reserved + self.locked


class MainLedger:
    """Authorizes and charges on the main database, while that is open (raises NotHere while it is closed).

    Every method is one transaction, safe to repeat. Raises SqlError when the database fails for longer than the
    session's patience.
    """

    def __init__(self, session: Session) -> None:
        self.session = session

    def open_account(self, account: str, *, credit_limit: Decimal, balance: Decimal = _ZERO) -> None:
        """Add an account. The same again has no effect; Contradiction when it is there with another limit. ZduRefused
        when it would begin beyond its limit.
        """
        identifier(account, "account")
        limit, owed = money(credit_limit, "credit limit", least=_ZERO), money(balance, "balance")
        session = self.session

        def work() -> None:
            self._require_open()
            found = self._account(account)
            if found is not None:
                if found.credit_limit != limit:
                    raise Contradiction(
                        f"account {account} is there, with a credit limit of {found.credit_limit}",
                        state="nothing was changed",
                    )
                return
            _require_within(account, owed, limit)
            values = (account, session.put(owed), session.put(limit))
            session.execute("INSERT INTO ledger_accounts (id, balance, credit_limit) VALUES (%s, %s, %s)", values)
            self._adjust(account, owed, "opening")

        session.transaction(work)

    def set_limit(self, account: str, credit_limit: Decimal) -> None:
        """Change the credit limit. ZduRefused when the account's effective balance is beyond it already."""
        limit = money(credit_limit, "credit limit", least=_ZERO)

        def work() -> None:
            self._require_open()
            found = self._require_account(account)
            _require_within(account, found.effective, limit)
            self.session.execute(
                "UPDATE ledger_accounts SET credit_limit = %s WHERE id = %s", (self.session.put(limit), account)
            )

        self.session.transaction(work)

    def account(self, account: str) -> Account:
        """The account as it stands. Raises UnknownAccount."""
        found = self.session.retried(lambda: self._account(account, hold=False))
        if found is None:
            raise no_account(account)
        return found

    def authorize(self, account: str, *, call: str, price: Decimal, at_most: int = DAY) -> Grant:
        """How long the call may last, counted from its beginning, at a price per minute; that much money is reserved
        for it. Asked again for a call under way, with a larger `at_most` seconds, the grant grows as far as the money
        goes; it never shrinks. 0 seconds: nothing is left, nothing is reserved.
        """
        identifier(call, "call")
        price, at_most = money(price, "price", least=_ZERO), whole(at_most, "at_most")
        session = self.session

        def work() -> Grant:
            self._require_open()
            found = self._require_account(account)
            own = self.reservation(call)
            held = require_same_call(own, account, price)
            grant = grant_of(call, account, price, found.credit_limit - found.effective + held, at_most, own)
            if grant == own or not grant.seconds:
                return grant
            if own is None:
                session.insert(
                    "ledger_reservations", f"{RESERVATION}, origin", [(*reservation_row(session, grant), "")]
                )
            else:
                session.execute(
                    "UPDATE ledger_reservations SET amount = %s, seconds = %s WHERE call_id = %s",
                    (session.put(grant.amount), grant.seconds, call),
                )
            self._write(found, balance=found.balance, reserved=found.reserved - held + grant.amount)
            return grant

        return session.transaction(work)

    def charge(self, xdr: Xdr, *, pending: str | None = None) -> Answer:
        """Post the adjustment and the xDR, and end the call's reservation. The same xDR again has no effect.

        `pending`: what `pending()` just said, where the answer led here; NotHere when it is another by now. Raises
        BeyondLimit when it is more than what is reserved for the call or free, Contradiction when the xDR was charged
        before with other content, UnknownAccount.
        """
        session = self.session

        def work() -> Answer:
            copied = self._require_open()
            if pending not in (None, copied):
                raise NotHere("the main ledger was just opened", state="nothing was changed", next="ask again")
            found = self._require_account(xdr.account)
            if (before := self.find(xdr.id)) is not None:
                return repeated(before, xdr)
            own = self.reservation(xdr.call) if xdr.call else None
            held = require_same_call(own, xdr.account)
            available = found.credit_limit - found.effective + held
            if xdr.amount > held and xdr.amount > available:
                raise beyond(xdr, available)
            session.insert("ledger_xdrs", f"{XDR}, origin", [(*xdr_row(session, xdr), "")])
            self._adjust(xdr.account, xdr.amount, "charge", xdr.id)
            if own is not None:
                session.execute("DELETE FROM ledger_reservations WHERE call_id = %s", (xdr.call,))
            self._write(found, balance=found.balance + xdr.amount, reserved=found.reserved - held)
            return Answer.POSTED

        return session.transaction(work)

    def release(self, call: str) -> bool:
        """End a call that costs nothing (busy, no answer): what is reserved for it is free. False: nothing was."""
        session = self.session

        def work() -> bool:
            self._require_open()
            own = self.reservation(call)
            if own is None:
                return False
            found = self._require_account(own.account)
            own = self.reservation(call)  # now that the account is held, it is certain
            if own is None:
                return False
            session.execute("DELETE FROM ledger_reservations WHERE call_id = %s", (call,))
            self._write(found, balance=found.balance, reserved=found.reserved - own.amount)
            return True

        return session.transaction(work)

    def pay(self, account: str, amount: Decimal, *, id: str) -> Answer:
        """Post a payment: the balance goes down. The same payment again (by its identifier) has no effect."""
        amount = money(amount, least=_ZERO)
        identifier(id, "id")

        def work() -> Answer:
            self._require_open()
            found = self._require_account(account)
            before = self.session.one(
                "SELECT account, amount FROM ledger_adjustments WHERE kind = 'payment' AND xdr = %s", (id,)
            )
            if before is not None:
                if (before[0], -self.session.take(before[1])) != (account, amount):
                    raise Contradiction(f"payment {id} was posted before, with other content")
                return Answer.REPEATED
            self._adjust(account, -amount, "payment", id)
            self._write(found, balance=found.balance - amount, reserved=found.reserved)
            return Answer.POSTED

        return self.session.transaction(work)

    def pending(self) -> str:
        """The run whose charges are still being copied to here; empty: none."""
        row = self.session.retried(lambda: self.session.one("SELECT pending FROM ledger_state WHERE id = 1"))
        return str(row[0]) if row else ""

    def find(self, xdr: str) -> Xdr | None:
        """The xDR, when it is here."""
        row = self.session.one(f"SELECT {XDR} FROM ledger_xdrs WHERE id = %s", (xdr,))
        return xdr_in(self.session, row) if row else None

    def reservation(self, call: str) -> Grant | None:
        """What is reserved for a call."""
        row = self.session.one(f"SELECT {RESERVATION} FROM ledger_reservations WHERE call_id = %s", (call,))
        return grant_in(self.session, row) if row else None

    def _require_open(self) -> str:
        """The run whose charges are still being copied. Nothing of it changes until the transaction ends."""
        row = self.session.one(f"SELECT mode, run, pending FROM ledger_state WHERE id = 1{self.session.shared}")
        if row is None or row[0] != "open":
            raise NotHere(
                "the main ledger is closed",
                what=f"run {row[1]} has the secondary site charge alone" if row else "it was never installed",
                state="nothing was changed",
                next="ask again: the other ledger answers",
            )
        return str(row[2])

    def _account(self, account: str, *, hold: bool = True) -> Account | None:
        row = self.session.one(
            "SELECT id, balance, credit_limit, reserved, locked FROM ledger_accounts WHERE id = %s"
            + (self.session.locked if hold else ""),
            (account,),
        )
        take = self.session.take
        if row is None:
            return None
        balance, limit, reserved, locked = (take(value) for value in row[1:])
        return Account(id=row[0], balance=balance, credit_limit=limit, reserved=reserved, locked=locked)

    def _require_account(self, account: str) -> Account:
        found = self._account(account)
        if found is None:
            raise no_account(account)
        return found

    def _write(self, account: Account, *, balance: Decimal, reserved: Decimal) -> None:
        self.session.execute(
            "UPDATE ledger_accounts SET balance = %s, reserved = %s WHERE id = %s",
            (self.session.put(balance), self.session.put(reserved), account.id),
        )

    def _adjust(self, account: str, amount: Decimal, kind: str, xdr: str | None = None) -> None:
        columns = "account, amount, kind, xdr, origin"
        self.session.insert("ledger_adjustments", columns, [(account, self.session.put(amount), kind, xdr, "")])


def _require_within(account: str, effective: Decimal, limit: Decimal) -> None:
    if effective > limit:
        raise ZduRefused(
            f"account {account} would be beyond its credit limit at once",
            what=f"effective balance {effective}, credit limit {limit}",
            state="nothing was changed",
        )
