"""Maintenance windows: ``02:00-04:00`` in local time, also over midnight."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day from which (included) and until which (excluded) something may be done."""

    start: time
    end: time

    @classmethod
    def parse(cls, text: str) -> Window:
        """Read ``HH:MM-HH:MM``. Raises ValueError."""
        found = re.fullmatch(r"(\d\d):(\d\d)\s*[-–]\s*(\d\d):(\d\d)", text.strip())
        if found is None:
            raise ValueError(f"{text!r} is not a window such as 02:00-04:00")
        start = time(int(found[1]), int(found[2]))
        end = time(int(found[3]), int(found[4]))
        if start == end:
            raise ValueError(f"the window {text!r} is empty")
        return cls(start, end)

    def __str__(self) -> str:
        return f"{self.start:%H:%M}-{self.end:%H:%M}"

    @property
    def seconds(self) -> int:
        """How long it is."""
        minutes = (self.end.hour - self.start.hour) * 60 + self.end.minute - self.start.minute
        return minutes % (24 * 60) * 60

    def is_open(self, now: datetime) -> bool:
        """Whether `now` (local time) lies in the window."""
        at = now.time()
        return self.start <= at < self.end if self.start < self.end else at >= self.start or at < self.end

    def closes(self, now: datetime) -> datetime:
        """When the window closes next after `now` (local time)."""
        today = now.replace(hour=self.end.hour, minute=self.end.minute, second=0, microsecond=0)
        return today if today > now else today + timedelta(days=1)

    def opens(self, now: datetime) -> datetime:
        """When the window opens next after `now` (local time)."""
        today = now.replace(hour=self.start.hour, minute=self.start.minute, second=0, microsecond=0)
        return today if today > now else today + timedelta(days=1)
