"""Into stand-alone mode and back: each step, repeated, interrupted, late, and in the wrong order."""

from __future__ import annotations

import time
from decimal import Decimal

import pytest

from core import faults
from core.errors import DatabaseFailed, FencedOff, GateNotPassed, ZduRefused
from core.sql import Reason, SqlError
from tests.zdu.ledgerlab import PRICE, World, call, xdr
from zdu.standalone import alone
from zdu.standalone.audit import SumsDiffer
from zdu.standalone.delta import Mode
from zdu.standalone.entries import Answer, BeyondLimit, Contradiction, NotHere
from zdu.standalone.ledger import Site


@pytest.fixture
def alice(world: World) -> World:
    """alice owes 98.00 of 100.00, bob nothing of 10.00."""
    main = world.main_ledger()
    main.open_account("alice", credit_limit=Decimal(100), balance=Decimal(98))
    main.open_account("bob", credit_limit=Decimal(10))
    return world


def test_many_accounts_and_xdrs_in_small_batches(alice: World) -> None:
    main = alice.main_ledger()
    for number in range(7):
        main.open_account(f"a{number}", credit_limit=Decimal(number))
    alice.enter()
    ledger = alice.ledger()
    for number in range(1, 7):
        for turn in range(number):
            call(ledger, f"c{number}-{turn}", 60 + turn, f"a{number}")
    alice.batch = 4
    seen: list[tuple[int, int]] = []
    sync = alice.sync()
    assert sync.lock().accounts == 6
    sync.switch()
    sync.transfer(lambda progress: seen.append((progress.done, progress.total)))
    assert seen == [(4, 21), (8, 21), (12, 21), (16, 21), (20, 21), (21, 21)]
    sums = sync.close()
    assert (sums.xdrs, sums.accounts, sums.amount) == (21, 6, sum(alice.charges().values()))
    assert not alice.audit()


def test_every_step_may_be_repeated(alice: World) -> None:
    alice.enter()
    alice.enter()
    ledger = alice.ledger()
    call(ledger, "c1", 60)
    ledger.authorize("alice", call="c2", price=PRICE, at_most=300)
    sync = alice.sync()
    for _ in range(2):
        sync.lock()
    for _ in range(2):
        sync.switch()
    sync.lock()
    for _ in range(2):
        sync.transfer()
    first = sync.close()
    assert sync.close() == first
    sync.switch()
    sync.transfer()
    account = alice.main_ledger().account("alice")
    assert (account.balance, account.reserved) == (Decimal("98.10"), Decimal("0.50"))
    assert ledger.charge(xdr("c2", 300)) is Answer.POSTED
    assert not alice.audit()


def test_steps_out_of_order_are_refused(alice: World) -> None:
    with pytest.raises(ZduRefused, match="knows no run"):
        alice.sync().lock()
    alice.enter()
    with pytest.raises(ZduRefused, match="not switched"):
        alice.sync().transfer()
    with pytest.raises(ZduRefused, match="not switched"):
        alice.sync().close()
    with pytest.raises(ZduRefused, match="already, for run r1"):
        alice.enter("r2")
    with pytest.raises(ZduRefused, match="on its own"):
        alone.give_up("r1", 1, main=alice.session(alice.main), delta=alice.session(alice.delta))
    alice.leave()
    with pytest.raises(ZduRefused, match="is closed"):
        alice.enter("r1", 2)
    alice.enter("r2", 2)


def test_a_switch_wants_locks_first(alice: World) -> None:
    alice.replicate()
    alice.enter_alone()
    with pytest.raises(ZduRefused, match="not locked"):
        alice.sync().switch()
    assert alice.ledger().authorize("alice", call="c1", price=PRICE).seconds


