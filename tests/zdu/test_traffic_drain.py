"""The drain gate: pure, so every order of readings is tried."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.zdu.drainlab import Counted, Patient
from zdu.limits import DrainConfig
from zdu.traffic.drain import NEW, Drain, Reading, Verdict, judge

CONFIG = DrainConfig(readings=3, interval=0.5)

counts = st.one_of(st.none(), st.integers(-1, 3), st.just(0))
steps = st.lists(
    st.tuples(st.floats(0, 2), counts, st.lists(counts, max_size=2), st.booleans()), min_size=1, max_size=30
)


def reading(count: int | None, at: float, source: str = "A") -> Reading:
    return Reading(source=source, count=count, at=at, why="no answer" if count is None else "")


def run(told: Sequence[tuple[float, int | None, list[int | None], bool]]) -> list[Verdict]:
    drain, now, verdicts = Drain(), 0.0, list[Verdict]()
    for seconds, own, cross, explained in told:
        now += seconds
        others = [reading(count, now, f"d{n}") for n, count in enumerate(cross)]
        why = {"d0": "it was restarted"} if explained else {}
        drain, verdict = judge(drain, CONFIG, reading(own, now), others, why)
        verdicts.append(verdict)
    return verdicts


@given(steps)
def test_open_only_when_nobody_counts_a_call_often_enough(
    told: list[tuple[float, int | None, list[int | None], bool]],
) -> None:
    """Written as the rule itself: the last readings, far enough apart, are all 0, and nothing speaks against it."""
    at, now = [], 0.0
    for seconds, *_ in told:
        now += seconds
        at.append(now)
    for index, verdict in enumerate(run(told)):
        zeros, last = 0, 0.0
        newest = -1.0
        for moment, (_, own, cross, explained) in zip(at[: index + 1], told[: index + 1], strict=True):
            fresh = moment > newest
            newest = max(newest, moment)
            against = [count for n, count in enumerate(cross) if count != 0 and not (explained and n == 0)]
            if not fresh or own != 0 or against:
                zeros = 0
            elif zeros == 0 or moment - last >= NEW * CONFIG.interval:
                zeros, last = zeros + 1, moment
        assert verdict.open == (zeros >= CONFIG.readings)


@given(steps, counts.filter(lambda count: count != 0))
def test_what_is_not_0_closes_it_whatever_was_before(
    told: list[tuple[float, int | None, list[int | None], bool]], count: int | None
) -> None:
    assert not run([*told, (1.0, count, [], False)])[-1].open
    assert not run([*told, (1.0, count, [], False), (1.0, 0, [], False), (1.0, 0, [], False)])[-1].open
    zeros = [(1.0, 0, list[int | None](), False)] * 3
    assert run([*told, (1.0, count, [], False), *zeros])[-1].open


def test_words() -> None:
    def said(own: int | None, *cross: int | None) -> str:
        others = [reading(count, 1.0, f"d{n}") for n, count in enumerate(cross, 1)]
        return judge(Drain(), CONFIG, reading(own, 1.0), others)[1].text

    assert said(12) == "12 calls"
    assert said(1) == "1 call"
    assert said(0) == "0 calls in 1 of 3 readings"
    assert said(None) == "calls not known: no answer"
    assert said(-1) == "calls not known: A counts -1"
    assert said(0, 0, 3) == "0 calls by its own count, but d2: 3"
    assert said(0, None) == "0 calls by its own count, but d1: not known (no answer)"


def test_an_explanation_is_part_of_the_evidence() -> None:
    drain = Drain()
    for now in (1.0, 2.0, 3.0):
        others = [reading(7, now, "d1"), reading(0, now, "d2")]
        drain, verdict = judge(drain, CONFIG, reading(0, now), others, {"d1": "gave the virtual IP away at 02:14"})
    assert verdict.open
    assert verdict.evidence == ("A: 0", "d1: 7, explained: gave the virtual IP away at 02:14", "d2: 0")


def test_an_explanation_does_not_explain_calls_of_the_site() -> None:
    drain = Drain()
    for now in range(1, 9):
        drain, verdict = judge(drain, CONFIG, reading(2, now), [], {"A": "never mind"})
        assert not verdict.open


class Clockwork:
    """Readings from a list; the last one is repeated."""

    def __init__(self, *told: int | None) -> None:
        self.told = list(told)
        self.at: list[float] = []

    def __call__(self) -> Reading:
        self.at.append(time.monotonic())
        count = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        return reading(count, self.at[-1])


FAST = replace(CONFIG, interval=0.02)


class Counting:
    """A dispatcher that counts no call either."""

    def __init__(self) -> None:
        self.asked = 0

    def live(self, site: str) -> list[Reading]:
        self.asked += 1
        return [reading(0, time.monotonic(), "d1")]


def test_waiting_goes_on_until_it_is_empty() -> None:
    read, d1 = Clockwork(5, 2, None, 0, 1, 0), Counting()
    evidence = Counted(read, FAST, [d1]).wait(Patient())  # type: ignore[list-item]
    assert [line["seen"] for line in evidence] == [
        "A has 5 calls",
        "waited",
        "A has 2 calls",
        "A: calls not known: no answer",
        "A has 1 calls",
        "A has 0 calls",
    ]
    assert [line.get("open") for line in evidence] == [False, None, False, False, False, True]
    assert d1.asked == 4, "only when the site counts none"
    assert all(b - a >= 0.02 * NEW for a, b in pairwise(read.at[1:]))


def test_waiting_can_be_left() -> None:
    class Leaving(Patient):
        left = iter([False, False, True])

        def check(self) -> None:
            if next(self.left):
                raise InterruptedError

    read = Clockwork(3)
    with pytest.raises(InterruptedError):
        Counted(read, FAST).wait(Leaving())
    assert len(read.at) == 4


@pytest.mark.parametrize("readings", [2, 3, 5])
def test_a_decision_takes_two_seconds_at_most(readings: int) -> None:
    """With the readings and the interval as they come: the last call ends just after a reading."""
    config = DrainConfig()
    assert config.readings * config.interval <= 2.0 - config.interval
    drain = Drain()
    now, opened = 0.0, 0.0
    drain, _ = judge(drain, replace(config, readings=readings), reading(1, now))
    while not opened:
        now += config.interval
        drain, verdict = judge(drain, replace(config, readings=readings), reading(0, now))
        opened = now if verdict.open else 0.0
    assert opened == readings * config.interval
