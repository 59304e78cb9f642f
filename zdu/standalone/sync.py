"""The main ledger and the delta come together again, in four steps, each safe to interrupt anywhere and to repeat:

    lock       funds equal to each account's delta are locked on main, while the site still charges alone
    switch     nobody charges for some milliseconds: the last changes are locked, then the main ledger charges for all
    transfer   the xDRs are posted on main, each once; their locks are released as they post
    close      the sums are compared, and the run is over

Every transaction writes one database and is there whole or not at all. What is copied is written as it stands, not as
a difference, so copying twice does nothing; and an xDR is a key on main, so posting twice is seen. That, and nothing
else, makes the steps exact: no step relies on knowing whether the one before was finished.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from core.errors import ZduRefused
from core.faults import point
from zdu.standalone import fence as fences
from zdu.standalone.alone import close_main, open_main, state_of
from zdu.standalone.audit import Sums, compare
from zdu.standalone.copying import Copied, copy_changes
from zdu.standalone.delta import Mode, now
from zdu.standalone.posting import post_batch
from zdu.standalone.session import Session

#: Passes of `lock` at most: each copies what changed during the one before.
PASSES: Final = 10

#: Seconds after which a switch that was begun and left is taken back by the ledger itself.
LEASE: Final = 5.0

#: xDRs in one transaction.
BATCH: Final = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Locked:
    """What `lock` and `switch` did. `beyond`: accounts that are beyond their credit limit with the lock: both sites
    charged them at the same time, which happens only where the main site was thought to be gone. `gap`: seconds during
    which nobody charged.
    """

    accounts: int
    calls: int
    beyond: tuple[str, ...] = ()
    gap: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the transfer is. `direct`: of those, found charged on main already."""

    done: int
    total: int
    direct: int


