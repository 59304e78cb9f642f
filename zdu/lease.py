"""Who holds an installation: one controller at a time, with a fencing token that grows at each takeover.

The holder says again and again that it lives; one that has been silent for `LEASE` seconds, or whose process is gone on
this very machine, has lost it. A controller that lost it (it was frozen, or cut off) finds out before it does anything
more, by its own clock even when the database cannot be asked; what it had already sent is refused by the nodes, which
know the newer token.
"""

from __future__ import annotations

import getpass
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from core.errors import Busy, FencedOff, UpdaterError
from core.sql import Connection, Engine
from zdu.tables import CLOCK, Tables

#: Seconds without a sign of life after which the installation is free to take.
LEASE: Final = 15.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds an installation. `left`: seconds until it is free unless they say that they live."""

    fence: int
    who: str
    left: float
    gone: bool

    @property
    def alive(self) -> bool:
        """Whether they must be reckoned with."""
        return bool(self.who) and self.left > 0 and not self.gone


class Lost(BaseException):
    """The installation is another controller's: end at once, and record nothing. Not an Exception, so that no handler
    of ours or of the workflow engine takes it for the failure of a step.
    """


class Lease:
    """An installation that is held until `release`. `fence`: goes with everything that is asked of servers."""

    def __init__(self, tables: Tables, installation: str, fence: int, holder: str, seconds: float) -> None:
        self.fence = fence
        self.holder = holder
        self._tables = tables
        self._installation = installation
        self._seconds = seconds
        self._sure_until = time.monotonic() + seconds
        self._ended = threading.Event()
        self._kept = False
        self.lost = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="zdu-lease", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Raise Lost unless the installation is surely ours at this moment."""
        if self.lost.is_set() or time.monotonic() >= self._sure_until:
            self.lost.set()
            raise Lost

    def confirm(self, connection: Connection) -> None:
        """Within a transaction that writes: raise Lost unless the token is still ours."""
        lock = " FOR SHARE" if connection.engine is Engine.POSTGRESQL else ""
        row = connection.one(f"SELECT fence FROM zdu_holders WHERE installation = %s{lock}", (self._installation,))
        if row is None or row[0] != self.fence:
            self.lost.set()
            raise Lost

    def fenced_off(self) -> FencedOff:
        """The error for people."""
        now: Holder | None = None
        with suppress(UpdaterError):
            now = holder(self._tables, self._installation)
        other = now is not None and now.fence != self.fence
        return FencedOff(
            "this controller has lost the installation",
            what=f"{now.who} holds it now (token {now.fence}, ours was {self.fence})"
            if other and now is not None
            else "the database could not be told in time that this controller lives",
            state="it does nothing any more; what it began is looked at by whoever goes on",
            next=["updater zdu status", "updater zdu resume    if nobody goes on"],
        )

    def keep(self) -> None:
        """Have `release` not let it go: something of ours may still go on. It is free when its time is over."""
        self._kept = True

    def release(self) -> None:
        """Let it go, for the next one to take at once. The token stays as high as it is."""
        self._ended.set()
        self._beats.join(timeout=5)
        if not self.lost.is_set() and not self._kept:
            with suppress(UpdaterError):
                self._tables.work(
                    lambda db: db.execute(
                        "UPDATE zdu_holders SET until = 0, holder = '' WHERE installation = %s AND fence = %s",
                        (self._installation, self.fence),
                    )
                )

    def _beat(self) -> None:
        clock = CLOCK[self._tables.engine]

        def live(db: Connection) -> int:
            return db.execute(
                f"UPDATE zdu_holders SET until = {clock} + %s WHERE installation = %s AND fence = %s",
                (self._seconds, self._installation, self.fence),
            ).changed

        while not self._ended.wait(self._seconds / 5):
            asked = time.monotonic()
            try:
                if self._tables.work(live) != 1:
                    self.lost.set()
                    return
            except UpdaterError:
                if time.monotonic() >= self._sure_until:
                    self.lost.set()
                    return
                continue
            # Counted from before the question: the database may have answered late.
            self._sure_until = asked + self._seconds


def take(tables: Tables, installation: str, *, purpose: str, seconds: float = LEASE, above: int = 0) -> Lease:
    """Take the installation, with the next token, which is greater than `above`. Raises Busy, naming the holder, when
    somebody lives who has it.
    """
    who = f"{user()}@{socket.gethostname()}, process {os.getpid()}"
    clock = CLOCK[tables.engine]

    def step(db: Connection) -> int:
        if tables.engine is Engine.POSTGRESQL:
            db.execute("LOCK TABLE zdu_holders IN SHARE ROW EXCLUSIVE MODE")
        now = _holder(db, installation)
        if now is not None and now.alive:
            raise _busy(now, purpose)
        fence = max(now.fence if now else 0, above) + 1
        values = (fence, who, _machine(), _process(os.getpid()), seconds, installation)
        if now is None:
            db.execute(
                "INSERT INTO zdu_holders (fence, holder, host, process, until, installation)"
                f" VALUES (%s, %s, %s, %s, {clock} + %s, %s)",
                values,
            )
        else:
            db.execute(
                f"UPDATE zdu_holders SET fence = %s, holder = %s, host = %s, process = %s, until = {clock} + %s"
                " WHERE installation = %s",
                values,
            )
        return fence

    return Lease(tables, installation, tables.transact(step), who, seconds)


def holder(tables: Tables, installation: str) -> Holder | None:
    """Who holds, or last held, the installation; None: nobody ever did."""
    return tables.work(lambda db: _holder(db, installation))


def next_token(tables: Tables, installation: str) -> int:
    """What the next controller gets."""
    last = holder(tables, installation)
    return (last.fence if last else 0) + 1


def _busy(now: Holder, purpose: str) -> Busy:
    return Busy(
        f"cannot {purpose}: another controller holds the installation",
        what=f"{now.who}, token {now.fence}",
        state="this command changed nothing",
        next=[
            "updater zdu status    see what is under way",
            "updater zdu pause | abort    are passed on to that controller",
            "updater zdu resume --stand-by    waits, and goes on when that controller is gone",
        ],
    )


def _holder(db: Connection, installation: str) -> Holder | None:
    row = db.one(
        f"SELECT fence, holder, host, process, until - {CLOCK[db.engine]} FROM zdu_holders WHERE installation = %s",
        (installation,),
    )
    if row is None:
        return None
    fence, who, host, process, left = row
    gone = host == _machine() and process != _process(int(process.partition(" ")[0]))
    return Holder(fence=fence, who=who, left=float(left), gone=gone)


def _machine() -> str:
    """This boot of this machine: process numbers mean nothing elsewhere."""
    try:
        return (
            Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            + " "
            + str(Path("/proc/self/ns/pid").readlink())
        )
    except OSError:
        return socket.gethostname()


def _process(pid: int) -> str:
    """A process's number and when it began; a number that was given again begins at another time."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return f"{pid} gone"
    state, *rest = stat.rpartition(") ")[2].split()
    return f"{pid} gone" if state in "ZX" else f"{pid} {rest[18]}"


def user() -> str:
    """Who started this, by name."""
    try:
        return os.environ.get("SUDO_USER") or getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
