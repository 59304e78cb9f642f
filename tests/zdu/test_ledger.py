"""The ledger in each mode: the worked example, limits, many calls at once, repeats, refusals, bad input."""

from __future__ import annotations

import re
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import DatabaseFailed, ZduRefused
from core.sql import Connection, Database, Engine, SqlError
from tests.zdu.ledgerlab import NOON, PRICE, World, call, xdr
from zdu.standalone.entries import Answer, BeyondLimit, Contradiction, NotHere, UnknownAccount, Xdr
from zdu.standalone.ledger import Site
from zdu.standalone.money import MICRO, MOST, cost, from_micro, money, seconds_for, to_micro
from zdu.standalone.schema import DELTA, MAIN, install_delta, install_main
from zdu.standalone.session import Session


@pytest.fixture
def alice(world: World) -> World:
    """An account as in the worked example: it owes 98.00 of 100.00."""
    world.main_ledger().open_account("alice", credit_limit=Decimal(100), balance=Decimal(98))
    return world


@pytest.fixture(params=["main", "alone"])
def ledger(request: pytest.FixtureRequest, alice: World) -> Any:
    """The ledger of the secondary site in normal and in stand-alone mode."""
    if request.param == "alone":
        alice.enter()
    return alice.ledger()


def test_the_worked_example_to_the_cent(ledger: Any) -> None:
    grant, answer = call(ledger, "c1", 12 * 60)
    assert (grant.seconds, grant.amount, answer) == (20 * 60, Decimal("2.00"), Answer.POSTED)
    grant, _ = call(ledger, "c2", 5 * 60)
    assert (grant.seconds, grant.amount) == (8 * 60, Decimal("0.80"))
    assert ledger.authorize("alice", call="c3", price=PRICE).seconds == 3 * 60


def test_the_worked_example_ends_on_main(alice: World) -> None:
    alice.enter()
    ledger = alice.ledger()
    call(ledger, "c1", 12 * 60)
    call(ledger, "c2", 5 * 60)
    assert alice.main_ledger().account("alice").effective == Decimal(98)
    sync = alice.sync()
    assert sync.lock().accounts == 1
    assert alice.main_ledger().account("alice").effective == Decimal("99.70")
    sync.switch()
    assert ledger.authorize("alice", call="c3", price=PRICE).seconds == 3 * 60
    assert sync.transfer().done == 2
    assert sync.close().amount == Decimal("1.70")
    account = alice.main_ledger().account("alice")
    assert (account.balance, account.reserved) == (Decimal("99.70"), Decimal("0.30"))
    assert not account.locked
    assert not alice.audit()


def test_calls_at_the_same_time_share_what_is_left(ledger: Any) -> None:
    first = ledger.authorize("alice", call="c1", price=PRICE, at_most=300)
    second = ledger.authorize("alice", call="c2", price=PRICE)
    third = ledger.authorize("alice", call="c3", price=PRICE)
    assert (first.seconds, second.seconds, third.seconds) == (300, 900, 0)
    ledger.charge(xdr("c2", 600))
    assert ledger.authorize("alice", call="c1", price=PRICE).seconds == 600


def test_a_grant_is_repeated_and_never_shrinks(ledger: Any) -> None:
    first = ledger.authorize("alice", call="c1", price=PRICE, at_most=600)
    assert ledger.authorize("alice", call="c1", price=PRICE, at_most=600) == first
    assert ledger.authorize("alice", call="c1", price=PRICE, at_most=60) == first
    assert ledger.authorize("alice", call="c1", price=PRICE, at_most=601).seconds == 601


def test_a_released_call_gives_its_money_back(ledger: Any) -> None:
    ledger.authorize("alice", call="c1", price=PRICE)
    assert ledger.authorize("alice", call="c2", price=PRICE).seconds == 0
    assert ledger.release("c1")
    assert not ledger.release("c1")
    assert ledger.authorize("alice", call="c2", price=PRICE).seconds == 1200


def test_a_charge_is_idempotent_by_its_xdr(ledger: Any) -> None:
    assert call(ledger, "c1", 720)[1] is Answer.POSTED
    assert ledger.charge(xdr("c1", 720)) is Answer.REPEATED
    with pytest.raises(Contradiction):
        ledger.charge(xdr("c1", 721))
    assert ledger.authorize("alice", call="c2", price=PRICE).amount == Decimal("0.80")


def test_a_charge_beyond_the_limit_is_refused_and_the_reservation_stays(ledger: Any) -> None:
    ledger.authorize("alice", call="c1", price=PRICE)
    with pytest.raises(BeyondLimit):
        ledger.charge(xdr("c1", 1201))
    assert ledger.charge(xdr("c1", 1200)) is Answer.POSTED
    with pytest.raises(BeyondLimit):
        ledger.charge(xdr("c2", 1))
    assert ledger.charge(xdr("c3", 0)) is Answer.POSTED