class Synchronisation:
    """Of one run, by one controller. `fence`: its token; a larger one than ours on either side stops us (FencedOff)."""

    def __init__(
        self, run: str, fence: int, *, main: Session, delta: Session, batch: int = BATCH, lease: float = LEASE
    ) -> None:
        self.run = run
        self.fence = fence
        self.main = main
        self.delta = delta
        self.batch = batch
        self.lease = lease

    def lock(self) -> Locked:
        """Lock on main what the delta has, again and again until few changes are left for the switch. The site charges
        alone all the while. There is nothing to take back: while the main ledger is closed its locks hold nobody up.
        """
        if self._begin() != "open":
            return Locked(accounts=0, calls=0)
        self._require_alone()
        self.main.transaction(self._close_main)
        total = Copied()
        for _ in range(PASSES):
            copied = self._copy()
            total = total + copied
            if copied.accounts < self.batch // 2:
                break
        return Locked(accounts=total.accounts, calls=total.calls, beyond=total.beyond)

    def switch(self) -> Locked:
        """Have the main ledger charge again, for both sites. Raises ZduRefused before `lock`."""
        state = self._begin()
        total, begun = Copied(), time.monotonic()
        while state == "open":
            self._require_alone()
            if not self._is_closed():
                raise ZduRefused("the funds are not locked yet", state="the site charges alone", next="lock them first")
            total = total + self._copy()
            point("sync:switching")
            begun = time.monotonic()
            self.delta.transaction(self._stop)
            point("sync:stopped")
            last = self._copy()
            total = total + last
            if self.delta.transaction(self._hand_over):
                state = "switched"
        point("sync:handed-over")
        if state == "switched":
            self.main.transaction(lambda: open_main(self.main, self.run))
        return Locked(accounts=total.accounts, calls=total.calls, beyond=total.beyond, gap=time.monotonic() - begun)

    def transfer(self, progress: Callable[[Progress], None] = lambda _: None) -> Progress:
        """Post every xDR of the run on main. Raises ZduRefused before `switch`, Contradiction where main has an xDR
        with the same identifier and other content: that batch is not posted, and somebody must look at it.
        """
        self._require_switched()
        counted = "SELECT count(*), coalesce(sum(transferred), 0) FROM delta_xdrs WHERE run = %s"
        row = self.delta.retried(lambda: self.delta.one(counted, (self.run,)))
        total, done = (int(row[0]), int(row[1])) if row else (0, 0)
        direct, last = 0, 0
        while True:
            posted = post_batch(self.run, self.fence, self.main, self.delta, after=last, size=self.batch)
            if posted is None:
                return Progress(done=done, total=total, direct=direct)
            done, direct, last = done + posted.xdrs, direct + posted.direct, posted.last
            progress(Progress(done=done, total=total, direct=direct))

    def verify(self) -> Sums:
        """Compare both sides. Raises SumsDiffer with every difference."""
        return compare(self.run, self.main, self.delta)

    def close(self) -> Sums:
        """Compare, and end the run. Raises SumsDiffer (nothing is changed then), ZduRefused before `switch`."""
        self._require_switched()
        sums = self.verify()
        self.main.transaction(self._close_on_main)
        point("sync:closed-on-main")
        self.delta.transaction(self._close_on_delta)
        return sums

    def _begin(self) -> str:
        """Claim both sides; the state of the run: open, switched or closed. Raises ZduRefused when there is no such."""
        fences.claim(self.delta, "delta_state", self.fence)
        fences.claim(self.main, "ledger_state", self.fence)
        row = self.delta.retried(lambda: self.delta.one("SELECT state FROM delta_runs WHERE run = %s", (self.run,)))
        if row is None:
            raise ZduRefused(f"{self.delta.database} knows no run {self.run}", state="nothing was changed")
        return str(row[0])

    def _require_alone(self) -> None:
        mode, run = state_of(self.delta)
        if mode is Mode.NORMAL or run != self.run:
            raise ZduRefused(
                f"the site is not on its own for run {self.run}",
                what=f"it is in mode {mode}" + (f", for run {run}" if run else ""),
                state="nothing was changed",
            )

    def _require_switched(self) -> None:
        if self._begin() == "open":
            raise ZduRefused(
                f"run {self.run} is not switched yet", state="nothing was changed", next="lock, then switch, first"
            )
        self.main.transaction(lambda: open_main(self.main, self.run))  # who died in `switch` may not have come to that

    def _copy(self) -> Copied:
        return copy_changes(self.run, self.fence, self.main, self.delta, size=self.batch)

    def _is_closed(self) -> bool:
        row = self.main.retried(lambda: self.main.one("SELECT mode, run FROM ledger_state WHERE id = 1"))
        return row is not None and row[0] == "closed" and row[1] == self.run

    def _close_main(self) -> None:
        """A main site that was gone, and is back, still believes that it charges."""
        close_main(self.main, self.run, self.fence)
        self.main.insert_missing("ledger_runs", "run, phase", "run", [(self.run, "announced")])

    def _stop(self) -> None:
        """Nobody charges from here on: whoever does holds the row, and is waited for."""
        fences.require(self.delta, "delta_state", self.fence, change=True)
        self.delta.execute(
            f"UPDATE delta_state SET mode = 'switching', until = {now(self.delta)} + %s "
            "WHERE id = 1 AND mode <> 'normal' AND run = %s",
            (int(self.lease * 1000), self.run),
        )

    def _hand_over(self) -> bool:
        """The site never charges alone again in this run. False: the stop was taken back meanwhile (`LEASE`)."""
        fences.require(self.delta, "delta_state", self.fence, change=True)
        run = self.delta.one("SELECT state FROM delta_runs WHERE run = %s", (self.run,))
        if run is not None and run[0] != "open":
            return True  # done before, by a COMMIT whose answer was lost
        row = self.delta.one("SELECT mode FROM delta_state WHERE id = 1")
        if row is None or row[0] != Mode.SWITCHING:
            return False
        self.delta.execute("UPDATE delta_state SET mode = 'normal', until = 0 WHERE id = 1")
        self.delta.execute("UPDATE delta_runs SET state = 'switched' WHERE run = %s", (self.run,))
        self.delta.execute("DELETE FROM delta_reservations WHERE run = %s", (self.run,))  # main holds them now
        return True

    def _close_on_main(self) -> None:
        fences.require(self.main, "ledger_state", self.fence, change=True)
        self.main.execute("UPDATE ledger_runs SET phase = 'closed' WHERE run = %s", (self.run,))
        self.main.execute("DELETE FROM ledger_locks WHERE run = %s AND amount = 0", (self.run,))
        row = self.main.one("SELECT max(run) FROM ledger_runs WHERE phase = 'switched'")
        self.main.execute("UPDATE ledger_state SET pending = %s WHERE id = 1", (row[0] if row and row[0] else "",))

    def _close_on_delta(self) -> None:
        fences.require(self.delta, "delta_state", self.fence)
        self.delta.execute("UPDATE delta_runs SET state = 'closed', counts = 0 WHERE run = %s", (self.run,))
