"""How long something is carried from release to release, and what is decided of it for a given one. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from core.release import Release

_BOUND = re.compile(r"MR(0|[1-9][0-9]{0,5})(?:-(0|[1-9][0-9]{0,8}))?")


def bound(text: str) -> Release:
    """The first build that a lifetime's word means: "MR100" is all builds of MR100, "MR100-2" begins at that build.

    Raises ValueError.
    """
    found = _BOUND.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is no release (MR100) and no build of one (MR100-2)")
    return Release(int(found[1]), int(found[2] or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """From `since` on (inclusive), until `until` (exclusive: from it on no longer carried); each a release or a build.

    `superseded_by`: what takes its place. The name of another carried thing of the same kind ends this one in every
    release that the other is carried to; any other words (a reference, a ticket) are shown as the reason of `until`.
    """

    since: str | None = None
    until: str | None = None
    superseded_by: str | None = None

    def __post_init__(self) -> None:
        bounds = {}
        for name, text in (("since", self.since), ("until", self.until)):
            if text is not None:
                try:
                    bounds[name] = bound(text)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from error
        if len(bounds) == 2 and bounds["since"] >= bounds["until"]:
            raise ValueError(f"until: {self.until} does not come after {self.since}, so it would never be carried")

    def __str__(self) -> str:
        parts = [f"from {self.since}" if self.since else "", f"until {self.until}" if self.until else ""]
        parts.append(f"superseded by {self.superseded_by}" if self.superseded_by else "")
        return ", ".join(part for part in parts if part) or "for ever"


class Verdict(NamedTuple):
    """Whether something is carried to a release, and why, in words."""

    carried: bool
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one carried thing in a release. `kind`: package, patch, file or option. `details`: further
    lines for those who ask.
    """

    kind: str
    name: str
    carried: bool
    why: str
    details: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.why if self.carried else f"NOT carried: {self.why}"


def decide(lifetime: Lifetime, target: Release) -> Verdict:
    """Whether the lifetime covers the target release. Other carried things are not looked at: see `decide_all`."""
    if lifetime.until is not None and target >= bound(lifetime.until):
        reason = f" ({lifetime.superseded_by})" if lifetime.superseded_by else ""
        return Verdict(False, f"lifetime ends at {lifetime.until}{reason}")
    if lifetime.since is not None and target < bound(lifetime.since):
        return Verdict(False, f"lifetime begins at {lifetime.since}")
    if lifetime.until is not None:
        return Verdict(True, f"carried until {lifetime.until}")
    return Verdict(True, f"carried since {lifetime.since}" if lifetime.since else "carried to every release")


def decide_all(kind: str, things: Iterable[tuple[str, Lifetime]], target: Release) -> list[Decision]:
    """The decision on each of the named things of one kind, in their order; those that another one supersedes, which
    is in its own lifetime, are not carried.
    """
    listed = list(things)
    verdicts = {name: decide(lifetime, target) for name, lifetime in listed}
    decisions = []
    for name, lifetime in listed:
        carried, why = verdicts[name]
        other = lifetime.superseded_by
        if carried and other is not None and other != name and verdicts.get(other, (False,))[0]:
            carried, why = False, f"superseded by {other}, which is carried"
        decisions.append(Decision(kind=kind, name=name, carried=carried, why=why))
    return decisions


def supersedes_itself(name: str, lifetimes: dict[str, Lifetime]) -> bool:
    """Whether following `superseded_by` from `name` leads back to it: then none of the circle would be carried."""
    seen: set[str] = set()
    here: str | None = name
    while here is not None and here in lifetimes and here not in seen:
        seen.add(here)
        here = lifetimes[here].superseded_by
    return here == name