def test_a_fee_needs_no_authorization(ledger: Any) -> None:
    fee = Xdr(id="f1", account="alice", amount=Decimal("1.50"), seconds=0, started=NOON, detail='{"sms": 1}')
    assert ledger.charge(fee) is Answer.POSTED
    assert ledger.charge(fee) is Answer.REPEATED
    assert ledger.authorize("alice", call="c1", price=PRICE).seconds == 300


def test_a_call_belongs_to_one_account_and_one_price(ledger: Any, alice: World) -> None:
    ledger.authorize("alice", call="c1", price=PRICE)
    with pytest.raises(Contradiction):
        ledger.authorize("alice", call="c1", price=Decimal("0.2"))
    with pytest.raises((Contradiction, UnknownAccount)):
        ledger.authorize("bob", call="c1", price=PRICE)


def test_free_calls_last_as_long_as_asked_for(ledger: Any) -> None:
    assert ledger.authorize("alice", call="c1", price=Decimal(0), at_most=7200).seconds == 7200
    assert ledger.charge(xdr("c1", 7000, price=Decimal(0))) is Answer.POSTED


def test_nobody_knows_bob(ledger: Any) -> None:
    with pytest.raises(UnknownAccount):
        ledger.authorize("bob", call="c1", price=PRICE)
    with pytest.raises(UnknownAccount):
        ledger.charge(xdr("c1", 1, "bob"))


def test_everything_else_is_refused_while_a_site_is_on_its_own(alice: World) -> None:
    main = alice.main_ledger()
    main.pay("alice", Decimal(8), id="p1")
    main.set_limit("alice", Decimal(110))
    alice.enter()
    for refused in (
        lambda: main.pay("alice", Decimal(1), id="p2"),
        lambda: main.set_limit("alice", Decimal(200)),
        lambda: main.open_account("bob", credit_limit=Decimal(1)),
        lambda: main.authorize("alice", call="c1", price=PRICE),
        lambda: main.charge(xdr("c1", 1)),
        lambda: main.release("c1"),
    ):
        with pytest.raises(NotHere):
            refused()
    assert alice.ledger(Site.MAIN).authorize("alice", call="c1", price=PRICE).amount == Decimal(20)


def test_the_delta_refuses_while_main_charges(alice: World) -> None:
    delta = alice.delta_ledger()
    for refused in (
        lambda: delta.authorize("alice", call="c1", price=PRICE),
        lambda: delta.charge(xdr("c1", 1)),
        lambda: delta.release("c1"),
    ):
        with pytest.raises(NotHere):
            refused()


def test_payments_limits_and_accounts(alice: World) -> None:
    main = alice.main_ledger()
    assert main.pay("alice", Decimal("8"), id="p1") is Answer.POSTED
    assert main.pay("alice", Decimal("8"), id="p1") is Answer.REPEATED
    with pytest.raises(Contradiction):
        main.pay("alice", Decimal("9"), id="p1")
    assert main.account("alice").balance == 90
    with pytest.raises(ZduRefused):
        main.set_limit("alice", Decimal("89.999999"))
    main.set_limit("alice", Decimal(90))
    assert main.authorize("alice", call="c1", price=PRICE).seconds == 0
    main.open_account("alice", credit_limit=Decimal(90))
    with pytest.raises(Contradiction):
        main.open_account("alice", credit_limit=Decimal(91))
    with pytest.raises(ZduRefused):
        main.open_account("bob", credit_limit=Decimal(1), balance=Decimal(2))
    main.open_account("prepaid", credit_limit=Decimal(0), balance=Decimal(-5))
    assert main.authorize("prepaid", call="c2", price=PRICE).amount == 5
    assert not alice.audit()


def test_identifiers_are_exact(alice: World) -> None:
    main = alice.main_ledger()
    main.open_account("Alice", credit_limit=Decimal(5))
    main.open_account("älice", credit_limit=Decimal(6))
    assert [main.account(name).credit_limit for name in ("alice", "Alice", "älice")] == [100, 5, 6]


def test_the_tables_are_made_once_and_newer_ones_are_refused(world: World) -> None:
    for database, install, prefix in ((world.main, install_main, "ledger"), (world.delta, install_delta, "delta")):
        session = world.session(database)
        install(session)
        session.execute(f"INSERT INTO {prefix}_form (version) VALUES (99)")
        with pytest.raises(DatabaseFailed, match="newer"):
            install(session)


def test_nothing_is_held_below_zero_whoever_writes(alice: World) -> None:
    session = alice.session(alice.main)
    for column in ("reserved", "locked"):
        with pytest.raises(SqlError):
            session.execute(f"UPDATE ledger_accounts SET {column} = -1 WHERE id = 'alice'")


