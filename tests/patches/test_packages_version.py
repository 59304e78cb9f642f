"""Versions are ordered as rpm orders them."""

from __future__ import annotations

import functools
import itertools
import subprocess

from hypothesis import given, settings
from hypothesis import strategies as st

from patches.packages_version import Evr, compare, compare_part

parts = st.text(alphabet="0019abAZ.~^_+", min_size=1, max_size=8)
evrs = st.builds(Evr, st.integers(0, 3), parts, parts)


def rpm_says(pairs: list[tuple[str, str]]) -> list[int]:
    """What rpm itself says of each pair."""
    calls = "".join(f"print(rpm.vercmp('{one}', '{other}')..' ')" for one, other in pairs)
    done = subprocess.run(["rpm", "--eval", f"%{{lua: {calls}}}"], capture_output=True, text=True, check=True)
    return [int(word) for word in done.stdout.split()]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(evrs, evrs), min_size=20, max_size=60))
def test_the_order_agrees_with_rpms_own(pairs: list[tuple[Evr, Evr]]) -> None:
    assert rpm_says([(str(one), str(other)) for one, other in pairs]) == [compare(*pair) for pair in pairs]


def test_the_order_agrees_on_pairs_that_are_nearly_the_same() -> None:
    words = [*["1", "1.0", "1.00", "1.0.0", "01", "1a", "1.a", "a1", "a", "1~", "1~rc1", "1~~", "1^", "1^git1"]]
    words += [*["1^~", "1~^", "1.0^a.1", "10", "9", "2.50", "2.5", "1_0", "1+0", "~", "^", ".", "0"]]
    pairs = [(one, other) for one in words for other in words]
    ours = [compare(Evr(0, one, "1"), Evr(0, other, "1")) for one, other in pairs]
    assert rpm_says([(f"{one}-1", f"{other}-1") for one, other in pairs]) == ours


@given(st.lists(parts, min_size=2, max_size=6))
def test_it_is_an_order(versions: list[str]) -> None:
    ordered = sorted(versions, key=functools.cmp_to_key(compare_part))
    assert all(compare_part(one, other) <= 0 for one, other in itertools.pairwise(ordered))
    assert all(compare_part(one, other) == -compare_part(other, one) for one in versions for other in versions)


@given(evrs)
def test_a_version_reads_back_as_it_is_written(evr: Evr) -> None:
    assert Evr.parse(str(evr)) == evr
