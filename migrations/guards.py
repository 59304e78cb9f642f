"""How much a run may ask of the server and of its users: limits, the clock they are measured by, and pauses between
tries. Decides nothing about SQL.
"""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

from core.errors import MigrationStopped

#: Seconds: the pause after the first refused lock, and the longest.
FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 60.0

#: Seconds that others get, at least, between two tries of ours to lock something.
BREATH: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a phase may cost; None: no limit. `lock_wait`: seconds per try that a statement may queue for a lock.
    `deadline`: seconds for the whole run. `max_stall`: seconds, all together, that others may have to wait: for our
    tries to lock, and in the blocking phase for the statements themselves. `max_lag` (seconds that a replica is behind)
    and `max_running` (statements that the server executes): batches pause above them. `window_end`: nothing that would
    not be done by then is begun. `cleanup_allowed`: the previous release is no way back any more.
    """

    lock_wait: float = 1.0
    deadline: float | None = None
    max_stall: float | None = None
    max_lag: float | None = 10.0
    max_running: int | None = None
    window_end: datetime | None = None
    cleanup_allowed: bool = False

    def __post_init__(self) -> None:
        for name in ("lock_wait", "deadline", "max_stall", "max_lag", "max_running"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name}: must be more than 0")
        if self.window_end is not None and self.window_end.tzinfo is None:
            raise ValueError("window_end: needs a time zone")


class Clock:
    """Time, as far as the runner knows it. Tests have their own."""

    def __init__(self) -> None:
        self._wall = datetime.now(UTC)
        self._began = time.monotonic()

    def steady(self) -> float:
        """Seconds that only ever grow."""
        return time.monotonic()

    def now(self) -> datetime:
        """The time of day. A clock that is set back while we run does not make a window longer."""
        return max(datetime.now(UTC), self._wall + timedelta(seconds=time.monotonic() - self._began))

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def pause(attempt: int, chance: random.Random) -> float:
    """Seconds to wait after the `attempt`-th try (from 0) was refused: doubling, with full jitter, so that runners and
    applications do not march in step; but never so short that those who queued behind us stay in the queue.
    """
    return chance.uniform(BREATH, max(BREATH, min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(attempt, 10))))


@dataclass(slots=True, kw_only=True)
class Budget:
    """What is left of the limits. `waits`: tries that were refused; `longest`: seconds of the longest stall that we
    caused, as far as we can see it; `stalled`: of all of them.
    """

    limits: Limits
    clock: Clock
    began: float = 0.0
    waits: int = 0
    longest: float = 0.0
    stalled: float = 0.0
    chance: random.Random = field(default_factory=random.Random)

    def __post_init__(self) -> None:
        self.began = self.clock.steady()

    def left(self) -> float | None:
        """Seconds until the deadline or the window's end, whichever comes first; None where there is neither."""
        ends = []
        if self.limits.deadline is not None:
            ends.append(self.began + self.limits.deadline - self.clock.steady())
        if self.limits.window_end is not None:
            ends.append((self.limits.window_end - self.clock.now()).total_seconds())
        return min(ends) if ends else None

    def stall_left(self) -> float | None:
        """Seconds that others may still be kept waiting."""
        return None if self.limits.max_stall is None else self.limits.max_stall - self.stalled

    def time_limit(self, *, blocking: bool) -> float | None:
        """Seconds that the next statement may take."""
        bounds = [self.left(), self.stall_left() if blocking else None]
        known = [max(bound, 0.001) for bound in bounds if bound is not None]
        return min(known) if known else None

    def stall(self, seconds: float) -> None:
        """Others may have waited so long for us."""
        self.stalled += seconds
        self.longest = max(self.longest, seconds)

    def spent(self, *, trying: bool = True) -> str | None:
        """Which limit is reached, in words; None: go on. `trying`: something is about to be locked."""
        left, stall = self.left(), self.stall_left()
        if left is not None and left <= 0:
            if self.limits.window_end is not None and self.clock.now() >= self.limits.window_end:
                return f"the window ended at {self.limits.window_end:%H:%M:%S %Z}"
            return f"the deadline of {self.limits.deadline:g} s has passed"
        if trying and stall is not None and stall < min(self.limits.lock_wait, self.limits.max_stall or 0):
            return f"others have waited {self.stalled:.1f} s for us, of {self.limits.max_stall:g} s that they may"
        return None

    def fits(self, expected: float) -> str | None:
        """Why something that takes `expected` seconds cannot be begun, or None."""
        end = self.limits.window_end
        if end is not None and self.clock.now() + timedelta(seconds=expected) > end:
            return f"it takes about {expected:g} s, and the window ends at {end:%H:%M:%S %Z}"
        return None

    def rest(self, attempt: int) -> float:
        """Seconds to wait before the next try; not past the deadline."""
        seconds, left = pause(attempt, self.chance), self.left()
        return seconds if left is None else max(0.0, min(seconds, left))


def stopped(message: str, *, what: list[str], state: str) -> MigrationStopped:
    """A stop at a point from which it goes on."""
    return MigrationStopped(
        message, what=what, state=state, next=["updater resume    goes on from here", "updater migrate status"]
    )
