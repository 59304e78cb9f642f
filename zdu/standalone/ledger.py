"""What a billing engine holds in its hand, on either site and in either mode: it finds the ledger that charges now.

    ledger = Ledger(site=Site.SECONDARY, main=MainLedger(…), delta=DeltaLedger(…))
    grant = ledger.authorize("alice", call="c1", price=Decimal("0.10"))
    ledger.charge(Xdr.of_call("x1", call="c1", account="alice", price=grant.price, seconds=720, started=…))

At any moment one ledger charges, or none for some milliseconds; then it is asked again. Calls and xDRs keep their
identifiers through every change of mode, so an engine that got no answer just asks again.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from decimal import Decimal
from enum import StrEnum
from typing import TypeVar

from core.sql import Reason, SqlError
from zdu.standalone.alone import handed_over, open_main
from zdu.standalone.delta import DeltaLedger, Mode
from zdu.standalone.entries import DAY, Answer, Grant, NotHere, Xdr, repeated
from zdu.standalone.main import MainLedger
from zdu.standalone.session import Binlog, Session

#: All that an engine needs.
__all__ = ["Answer", "Binlog", "DeltaLedger", "Grant", "Ledger", "MainLedger", "NotHere", "Session", "Site", "Xdr"]

T = TypeVar("T")

#: Seconds between two questions while neither ledger charges.
PAUSE = 0.005


class Site(StrEnum):
    """Where the engine runs: which ledger is near, and is asked first."""

    MAIN = "main"
    SECONDARY = "secondary"


class Ledger:
    """Authorizes and charges wherever that is done at the moment. For one thread, as its sessions are.

    `patience`: seconds that a question may wait while neither ledger charges; then NotHere is raised. A charge must
    then be kept and asked again later: it is idempotent. Other errors are those of `MainLedger`.
    """

    def __init__(self, *, site: Site, main: MainLedger, delta: DeltaLedger, patience: float = 5.0) -> None:
        self.site = site
        self.main = main
        self.delta = delta
        self.patience = patience

    def authorize(self, account: str, *, call: str, price: Decimal, at_most: int = DAY) -> Grant:
        """As `MainLedger.authorize`."""
        return self._ask(
            lambda: self.main.authorize(account, call=call, price=price, at_most=at_most),
            lambda: self.delta.authorize(account, call=call, price=price, at_most=at_most),
        )

    def charge(self, xdr: Xdr) -> Answer:
        """As `MainLedger.charge`."""
        return self._ask(lambda: self._charge_main(xdr), lambda: self.delta.charge(xdr))

    def release(self, call: str) -> bool:
        """As `MainLedger.release`."""
        return self._ask(lambda: self.main.release(call), lambda: self.delta.release(call))

    def _charge_main(self, xdr: Xdr) -> Answer:
        """Charge on main. While charges of the secondary site are still being copied to there, one that was made on the
        delta before the switch, and is repeated now, may be among them.
        """
        pending = self.main.pending()
        if pending:
            with suppress(SqlError):  # not to be reached: the copying itself never posts an xDR twice
                before = self.delta.session.retried(lambda: self.delta.find(xdr.id))
                if before is not None:
                    return repeated(before, xdr)
        return self.main.charge(xdr, pending=pending)

    def _ask(self, on_main: Callable[[], T], on_delta: Callable[[], T]) -> T:
        until = time.monotonic() + self.patience
        while True:
            try:
                return on_main() if self._main_first() else on_delta()
            except NotHere:
                if self.site is Site.MAIN:
                    with suppress(NotHere):
                        return on_delta()
                if self._opened():
                    continue
                if time.monotonic() > until:
                    raise
            except SqlError as error:
                # The mode may have changed while the main site went away.
                if self.site is Site.MAIN or error.reason not in (Reason.GONE, Reason.UNREACHABLE):
                    raise
                if time.monotonic() > until or self.delta.mode() is Mode.NORMAL:
                    raise
            time.sleep(PAUSE)

    def _opened(self) -> bool:
        """Where a controller died after the site had handed over and before it opened main, that is done here."""
        run, main = handed_over(self.delta.session), self.main.session
        return bool(run) and main.transaction(lambda: open_main(main, run))

    def _main_first(self) -> bool:
        return self.site is Site.MAIN or self.delta.mode() is Mode.NORMAL
