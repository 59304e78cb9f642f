"""The rules between releases (domain page, "Releases" and "Data")."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.release import Policy, Release

releases = st.builds(Release, st.integers(0, 120), st.integers(0, 9))
policies = st.builds(
    Policy,
    rollback_distance=st.integers(0, 3),
    max_jump=st.integers(1, 8),
    lts=st.lists(st.integers(0, 120), max_size=4).map(tuple),
)
DEFAULT = Policy()


@given(releases)
def test_what_is_shown_is_read_again(release: Release) -> None:
    assert Release.parse(str(release)) == release


@given(st.text(max_size=12))
def test_reading_never_guesses(text: str) -> None:
    try:
        assert str(Release.parse(text)) == text
    except ValueError as error:
        assert "MR95-1" in str(error)


@pytest.mark.parametrize(
    "text", ["MR95", "95-1", "mr95-1", "MR095-1", "MR95-01", "MR95-1 ", "MR95-1\n", "MR-1-1", "MR٩-1"]
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(ValueError):
        Release.parse(text)


@given(releases, releases)
def test_order_is_by_number_then_build(one: Release, other: Release) -> None:
    assert (one < other) == ((one.number, one.build) < (other.number, other.build))


@given(releases, releases)
def test_adjoining_goes_both_ways_and_is_one_apart(one: Release, other: Release) -> None:
    assert DEFAULT.adjoining(one, other) == DEFAULT.adjoining(other, one) == (abs(one.number - other.number) <= 1)


@given(policies, releases, releases)
def test_a_jump_is_refused_exactly_for_its_length_or_an_lts_on_the_way(
    policy: Policy, current: Release, target: Release
) -> None:
    passed = [number for number in policy.lts if current.number < number < target.number]
    refused = policy.forbids_jump(current, target)
    assert (refused is not None) == (bool(passed) or target.number - current.number > policy.max_jump)
    if passed:
        assert refused is not None and f"MR{min(passed)}," in refused


@pytest.mark.parametrize(
    ("current", "target", "allowed"),
    [("MR90-1", "MR95-1", True), ("MR90-1", "MR96-1", False), ("MR95-1", "MR95-2", True), ("MR95-2", "MR90-1", True)],
)
def test_five_is_the_longest_jump(current: str, target: str, allowed: bool) -> None:
    assert (DEFAULT.forbids_jump(Release.parse(current), Release.parse(target)) is None) is allowed


def test_an_lts_may_be_reached_and_left_but_not_passed() -> None:
    policy = Policy(lts=(93,))
    assert policy.forbids_jump(Release(92, 1), Release(93, 1)) is None
    assert policy.forbids_jump(Release(93, 1), Release(97, 1)) is None
    assert "MR93" in str(policy.forbids_jump(Release(92, 1), Release(94, 1)))


@given(policies, releases, releases, releases, st.booleans())
def test_downgrades_happen_on_purpose_and_only_where_the_data_allows(
    policy: Policy, current: Release, target: Release, data: Release, on_purpose: bool
) -> None:
    refused = policy.forbids_downgrade(current, target, data, on_purpose=on_purpose)
    if target >= current:
        assert refused is None
    elif not on_purpose:
        assert refused is not None
    else:
        assert refused == policy.forbids_data(target, data)


@given(policies, releases, releases)
def test_data_is_read_by_newer_and_adjoining_software_only(policy: Policy, software: Release, data: Release) -> None:
    allowed = policy.forbids_data(software, data) is None
    assert allowed == (software.number >= data.number - policy.rollback_distance)


@given(policies, releases, releases)
def test_over_adjoining_releases_there_is_always_a_way_back(policy: Policy, old: Release, new: Release) -> None:
    if policy.adjoining(old, new):
        assert policy.forbids_data(old, new) is None and policy.forbids_data(new, old) is None


@pytest.mark.parametrize("wrong", [{"rollback_distance": -1}, {"max_jump": 0}])
def test_senseless_policies_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Policy(**wrong)  # type: ignore[arg-type]
