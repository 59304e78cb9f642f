"""Limits, pauses and budgets. Pure."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrations.guards import BREATH, LONGEST_PAUSE, Budget, Clock, Limits, pause
from tests.migrations.runlab import Hands


@given(st.integers(0, 1000), st.integers())
def test_pauses_grow_are_jittered_and_bounded(attempt: int, seed: int) -> None:
    seconds = pause(attempt, random.Random(seed))
    assert BREATH <= seconds <= max(BREATH, min(LONGEST_PAUSE, 2**attempt))


def test_pauses_reach_a_minute() -> None:
    chance = random.Random(1)
    assert max(pause(10, chance) for _ in range(200)) > 50
    assert len({round(pause(10, chance), 3) for _ in range(50)}) > 40


@pytest.mark.parametrize("name", ["lock_wait", "deadline", "max_stall", "max_lag", "max_running"])
def test_limits_are_more_than_nothing(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        Limits(**{name: -1})  # type: ignore[arg-type]


def test_a_window_has_a_time_zone() -> None:
    with pytest.raises(ValueError, match="time zone"):
        Limits(window_end=datetime(2026, 1, 1))


def test_without_limits_nothing_ends() -> None:
    budget = Budget(limits=Limits(), clock=Hands())
    budget.stall(1e9)
    assert (budget.left(), budget.stall_left(), budget.spent(), budget.time_limit(blocking=True)) == (None,) * 4


def test_the_deadline() -> None:
    hands = Hands()
    budget = Budget(limits=Limits(deadline=10), clock=hands)
    hands.sleep(9.5)
    assert budget.spent() is None
    assert budget.rest(20) <= 0.5
    hands.sleep(1)
    assert budget.spent() == "the deadline of 10 s has passed"


def test_the_stalls_of_others() -> None:
    budget = Budget(limits=Limits(max_stall=3), clock=Hands())
    for _ in range(2):
        assert budget.spent() is None
        budget.stall(1.0)
    assert budget.time_limit(blocking=True) == 1.0
    assert budget.time_limit(blocking=False) is None
    budget.stall(0.5)
    assert budget.spent() == "others have waited 2.5 s for us, of 3 s that they may"
    assert budget.spent(trying=False) is None
    assert budget.longest == 1.0


def test_a_small_stall_still_allows_one_try() -> None:
    assert Budget(limits=Limits(max_stall=0.2), clock=Hands()).spent() is None


def test_the_window() -> None:
    hands = Hands()
    budget = Budget(limits=Limits(window_end=hands.now() + timedelta(seconds=60)), clock=hands)
    assert budget.fits(59) is None
    assert budget.fits(61) == "it takes about 61 s, and the window ends at 02:01:00 UTC"
    hands.sleep(61)
    assert budget.spent() == "the window ended at 02:01:00 UTC"


def test_a_clock_set_back_makes_no_window_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    before = clock.now()

    class Back(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Back:
            return cls(2001, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("migrations.guards.datetime", Back)
    assert clock.now() >= before
