"""Which cuts are tried: after every flush, and between flushes with something of the writes since the last one."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from vagrant.cuts.disks import How


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """A cut: in the recording `act`, when the entries before `index` are completed. `number` tells apart cuts at the
    same index of which different things survive."""

    act: str
    index: int
    number: int = 0
    how: How = How.NONE

    def __str__(self) -> str:
        """As `--point` reads it."""
        return f"{self.act}:{self.index}:{self.how.value}:{self.number}"

    def seed(self, seed: str) -> str:
        """What the draw of the surviving writes begins with."""
        return f"{seed}:{self}"


def parse(text: str) -> Point:
    """The point that `str` wrote. Raises ValueError."""
    parts = text.split(":")
    if len(parts) != 4:
        raise ValueError(f"{text!r} is no point such as switch:1234:some:0")
    return Point(act=parts[0], index=int(parts[1]), how=How(parts[2]), number=int(parts[3]))


def choose(act: str, flushes: Sequence[int], count: int, wanted: int, seed: str) -> list[Point]:
    """`wanted` points of a recording with `count` entries of which those at `flushes` flush, in rising order: every
    flush, and cuts between; where every flush would be more than half of them, an even share of the flushes.
    """
    draw = random.Random(f"{seed}:{act}")
    # right after the flush: all before it is there, and nothing else
    boundaries = [0, *(index + 1 for index in flushes)]
    if len(boundaries) > wanted * 2 / 3:
        share = wanted // 2
        boundaries = [boundaries[at * len(boundaries) // share] for at in range(share)]
    found = [Point(act, index) for index in boundaries]
    gaps = [(first, end) for first, end in zip([0, *flushes], [*flushes, count], strict=True) if end - first > 1]
    for number in range(wanted - len(found) if gaps else 0):
        # half of them anywhere between two flushes, half of them anywhere: some flushes have thousands of writes before
        if number % 2:
            first, end = draw.choice(gaps)
            index = draw.randint(first + 1, end)
        else:
            index = draw.randint(1, count)
        found.append(Point(act, index, number, How.ALL if draw.random() < 0.1 else How.SOME))
    return sorted(found, key=lambda point: (point.index, point.number))
