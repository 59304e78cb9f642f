"""Rows of the tables, to and from entries: one order of columns for the main and the delta database."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final

from zdu.standalone.entries import Grant, Xdr
from zdu.standalone.session import Session

RESERVATION: Final = "call_id, account, amount, price, seconds"
XDR: Final = "id, account, call_id, amount, seconds, started, detail"


def xdr_row(session: Session, xdr: Xdr) -> tuple[object, ...]:
    """The values of the columns `XDR`."""
    return (xdr.id, xdr.account, xdr.call, session.put(xdr.amount), xdr.seconds, xdr.moment, xdr.detail)


def row_of(source: Session, to: Session, row: Sequence[Any]) -> tuple[Any, ...]:
    """A row that begins with the columns `XDR`, read from one database, as the other stores it. For many rows: they
    were checked when they were made.
    """
    amount, started = row[3], row[5]
    if source.is_mariadb is not to.is_mariadb:
        amount = to.put(source.take(amount))
    if isinstance(started, datetime):
        started = started.isoformat(" ", "microseconds")
    return (row[0], row[1], row[2], amount, row[4], started, row[6])


def xdr_in(session: Session, row: Sequence[Any]) -> Xdr:
    """The record in a row that begins with the columns `XDR`."""
    started = row[5] if isinstance(row[5], datetime) else datetime.fromisoformat(row[5])
    return Xdr(
        id=row[0],
        account=row[1],
        call=row[2],
        amount=session.take(row[3]),
        seconds=int(row[4]),
        started=started.replace(tzinfo=UTC),
        detail=row[6],
    )


def reservation_row(session: Session, grant: Grant) -> tuple[object, ...]:
    """The values of the columns `RESERVATION`."""
    return (grant.call, grant.account, session.put(grant.amount), session.put(grant.price), grant.seconds)


def grant_in(session: Session, row: Sequence[Any]) -> Grant:
    """The grant in a row of the columns `RESERVATION`."""
    call, account, amount, price, seconds = row
    return Grant(
        call=call, account=account, price=session.take(price), seconds=int(seconds), amount=session.take(amount)
    )
