"""The transitions of `partitions.boot.state`, and that the model of the loader agrees with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import WrongState
from partitions.boot import model, state
from partitions.boot.state import BAD, GOOD, SLOTS, BootState, SlotBoot, SlotState

records = st.one_of(
    st.just(GOOD), st.just(BAD), st.integers(0, 9).map(lambda tries: SlotBoot(state=SlotState.TRYING, tries=tries))
)
any_state = st.builds(BootState, primary=st.sampled_from(SLOTS), a=records, b=records)
sound = any_state.filter(lambda each: not state.broken(each))
slots = st.sampled_from(SLOTS)


def trying(tries: int) -> SlotBoot:
    return SlotBoot(state=SlotState.TRYING, tries=tries)


def test_an_upgrade_that_succeeds() -> None:
    at = state.fresh("a")
    assert (at.a, at.b, at.primary) == (GOOD, BAD, "a")
    at = state.flip(state.mark_bad(at, "b"), "b", 3)
    assert (at.b, at.primary, state.next_boot(at)) == (trying(3), "b", "b")
    at = state.confirm(at, "b")
    assert (at.a, at.b, at.primary) == (GOOD, GOOD, "b")


def test_a_fallback_is_settled_by_the_old_slot() -> None:
    at = BootState(primary="b", a=GOOD, b=trying(0))
    assert state.next_boot(at) == "a"
    assert state.fell_back(at, "a") and not state.fell_back(at, "b")
    assert state.settle_fallback(at, "a") == BootState(primary="a", a=GOOD, b=BAD)


def test_what_is_abandoned_while_trying_becomes_bad_and_what_was_good_stays_good() -> None:
    assert state.roll_back(BootState(primary="b", a=GOOD, b=trying(2)), "a") == state.fresh("a")
    both = BootState(primary="b", a=GOOD, b=GOOD)
    assert state.roll_back(both, "a") == BootState(primary="a", a=GOOD, b=GOOD)


def test_marking_the_primary_slot_bad_makes_the_other_one_primary() -> None:
    assert state.mark_bad(BootState(primary="b", a=GOOD, b=GOOD), "b") == state.fresh("a")


@pytest.mark.parametrize(
    "change",
    [
        lambda at: state.mark_bad(at, "a"),  # the last good one
        lambda at: state.flip(at, "a", 3),  # nothing to fall back to
        lambda at: state.confirm(at, "b"),
        lambda at: state.roll_back(at, "b"),
        lambda at: state.settle_fallback(at, "a"),
    ],
)
def test_what_would_leave_nothing_to_boot_is_refused(change: object) -> None:
    with pytest.raises(WrongState):
        change(state.fresh("a"))  # type: ignore[operator]


@pytest.mark.parametrize("tries", [0, -1, 10])
def test_tries_are_one_digit(tries: int) -> None:
    with pytest.raises(ValueError, match="tries must be"):
        state.flip(state.fresh("a"), "b", tries)


@given(sound, slots, st.integers(1, 9))
def test_each_transition_keeps_the_rules(at: BootState, slot: state.Slot, tries: int) -> None:
    changes = [
        lambda: state.mark_bad(at, slot),
        lambda: state.flip(at, slot, tries),
        lambda: state.confirm(at, slot),
        lambda: state.roll_back(at, slot),
        lambda: state.settle_fallback(at, slot),
    ]
    for change in changes:
        try:
            after = change()
        except WrongState:
            continue
        assert not state.broken(after)
        assert state.next_boot(after) is not None


@given(any_state)
def test_variables_come_back_as_the_state_they_were_made_of(at: BootState) -> None:
    assert state.from_variables(state.variables(at)) == at


@given(any_state)
def test_state_and_model_agree_on_the_next_boot(at: BootState) -> None:
    outcome = model.boot(state.variables(at))
    assert outcome.slot == state.next_boot(at)
    assert outcome.counted == (outcome.slot == at.primary and at[at.primary].state is SlotState.TRYING)


@given(sound, st.booleans())
def test_no_loop_is_endless(at: BootState, can_save: bool) -> None:
    """Boots that never confirm: the tries go down each time, and then one good slot stays."""
    environment: dict[str, str] | None = state.variables(at)
    left = 10
    for _ in range(11):
        outcome = model.boot(environment, can_save)
        assert outcome.slot is not None
        if not outcome.counted:
            assert at[outcome.slot] == GOOD
            assert model.boot(outcome.environment, can_save).slot == outcome.slot
            return
        assert outcome.left is not None and outcome.left < left
        left, environment = outcome.left, outcome.environment
    raise AssertionError("still trying")


words = st.one_of(st.sampled_from(["a", "b", "good", "trying", "bad", "0", "1", "9"]), st.text(max_size=5))
names = st.sampled_from(["primary", "a_state", "a_tries", "b_state", "b_tries", "other"])


@given(st.dictionaries(names, words))
def test_what_we_read_without_complaint_the_loader_understands_too(found: dict[str, str]) -> None:
    try:
        at = state.from_variables(found)
    except ValueError:
        return
    assert model.boot(found).slot == state.next_boot(at)


@given(st.one_of(st.none(), st.dictionaries(names, words)), st.booleans())
def test_the_model_chooses_nothing_that_is_not_good_or_counted(found: dict[str, str] | None, can_save: bool) -> None:
    outcome = model.boot(found, can_save)
    if outcome.slot is not None:
        assert found is not None and outcome.environment is not None
        assert outcome.counted or found[f"{outcome.slot}_state"] == "good"
    else:
        assert outcome.environment == found
