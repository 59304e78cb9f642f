"""Releases and the rules between them (domain page "Releases"). Pure. The numbers are data: `Policy`."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FORM = re.compile(r"MR(0|[1-9][0-9]{0,5})-(0|[1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True, order=True)
class Release:
    """A release id such as MR95-1: maintenance release 95, build 1. Ordered by number, then build."""

    number: int
    build: int

    @classmethod
    def parse(cls, text: str) -> Release:
        """Read ``MR<number>-<build>``. Raises ValueError."""
        found = _FORM.fullmatch(text)
        if found is None:
            raise ValueError(f"{text!r} is not a release id such as MR95-1")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"MR{self.number}-{self.build}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The release policy. Releases at most `rollback_distance` numbers apart interoperate on the same data (they
    *adjoin*). A jump goes over at most `max_jump` numbers and not past the nearest of the `lts` releases.
    """

    rollback_distance: int = 1
    max_jump: int = 5
    lts: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.rollback_distance < 0:
            raise ValueError("rollback_distance: must not be negative")
        if self.max_jump < 1:
            raise ValueError("max_jump: must be at least 1")

    def adjoining(self, one: Release, other: Release) -> bool:
        """Whether each of the two runs on data that the other has migrated."""
        return abs(one.number - other.number) <= self.rollback_distance

    def forbids_jump(self, current: Release, target: Release) -> str | None:
        """Why one may not go from `current` to `target` in one go, or None. Downgrades are another rule's subject."""
        passed = [number for number in sorted(self.lts) if current.number < number < target.number]
        if passed:
            return (
                f"{current} → {target} passes over the LTS release MR{passed[0]}, which has to be installed on the way"
            )
        if target.number - current.number > self.max_jump:
            return (
                f"{current} → {target} jumps over {target.number - current.number} releases, and at most "
                f"{self.max_jump} are allowed in one go"
            )
        return None

    def forbids_downgrade(self, current: Release, target: Release, data: Release, *, on_purpose: bool) -> str | None:
        """Why one may not go back from `current` to an older `target` while the data is at `data`, or None."""
        if target >= current:
            return None
        if not on_purpose:
            return f"{target} is older than {current}"
        return self.forbids_data(target, data)

    def forbids_data(self, software: Release, data: Release) -> str | None:
        """Why `software` cannot run on data migrated to `data`, or None. Newer software always can: it migrates."""
        if software.number >= data.number or self.adjoining(software, data):
            return None
        return (
            f"the data has been migrated to MR{data.number}, and {software} reads data up to "
            f"MR{software.number + self.rollback_distance} only"
        )
