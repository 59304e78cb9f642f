"""An installation in memory: sites, calls, money, databases, dispatchers, servers. It does what steps of a runbook ask
of it, one small effect at a time, and complains at once when anybody is harmed.

It knows nothing of plans: it has its own idea of what hurts a call or an account.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from core.release import Release
from zdu.gates import DispatcherFacts, Facts, NodeFacts, SiteFacts
from zdu.limits import Role
from zdu.runbook import Action, Step
from zdu.sites import SiteKind, Sites

ACCOUNTS = ("ada", "bob")
LIMIT = 100

Effect = Callable[[], None]


class Harm(AssertionError):
    """What must never happen."""


@dataclass
class Call:
    site: str
    account: str
    authorized: int


@dataclass
class Book:
    """A database of charges. `reserved`: call → amount, also those copied from a delta. `locked`: account → amount."""

    xdrs: dict[int, tuple[str, int]] = field(default_factory=dict)
    reserved: dict[int, tuple[str, int]] = field(default_factory=dict)
    locked: dict[str, int] = field(default_factory=dict)

    def spent(self, account: str) -> int:
        return sum(amount for who, amount in self.xdrs.values() if who == account)

    def held_back(self, account: str) -> int:
        return sum(amount for who, amount in self.reserved.values() if who == account) + self.locked.get(account, 0)

    def used(self, account: str) -> int:
        return self.spent(account) + self.held_back(account)


@dataclass
class Node:
    runs: str
    other: str = ""
    booting: str = ""
    good: bool = True
    up: bool = True


@dataclass
class Dispatcher:
    """`serves`: it has not left. `gave`: it stands by, because the virtual IP is being moved to another one."""

    sends_to: tuple[str, ...]
    serves: bool = True
    gave: bool = False

    @property
    def ready(self) -> bool:
        return self.serves and not self.gave

    def join(self) -> None:
        self.serves, self.gave = True, False


class World:
    def __init__(self, sites: Sites, found: dict[str, Release]) -> None:
        self.sites = sites
        self.main = sites.main.name
        self.nodes = {name: Node(runs=str(release)) for name, release in found.items()}
        self.dispatchers = {server.name: Dispatcher(sends_to=sites.normally) for server in sites.dispatchers.servers}
        self.vip = next(iter(self.dispatchers))
        self.closed: set[str] = set()
        self.alone = ""
        self.billing: set[str] = set()
        self.held: set[str] = set()
        newest = str(max(found[s.name] for s in sites.main.with_role(Role.DB_PRIMARY)))
        self.data = {site.name: newest for site in sites.sites}
        self.book = Book()
        self.delta = Book()
        self.locked_once: set[str] = set()  # accounts, since the site stands alone
        self.snapshot: Book | None = None  # the replica of the site that stands alone, when it is held
        self.calls: dict[int, Call] = {}
        self.ended: dict[int, tuple[str, int]] = {}
        self.number = 0
        self.refused = 0
        self.falls_back: set[str] = set()  # servers whose next boot of a new release fails

    # -- traffic

    def takers(self) -> tuple[str, ...]:
        holder = self.dispatchers[self.vip]
        if not holder.serves or not self.nodes[self.vip].up:
            raise Harm(f"{self.vip} holds the virtual IP and does not serve")
        return holder.sends_to

    def call(self, account: str, wanted: int, pick: int) -> None:
        """Somebody calls. Served, unless the account has nothing left."""
        takers = self.takers()
        if not takers:
            raise Harm("a new call goes nowhere")
        site = takers[pick % len(takers)]
        if site in self.closed:
            raise Harm(f"a new call goes to {site}, which is in maintenance")
        self._serving(site)
        free = LIMIT - self._used(site, account)
        if free < 0:
            raise Harm(f"{account} is beyond the limit on {site}")
        granted = min(wanted, free)
        if granted <= 0:
            self.refused += 1
            return
        self.number += 1
        self._writable(site).reserved[self.number] = (account, granted)
        self.calls[self.number] = Call(site=site, account=account, authorized=granted)

    def hang_up(self, number: int, used: int) -> None:
        """A call ends, and is charged by its site."""
        call = self.calls[number]
        self._serving(call.site)
        amount = min(used, call.authorized)
        book = self._writable(call.site)
        if number in book.xdrs:
            raise Harm(f"call {number} is charged twice")
        book.xdrs[number] = (call.account, amount)
        book.reserved.pop(number, None)
        self.ended[number] = (call.account, amount)
        del self.calls[number]

    def _serving(self, site: str) -> None:
        down = [s.name for s in self.sites.by_name[site].servers if not self.nodes[s.name].up]
        if down:
            raise Harm(f"{site} is to serve a call while {', '.join(down)} restart")
        if site != self.alone and site != self.main:
            self._serving(self.main)

    def _writable(self, site: str) -> Book:
        return self.delta if site == self.alone else self.book

    def _used(self, site: str, account: str) -> int:
        if site != self.alone:
            return self.book.used(account)
        base = self.book if self.snapshot is None else self.snapshot
        # what the synchronisation has copied to main already is this site's own, and counts once
        charges = (base.xdrs | base.reserved).items()
        own = self.delta.xdrs.keys() | self.delta.reserved.keys()
        return sum(v for n, (who, v) in charges if who == account and n not in own) + self.delta.used(account)

    # -- what must hold at every moment

    def check(self) -> None:
        takers = self.takers()
        books = {site == self.alone for site in takers}
        if len(books) > 1:
            raise Harm(f"{takers} authorize from two books")
        if sum(self.sites.by_name[site].capacity for site in takers) < self.sites.limits.minimum_capacity:
            raise Harm(f"{takers} are too small")
        if sum(not d.serves or not self.nodes[n].up for n, d in self.dispatchers.items()) > 1:
            raise Harm("two dispatchers are out of service")
        for number, charged in self.ended.items():
            there = [book.xdrs[number] for book in (self.book, self.delta) if number in book.xdrs]
            if not there or any(found != charged for found in there):
                raise Harm(f"the record of call {number} is lost or wrong: {there}")
        for account in ACCOUNTS:
            records = {**self.delta.xdrs, **self.book.xdrs}
            promised = sum(call.authorized for call in self.calls.values() if call.account == account)
            total = sum(amount for who, amount in records.values() if who == account) + promised
            if total > LIMIT:
                raise Harm(f"{account} may spend {total}")
        for site in self.sites.sites:
            if site.name not in self.closed:
                self._reads_data(site.name)

    def _reads_data(self, site: str) -> None:
        for server in self.sites.by_name[site].servers:
            runs = Release.parse(self.nodes[server.name].runs)
            why = self.sites.policy.forbids_data(runs, Release.parse(self.data[site]))
            if why:
                raise Harm(f"{site} is open, and {why}")

    # -- what a controller sees

    def facts(self) -> Facts:
        return Facts(
            nodes={
                name: NodeFacts(
                    runs=node.runs if node.up else None,
                    good=node.good if node.up else None,
                    other=node.other,
                    booting=node.booting,
                    fit=True,
                    healthy=node.up,
                )
                for name, node in self.nodes.items()
            },
            sites={site.name: self._site_facts(site.name) for site in self.sites.sites},
            dispatchers={
                name: DispatcherFacts(
                    sends_to=each.sends_to,
                    serves=each.ready and self.nodes[name].up,
                    holds=self.vip == name,
                    answers=self.vip == name and each.serves,
                )
                for name, each in self.dispatchers.items()
            },
        )

    def _site_facts(self, site: str) -> SiteFacts:
        calls = sum(call.site == site for call in self.calls.values())
        secondary = self.sites.by_name[site].kind is SiteKind.SECONDARY
        left = sum(number not in self.book.xdrs for number in self.delta.xdrs)
        return SiteFacts(
            calls=calls,
            empty=calls == 0,
            closed=site in self.closed,
            alone=site == self.alone,
            read_only=secondary,
            replicates=secondary and site not in self.held,
            lag=0.0 if site not in self.held else None,
            applied=True,
            healthy=all(self.nodes[server.name].up for server in self.sites.by_name[site].servers),
            billing_active=site in self.billing,
            locked=not self.alone or self.locked_once == set(ACCOUNTS),
            untransferred=left,
            balanced=not left and not any(self.book.locked.values()) and not self.delta.reserved,
        )

    def _unposted(self, account: str) -> int:
        return sum(v for n, (who, v) in self.delta.xdrs.items() if who == account and n not in self.book.xdrs)

    # -- what steps do: small effects, each of them all or nothing; repeated ones do no harm

    def effects(self, step: Step) -> Iterator[Effect]:
        site, server = step.site, step.server
        match step.action:
            case Action.STAGE_NODE:
                if self.nodes[server].runs != step.release:
                    yield lambda: setattr(self.nodes[server], "other", "")
                    yield lambda: setattr(self.nodes[server], "other", step.release)
            case Action.DISPATCH_TO:
                for name in sorted(self.dispatchers, key=lambda name: name == self.vip):
                    yield lambda name=name: setattr(self.dispatchers[name], "sends_to", step.sites)  # type: ignore[misc]
            case Action.STANDALONE_ENTER:
                yield lambda: self.billing.add(site)
                yield lambda: self._stand_alone(site)
            case Action.STANDALONE_LEAVE:
                yield lambda: self._ask_main(site)
            case Action.MAINTENANCE_ENTER:
                yield lambda: self.closed.add(site)
            case Action.MAINTENANCE_LEAVE:
                yield lambda: self.closed.discard(site)
            case Action.REPLICA_HOLD:
                yield lambda: self._hold(site)
            case Action.REPLICA_REJOIN:
                yield lambda: self._rejoin(site)
            case Action.ACTIVATE_NODE | Action.ROLLBACK_NODE:
                yield from self._boot(server, step.release)
            case Action.VIP_MOVE:
                yield from self._move_vip(server)
            case Action.DISPATCHER_STANDBY:
                yield lambda: setattr(self.dispatchers[server], "serves", False)
            case Action.DISPATCHER_RESTORE:
                yield self.dispatchers[server].join
            case Action.SYNC_LOCK:
                for account in ACCOUNTS:
                    yield lambda account=account: self._lock(account)  # type: ignore[misc]
            case Action.SYNC_TRANSFER:
                for number in list(self.delta.xdrs):
                    yield lambda number=number: self._post(number)  # type: ignore[misc]
            case Action.SYNC_CLOSE:
                yield self._close_delta
            case Action.BILLING_STANDBY:
                yield lambda: self.billing.discard(site)
            case _:
                pass

    def _move_vip(self, to: str) -> Iterator[Effect]:
        others = [name for name in self.dispatchers if name != to]
        if self.vip != to:
            yield self.dispatchers[to].join
            for name in others:
                yield lambda name=name: self._give(name, to)  # type: ignore[misc]
        for name in others:
            yield self.dispatchers[name].join

    def _give(self, name: str, to: str) -> None:
        self.dispatchers[name].gave = True
        if self.vip == name:
            self.vip = to

    def _stand_alone(self, site: str) -> None:
        if self.alone == site:
            return
        if self.alone or self.delta.xdrs or self.delta.reserved:
            raise Harm(f"{site} stands alone beside another delta")
        if site in self.held:
            raise Harm(f"{site} stands alone on an old replica")
        self.alone, self.snapshot = site, None
        self.locked_once.clear()

    def _ask_main(self, site: str) -> None:
        """The last of the delta is made known and the site changes over, as one."""
        if self.alone != site:
            return
        if self.main in self.closed:
            raise Harm(f"{site} asks {self.main}, which is in maintenance")
        for account in ACCOUNTS:
            self._lock(account)
        self.delta.reserved.clear()
        self.alone, self.snapshot = "", None

    def _lock(self, account: str) -> None:
        self._serving(self.main)
        self.book.locked[account] = self._unposted(account)
        self.locked_once.add(account)
        if self.alone:
            mine = {n: (who, v) for n, (who, v) in self.delta.reserved.items() if who == account}
            self.book.reserved |= mine
            for number in [n for n, (who, _) in self.book.reserved.items() if who == account and n in self.delta.xdrs]:
                del self.book.reserved[number]

    def _post(self, number: int) -> None:
        self._serving(self.main)
        account, amount = self.delta.xdrs[number]
        if number not in self.book.xdrs:
            self.book.xdrs[number] = (account, amount)
            self.book.reserved.pop(number, None)
            self.book.locked[account] = max(0, self.book.locked.get(account, 0) - amount)

    def _close_delta(self) -> None:
        if any(number not in self.book.xdrs for number in self.delta.xdrs) or self.delta.reserved:
            raise Harm("the delta is closed before all of it is posted")
        self.delta = Book()

    def _hold(self, site: str) -> None:
        if site in self.held:
            return
        busy = sorted({call.site for call in self.calls.values()} - {site})
        if busy:
            raise Harm(f"the replica of {site} misses what calls on {busy} cost")
        self.held.add(site)
        self.snapshot = Book(dict(self.book.xdrs), dict(self.book.reserved), dict(self.book.locked))

    def _rejoin(self, site: str) -> None:
        self._serving(self.main)
        self.held.discard(site)
        self.data[site] = self.data[self.main]
        if self.alone == site:
            self.snapshot = None

    def _boot(self, server: str, release: str) -> Iterator[Effect]:
        node = self.nodes[server]
        if node.runs == release and node.up:
            return
        yield lambda: self._down(server, release)
        yield lambda: self._up(server, release)

    def _down(self, server: str, release: str) -> None:
        node, site = self.nodes[server], self.sites.site_of[server]
        cut = [n for n, call in self.calls.items() if call.site == site]
        if site and cut:
            raise Harm(f"{server} restarts and cuts calls {cut}")
        if not site and self.vip == server:
            raise Harm(f"{server} restarts with the virtual IP")
        node.up, node.booting = False, release
        if Role.DB_PRIMARY in self.sites.servers[server].roles:
            newest = max(Release.parse(self.data[site]), Release.parse(release))
            self.data |= {each.name: str(newest) for each in self.sites.sites if each.name not in self.held}

    def _up(self, server: str, release: str) -> None:
        node = self.nodes[server]
        node.up, node.booting = True, ""
        if server in self.falls_back:
            self.falls_back.discard(server)
            return
        if node.runs != release:
            node.runs, node.other = release, node.runs
