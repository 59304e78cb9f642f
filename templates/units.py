"""Tells systemd what has changed. Only on the running system; the units of a staged slot start with its first boot."""

from __future__ import annotations

from dataclasses import dataclass

from core.errors import CommandFailed
from core.run import run
from templates.place import Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitResult:
    """What became of one unit. `fault` is empty when it went well. A unit that was not running is left alone."""

    unit: str
    verb: str
    fault: str = ""


def act(outcome: Outcome) -> list[UnitResult]:
    """Restart or reload exactly the units whose files changed; one that fails does not keep the others from it."""
    if outcome.units_changed:
        run("systemctl", "daemon-reload")
    results = []
    for verb, units in (("try-restart", outcome.restart), ("try-reload-or-restart", outcome.reload)):
        for unit in units:
            fault = ""
            try:
                run("systemctl", verb, unit, timeout=120)
            except CommandFailed as error:
                fault = "; ".join((error.message, *error.what[1:]))
            results.append(UnitResult(unit=unit, verb="restart" if verb == "try-restart" else "reload", fault=fault))
    return results
