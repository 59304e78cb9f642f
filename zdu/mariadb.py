"""A replica on MariaDB with GTIDs, and the rule that never two databases are writable.

A replica stays read-only all the time. What a site that stands alone writes to its delta database goes into a GTID
domain of its own, so the replica can join again as if nothing had been written.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from core.errors import DatabaseFailed, GateNotPassed, ZduRefused
from core.sql import Connection, Database, SqlError
from zdu import gtid

#: Seconds between two looks, and how often it is tried to stop at a moment when the main database stands still.
LOOK: Final = 0.05
_TRIES: Final = 5

#: Seconds for which the replica is waited for at a time.
_SLICE: Final = 1.0

_RESEED: Final = "docs/zdu-databases.md, “Seeding a replica anew”"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStatus:
    """How a replica stands; None is what is not known. `replicates`: it runs (False: it stands still). `lag`: seconds
    that it is behind (0: nothing to apply); None unless it runs. `applied`: it has applied all that the main database
    has written by now. `broken`: why it cannot go on by itself. `own_writes`: changes that only it has.
    """

    read_only: bool | None = None
    replicates: bool | None = None
    lag: float | None = None
    applied: bool | None = None
    broken: str = ""
    position: str = ""
    own_writes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


class MariaReplica:
    """MariaDB with GTID. `domain`: of the delta's writes. `limit`: seconds behind that are borne; `timeout`: for it to
    catch up. `check`: called at least every second of waiting, and before it is stopped or started, as no token goes
    with that; it does not return when the work has to end.

    Rights on the replica: REPLICA MONITOR, REPLICATION SLAVE ADMIN, BINLOG MONITOR; on the main database none but to
    log in.
    """

    def __init__(
        self,
        name: str,
        here: Database,
        main: Database,
        *,
        domain: int = 7,
        limit: float = 1.0,
        timeout: float = 60.0,
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.name = name
        self._here = here
        self._main = main
        self._domain = domain
        self._limit = limit
        self._timeout = timeout
        self._check = check

    def status(self) -> ReplicaStatus:
        problems = []
        try:
            written = self._written()
        except SqlError as error:
            written = None
            problems.append(f"the main database cannot be asked: {error.message}")
        with self._opened() as here:
            return self._status(here, written, problems)

    def hold(self) -> str:
        with self._opened() as here:
            seen = self._status(here, self._written(), [])
            if seen.replicates is False and seen.applied:
                return f"the replica of {self.name} stands still at {seen.position}, with everything applied"
            self._refuse_if_broken(seen)
            if seen.replicates is False:  # it stands still, and behind
                self._set("START SLAVE", here)
            for _ in range(_TRIES):
                written = self._written()
                if not self._wait(here, written, self._timeout):
                    seen = self._status(here, written, [])
                    self._refuse_if_broken(seen)
                    raise GateNotPassed(
                        f"the replica of {self.name} is not done within {self._timeout:g} s",
                        what=[f"it is at {seen.position}, the main database at {written}", *seen.problems],
                        state="it replicates on",
                        next="the same again, when it has caught up",
                    )
                self._set("STOP SLAVE", here)
                if gtid.covers(_position(here), self._written(), apart_from=self._domain):
                    return f"the replica of {self.name} stands still at {_position(here)}, with everything applied"
                self._set("START SLAVE", here)
            raise GateNotPassed(
                f"the replica of {self.name} never has everything: something goes on writing to the main database",
                what=f"in {_TRIES} tries the main database moved on each time",
                state="it replicates on",
                next="on the main database: SHOW PROCESSLIST; events, monitors and cron jobs write too",
            )

    def join(self) -> str:
        with self._opened() as here:
            seen = self._status(here, None, [])
            if seen.own_writes:
                raise ZduRefused(
                    f"the replica of {self.name} has changes of its own, which the main database does not know",
                    what=[f"GTID {each}" for each in seen.own_writes[:5]],
                    state="it stands still; nothing was changed",
                    next=["find out who wrote there: mysqlbinlog --gtid…", f"seed it anew: {_RESEED}"],
                )
            self._use_gtid(here)
            if seen.replicates is not True:
                self._set("START SLAVE", here)
            written = self._written()
            until = time.monotonic() + self._timeout
            while True:
                seen = self._status(here, written, [])
                self._refuse_if_broken(seen)
                if seen.replicates and seen.applied:
                    return f"the replica of {self.name} follows, at {seen.position}"
                if time.monotonic() > until:
                    lag = f"{seen.lag:g} s behind" if seen.lag is not None else "; ".join(seen.problems)
                    return f"the replica of {self.name} was started, and is {lag or 'not there yet'}"
                self._check()
                time.sleep(LOOK)

    def set_read_only(self, on: bool) -> None:
        """Refuse writes of ordinary users, or take them. Taking them is for `promote` only. (Needs READ ONLY ADMIN.)"""
        with self._opened() as here:
            here.execute(f"SET GLOBAL read_only = {int(on)}")

    def promote(self, others: Mapping[str, bool | None]) -> str:
        """Make a main database of it, for good: when the main site is lost. Not a step of any upgrade.

        `others`: each other database of the installation, and whether it is writable (None: nobody knows). Raises
        ZduRefused unless all of them are known not to be.
        """
        refuse_two_writable({**others, self.name: True})
        with self._opened() as here:
            row = _slave(here)
            received = str(row.get("Gtid_IO_Pos") or "") if row else ""
            if row and row["Slave_SQL_Running"] == "Yes" and not self._wait(here, received, self._timeout):
                raise GateNotPassed(
                    f"the replica of {self.name} has not applied all that it has received",
                    what=f"it is at {_position(here)}, received is {received}",
                    state="it is a replica still",
                    next="the same again",
                )
            here.execute("STOP SLAVE")
            here.execute("RESET SLAVE ALL")
            here.execute("SET GLOBAL read_only = 0")
            return f"the database of {self.name} takes writes, from {_position(here)} on"

    # -- inside

    @contextmanager
    def _opened(self) -> Iterator[Connection]:
        with Connection.open(self._here) as here:
            yield here

    def _written(self) -> str:
        """How far the main database has written. Raises SqlError, DatabaseFailed without a binary log."""
        with Connection.open(self._main) as main:
            row = main.one("SELECT @@log_bin, @@gtid_binlog_pos")
        assert row is not None
        if not row[0]:
            raise DatabaseFailed(
                f"the main database {self._main} has no binary log",
                what="nothing can follow it",
                state="nothing was changed",
                next="log_bin, server_id and gtid_strict_mode in its configuration, and a restart",
            )
        return str(row[1] or "")

    def _status(self, here: Connection, written: str | None, problems: list[str]) -> ReplicaStatus:
        row = _slave(here)
        state = here.one("SELECT @@global.read_only, @@server_id, @@gtid_binlog_state, @@gtid_slave_pos")
        assert state is not None
        read_only = str(state[0]) not in ("0", "OFF")
        position = str(state[3] or "")
        own = gtid.own_writes(str(state[2] or ""), position, int(state[1]), apart_from=self._domain)
        problems = [*problems, *([] if read_only else ["it takes writes: read_only is off"])]
        problems += [f"it has changes of its own: GTID {', '.join(own[:5])}"] if own else []
        if row is None:
            return ReplicaStatus(
                read_only=read_only,
                replicates=False,
                broken="it was never told whom to follow",
                position=position,
                own_writes=tuple(own),
                problems=("no replication is set up", *problems),
            )
        receives, applies = str(row["Slave_IO_Running"]), str(row["Slave_SQL_Running"])
        broken = next((said for which in ("SQL", "IO") if (said := _fault(row, which))), "")
        connecting = receives not in ("Yes", "No")
        if connecting:
            problems.append(f"it cannot reach the main database: {row['Last_IO_Error'] or receives}")
        elif broken:
            problems.append(f"it is broken: {broken}")
        if row["Using_Gtid"] == "No":
            problems.append("it does not use GTIDs: CHANGE MASTER TO MASTER_USE_GTID = slave_pos")
        runs = {("Yes", "Yes"): True, ("No", "No"): False}.get((receives, applies))
        lag, applied = None, None
        if written is not None:
            applied = gtid.covers(position, written, apart_from=self._domain)
        if runs:
            lag, caught_up = self._lag(here, row, written)
            applied = applied or caught_up
        return ReplicaStatus(
            read_only=read_only,
            replicates=False if broken and not connecting else runs,
            lag=lag,
            applied=applied,
            broken="" if connecting else broken,
            position=position,
            own_writes=tuple(own),
            problems=tuple(problems),
        )

    def _lag(self, here: Connection, row: Mapping[str, Any], written: str | None) -> tuple[float | None, bool | None]:
        """How long it took until here what was written there when we asked; the server's own figure knows only of what
        has arrived, and is in whole seconds.
        """
        own = row["Seconds_Behind_Master"]
        if written is None:
            return (float(own) if own is not None else None), None
        began = time.monotonic()
        if self._wait(here, written, self._limit):
            waited = time.monotonic() - began
            return (0.0 if waited < 0.02 else round(waited, 2)), True
        return max(float(own or 0), self._limit + LOOK), False

    def _set(self, statement: str, here: Connection) -> None:
        """Stop the replica, start it, or tell it what it follows."""
        self._check()
        here.execute(statement)

    def _wait(self, here: Connection, written: str, seconds: float) -> bool:
        wanted = gtid.without(written, self._domain)
        until = time.monotonic() + seconds
        while wanted:
            self._check()
            left = until - time.monotonic()
            row = here.one("SELECT MASTER_GTID_WAIT(%s, %s)", (wanted, max(0.0, min(left, _SLICE))))
            if row is not None and row[0] == 0:
                break
            if left <= _SLICE:
                return False
        return True

    def _use_gtid(self, here: Connection) -> None:
        """Positions of what was applied, and not of what was written here too: the main database knows only those."""
        row = _slave(here)
        if row is None or row["Using_Gtid"] == "No":
            raise DatabaseFailed(
                f"the database of {self.name} does not replicate with GTIDs",
                state="nothing was changed",
                next=["CHANGE MASTER TO MASTER_USE_GTID = slave_pos", _RESEED],
            )
        if row["Using_Gtid"] != "Slave_Pos":
            self._set("STOP SLAVE", here)
            self._set("CHANGE MASTER TO MASTER_USE_GTID = slave_pos", here)

    def _refuse_if_broken(self, seen: ReplicaStatus) -> None:
        if seen.broken:
            raise DatabaseFailed(
                f"the replica of {self.name} is broken",
                what=seen.broken,
                state=f"it stands still at {seen.position}",
                next=["SHOW SLAVE STATUS there says more", f"if it lost its place or its data differ: {_RESEED}"],
            )


def writable(database: Database) -> bool | None:
    """Whether ordinary users can write there; None when it cannot be asked, which is not a no."""
    try:
        with Connection.open(database) as there:
            row = there.one("SELECT @@global.read_only")
    except DatabaseFailed:
        return None
    return None if row is None else str(row[0]) in ("0", "OFF")


def refuse_two_writable(states: Mapping[str, bool | None]) -> None:
    """Raises ZduRefused unless at most one database is writable, and the others are known not to be."""
    may = sorted(name for name, state in states.items() if state is not False)
    if len(may) > 1:
        told = [
            f"{name} {'takes writes' if states[name] else 'cannot be asked, so it may take writes'}" for name in may
        ]
        raise ZduRefused(
            "two databases would be writable at the same time",
            what=told,
            state="nothing was changed",
            next="SET GLOBAL read_only = 1 on all but one; one that cannot be asked must be off for certain",
        )


def _slave(here: Connection) -> dict[str, Any] | None:
    """The state of the replication, made the one that STOP and START mean. Raises DatabaseFailed for several."""
    rows = here.execute("SHOW ALL SLAVES STATUS").tables
    if len(rows) > 1:
        names = ", ".join(str(row["Connection_name"]) or "(default)" for row in rows)
        raise DatabaseFailed(
            f"{here.database} follows several databases",
            what=names,
            state="nothing was changed",
            next='standalone.kind = "command" for such a site',
        )
    if rows:
        here.execute("SET SESSION default_master_connection = %s", (rows[0]["Connection_name"],))
    return rows[0] if rows else None


def _fault(row: Mapping[str, Any], which: str) -> str:
    number = int(row[f"Last_{which}_Errno"] or 0)
    return f"{row[f'Last_{which}_Error']} ({number})" if number and row[f"Slave_{which}_Running"] == "No" else ""


def _position(here: Connection) -> str:
    row = here.one("SELECT @@gtid_slave_pos")
    return str(row[0] or "") if row else ""
