"""When sites may be taken out of service: the windows of the sites file. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final

from zdu.limits import Day, WindowConfig
from zdu.runbook import Action, Step

#: Steps that take nothing out of service: they may be made outside of windows.
_HARMLESS: Final = frozenset({Action.CHECK_NODE, Action.STAGE_NODE, Action.VERIFY_SITE, Action.FINISH})


def takes_out(batch: Iterable[Step]) -> bool:
    """Whether a batch changes what is in service."""
    return any(step.action not in _HARMLESS for step in batch)


def window_open(windows: Sequence[WindowConfig], at: datetime) -> bool:
    """Whether sites may be taken out of service at this local time. Without windows: always."""
    return not windows or any(_in_window(each, at) for each in windows)


def _in_window(config: WindowConfig, at: datetime) -> bool:
    if not config.window.is_open(at):
        return False
    window = config.window
    over_midnight = window.start > window.end and at.time() < window.end
    day = list(Day)[(at.weekday() - 1) % 7 if over_midnight else at.weekday()]
    return not config.days or day in config.days
