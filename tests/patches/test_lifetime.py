"""Lifetimes, and the registry of what is carried."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigError, NotReady
from core.release import Release
from patches.lifetime import Lifetime, bound, decide, decide_all
from patches.registry import Kind, Registry

NUMBERS = st.integers(0, 120)
RELEASES = st.builds(Release, NUMBERS, st.integers(1, 5))
BOUNDS = st.one_of(st.builds("MR{}".format, NUMBERS), RELEASES.map(str))


@given(st.none() | BOUNDS, st.none() | BOUNDS, RELEASES)
def test_from_is_inclusive_and_until_exclusive(since: str | None, until: str | None, target: Release) -> None:
    try:
        lifetime = Lifetime(since=since, until=until)
    except ValueError:
        assert since is not None and until is not None and bound(since) >= bound(until)
        return
    verdict = decide(lifetime, target)
    assert verdict.carried == ((since is None or target >= bound(since)) and (until is None or target < bound(until)))
    assert (verdict.carried or since or until) and verdict.why


@given(BOUNDS, RELEASES, RELEASES)
def test_what_has_ended_never_comes_back(until: str, one: Release, later: Release) -> None:
    one, later = sorted((one, later))
    if not decide(Lifetime(until=until), one).carried:
        assert not decide(Lifetime(until=until), later).carried


@pytest.mark.parametrize(
    ("lifetime", "target", "words"),
    [
        (
            Lifetime(until="MR96-1", superseded_by="fixed upstream, ref 18223"),
            "MR96-1",
            "NOT carried: lifetime ends at MR96-1 (fixed upstream, ref 18223)",
        ),
        (Lifetime(until="MR100"), "MR100-1", "NOT carried: lifetime ends at MR100"),
        (Lifetime(until="MR100-2"), "MR100-1", "carried until MR100-2"),
        (Lifetime(since="MR97"), "MR96-9", "NOT carried: lifetime begins at MR97"),
        (Lifetime(since="MR97"), "MR97-1", "carried since MR97"),
        (Lifetime(), "MR1-1", "carried to every release"),
        (Lifetime(superseded_by="new"), "MR1-1", "NOT carried: superseded by new, which is carried"),
    ],
)
def test_decisions_are_told_in_words(lifetime: Lifetime, target: str, words: str) -> None:
    decisions = decide_all("patch", [("old", lifetime), ("new", Lifetime())], Release.parse(target))
    assert [decision.name for decision in decisions] == ["old", "new"]
    assert str(decisions[0]) == words


@pytest.mark.parametrize("text", ["95", "MR", "MR95-", "MR095", "mr95", "MR95-1-2", "MR9999999"])
def test_other_words_are_no_bounds(text: str) -> None:
    with pytest.raises(ValueError, match=r"until: .* is no release"):
        Lifetime(until=text)


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.of(tmp_path)


def test_a_life_in_the_registry(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_USER", "erika")
    first = registry.add(Kind.PATCH, "0001-a", content=b"one", reason="ref 1", facts={"package": "app"})
    registry.add(Kind.PATCH, "0002-b", content=b"two")
    assert (first.added_by, first.facts, registry.content(first)) == ("erika", {"package": "app"}, b"one")
    again = registry.add(Kind.PATCH, "0001-a", content=b"new", replace=True)
    assert [entry.name for entry in registry.entries(Kind.PATCH)] == ["0001-a", "0002-b"]
    assert registry.content(registry.get(Kind.PATCH, "0001")) == b"new" and again.place == 1
    ended = registry.expire(Kind.PATCH, "0002", "MR96", reason="merged upstream")
    assert ended.lifetime.until == "MR96" and "merged upstream" in ended.reason
    assert [d.carried for d in registry.decide(Kind.PATCH, Release.parse("MR96-1"))] == [True, False]
    registry.remove(Kind.PATCH, "0001-a", why="no longer needed")
    history = registry.entries(Kind.PATCH, ended=True)
    assert [(each.name, each.ended_why) for each in history] == [
        ("0001-a", "replaced"),
        ("0001-a", "no longer needed"),
        ("0002-b", None),
    ]
    with Registry.of(registry.path.parent) as other:
        assert other.entries(ended=True) == history


def test_what_the_registry_refuses(registry: Registry) -> None:
    registry.add(Kind.FILE, "/etc/a", lifetime=Lifetime(superseded_by="/etc/b"))
    with pytest.raises(ConfigError, match="carried already"):
        registry.add(Kind.FILE, "/etc/a")
    with pytest.raises(ConfigError, match="not carried yet"):
        registry.add(Kind.FILE, "/etc/b", replace=True)
    with pytest.raises(ConfigError, match="cannot be superseded"):
        registry.add(Kind.FILE, "/etc/b", lifetime=Lifetime(superseded_by="/etc/a"))
    registry.add(Kind.FILE, "/etc/b")
    for name in ("/etc/", "", "/nowhere"):
        with pytest.raises(ConfigError, match=r"several|no kept files"):
            registry.get(Kind.FILE, name)
    with pytest.raises(ConfigError, match="cannot expire"):
        registry.expire(Kind.FILE, "/etc/a", "tomorrow")


def test_damaged_bytes_are_never_used(registry: Registry) -> None:
    entry = registry.add(Kind.PATCH, "x", content=b"content")
    registry.blob(entry).write_bytes(b"other")
    with pytest.raises(NotReady, match="damaged or gone"):
        registry.content(entry)
    assert registry.kept(str(entry.blob)) is None
    assert registry.keep(b"content") == entry.blob
    assert registry.content(entry) == b"content"


def test_what_became_of_things_in_a_slot(registry: Registry) -> None:
    registry.set_outcomes("b", Kind.PATCH, [("1", "applied", {"files": []}), ("2", "not carried", {})])
    registry.set_outcomes("b", Kind.FILE, [("/etc/a", "kept", {})])
    registry.set_outcomes("b", Kind.PATCH, [("2", "applied", {})])
    assert [(each.kind, each.name) for each in registry.outcomes("b")] == [("file", "/etc/a"), ("patch", "2")]
    assert registry.outcomes("a") == []
