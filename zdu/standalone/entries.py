"""What goes in and out of a ledger: call records, grants, answers; checked when they are made."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import StrEnum
from typing import Final

from core.errors import DatabaseFailed, ZduRefused
from zdu.standalone.money import cost, money, seconds_for

#: Letters of an identifier: account, call, xDR, run.
LONGEST_ID: Final = 128

#: Letters of an xDR's detail: a batch of a thousand must stay well below what a server takes in one statement.
LONGEST_DETAIL: Final = 2000

#: Seconds in a grant at most, unless the caller says less: a call of a day.
DAY: Final = 86_400

_ZERO: Final = Decimal(0)


class Answer(StrEnum):
    """What became of a charge."""

    POSTED = "posted"
    REPEATED = "repeated"  # it was charged before, with the same content: nothing was done now


class NotHere(ZduRefused):
    """This ledger does not hold the account at the moment; the other one does, or will in a moment. Ask again."""


class BeyondLimit(ZduRefused):
    """The charge would bring the account beyond its credit limit. Nothing was charged."""


class UnknownAccount(ZduRefused):
    """No such account."""


class Contradiction(DatabaseFailed):
    """One identifier, two contents: an xDR that was charged differently before, a call of another account."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """How long a call may last, counted from its beginning; 0 seconds: not at all. `amount` is held for it."""

    call: str
    account: str
    price: Decimal
    seconds: int
    amount: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class Xdr:
    """A call record with its charge. `call`: whose reservation it ends; empty for what was not authorized before (a
    fee, a message). `started`: with a time zone. `detail`: the engine's own, JSON mostly. Raises ValueError.
    """

    id: str
    account: str
    amount: Decimal
    seconds: int
    started: datetime
    call: str = ""
    detail: str = ""

    def __post_init__(self) -> None:
        identifier(self.id, "id")
        identifier(self.account, "account")
        if self.call:
            identifier(self.call, "call")
        object.__setattr__(self, "amount", money(self.amount, least=_ZERO))
        whole(self.seconds, "seconds")
        if self.started.tzinfo is None:
            raise ValueError("started: a time without a time zone")
        object.__setattr__(self, "started", self.started.astimezone(UTC))
        if len(self.detail) > LONGEST_DETAIL:
            raise ValueError(f"detail: {len(self.detail)} letters, {LONGEST_DETAIL} at most")
        if "\0" in self.detail:
            raise ValueError("detail: holds a zero byte")

    @classmethod
    def of_call(
        cls, id: str, *, call: str, account: str, price: Decimal, seconds: int, started: datetime, detail: str = ""
    ) -> Xdr:
        """The record of a call at a price per minute; its amount is rounded as `money.cost` says."""
        amount = cost(money(price, "price", least=_ZERO), whole(seconds, "seconds"))
        return cls(id=id, account=account, call=call, amount=amount, seconds=seconds, started=started, detail=detail)

    @property
    def moment(self) -> str:
        """`started` as both engines store it: UTC, to the microsecond."""
        return self.started.strftime("%Y-%m-%d %H:%M:%S.%f")


def repeated(found: Xdr, wanted: Xdr) -> Answer:
    """That it was charged before. Raises Contradiction when it was charged differently."""
    if found != wanted:
        raise Contradiction(
            f"xDR {wanted.id} was charged before, with other content",
            what=[f"charged  {_brief(found)}", f"now      {_brief(wanted)}"],
            state="nothing was charged now",
            next="give each xDR an identifier of its own",
        )
    return Answer.REPEATED


def _brief(xdr: Xdr) -> str:
    return f"{xdr.amount} to {xdr.account}, call {xdr.call or 'none'}, {xdr.seconds} s from {xdr.moment}"


def identifier(value: str, name: str, longest: int = LONGEST_ID) -> str:
    """The value, when it is fit to be a key in every engine. Raises ValueError."""
    if not isinstance(value, str) or not 0 < len(value) <= longest:
        raise ValueError(f"{name}: expected 1 to {longest} letters, found {value!r}"[:200])
    if not value.isprintable() or value != value.strip():
        raise ValueError(f"{name}: {value!r} has letters that cannot be seen"[:200])
    return value


def whole(value: int, name: str) -> int:
    """The value, when it is a sensible number of seconds. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise ValueError(f"{name}: expected a whole number from 0, found {value!r}"[:200])
    return value


def no_account(account: str) -> UnknownAccount:
    """The error for an account that is not there."""
    return UnknownAccount(f"there is no account {account}", state="nothing was charged")


def beyond(xdr: Xdr, available: Decimal) -> BeyondLimit:
    """The error for a charge that does not fit."""
    return BeyondLimit(
        f"xDR {xdr.id} would bring account {xdr.account} beyond its credit limit",
        what=f"it charges {xdr.amount}; {available} is held for the call or free",
        state="nothing was charged; what is held for the call stays held",
        next="end calls at the limit that `authorize` gave, and ask again before it is reached",
    )


def grant_of(call: str, account: str, price: Decimal, available: Decimal, at_most: int, own: Grant | None) -> Grant:
    """The grant that `available` money allows, what the call holds already included; never less than it has."""
    seconds = seconds_for(available, price, at_most)
    if own is not None and own.seconds >= seconds:
        return own
    return Grant(call=call, account=account, price=price, seconds=seconds, amount=cost(price, seconds))


def require_same_call(own: Grant | None, account: str, price: Decimal | None = None) -> Decimal:
    """What the call holds. Raises Contradiction when it is a call of another account, or at another price."""
    if own is None:
        return _ZERO
    if own.account != account or price not in (None, own.price):
        raise Contradiction(
            f"call {own.call} is one of account {own.account} at {own.price} a minute",
            what=f"asked for account {account}" + ("" if price is None else f" at {price} a minute"),
            state="nothing was changed",
            next="give each call an identifier of its own",
        )
    return own.amount
