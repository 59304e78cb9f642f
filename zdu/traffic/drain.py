"""When is a site empty of calls? Pure: readings come in, a verdict comes out.

The site's own count decides. It must be 0 in several successive readings, and nobody else may count calls there (the
cross-check, such as the dialogs at the dispatchers) unless it is explained why they do. What could not be read is
never 0. Nothing here ends a call, nor waits: `zdu.conduct` looks again, and tells people when that takes long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from zdu.limits import DrainConfig

#: Readings that follow each other faster than this part of the interval are one reading.
NEW = 0.8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What one source counted. `count`: None when it could not be read, for the reason `why`. `at`: seconds, of a clock
    that never goes back; when the reading was begun.
    """

    source: str
    count: int | None
    at: float
    why: str = ""

    def __str__(self) -> str:
        return f"{self.source}: {self.count if self.count is not None else f'not known ({self.why})'}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drain:
    """How far a drain is. `zeros`: successive readings of 0, the last one at `zero_at`; `last_at`: the last reading."""

    zeros: int = 0
    zero_at: float = 0.0
    last_at: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """`open`: the site is empty. `text`: how things stand, in a line. `evidence`: the readings that it rests on."""

    open: bool
    text: str
    evidence: tuple[str, ...] = ()


def judge(
    drain: Drain,
    config: DrainConfig,
    own: Reading,
    cross: Sequence[Reading] = (),
    explained: Mapping[str, str] | None = None,
) -> tuple[Drain, Verdict]:
    """Take one reading of each source into account.

    `explained`: source of a cross-check → why its count does not matter (its host gave the virtual IP away, and sees no
    calls end any more; it was restarted; an operator looked).
    """
    explained = explained or {}
    stale = drain.last_at is not None and own.at <= drain.last_at
    against = [reading for reading in cross if reading.count != 0 and reading.source not in explained]
    empty = own.count == 0 and not stale
    agreed = empty and not against
    if not agreed:
        drain = replace(drain, zeros=0)
    elif drain.zeros == 0 or own.at - drain.zero_at >= NEW * config.interval:
        drain = replace(drain, zeros=drain.zeros + 1, zero_at=own.at)
    drain = replace(drain, last_at=own.at if not stale else drain.last_at)
    evidence = tuple(
        f"{reading}{f', explained: {explained[reading.source]}' if reading.source in explained else ''}"
        for reading in (own, *cross)
    )
    if drain.zeros >= config.readings:
        return drain, Verdict(open=True, text=f"empty: 0 calls in {drain.zeros} readings", evidence=evidence)
    if stale:
        text = f"{own.source}: no new reading"
    elif own.count is None:
        text = f"calls not known: {own.why}"
    elif own.count < 0:
        text = f"calls not known: {own.source} counts {own.count}"
    elif own.count > 0:
        text = f"{own.count} call{'s' * (own.count != 1)}"
    elif against:
        text = f"0 calls by its own count, but {'; '.join(str(reading) for reading in against)}"
    else:
        text = f"0 calls in {drain.zeros} of {config.readings} readings"
    return drain, Verdict(open=False, text=text, evidence=evidence)