def test_calls_that_run_through_every_change_of_mode(alice: World) -> None:
    """Authorized in one mode, extended in the next, charged in the one after."""
    ledger = alice.ledger()
    for name in ("m", "mx", "mr"):
        ledger.authorize("alice", call=name, price=PRICE, at_most=60)
    alice.enter()
    assert ledger.authorize("alice", call="mx", price=PRICE, at_most=120).seconds == 120
    assert ledger.charge(xdr("m", 30)) is Answer.POSTED
    assert ledger.release("mr")
    assert not ledger.release("mr")
    for name in ("s", "sx"):
        ledger.authorize("alice", call=name, price=PRICE, at_most=60)
    # 98.05 owed, 0.20 + 0.10 + 0.10 held, of 100.00
    assert ledger.authorize("alice", call="rest", price=PRICE).amount == Decimal("1.55")
    assert ledger.release("rest")
    alice.leave()
    account = alice.main_ledger().account("alice")
    assert (account.balance, account.reserved) == (Decimal("98.05"), Decimal("0.40"))
    assert ledger.authorize("alice", call="sx", price=PRICE, at_most=120).seconds == 120
    for name, seconds in (("mx", 120), ("s", 60), ("sx", 120)):
        assert ledger.charge(xdr(name, seconds)) is Answer.POSTED
    account = alice.main_ledger().account("alice")
    assert account.effective == account.balance == Decimal("98.55")
    assert not alice.audit()


def test_locking_while_calls_go_on_copies_what_changed_since(alice: World) -> None:
    alice.enter()
    ledger = alice.ledger()
    call(ledger, "c1", 60)
    sync = alice.sync()
    assert sync.lock().accounts == 1
    assert sync.lock().accounts == 0
    call(ledger, "c2", 60)
    call(ledger, "c3", 60, "bob")
    alice.replicate()  # the replica knows of the lock: it must not count twice
    assert ledger.authorize("alice", call="c4", price=PRICE).amount == Decimal("1.80")
    assert ledger.release("c4")
    assert sync.switch().accounts == 2
    sync.transfer()
    assert sync.close().xdrs == 3
    assert not alice.audit()


def test_what_is_charged_just_before_the_stop_is_locked_too(alice: World) -> None:
    alice.enter()
    ledger = alice.ledger()
    sync = alice.sync()
    sync.lock()

    def charge(name: str) -> None:
        if name == "sync:switching":
            faults.arm(None)
            call(ledger, "c1", 60)
            ledger.authorize("alice", call="c2", price=PRICE, at_most=60)

    faults.arm(charge)
    sync.switch()
    account = alice.main_ledger().account("alice")
    assert (account.locked, account.reserved) == (Decimal("0.10"), Decimal("0.10"))
    sync.transfer()
    assert sync.close().xdrs == 1


def test_an_xdr_repeated_after_the_switch_is_not_charged_again(alice: World) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 1200)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    for site in Site:
        assert alice.ledger(site).charge(xdr("c1", 1200)) is Answer.REPEATED
    with pytest.raises(BeyondLimit):  # the lock holds what was charged
        alice.main_ledger().charge(xdr("c2", 1))
    sync.transfer()
    assert alice.ledger().charge(xdr("c1", 1200)) is Answer.REPEATED
    sync.close()
    assert alice.ledger().charge(xdr("c1", 1200)) is Answer.REPEATED
    assert not alice.audit()


