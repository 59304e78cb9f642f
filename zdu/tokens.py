"""Fencing tokens that were seen outside: each server, and each ledger, refuses controllers with lower ones. Where the
controller's records were lost its tokens begin anew, and everybody would refuse it in the midst of a run.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import Final

from core.errors import FencedOff, UpdaterError
from zdu.hands import Hands
from zdu.sites import Site
from zdu.standalone import fence as fences

#: Places that are asked at a time.
PARALLEL: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The highest token that was seen in a place. `error`: why it could not be asked; `token` is 0 then."""

    where: str
    token: int = 0
    error: UpdaterError | None = None


def seen(hands: Hands, stand_in: str = "") -> list[Seen]:
    """What servers and ledgers have seen. `stand_in`: the site that will stand alone; empty: all that can."""
    asked: list[tuple[str, Callable[[], int]]] = [(name, hands.node(name).fence) for name in hands.sites.servers]
    deltas = [site for site in hands.sites.sites if _has_delta(site) and stand_in in ("", site.name)]
    if deltas:
        asked.append((f"the ledger of {hands.sites.main.name}", lambda: _in_main(hands)))
    asked += [(f"the delta of {site.name}", lambda site=site: _in_delta(hands, site)) for site in deltas]  # type: ignore[misc]
    with ThreadPoolExecutor(max_workers=PARALLEL) as pool:
        return list(pool.map(_asked, asked))


def greater(places: list[Seen], token: int) -> str:
    """Those that refuse a controller with this token, in words; empty when none does."""
    return ", ".join(f"{each.where} (token {each.token})" for each in places if each.token > token)


def refused(places: list[Seen], token: int) -> FencedOff:
    """The error for a controller that would be refused."""
    return FencedOff(
        f"a newer controller was here: ours would have token {token}",
        what=f"{greater(places, token)} would refuse it",
        state="nothing was begun",
        next=[
            "updater zdu fence --raise    if the records of the controller were lost, and tokens begin anew",
            "leave it to the other controller, if there is one",
        ],
    )


def _asked(place: tuple[str, Callable[[], int]]) -> Seen:
    where, ask = place
    try:
        return Seen(where=where, token=ask())
    except UpdaterError as error:
        return Seen(where=where, error=error)


def _has_delta(site: Site) -> bool:
    return site.standalone is not None and site.standalone.delta is not None


def _in_main(hands: Hands) -> int:
    with closing(hands.main_ledger()) as main:
        return fences.seen(main, "ledger_state")


def _in_delta(hands: Hands, site: Site) -> int:
    with closing(hands.delta_ledger(site)) as delta:
        return fences.seen(delta, "delta_state")
