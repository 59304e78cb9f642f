"""What is wanted of a rehearsal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core.errors import ConfigError
from updater.status import STEPS

FAULTS = ("unhealthy",)

#: Nothing is under way long enough to be caught, or the machine is off by itself.
_UNCUT = frozenset({"mark", "reboot"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The words of the command line. `cuts`: steps during which the power is cut. `keep`: where to work, to be left
    there; `report`, `record`: files to write. `memory` in MiB.
    """

    bundle: str
    current: str
    export: Path
    faults: tuple[str, ...] = ()
    cuts: tuple[str, ...] = ()
    prove: bool = False
    accept_no_rollback: bool = False
    report: Path | None = None
    record: Path | None = None
    sign: str = ""
    keep: Path | None = None
    memory: int = 1024


def parse_faults(words: Sequence[str]) -> tuple[str, ...]:
    """Check them. Raises ConfigError."""
    for word in words:
        if word not in FAULTS:
            raise ConfigError(f"{word!r} is no fault that can be rehearsed", what=f"there is: {', '.join(FAULTS)}")
    return tuple(dict.fromkeys(words))


def parse_cuts(words: Sequence[str], *, way_back: bool = True) -> tuple[str, ...]:
    """The steps of ``power@STEP`` words. `way_back`: whether one is rehearsed. Raises ConfigError."""
    verbs = [steps for verb, steps in STEPS.items() if way_back or verb != "rollback"]
    known = [step for steps in verbs for step in steps if step not in _UNCUT]
    steps = []
    for word in words:
        found = re.fullmatch(r"power@([a-z-]+)", word)
        if found is None or found[1] not in known:
            raise ConfigError(
                f"{word!r} is no cut that can be rehearsed",
                what=f"write power@STEP, with one of the steps {', '.join(known)}",
            )
        steps.append(found[1])
    return tuple(dict.fromkeys(steps))