def test_a_replica_is_only_read(alice: World) -> None:
    alice.replicate()
    session = alice.session(alice.base, read_only=True)
    with pytest.raises(SqlError):
        session.transaction(lambda: session.execute("UPDATE ledger_accounts SET balance = 0"))


def test_postgresql_is_refused() -> None:
    with pytest.raises(DatabaseFailed, match="MariaDB or SQLite"):
        Session(Database(engine=Engine.POSTGRESQL, database="d", host="h"))


@pytest.mark.parametrize("wrong", [0.1, "1", None, True, Decimal("NaN"), Decimal("inf"), MOST, Decimal("0.0000001")])
def test_what_is_no_money_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError):
        money(wrong)


@pytest.mark.parametrize(
    "change",
    [
        {"id": ""},
        {"id": "x" * 129},
        {"id": " x"},
        {"id": "x\n"},
        {"account": "a\0"},
        {"amount": Decimal("-0.01")},
        {"amount": 0.5},
        {"seconds": -1},
        {"seconds": 1.5},
        {"started": datetime(2026, 1, 1)},
        {"detail": "x" * 2001},
    ],
    ids=str,
)
def test_what_is_no_xdr_is_refused(change: dict[str, Any]) -> None:
    good: dict[str, Any] = {"id": "x", "account": "a", "amount": Decimal(1), "seconds": 1, "started": NOON}
    Xdr(**good)
    with pytest.raises(ValueError):
        Xdr(**good | change)


AMOUNTS = st.integers(0, 10**15).map(from_micro)


@given(AMOUNTS, AMOUNTS, st.integers(0, 10**6))
def test_a_call_within_its_limit_never_costs_more_than_there_was(
    available: Decimal, price: Decimal, at_most: int
) -> None:
    seconds = seconds_for(available, price, at_most)
    assert 0 <= seconds <= at_most
    assert cost(price, seconds) <= available
    assert seconds == at_most or price * (seconds + 1) > available * 60


@given(AMOUNTS, st.integers(0, 10**6))
def test_costs_are_rounded_to_the_nearest_micro_unit(price: Decimal, seconds: int) -> None:
    assert abs(cost(price, seconds) * 60 - price * seconds) <= MICRO * 30
    assert cost(price, seconds) == cost(price, seconds).quantize(MICRO)


@given(st.integers(-(10**17), 10**17))
def test_micro_units_are_exact(micro: int) -> None:
    assert to_micro(from_micro(micro)) == micro


def test_money_keeps_its_digits_in_the_database(world: World) -> None:
    main = world.main_ledger()
    most = Decimal("999999999999.999999")
    main.open_account("rich", credit_limit=most, balance=Decimal("-999999999999.999999"))
    assert (main.account("rich").credit_limit, main.account("rich").balance) == (most, -most)
    assert main.authorize("rich", call="c1", price=most).seconds == 120


def test_floats_do_not_get_into_an_sqlite_ledger(tmp_path: Any) -> None:
    path = tmp_path / "main.sqlite"
    path.touch()
    with Session(Database(engine=Engine.SQLITE, path=path)) as session:
        install_main(session)
    with Connection.open(Database(engine=Engine.SQLITE, path=path)) as raw, pytest.raises(SqlError):
        raw.execute("INSERT INTO ledger_accounts (id, balance) VALUES ('a', 0.5)")


PAGE = (Path(__file__).parents[2] / "docs/zdu-ledger.md").read_text(encoding="utf-8")


def test_the_example_of_the_page_runs(alice: World) -> None:
    example = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert example is not None
    values: dict[str, Any] = {"main_database": alice.main, "delta_database": alice.delta, "replica": alice.base}
    exec(example[1], values)
    ledger = values["ledger"]
    for session in (ledger.main.session, ledger.delta.session, ledger.delta.base):
        session.close()
    assert values["grant"].amount == Decimal(2)
    assert alice.main_ledger().account("alice").balance == Decimal("99.2")


def test_the_page_has_every_table_and_column() -> None:
    told = dict(re.findall(r"^\| `((?:ledger|delta)_\w+)` \| (.*) \|$", PAGE, re.MULTILINE))
    made = {}
    for statement in (statement for forms in (MAIN, DELTA) for form in forms for statement in form):
        if table := re.match(r"CREATE TABLE IF NOT EXISTS (\w+) \((.*)\) \{end\}", statement, re.DOTALL):
            made[table[1]] = set(re.findall(r"(\w+) \{", table[2]))
    assert told.keys() == made.keys() | {"ledger_form", "delta_form"}
    for name, columns in made.items():
        cell = told[name].replace("as `ledger_reservations`", "`call_id`, `account`, `amount`, `price`, `seconds`")
        cell = cell.replace("as `ledger_xdrs`", told["ledger_xdrs"])
        # keys and times are not told where the row itself says them
        missing = columns - set(re.findall(r"`(\w+)`", cell)) - {"id", "run", "account", "call_id", "seq"}
        assert not missing, name
