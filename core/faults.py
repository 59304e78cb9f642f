"""Named points at which tests let the process die or the disk fill up. In production nothing arms them, and nothing
outside the process can: there is no environment variable and no option for it.
"""

from __future__ import annotations

from collections.abc import Callable

_armed: Callable[[str], None] | None = None


def point(name: str) -> None:
    """A place where a power cut is worth trying; does nothing unless a test armed it."""
    if _armed is not None:
        _armed(name)


def arm(action: Callable[[str], None] | None) -> None:
    """Call `action` with the name of every point passed from now on (None: disarm). For tests only."""
    global _armed
    _armed = action
