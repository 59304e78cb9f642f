"""Which cuts are tried."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vagrant.cuts.__main__ import main
from vagrant.cuts.disks import How
from vagrant.cuts.points import Point, choose, parse


@given(
    count=st.integers(1, 400), wanted=st.integers(10, 300), data=st.data(), seed=st.text(max_size=5)
)  # fmt: skip
def test_as_many_as_wanted_in_order_and_within(count: int, wanted: int, data: st.DataObject, seed: str) -> None:
    flushes = sorted(data.draw(st.sets(st.integers(0, count - 1))))
    points = choose("act", flushes, count, wanted, seed)
    assert [point.index for point in points] == sorted(point.index for point in points)
    assert all(0 <= point.index <= count for point in points)
    assert len({str(point) for point in points}) == len(points)
    gaps = any(end - first > 1 for first, end in zip([0, *flushes], [*flushes, count], strict=True))
    assert len(points) == wanted or not gaps
    boundaries = {point.index for point in points if point.how is How.NONE}
    if len(flushes) + 1 <= wanted * 2 / 3:
        assert boundaries == {0, *(index + 1 for index in flushes)}
    assert choose("act", flushes, count, wanted, seed) == points


@pytest.mark.parametrize("words", [("--act", "nosuch"), ("--point", "nosuch:1:some:0"), ("--point", "switch:1")])
def test_what_is_no_recording_or_point_is_refused(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert "nosuch" in (said := capsys.readouterr().err) or "no point" in said


def test_a_point_is_read_as_it_is_printed() -> None:
    point = Point("switch", 1234, 17, How.SOME)
    assert str(point) == "switch:1234:some:17"
    assert parse(str(point)) == point
    assert point.seed("a") != point.seed("b")
    for text in ("switch:1", "switch:x:some:1", "switch:1:many:1"):
        with pytest.raises(ValueError):
            parse(text)
