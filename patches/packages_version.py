"""Which of two package versions is newer: rpm's own rule, so that no process is needed to compare. Pure.

The rule is rpmvercmp() of rpm 4.15 and later (lib/rpmvercmp.c, with ``~`` and ``^``); tests compare it with rpm itself.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SEPARATORS = re.compile(r"\A[^A-Za-z0-9~^]+")
_DIGITS = re.compile(r"[0-9]*")
_LETTERS = re.compile(r"[A-Za-z]*")


class Evr(NamedTuple):
    """Epoch, version and release of a package. Compare with `compare`, not with ``<``."""

    epoch: int
    version: str
    release: str

    @classmethod
    def parse(cls, text: str) -> Evr:
        """Read ``[epoch:]version[-release]``; without a release it is empty."""
        epoch, colon, rest = text.partition(":")
        if not colon or not epoch.isdecimal():
            epoch, rest = "0", text
        version, _, release = rest.rpartition("-") if "-" in rest else (rest, "", "")
        return cls(int(epoch), version, release)

    def __str__(self) -> str:
        whole = f"{self.version}-{self.release}" if self.release else self.version
        return f"{self.epoch}:{whole}" if self.epoch else whole


def compare(one: Evr, other: Evr) -> int:
    """-1, 0 or 1: `one` is older than, the same as, or newer than `other`."""
    if one.epoch != other.epoch:
        return 1 if one.epoch > other.epoch else -1
    return compare_part(one.version, other.version) or compare_part(one.release, other.release)


def compare_part(one: str, other: str) -> int:
    """-1, 0 or 1 for two versions, or two releases, alone."""
    if one == other:
        return 0
    while one or other:
        one, other = _SEPARATORS.sub("", one, count=1), _SEPARATORS.sub("", other, count=1)
        if one[:1] == "~" or other[:1] == "~":  # sorts before everything, even the end
            if one[:1] != other[:1]:
                return -1 if one[:1] == "~" else 1
            one, other = one[1:], other[1:]
            continue
        if one[:1] == "^" or other[:1] == "^":  # sorts after the end, before everything else
            if not one or not other:
                return -1 if not one else 1
            if one[:1] != other[:1]:
                return -1 if one[:1] == "^" else 1
            one, other = one[1:], other[1:]
            continue
        if not one or not other:
            break
        numeric = one[0] in "0123456789"
        segment = _DIGITS if numeric else _LETTERS
        mine, theirs = (found[0] if (found := segment.match(text)) else "" for text in (one, other))
        if not theirs:  # a number is newer than letters
            return 1 if numeric else -1
        one, other = one[len(mine) :], other[len(theirs) :]
        if numeric:
            mine, theirs = mine.lstrip("0"), theirs.lstrip("0")
            if len(mine) != len(theirs):
                return 1 if len(mine) > len(theirs) else -1
        if mine != theirs:
            return 1 if mine > theirs else -1
    return (one != "") - (other != "")
