"""Maintenance windows, over midnight too."""

from __future__ import annotations

from datetime import datetime, time, timedelta

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from core.window import Window

times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
moments = st.datetimes(datetime(2026, 1, 1), datetime(2026, 12, 30))


@pytest.mark.parametrize(
    ("text", "now", "is_open"),
    [
        ("02:00-04:00", "02:00", True),
        ("02:00-04:00", "03:59", True),
        ("02:00-04:00", "04:00", False),
        ("02:00-04:00", "01:59", False),
        ("23:00-01:00", "23:30", True),
        ("23:00-01:00", "00:59", True),
        ("23:00-01:00", "01:00", False),
        ("23:00-01:00", "12:00", False),
        (" 02:00 – 04:00 ", "03:00", True),
    ],
)
def test_open_and_closed(text: str, now: str, is_open: bool) -> None:
    assert Window.parse(text).is_open(datetime.fromisoformat(f"2026-11-20T{now}")) is is_open


@pytest.mark.parametrize(
    "text", ["", "2:00-4:00", "02:00", "02:00-02:00", "25:00-26:00", "02:60-03:00", "02:00-04:00x"]
)
def test_what_is_no_window(text: str) -> None:
    with pytest.raises(ValueError):
        Window.parse(text)


@given(times, times, moments)
def test_it_opens_when_it_says_and_within_a_day(start: time, end: time, now: datetime) -> None:
    assume(start != end)
    window = Window(start, end)
    assert Window.parse(str(window)) == window
    opens = window.opens(now)
    assert now < opens <= now + timedelta(days=1) and window.is_open(opens)
    if not window.is_open(now):
        minutes = int((opens - now).total_seconds() // 60)
        assert not window.is_open(now + timedelta(minutes=minutes // 2)) or minutes == 0


@given(times, times, moments)
def test_a_window_and_its_opposite_share_the_day(start: time, end: time, now: datetime) -> None:
    assume(start != end)
    assert Window(start, end).is_open(now) != Window(end, start).is_open(now)
