"""Fingerprints, verdicts and what a record allows: pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.schema import SchemaError
from zdu.rehearsal import (
    FORMAT,
    Fingerprint,
    Grade,
    Phase,
    Record,
    Standing,
    hashed,
    judge,
    passed,
    read_record,
    unfit,
)

#: Nobody times them: other tests run beside.
patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

WORD = st.text("0123456789abcdef", min_size=1, max_size=8)
FINGERPRINT = st.builds(Fingerprint, bundle=WORD, carried=WORD, kept=WORD, configuration=WORD)
NOW = datetime(2026, 11, 20, 12, tzinfo=UTC)
MONTH = timedelta(days=30)

GOOD = Standing(booted="a", slots={"a": ("MR96-1", "good"), "b": ("MR95-1", "good")})
FELL = Standing(booted="b", slots={"a": ("MR96-1", "bad"), "b": ("MR95-1", "good")})
NAMES = ("boot", "plan", "stage", "activate")


def record(fingerprint: Fingerprint, **changed: object) -> Record:
    told = {
        "format": FORMAT, "what": "node", "node": "n1", "release": "MR96-1", "start": "MR95-1", "passed": True,
        "made": NOW.isoformat(), "seconds": 1.0, "machine": "QEMU",
    }  # fmt: skip
    return Record(fingerprint=fingerprint, **{**told, **changed})  # type: ignore[arg-type]


def phases(**changed: object) -> list[Phase]:
    """A rehearsal without a fault, but for what is changed in its last phase."""
    whole = [Phase(name=name, seconds=1.0, expected=GOOD, found=GOOD) for name in NAMES]
    return [*whole[:-1], replace(whole[-1], **changed)]  # type: ignore[arg-type]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@patient
@given(st.dictionaries(st.text(max_size=4), JSON, max_size=5))
def test_the_order_of_keys_is_no_difference(data: dict[str, object]) -> None:
    assert hashed(data) == hashed(dict(reversed(data.items())))


@patient
@given(FINGERPRINT, FINGERPRINT)
def test_a_record_fits_just_what_was_rehearsed(one: Fingerprint, other: Fingerprint) -> None:
    assert unfit(record(one), one, NOW, MONTH) == ""
    assert bool(unfit(record(one), other, NOW, MONTH)) is (one != other)
    assert bool(one.differences(other)) is (one != other)
    assert (one.short == other.short) is (one == other)


@patient
@given(FINGERPRINT, st.integers(-100, 100))
def test_a_record_has_its_time(one: Fingerprint, days: int) -> None:
    made = (NOW - timedelta(days=days)).isoformat()
    assert (unfit(record(one, made=made), one, NOW, MONTH) == "") is (0 <= days <= 30)


def test_a_failed_rehearsal_allows_nothing() -> None:
    one = Fingerprint(bundle="1", carried="2", kept="3", configuration="4")
    why = unfit(record(one, passed=False, findings=("stage: a patch does not apply",)), one, NOW, MONTH)
    assert "a patch does not apply" in why


@patient
@given(FINGERPRINT)
def test_a_record_is_read_as_it_was_written(one: Fingerprint) -> None:
    assert read_record(record(one, faults=("unhealthy",)).as_json()) == record(one, faults=("unhealthy",))


@pytest.mark.parametrize(
    "changed", [{"format": 2}, {"made": "yesterday"}, {"made": "2026-11-20T12:00:00"}, {"more": 1}]
)
def test_what_is_no_record_is_refused(changed: dict[str, object]) -> None:
    one = Fingerprint(bundle="1", carried="2", kept="3", configuration="4")
    with pytest.raises(SchemaError):
        read_record(record(one).as_json() | changed)


def test_all_went_well() -> None:
    assert judge(phases(), NAMES) == []
    assert passed([])


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"found": FELL}, "should stand at a*=MR96-1 good"),
        ({"found": None}, "stands at None"),
        ({"failed": ("patch 0002 does not apply",)}, "patch 0002"),
        ({"undeclared": ("/etc/a (changed)", "/b", "/c", "/d")}, "/c and 1 more"),
        ({"configured": False}, "configuration"),
        ({"limits": {"health checks": (200.0, 180.0)}}, "took 200 s, 180 s are allowed"),
    ],
)
def test_what_would_fail_on_the_night(changed: dict[str, object], words: str) -> None:
    found = judge(phases(**changed), NAMES)
    assert not passed(found)
    assert found[0].phase == "activate"
    assert words in found[0].text


def test_what_was_not_reached_fails_and_what_is_only_near_is_told() -> None:
    found = judge(phases(limits={"health checks": (170.0, 180.0)}), (*NAMES, "rollback"), ["database cdr: a server's"])
    assert [(each.grade, each.text) for each in found] == [
        (Grade.FAILS, "not reached: rollback"),
        (Grade.NOTE, "health checks took 170 s of the 180 s that are allowed"),
        (Grade.NOTE, "not rehearsed: database cdr: a server's"),
    ]


@patient
@given(st.lists(st.sampled_from([GOOD, FELL, None]), min_size=4, max_size=4))
def test_passed_means_that_every_phase_ended_as_planned(seen: list[Standing | None]) -> None:
    whole = [replace(phase, found=found) for phase, found in zip(phases(), seen, strict=True)]
    assert passed(judge(whole, NAMES)) is (seen == [GOOD] * 4)
