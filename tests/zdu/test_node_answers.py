"""What is made of a node's answers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from zdu.node_answers import status

ASKED = datetime(2026, 11, 21, 2, 0, 0, 400_000, tzinfo=UTC)


@pytest.mark.parametrize(
    ("took", "read", "skew"),
    [
        (0.3, 0.0, 0.0),
        (26.0, 25.0, 0.0),  # a busy server looks at its clock early or late in the time that its answer takes
        (26.0, 1.0, 0.0),
        (0.3, 8.0, 7.3),
        (26.0, 40.0, 13.6),
        (0.3, -7.0, -6.4),
        (26.0, -7.0, -6.4),
    ],
)
def test_a_clock_is_off_only_where_that_is_certain(took: float, read: float, skew: float) -> None:
    theirs = (ASKED + timedelta(seconds=read)).replace(microsecond=0)
    told = {
        "node": "a-01",
        "at": theirs.isoformat(),
        "indicator": "OK",
        "problems": [],
        "booted": "a",
        "next_boot": "a",
        "way_back": False,
        "way_back_reason": "",
    }
    seen = status(told, "a-01", asked=ASKED, answered=ASKED + timedelta(seconds=took))
    assert seen.skew == pytest.approx(skew)
