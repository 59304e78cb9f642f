"""All of it against a model in which there is one ledger and nothing else: whatever the mode, whatever is repeated,
lags or dies, two sites must answer as one ledger would.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from core import faults
from core.sql import Database, Engine
from tests.zdu.ledgerlab import World, xdr
from zdu.standalone.delta import Mode
from zdu.standalone.entries import Answer, BeyondLimit, Contradiction, NotHere
from zdu.standalone.ledger import Site
from zdu.standalone.money import cost, from_micro, seconds_for
from zdu.standalone.schema import install_delta, install_main

T = TypeVar("T")

ACCOUNTS = ("alice", "bob")
PRICES = tuple(Decimal(text) for text in ("0", "0.10", "0.333333", "7.000001"))

#: At which point of what it passes somebody dies; 0: not at all.
DEATHS = st.one_of(st.just(0), st.integers(0, 15), st.integers(0, 90))


class Died(BaseException):
    """The process was killed: nothing catches this on its way."""


@dataclass
class OneLedger:
    """The model: no modes, no databases, no failures."""

    limits: dict[str, Decimal]
    charged: dict[str, dict[str, Decimal]] = field(default_factory=lambda: {name: {} for name in ACCOUNTS})
    held: dict[str, tuple[str, Decimal, int]] = field(default_factory=dict)

    def effective(self, account: str) -> Decimal:
        held = sum((cost(price, seconds) for of, price, seconds in self.held.values() if of == account), Decimal(0))
        return sum(self.charged[account].values(), held)

    def authorize(self, account: str, call: str, price: Decimal, at_most: int) -> int | None:
        """The seconds; None: a contradiction."""
        of, at, seconds = self.held.get(call, (account, price, 0))
        if (of, at) != (account, price):
            return None
        free = self.limits[account] - self.effective(account) + cost(price, seconds)
        granted = max(seconds, seconds_for(free, price, at_most))
        if granted:
            self.held[call] = (account, price, granted)
        return granted

    def charge(self, account: str, call: str, amount: Decimal, seconds: int) -> str:
        name = f"x-{call}"
        if any(name in each for each in self.charged.values()):
            return "seen"
        of, price, held_seconds = self.held.get(call, (account, Decimal(0), 0))
        if of != account:
            return "contradiction"
        held = cost(price, held_seconds)
        if amount > held and amount > self.limits[account] - self.effective(account) + held:
            return "beyond"
        self.held.pop(call, None)
        self.charged[account][name] = amount
        return "posted"


class TwoSites(RuleBasedStateMachine):
    """Rules: what engines do, what a controller does, and deaths in the middle of either."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        for name in ("main", "delta", "replica"):
            (path / name).touch()
        main, delta, base = (Database(engine=Engine.SQLITE, path=path / name) for name in ("main", "delta", "replica"))
        self.world = World(main=main, delta=delta, base=base, batch=2)
        for database in (main, delta, base):  # what the file system does with a cut is not the question here
            self.world.session(database)._open().execute("PRAGMA synchronous = OFF")
        install_main(self.world.session(main))
        install_delta(self.world.session(delta))
        self.calls = 0
        self.runs = 0
        self.fence = 1
        self.state = "normal"

    def teardown(self) -> None:
        faults.arm(None)
        self.world.close()
        self.folder.cleanup()

    # -- engines

    @initialize(limits=st.lists(st.integers(0, 40_000_000), min_size=2, max_size=2))
    def accounts(self, limits: list[int]) -> None:
        self.model = OneLedger(limits={name: from_micro(limit) for name, limit in zip(ACCOUNTS, limits, strict=True)})
        for name, limit in self.model.limits.items():
            self.world.main_ledger().open_account(name, credit_limit=limit)
        self.world.replicate()

    @rule(
        site=st.sampled_from(Site),
        account=st.sampled_from(ACCOUNTS),
        price=st.sampled_from(PRICES),
        at_most=st.integers(1, 3000),
        again=st.booleans(),
        dies=DEATHS,
        pick=st.integers(0, 100),
    )
    def authorize(
        self, site: Site, account: str, price: Decimal, at_most: int, again: bool, dies: int, pick: int
    ) -> None:
        call = self._some_call(pick) if again else self._new_call()
        if call not in self.model.held:
            account = _owner(call)
        elif pick % 3:
            account, price, _ = self.model.held[call]
        if any(f"x-{call}" in charged for charged in self.model.charged.values()):
            return  # it is over
        ledger = self.world.ledger(site)
        try:
            grant = self._until_answered(
                dies, lambda: ledger.authorize(account, call=call, price=price, at_most=at_most)
            )
        except NotHere:
            assert self.state == "closed"
            return
        except Contradiction:
            assert self.model.authorize(account, call, price, at_most) is None
            return
        assert grant.seconds == self.model.authorize(account, call, price, at_most)
        assert grant.amount == cost(price, grant.seconds)

    @rule(
        site=st.sampled_from(Site),
        account=st.sampled_from(ACCOUNTS),
        part=st.sampled_from([0, 1, 50, 99, 100, 101]),
        dies=DEATHS,
        pick=st.integers(0, 100),
    )
    def charge(self, site: Site, account: str, part: int, dies: int, pick: int) -> None:
        call = self._some_call(pick)
        owner, price, seconds = self.model.held.get(call, (_owner(call), PRICES[1], 60))
        account = account if pick % 5 == 0 and call in self.model.held else owner
        record = xdr(call, (seconds * part + 99) // 100, account, price)
        ledger = self.world.ledger(site)
        answer: Any
        try:
            answer = self._until_answered(dies, lambda: ledger.charge(record))
        except NotHere:
            assert self.state == "closed"
            return
        except (BeyondLimit, Contradiction) as error:
            answer = error
        expected = self.model.charge(account, call, record.amount, record.seconds)
        event(f"charge {self.state}: {expected}")
        if expected == "posted":
            assert answer in (Answer.POSTED, Answer.REPEATED)  # repeated: it died after it had posted
        elif expected == "seen":
            assert answer is Answer.REPEATED or isinstance(answer, Contradiction)
        else:
            assert isinstance(answer, BeyondLimit if expected == "beyond" else Contradiction)

    @rule(site=st.sampled_from(Site), dies=DEATHS, pick=st.integers(0, 100))
    def release(self, site: Site, dies: int, pick: int) -> None:
        call = self._some_call(pick)
        try:
            self._until_answered(dies, lambda: self.world.ledger(site).release(call))
        except NotHere:
            assert self.state == "closed"
            return
        self.model.held.pop(call, None)

    # -- the controller

    @rule()
    def replicate(self) -> None:
        self.world.replicate()

    @rule(further=st.booleans(), dies=DEATHS)
    def control(self, further: bool, dies: int) -> None:
        """The next step, or, where there are two ways on, the one that leads `further`."""
        if self.state in ("normal", "closed"):
            self.runs += self.state == "normal"
            self._control(dies, lambda: self.world.enter_without_replication(f"r{self.runs}", self.fence), "alone")
            return
        sync = self.world.sync(f"r{self.runs}", self.fence)
        first, second, goal = (
            (sync.lock, sync.switch, "switched") if self.state == "alone" else (sync.transfer, sync.close, "normal")
        )
        if not further:
            self._control(dies, first, self.state)
            return
        self._control(dies, lambda: (first(), second()), goal)

    # -- what always holds

    @invariant()
    def nothing_is_lost_or_twice_or_beyond(self) -> None:
        if not hasattr(self, "model"):
            return
        assert self.world.audit() == []
        expected = {name: amount for each in self.model.charged.values() for name, amount in each.items()}
        assert self.world.charges() == expected
        for account, limit in self.model.limits.items():
            assert self.model.effective(account) <= limit

    @precondition(lambda self: self.state == "normal" and self.runs)
    @invariant()
    def everything_is_on_main_in_the_end(self) -> None:
        for name in ACCOUNTS:
            account = self.world.main_ledger().account(name)
            assert account.balance == sum(self.model.charged[name].values())
            assert account.effective == self.model.effective(name)

    # -- means

    def _new_call(self) -> str:
        self.calls += 1
        return f"c{self.calls}"

    def _some_call(self, pick: int) -> str:
        """A call that was begun, mostly one that is under way."""
        under_way = sorted(self.model.held)
        if under_way and pick % 4:
            return under_way[pick // 4 % len(under_way)]
        return f"c{pick // 4 % (self.calls + 1) + 1}"

    def _dying(self, after: int, action: Callable[[], T]) -> T:
        """Run it; it dies at the point number `after` that it passes (0: it lives). The replica follows meanwhile."""
        left = after

        def passed(name: str) -> None:
            nonlocal left
            if name == "standalone:await-replica":
                self.world.replicate()
            left -= 1
            if left == 0:
                raise Died

        faults.arm(passed)
        try:
            return action()
        finally:
            faults.arm(None)

    def _until_answered(self, dies: int, action: Callable[[], T]) -> T:
        """An engine that dies in the middle comes back and asks the same again."""
        try:
            return self._dying(dies, action)
        except Died:
            return action()

    def _control(self, dies: int, action: Callable[[], object], goal: str) -> None:
        """A controller that dies is followed by another one, with the next token, which need not come at once."""
        try:
            self._dying(dies, action)
        except Died:
            self.fence += 1
            self.state = self._look()
            if self.state == "switching":  # the lease is over at once: the next who asks takes the switch back
                session = self.world.session(self.world.delta)
                session.execute("UPDATE delta_state SET until = 0")
                self.state = "alone"
        else:
            self.state = goal
        event(f"controller: {'died, then ' if self.state != goal else ''}{self.state}")

    def _look(self) -> str:
        main, delta = self.world.session(self.world.main), self.world.session(self.world.delta)
        mode = self.world.delta_ledger().mode()
        if mode is not Mode.NORMAL:
            return "alone" if mode is Mode.STANDALONE else "switching"
        run = delta.one("SELECT state FROM delta_runs WHERE run = %s", (f"r{self.runs}",))
        state = main.one("SELECT mode FROM ledger_state WHERE id = 1")
        assert state is not None
        if run is not None and run[0] == "switched":
            return "switched"
        return "closed" if state[0] == "closed" else "normal"


def _owner(call: str) -> str:
    """Calls have names of their own: one is never of two accounts, unless somebody errs while it is under way."""
    return ACCOUNTS[int(call[1:]) % 2]


TestTwoSites = TwoSites.TestCase
TestTwoSites.settings = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
