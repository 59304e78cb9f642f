"""What the generated GRUB script does with an environment, as a pure function.

The sandbox boots with it, tests and power-cut checks ask it, and tests compare it with the real GRUB case by case.
It is written from the script's rules and not from `state`, so that each can be checked against the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from partitions.boot.state import Slot

_STATES = ("good", "trying", "bad")
_ONE_LESS = {str(n): str(n - 1) for n in range(1, 10)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one start of the machine comes to.

    `slot`: what is booted; None: the menu waits for the operator and nothing happens by itself. `counted`: the boot
    used up a try, and the kernel is told `updater.trying=N`, N (`left`) tries being left after it. `environment`: the
    variables as they are then.
    """

    slot: Slot | None
    counted: bool
    left: int | None
    environment: dict[str, str] | None


def boot(environment: Mapping[str, str] | None, can_save: bool = True) -> Outcome:
    """Start the machine once. `environment`: the variables, None where the file cannot be read as an environment
    block. `can_save`: does the firmware let GRUB write to the disk?
    """
    after = None if environment is None else dict(environment)
    ask = Outcome(slot=None, counted=False, left=None, environment=after)
    if after is None:
        return ask
    primary: Slot
    spare: Slot
    if after.get("primary") == "a":
        primary, spare = "a", "b"
    elif after.get("primary") == "b":
        primary, spare = "b", "a"
    else:
        return ask
    state, spare_state = after.get(f"{primary}_state"), after.get(f"{spare}_state")
    if state not in _STATES or spare_state not in _STATES:
        return ask
    if state == "good":
        return Outcome(slot=primary, counted=False, left=None, environment=after)
    if state == "trying":
        tries = after.get(f"{primary}_tries", "")
        if tries != "0" and tries not in _ONE_LESS:
            return ask
        if tries != "0" and can_save:
            after[f"{primary}_tries"] = _ONE_LESS[tries]
            return Outcome(slot=primary, counted=True, left=int(_ONE_LESS[tries]), environment=after)
    if spare_state == "good":
        return Outcome(slot=spare, counted=False, left=None, environment=after)
    return ask
