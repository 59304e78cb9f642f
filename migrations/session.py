"""A run's hold on the database: the lock, the fence, and a connection that may break and is made anew."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from core.errors import DatabaseFailed, MigrationStopped
from core.faults import point
from core.report import Report
from core.sql import Reason, SqlError
from migrations.engines import Server
from migrations.guards import Budget, stopped
from migrations.ledger import Ledger, LockHeld, Who

#: Seconds that a server may be away before we stop waiting for it.
AWAY: Final = 300.0

#: How often a statement may lose its connection: it may be the statement that brings the server down.
MOST_LOST: Final = 3

#: The server is not there, or not any more.
LOST: Final = frozenset({Reason.GONE, Reason.UNREACHABLE})

#: Somebody else was first; later it may work.
REFUSED_FOR_NOW: Final = frozenset({Reason.LOCKED, Reason.DEADLOCK})


#: What leads on, where a run could not even begin.
_LEADS_ON: Final = {
    Reason.UNREACHABLE: ["start the server, or mend its address under [databases] in node.toml", "updater doctor"],
    Reason.DENIED: ["mend user and password_file under [databases] in node.toml, or GRANT what is missing"],
    Reason.FULL: ["free space where the database lies"],
    Reason.READ_ONLY: ["find out who made it read-only and why"],
    Reason.LOCKED: ["try again in a moment"],
}


def explain(error: SqlError) -> SqlError:
    """An error from before anything was begun, with what holds now and what leads on."""
    error.state = error.state or "nothing was changed by this run"
    error.next = error.next or tuple(_LEADS_ON.get(error.reason, ["updater doctor"]))
    return error


class Session:
    """The lock is held between `begin` and `end`."""

    def __init__(self, *, server: Server, who: Who, budget: Budget, report: Report) -> None:
        self.server = server
        self.who = who
        self.budget = budget
        self.report = report
        self.ledger = Ledger(server.connection)

    def begin(self) -> None:
        """Take the lock and raise the fence. Raises LockHeld when somebody who lives has it."""
        try:
            self.server.require_primary()
            self._take()
        except SqlError as error:
            raise explain(error) from error

    def end(self) -> None:
        """Give the lock back; a connection that is gone has done so by itself."""
        with suppress(SqlError):
            self.server.release()

    def stopping(self, state: str = "", what: Sequence[str] = (), *, trying: bool = True) -> None:
        """Raises MigrationStopped when a limit is reached."""
        if why := self.budget.spent(trying=trying):
            raise stopped(f"the migration was stopped: {why}", what=list(what), state=state)

    def persist(self, action: Callable[[], None]) -> None:
        """Do something quick and repeatable to the ledger, over lost connections and refused locks."""
        attempt = 0
        while True:
            try:
                return action()
            except SqlError as error:
                attempt += 1
                if error.reason not in LOST | REFUSED_FOR_NOW or attempt > MOST_LOST:
                    raise
                if error.reason in LOST:
                    self.reconnect(error)

    def reconnect(self, lost: SqlError) -> None:
        """Come back after the connection broke. The lock is free again when the server has stopped working for the old
        one. Raises MigrationStopped when that takes too long.
        """
        self.report.note(f"the connection to {self.server.connection.database} was lost: {lost}")
        clock = self.budget.clock
        began, attempt = clock.steady(), 0
        while True:
            try:
                self.server.reopen()
                self.server.require_primary()
                self.ledger = Ledger(self.server.connection)
                self._take()
                break
            except SqlError as error:
                if error.reason not in LOST | REFUSED_FOR_NOW or clock.steady() - began > AWAY or self.budget.spent():
                    raise self._away(error) from error
            except (MigrationStopped, LockHeld):
                raise
            except DatabaseFailed as error:
                raise self._away(error) from error
            clock.sleep(min(5.0, 0.1 * 2 ** min(attempt, 8)))
            attempt += 1
        self.report.note("connected again, and the lock is ours")

    def _take(self) -> None:
        """Lock and claim. What a dead process of this host, or a broken connection of ours, has sent is waited for."""
        attempt = 0
        while not self.server.hold():
            holder = self.ledger.runner()
            if holder is None and attempt > 5:
                raise LockHeld(str(self.server.connection.database), None)
            if holder is not None and not holder.is_dead and not self._is_us(holder):
                raise LockHeld(str(self.server.connection.database), holder)
            if attempt % 30 == 5:
                self.report.note(f"the server still works on what {holder} has sent; waiting for the end of it")
            if why := self.budget.spent(trying=False):
                raise stopped(
                    f"the migration was stopped: {why}",
                    what=[f"the server still works on what {holder} has sent"],
                    state="that goes on by itself; nothing was begun since",
                )
            self.budget.clock.sleep(min(1.0, 0.05 * 2 ** min(attempt, 5)))
            attempt += 1
        self._claim()

    def _claim(self) -> None:
        """Write down that we run. Others may be in the way of that too."""
        attempt = 0
        while True:
            try:
                self.ledger.prepare()
                point("migrate:held")
                self.ledger.claim(self.who)
                point("migrate:claimed")
                return
            except SqlError as error:
                if error.reason not in REFUSED_FOR_NOW:
                    raise
                if why := self.budget.spent(trying=False):
                    raise stopped(
                        f"the migration was stopped: {why}", what=[str(error)], state="nothing was begun since"
                    ) from error
            self.budget.clock.sleep(self.budget.rest(attempt))
            attempt += 1

    def _is_us(self, holder: Who) -> bool:
        return holder.host == self.who.host and holder.pid == os.getpid()

    def _away(self, error: DatabaseFailed) -> MigrationStopped:
        return stopped(
            f"the connection to {self.server.connection.database} was lost, and cannot be made again",
            what=[str(error), *error.what],
            state="the statement under way may be done or not; resume finds out",
        )
