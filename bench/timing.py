"""Repetitions in turns, so that whatever else goes on meets all contenders alike; and what the numbers say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Sample:
    """All values of one contender, in the order in which they were measured."""

    values: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle one."""
        return median(self.values)

    def over(self, other: Sample) -> float:
        """How many times the other this is, turn by turn; the middle one."""
        return median(mine / its for mine, its in zip(self.values, other.values, strict=True))

    def __str__(self) -> str:
        return f"{self.median:8.3f}   min {min(self.values):.3f}   max {max(self.values):.3f}"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure and what is wanted of it."""

    name: str
    value: float
    unit: str
    wanted: str


Contender = Callable[[], Mapping[str, float]]


def seconds(name: str, work: Callable[[], object]) -> Contender:
    """A contender whose one value, `name`, is how long `work` takes."""

    def timed() -> dict[str, float]:
        begun = time.perf_counter()
        work()
        return {name: time.perf_counter() - begun}

    return timed


def in_turns(contenders: list[Contender], turns: int) -> dict[str, Sample]:
    """Run A B C, A B C, …, `turns` times. Each contender returns one value or several, under names of their own."""
    found: dict[str, list[float]] = {}
    for _ in range(turns):
        for contender in contenders:
            for name, value in contender().items():
                found.setdefault(name, []).append(value)
    return {name: Sample(tuple(values)) for name, values in found.items()}


def table(samples: Mapping[str, Sample], unit: str) -> str:
    """The samples as lines: name, median, extremes."""
    return "\n".join(f"  {name:<34}{sample} {unit}" for name, sample in samples.items())


@contextmanager
def said(what: str) -> Iterator[None]:
    """Print what goes on now, and afterwards how long it took."""
    print(f"{what} …", flush=True)
    begun = time.monotonic()
    yield
    print(f"  ({time.monotonic() - begun:.1f} s)", flush=True)