@pytest.mark.parametrize("site", Site)
def test_main_opens_while_a_repeat_is_on_its_way(alice: World, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine looked at main before that opened, so it did not look into the delta."""
    alice.enter()
    call(alice.ledger(), "c1", 1200)
    sync = alice.sync()
    sync.lock()

    def die(name: str) -> None:
        if name == "sync:handed-over":
            raise InterruptedError

    faults.arm(die)
    with pytest.raises(InterruptedError):
        sync.switch()
    faults.arm(None)
    ledger = alice.ledger(site, patience=5)
    looked = ledger.main.pending

    def look_and_open() -> str:
        seen = looked()
        sync.switch()
        return seen

    monkeypatch.setattr(ledger.main, "pending", look_and_open)
    assert ledger.charge(xdr("c1", 1200)) is Answer.REPEATED
    sync.transfer()
    sync.close()
    assert not alice.audit()


def test_an_xdr_charged_on_both_sides_is_posted_once(alice: World) -> None:
    """By an engine that went around `Ledger`."""
    alice.enter()
    call(alice.ledger(), "c1", 60)
    call(alice.ledger(), "c2", 60)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    assert alice.main_ledger().charge(xdr("c1", 60)) is Answer.POSTED
    assert sync.transfer().direct == 1
    assert sync.close().xdrs == 2
    assert alice.main_ledger().account("alice").effective == Decimal("98.20")
    assert not alice.audit()


def test_one_identifier_with_two_contents_stops_the_transfer(alice: World) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 60)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    alice.main_ledger().charge(xdr("c1", 61))
    with pytest.raises(Contradiction) as raised:
        sync.transfer()
    assert raised.value.what == ("xDR x-c1",)
    with pytest.raises(SumsDiffer, match="does not add up"):
        sync.close()
    assert alice.main_ledger().account("alice").locked == Decimal("0.10")


def test_a_charge_before_the_site_was_on_its_own_is_known_there(alice: World) -> None:
    call(alice.ledger(), "c1", 60)
    alice.enter()
    assert alice.ledger().charge(xdr("c1", 60)) is Answer.REPEATED
    with pytest.raises(Contradiction):
        alice.ledger().charge(xdr("c1", 59))


def test_a_call_of_another_account_is_known_in_the_replica(alice: World) -> None:
    alice.ledger().authorize("bob", call="c1", price=PRICE)
    alice.enter()
    with pytest.raises(Contradiction):
        alice.ledger().authorize("alice", call="c1", price=PRICE)
    with pytest.raises(Contradiction):
        alice.ledger().charge(xdr("c1", 1))


def test_a_replica_that_lags_leaves_main_open(world: World) -> None:
    if world.base == world.main:
        pytest.skip("this replica never lags")
    world.main_ledger().open_account("alice", credit_limit=Decimal(100))
    with pytest.raises(GateNotPassed):
        world.enter_without_replication(patience=0.05)
    assert world.ledger().authorize("alice", call="c1", price=PRICE, at_most=60).seconds
    # it catches up, and stops again just when main is closed
    world.replicate()
    faults.arm(lambda name: setattr(alone, "CLOSED", 0.05) if name == "standalone:await-replica" else None)
    try:
        with pytest.raises(GateNotPassed, match="catch up"):
            world.enter_without_replication(patience=0.05)
    finally:
        alone.CLOSED = 2.0  # type: ignore[misc]
    assert world.ledger().authorize("alice", call="c2", price=PRICE, at_most=60).seconds
    world.enter()
    assert world.delta_ledger().mode() is Mode.STANDALONE


def test_giving_up_an_entry_opens_main_again(alice: World) -> None:
    class Died(BaseException):
        pass

    def die(name: str) -> None:
        alice.replicate()
        if name == "standalone:closed":
            raise Died

    faults.arm(die)
    with pytest.raises(Died):
        alice.enter_without_replication()
    faults.arm(None)
    with pytest.raises(NotHere):
        alice.ledger().authorize("alice", call="c1", price=PRICE)
    main, delta = alice.session(alice.main), alice.session(alice.delta)
    assert alone.not_opened(main, delta) == "r1"
    for _ in range(2):
        alone.give_up("r1", 2, main=main, delta=delta)
    assert alone.not_opened(main, delta) == ""
    assert alice.ledger().authorize("alice", call="c1", price=PRICE).seconds
    alice.enter(fence=3)
    assert alice.ledger().authorize("alice", call="c1", price=PRICE).seconds == 1200


@pytest.mark.parametrize("place", ["standalone:await-replica", "standalone:closed"])
def test_a_database_that_is_lost_before_the_delta_opens_opens_main_again(alice: World, place: str) -> None:
    """Whatever is lost while nobody charges: the replica that is waited for, or the delta itself."""
    if place == "standalone:await-replica" and alice.base == alice.main:
        pytest.skip("this replica never lags")
    main = alice.session(alice.main)

    def lose(name: str) -> None:
        closed = main.one("SELECT 1 FROM ledger_state WHERE mode = 'closed'") if name == place else None
        if closed:
            faults.arm(None)
            raise SqlError("the server has gone away", reason=Reason.OTHER, code="2006")
        if name == "standalone:await-replica":
            alice.replicate()

    faults.arm(lose)
    with pytest.raises(SqlError, match="gone away"):
        alice.enter_without_replication()
    faults.arm(None)
    assert alice.ledger().authorize("alice", call="c1", price=PRICE, at_most=60).seconds == 60
    alice.enter(fence=2)
    assert alice.delta_ledger().mode() is Mode.STANDALONE


def test_main_that_cannot_be_opened_again_is_told(alice: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def lose(name: str) -> None:
        alice.replicate()
        if name == "standalone:closed":
            faults.arm(None)
            raise SqlError("the server has gone away", reason=Reason.OTHER, code="2006")

    def away(*_: object, **__: object) -> None:
        raise SqlError("main is away", reason=Reason.OTHER, code="2002")

    faults.arm(lose)
    with monkeypatch.context() as patched, pytest.raises(DatabaseFailed, match="cannot be opened") as raised:
        patched.setattr(alone, "give_up", away)
        alice.enter_without_replication()
    assert raised.value.what == ("the server has gone away", "main is away") and "nobody" in raised.value.state
    alice.enter(fence=2)
    assert alice.delta_ledger().mode() is Mode.STANDALONE


def test_the_answer_to_the_opening_of_the_delta_is_lost(alice: World) -> None:
    """The delta charges: main stays closed."""
    delta = alice.session(alice.delta)

    def lose(name: str) -> None:
        alice.replicate()
        if name == "ledger:committed" and delta.one("SELECT 1 FROM delta_state WHERE mode = 'standalone'"):
            faults.arm(None)
            raise SqlError("lost connection during COMMIT", reason=Reason.OTHER, code="2013")

    faults.arm(lose)
    with pytest.raises(SqlError, match="during COMMIT"):
        alice.enter_without_replication()
    assert alice.session(alice.main).one("SELECT mode FROM ledger_state") == ("closed",)
    assert alice.ledger().authorize("alice", call="c1", price=PRICE).seconds
    alice.leave()


def test_a_run_that_was_handed_over_is_not_given_up(alice: World) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 60)
    sync = alice.sync()
    sync.lock()

    def die(name: str) -> None:
        if name == "sync:handed-over":
            raise InterruptedError

    faults.arm(die)
    with pytest.raises(InterruptedError):
        sync.switch()
    faults.arm(None)
    main, delta = alice.session(alice.main), alice.session(alice.delta)
    assert alone.not_opened(main, delta) == ""
    with pytest.raises(ZduRefused, match="and is switched"):
        alone.give_up("r1", 1, main=main, delta=delta)
    sync.transfer()
    assert sync.close().xdrs == 1


def test_what_a_replica_shows_of_an_earlier_attempt_proves_nothing(world: World) -> None:
    """It stopped when it had seen main closed; since then main was opened, and charged."""
    if world.base == world.main:
        pytest.skip("this replica never lags")
    world.main_ledger().open_account("alice", credit_limit=Decimal(100))

    def fail(name: str) -> None:
        if name == "standalone:await-replica":
            world.replicate()
        if name == "standalone:closed":
            raise InterruptedError

    faults.arm(fail)
    with pytest.raises(InterruptedError):
        world.enter_without_replication()
    faults.arm(None)
    call(world.ledger(), "c1", 60)
    with pytest.raises(GateNotPassed, match="catch up"):
        world.enter_without_replication(fence=2, patience=0.05)
    world.enter(fence=3)
    assert world.ledger().charge(xdr("c1", 60)) is Answer.REPEATED


def test_an_entry_that_died_and_whose_replica_lags_now_opens_main_again(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    if world.base == world.main:
        pytest.skip("this replica never lags")
    world.main_ledger().open_account("alice", credit_limit=Decimal(100))

    def die(name: str) -> None:
        if name == "standalone:await-replica":
            world.replicate()
        if name == "standalone:closed":
            raise KeyboardInterrupt

    faults.arm(die)
    with pytest.raises(KeyboardInterrupt):
        world.enter_without_replication()
    faults.arm(None)
    monkeypatch.setattr(alone, "CLOSED", 0.05)
    with pytest.raises(GateNotPassed, match="catch up"):
        world.enter_without_replication(fence=2, patience=60)
    assert world.ledger().authorize("alice", call="c1", price=PRICE).seconds


def test_an_older_controller_is_fenced_off_at_every_step(alice: World) -> None:
    alice.enter(fence=5)
    call(alice.ledger(), "c1", 60)
    old, new = alice.sync(fence=5), alice.sync(fence=6)
    new.lock()
    for step in (old.lock, old.switch, old.transfer, old.close):
        with pytest.raises(FencedOff):
            step()
    with pytest.raises(FencedOff):
        alice.enter(fence=5)
    new.switch()
    new.transfer()
    assert new.close().xdrs == 1


def test_an_older_controller_is_fenced_off_in_the_middle_of_a_step(alice: World) -> None:
    for place in ("sync:copy", "sync:copied", "sync:stopped"):
        run = f"r-{place}"
        fence = alice.session(alice.delta).one("SELECT fence FROM delta_state")
        assert fence is not None
        alice.enter(run, fence[0] + 1)
        call(alice.ledger(), f"c-{place}", 1)
        old, new = alice.sync(run, fence[0] + 1), alice.sync(run, fence[0] + 2)

        def overtake(name: str, place: str = place, new: object = new) -> None:
            if name == place:
                faults.arm(None)
                new.lock()  # type: ignore[attr-defined]

        faults.arm(overtake)
        with pytest.raises(FencedOff):
            old.lock()
            old.switch()
        new.lock()
        new.switch()
        new.transfer()
        assert new.close().xdrs == 1
    assert not alice.audit()


def test_a_switch_that_was_left_is_taken_back_by_the_ledger(alice: World) -> None:
    class Died(Exception):
        pass

    def die(name: str) -> None:
        if name == "sync:stopped":
            raise Died

    alice.enter()
    ledger = alice.ledger(patience=5)
    call(ledger, "c1", 60)
    alice.lease = 0.3
    sync = alice.sync()
    sync.lock()
    faults.arm(die)
    with pytest.raises(Died):
        sync.switch()
    faults.arm(None)
    begun = time.monotonic()
    assert alice.delta_ledger().mode() is Mode.SWITCHING
    with pytest.raises(NotHere):
        alice.ledger().authorize("alice", call="c2", price=PRICE)
    assert ledger.authorize("alice", call="c2", price=PRICE, at_most=60).seconds == 60
    assert time.monotonic() - begun < 30
    assert alice.delta_ledger().mode() is Mode.STANDALONE
    sync.switch()
    assert alice.main_ledger().account("alice").reserved == Decimal("0.10")
    sync.transfer()
    sync.close()
    assert not alice.audit()


def test_a_lease_that_ends_under_a_slow_switch_makes_it_begin_again(alice: World) -> None:
    alice.enter()
    ledger = alice.ledger(patience=5)
    call(ledger, "c1", 60)
    alice.lease = 0.001
    charged: list[str] = []

    def slow(name: str) -> None:
        if name == "sync:stopped" and not charged:
            charged.append(name)
            time.sleep(0.05)
            faults.arm(None)
            call(ledger, "c2", 60)

    sync = alice.sync()
    sync.lock()
    faults.arm(slow)
    sync.switch()
    assert charged
    assert alice.main_ledger().account("alice").locked == Decimal("0.20")
    sync.transfer()
    assert sync.close().xdrs == 2


def test_main_gone_and_back_with_charges_of_its_own(alice: World) -> None:
    """The main site was thought to be gone, and charged: what both granted is named, nothing is lost."""
    alice.replicate()
    alice.enter_alone()
    call(alice.ledger(), "c1", 1200)
    call(alice.main_ledger(), "c2", 600)
    sync = alice.sync()
    assert sync.lock().beyond == ("alice",)
    with pytest.raises(NotHere):
        alice.main_ledger().authorize("alice", call="c3", price=PRICE)
    sync.switch()
    assert alice.ledger().authorize("alice", call="c3", price=PRICE).seconds == 0
    sync.transfer()
    sync.close()
    assert alice.main_ledger().account("alice").balance == Decimal(101)
    assert [line.split(":")[0] for line in alice.audit()] == ["beyond its credit limit"]


@pytest.mark.parametrize("replicated", [True, False])
def test_alone_again_before_the_last_run_is_transferred(alice: World, replicated: bool) -> None:
    """Whether the replica has seen the locks of the last run or not: what it charged counts, once."""
    alice.enter()
    ledger = alice.ledger()
    call(ledger, "c1", 720)
    ledger.authorize("alice", call="c2", price=PRICE, at_most=60)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    if replicated:
        alice.replicate()
    alice.enter_alone("r2", 2)
    known = replicated or alice.base == alice.main
    assert ledger.authorize("alice", call="c3", price=PRICE).amount == Decimal("0.70")
    if known:
        assert ledger.charge(xdr("c2", 60)) is Answer.POSTED
    ledger.charge(xdr("c3", 400))
    first = alice.sync("r1", 3)
    first.transfer()
    second = alice.sync("r2", 3)
    assert second.lock().beyond == ()
    second.switch()
    second.transfer()
    assert second.close().xdrs == 1 + known
    assert first.close().xdrs == 1
    if not known:
        assert ledger.charge(xdr("c2", 60)) is Answer.POSTED
    account = alice.main_ledger().account("alice")
    assert account.effective == account.balance == Decimal("99.966667")
    assert not alice.audit()


def test_an_account_that_is_missing_on_main_is_named(alice: World) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 60, "bob")
    alice.session(alice.main).execute("DELETE FROM ledger_accounts WHERE id = 'bob'")
    with pytest.raises(DatabaseFailed, match="not on main") as raised:
        alice.sync().lock()
    assert raised.value.what == ("bob",)


@pytest.mark.parametrize(
    "tampered",
    [
        "UPDATE ledger_xdrs SET amount = amount + 1",
        "DELETE FROM ledger_adjustments WHERE kind = 'charge'",
        "UPDATE ledger_adjustments SET amount = amount + 1 WHERE kind = 'charge'",
        "DELETE FROM ledger_xdrs",
    ],
)
def test_what_was_written_by_hand_does_not_add_up(alice: World, tampered: str) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 60)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    sync.transfer()
    alice.session(alice.main).execute(tampered)
    with pytest.raises(SumsDiffer) as raised:
        sync.close()
    assert raised.value.what
    assert alice.audit()


def test_a_lock_made_smaller_by_hand_stops_the_transfer(alice: World) -> None:
    alice.enter()
    call(alice.ledger(), "c1", 60)
    sync = alice.sync()
    sync.lock()
    sync.switch()
    alice.session(alice.main).execute("UPDATE ledger_locks SET amount = 0")
    with pytest.raises(DatabaseFailed, match="less is locked"):
        sync.transfer()
