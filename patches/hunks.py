"""Putting hunks into the lines of a file, and saying of each one whether and where it fits. Pure.

Places are looked for as GNU patch does: first where the hunk says (moved by as much as the hunk before), then ever
farther away; a hunk with less context before its changes than after them belongs to the beginning of the file, one
with less after them to the end. Unlike there, so does one whose last line has no newline. `fuzz` lines of context at
either end may be disregarded; by default none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from patches.diff import Hunk, split

#: How far from its place a conflicting hunk's lines are looked for, to show what is there now.
_NEAR = 50


class Fit(StrEnum):
    """How a hunk, a file or a whole patch stands to the files that it is for."""

    APPLIES = "applies"
    ALREADY = "already applied"
    CONFLICTS = "conflicts"


@dataclass(frozen=True, slots=True, kw_only=True)
class HunkReport:
    """How one hunk fits. `number` from 1; `line`: where in the file as it is, from 1; `offset`: lines from where the
    hunk says. In a conflict `expected` and `found` are the lines as text, and `differs` the index of the first that
    differs.
    """

    number: int
    fit: Fit
    line: int
    offset: int = 0
    fuzz: int = 0
    expected: tuple[str, ...] = ()
    found: tuple[str, ...] = ()
    differs: int = 0

    def __str__(self) -> str:
        if self.fit is Fit.CONFLICTS:
            there = self.found[self.differs] if self.differs < len(self.found) else None
            wanted = self.expected[self.differs] if self.differs < len(self.expected) else None
            line = self.line + self.differs
            says = "the patch expects the end of the file" if wanted is None else f"the patch expects `{wanted}`"
            return f"the file ends before line {line}, {says}" if there is None else f"line {line} is `{there}`, {says}"
        moved = f", {abs(self.offset)} lines {'further down' if self.offset > 0 else 'further up'}" * bool(self.offset)
        return f"{self.fit} at line {self.line}{moved}{f', fuzz {self.fuzz}' if self.fuzz else ''}"


def apply_hunks(content: bytes, hunks: Sequence[Hunk], fuzz: int = 0) -> tuple[bytes | None, tuple[HunkReport, ...]]:
    """The new content (None where any hunk conflicts), and how each hunk fits."""
    lines = split(content)
    out: list[bytes] = []
    reports: list[HunkReport] = []
    done = 0  # lines of the file that are settled
    offset = 0
    for number, hunk in enumerate(hunks, 1):
        old, new = hunk.old, hunk.new
        wanted = max(hunk.old_start - (1 if old else 0), 0)
        guess = wanted + offset
        there = _already(lines, old, new, hunk, guess, done)
        if there is None:
            for slack in range(min(fuzz, max(hunk.context())) + 1):
                place, head, tail = _locate(lines, old, hunk, guess, done, slack)
                if place is not None:
                    break
            else:
                place = None
            if place is not None:
                out += lines[done : place + head] + new[head : len(new) - tail]
                done = place + len(old) - tail
                offset = place - wanted
                reports.append(HunkReport(number=number, fit=Fit.APPLIES, line=place + 1, offset=offset, fuzz=slack))
                continue
            if new:
                there, _, _ = _locate(lines, new, hunk, guess, done, 0)
            elif not lines:  # it empties the file, which is empty
                there = 0
            if there is None:
                reports.append(_conflict(number, lines, old, guess, done))
                continue
        out += lines[done : there + len(new)]
        done = max(done, there + len(new))
        reports.append(HunkReport(number=number, fit=Fit.ALREADY, line=there + 1, offset=there - wanted))
        offset = there - wanted + len(new) - len(old)
    if any(report.fit is Fit.CONFLICTS for report in reports):
        return None, tuple(reports)
    return b"".join(out + lines[done:]), tuple(reports)


def _already(lines: list[bytes], old: list[bytes], new: list[bytes], hunk: Hunk, guess: int, done: int) -> int | None:
    """Where the hunk says, what it adds is there already, and what it expects is not. That is looked at before other
    places are: in a file with blocks that are alike, the next one would be changed too.
    """
    if guess < done or all(kind != b"+" for kind, _ in hunk.lines) or lines[guess : guess + len(new)] != new:
        return None
    if not old:  # no context, nothing removed: only its number tells the place
        return guess
    if _matches(lines, old, guess, 0, 0):
        return None
    return guess if _locate(lines, new, hunk, guess, done, 0)[0] == guess else None


def _locate(
    lines: list[bytes], pattern: list[bytes], hunk: Hunk, guess: int, done: int, slack: int
) -> tuple[int | None, int, int]:
    """Where the pattern stands, and how many lines of it are disregarded at its head and tail. Indexes from 0."""
    before, after = hunk.context()
    most = max(before, after)
    head, tail = slack + before - most, slack + after - most
    if not pattern:
        return (guess if done <= guess <= len(lines) else None), 0, 0
    if head < 0 and hunk.old_start <= 1:  # the beginning of the file
        fits = done == 0 and _matches(lines, pattern, 0, 0, max(tail, 0))
        whole = tail < 0 or not all(line.endswith(b"\n") for _, line in hunk.lines)
        fits = fits and (not whole or len(pattern) == len(lines))
        return (0 if fits else None), 0, max(tail, 0)
    head = max(head, 0)
    if tail < 0 or not all(line.endswith(b"\n") for _, line in hunk.lines):  # the end of the file
        place = len(lines) - len(pattern)
        fits = place >= done and _matches(lines, pattern, place, head, 0)
        return (place if fits else None), head, 0
    first, last = done - head, len(lines) - len(pattern) + tail
    for place in _outwards(guess, max(first, 0 if not head else -head), last):
        if place + head >= done and _matches(lines, pattern, place, head, tail):
            return place, head, tail
    return None, 0, 0


def _outwards(guess: int, first: int, last: int) -> Iterator[int]:
    """The guess, then ever farther from it, later lines first; within first..last."""
    if first <= guess <= last:
        yield guess
    for distance in range(1, max(last - guess, guess - first, 0) + 1):
        if first <= guess + distance <= last:
            yield guess + distance
        if first <= guess - distance <= last:
            yield guess - distance


def _matches(lines: list[bytes], pattern: list[bytes], place: int, head: int, tail: int) -> bool:
    if place + head < 0 or place + len(pattern) - tail > len(lines):
        return False
    stop = len(pattern) - tail
    # One line first: almost every wrong place differs there, and no list is copied.
    if head < stop and lines[place + head] != pattern[head]:
        return False
    return lines[place + head : place + stop] == pattern[head:stop]


def _conflict(number: int, lines: list[bytes], old: list[bytes], guess: int, done: int) -> HunkReport:
    """What stands where most of the expected lines are: there the reader sees what has changed."""

    def alike(place: int) -> int:
        return sum(a == b for a, b in zip(lines[place : place + len(old)], old, strict=False))

    near = [p for p in _outwards(guess, max(done, guess - _NEAR), guess + _NEAR) if 0 <= p <= len(lines)]
    place = max(near, key=alike, default=min(max(guess, 0), len(lines)))
    found = lines[place : place + len(old)]
    same = (n for n, pair in enumerate(zip(found, old, strict=False)) if pair[0] != pair[1])
    return HunkReport(
        number=number,
        fit=Fit.CONFLICTS,
        line=place + 1,
        expected=tuple(map(_text, old)),
        found=tuple(map(_text, found)),
        differs=next(same, min(len(found), len(old))),
    )


def _text(line: bytes) -> str:
    """For people: line ends shown where they are unusual."""
    text = line.removesuffix(b"\n").decode("utf-8", errors="backslashreplace")
    return text.replace("\r", "\\r") + ("" if line.endswith(b"\n") else " (no newline)")
