"""What is measured from outside: the caller's own count of calls, call records on the main database, checksums of both
databases, what each node runs.
"""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from decimal import Decimal

from core.sql import Connection
from tests.zdu.lab import until
from tests.zdu.programs import VIP, Outcome, Pulse
from tests.zdu.whole import databases
from tests.zdu.whole.controller import Event
from tests.zdu.whole.installation import Installation, Site
from tests.zdu.whole.traffic import Traffic
from zdu.consistency import Match, compare
from zdu.standalone.audit import audit_delta, audit_main
from zdu.standalone.session import Binlog, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """What the books say of the calls that were made. `missing`: calls without an xDR; `foreign`: xDRs without a call;
    `at_a`, `at_b`: calls by the site that took them. `wrong`: sums that do not hold. `differs`: tables that are not the
    same on the replica.
    """

    xdrs: int
    missing: int
    foreign: int
    charged: Decimal
    at_a: int
    at_b: int
    posted: int  # by the synchronisation
    wrong: list[str]
    differs: list[str]

    @property
    def exact(self) -> bool:
        """Each call charged once, all sums right, the replica the same."""
        return not (self.missing or self.foreign or self.wrong or self.differs)


def books(made: Installation, traffic: Traffic, outcome: Outcome) -> Books:
    """Look, when every call has ended: after the last charge has come to the main database and its replica."""
    for site in (made.a, made.b):
        until(lambda site=site: site.live() == 0, f"every call of {site.name} is charged: {site.told()}", 60)  # type: ignore[misc]
    names = traffic.names(outcome.made)
    main, replica = made.a.db.database(databases.BOOKS), made.b.db.database(databases.BOOKS)
    with made.controller.inside():
        with Connection.open(main) as there:
            found = there.execute("SELECT id, amount, origin FROM ledger_xdrs").rows
        with closing(Session(main)) as session:
            wrong = audit_main(session)
            held = session.one("SELECT sum(reserved), sum(locked) FROM ledger_accounts")
        with closing(Session(made.b.db.database(databases.DELTA), binlog=Binlog.DOMAIN)) as delta:
            wrong += audit_delta(delta)
        wrong += [f"{amount} is still held" for amount in held or () if amount]
        tables = compare(main, replica, [databases.BOOKS], timeout=30)
    ids = {str(row[0]) for row in found}
    begun = {site.name: {words[1] for words in site.lines() if words[0] == "begin"} for site in (made.a, made.b)}
    return Books(
        xdrs=len(found),
        missing=len(names - ids),
        foreign=len(ids - names),
        charged=sum((Decimal(row[1]) for row in found), Decimal(0)),
        at_a=len(begun["A"]),
        at_b=len(begun["B"]),
        posted=sum(bool(row[2]) for row in found),
        wrong=wrong + [f"call {call} came to both sites" for call in sorted(begun["A"] & begun["B"])[:5]],
        differs=[f"{each.table}: {each.match}" for each in tables if each.match is not Match.SAME],
    )


def migrated(made: Installation) -> dict[str, tuple[bool, bool, bool]]:
    """On each site: whether the index, the filled column and the longer column of the new release are there."""
    query = (
        "SELECT (SELECT count(*) FROM information_schema.statistics WHERE table_schema = 'billing'"
        " AND index_name = 'by_started') > 0,"
        " (SELECT count(*) FROM information_schema.columns WHERE table_schema = 'billing'"
        " AND column_name = 'tariff_name') > 0,"
        " (SELECT character_maximum_length FROM information_schema.columns WHERE table_schema = 'billing'"
        " AND table_name = 'subscribers' AND column_name = 'number') = 300"
    )
    found = {}
    for site in (made.a, made.b):
        with made.controller.inside(), Connection.open(site.db.database(databases.BOOKS)) as there:
            row = there.one(query)
            assert row is not None
            found[site.name] = (bool(row[0]), bool(row[1]), bool(row[2]))
    return found


def last_call(site: Site, before: float) -> float:
    """When the last call of a site was over and charged before a moment (times of day)."""
    lines = (site.sip.directory / "charged").read_text().rpartition("\n")[0].splitlines()
    return max((at for at in (float(line.split()[1]) for line in lines) if at <= before), default=0.0)


def slowest_charge(site: Site) -> float:
    """The longest time from the end of a call until it was charged, in seconds."""
    lines = (site.sip.directory / "charged").read_text().rpartition("\n")[0].splitlines()
    charged = {call: float(at) for call, at in (line.split() for line in lines)}
    ends = {words[1]: float(words[4]) for words in site.lines() if words[0] == "end"}
    return max((charged[call] - at for call, at in ends.items() if call in charged), default=0.0)


def late(site: Site) -> int:
    """Calls that came to a site while it was closed, apart from those that were on their way then (a second)."""
    history = site.sip.directory / "state-maintenance.history"
    lines = [line.split() for line in history.read_text().splitlines()] if history.exists() else []
    moments = [(float(at), word) for at, word in lines]
    found = 0
    begun = [float(words[4]) for words in site.lines() if words[0] == "begin"]
    for number, (at, word) in enumerate(moments):
        if word == "maintenance":
            end = next((other for other, opened in moments[number:] if opened == "open"), time.time())
            found += sum(at + 1 < moment < end for moment in begun)
    return found


@dataclass
class Gaps:
    """How long nobody answered on the virtual IP, at each move of it. `elsewhere`: steps in which it moved although
    they are not there to move it. Give `seen` to the controller.
    """

    made: Installation
    ms: list[float] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    _pulse: Pulse | None = None
    _holder: bool = False

    def seen(self, event: Event) -> None:
        """An event of the run."""
        if event.action in ("dispatcher-standby", "dispatcher-restore"):
            if event.kind == "started":
                self._holder = self.made.keepers[0].holds(VIP)
            elif event.kind == "finished" and self.made.keepers[0].holds(VIP) is not self._holder:
                self.elsewhere.append(event.step)
        if event.action != "vip-move":
            return
        if event.kind == "started" and self._pulse is None:
            self._holder = self.made.keepers[0].holds(VIP)
            self._pulse = Pulse(self.made.caller, VIP).__enter__()
        elif event.kind in ("finished", "failed") and self._pulse is not None:
            self._pulse.__exit__()
            if self.made.keepers[0].holds(VIP) is not self._holder:
                self.ms.append(self._pulse.gap_ms())
            self._pulse = None
