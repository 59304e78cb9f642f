"""What a dispatcher sends traffic to, and what every kind of dispatcher does alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

from core.errors import GateNotPassed, UpdaterError, ZduRefused
from zdu.traffic.drain import Reading
from zdu.traffic.shell import ENDING


class State(StrEnum):
    """What a destination gets. The words are those of commands of the operator too."""

    ACTIVE = "active"  # its share of all that is new
    DRAINING = "draining"  # nothing new: somebody wants it so
    DOWN = "down"  # nothing new: it does not answer


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A destination, as one dispatcher host sees it. `site`: empty for one of no site. `kept`: a reload and a restart
    leave it in this state. `ours`: it drains because of `send_to`. `live`: calls or sessions that go through this host
    to it, where that is known.
    """

    host: str
    site: str
    destination: str
    state: State
    kept: bool = True
    ours: bool = False
    live: int | None = None


class Dispatcher(Protocol):
    """All of it is safe to repeat, and leaves alone what an operator has switched off."""

    @property
    def name(self) -> str:
        """For people."""

    def check(self) -> list[str]:
        """What keeps this from working, one line each. Changes nothing."""

    def targets(self) -> list[Target]:
        """All destinations on all hosts. Raises CommandFailed or SiteUnreachable when one of them does not tell."""

    def live(self, site: str) -> list[Reading]:
        """Calls of the site that each host sees: the cross-check of a drain. A host without a counter is left out; one
        that does not tell has a reading without a count.
        """

    def send_to(self, sites: Sequence[str]) -> list[Target]:
        """All that is new goes to these sites; the others drain. No destination is held before every host can send to
        each of the sites.

        Raises ZduRefused (nothing was changed), GateNotPassed when a site does not become active (nothing was held), or
        the error of a host, with the state of the others.
        """

    def restore(self) -> list[Target]:
        """As it was before the first `send_to`. Raises as `send_to` does."""


def count_live(host: str, counts: Callable[[], Sequence[int | None]]) -> list[Reading]:
    """The calls of a site that one host counts, `counts` at each of its destinations, as a list of one; empty where it
    has no counter.
    """
    at = time.monotonic()
    try:
        found = counts()
    except ENDING:
        raise
    except UpdaterError as error:
        return [Reading(source=host, count=None, at=at, why="; ".join((error.message, *error.what)))]
    told = [count for count in found if count is not None]
    return [Reading(source=host, count=sum(told), at=at)] if told and len(told) == len(found) else []


def leaks(targets: Sequence[Target], sites: Sequence[str]) -> list[str]:
    """Ways for something new to get to other sites than these, now or after a restart, one line each."""
    faults = []
    for target in targets:
        if not target.site or target.site in sites:
            continue
        here = f"{target.destination} ({target.site}) on {target.host}"
        if target.state is State.ACTIVE:
            faults.append(f"{here} gets new calls")
        elif target.state is State.DOWN:
            faults.append(f"{here} is down, and gets new calls when it is back")
        elif not target.kept:
            faults.append(f"{here} gets new calls after a reload or a restart")
    return faults


def gaps(targets: Sequence[Target], sites: Sequence[str]) -> list[str]:
    """Hosts that cannot send to one of these sites, one line each."""
    faults = []
    for host in dict.fromkeys(target.host for target in targets):
        for site in sites:
            its = [target for target in targets if target.host == host and target.site == site]
            if not any(target.state is State.ACTIVE for target in its):
                said = ", ".join(f"{target.destination} is {target.state}" for target in its)
                faults.append(f"{host} cannot send to {site}: {said or 'it has no destination there'}")
    return faults


def require_known(name: str, known: Sequence[str], sites: Sequence[str]) -> None:
    """Raises ZduRefused when no site is left, or one of them is not the dispatcher's."""
    strange = [site for site in sites if site not in known]
    if strange or not sites:
        raise ZduRefused(
            f"{name} cannot send to {', '.join(strange) if strange else 'no site at all'}",
            what=f"it knows {', '.join(known)}",
            state="nothing was changed",
            next="look at dispatchers.programs in the sites file",
        )


class Named(Protocol):
    """A host."""

    @property
    def name(self) -> str:
        """Its name."""


H = TypeVar("H", bound=Named)
T = TypeVar("T")


def from_all(hosts: Sequence[H], ask: Callable[[H], Sequence[T]]) -> list[T]:
    """What all hosts answer, asked at the same time. Raises the error of the first one that does not."""
    with ThreadPoolExecutor(max_workers=max(1, len(hosts))) as pool:
        return [one for found in pool.map(ask, hosts) for one in found]


def on_each(hosts: Sequence[H], act: Callable[[H], object], doing: str) -> None:
    """Act on every host, also where another one fails. Raises an error of the first one's kind, with what became of
    each host.
    """
    done: list[str] = []
    failed: dict[str, UpdaterError] = {}
    for host in hosts:
        try:
            act(host)
            done.append(host.name)
        except ENDING:
            raise
        except UpdaterError as error:
            failed[host.name] = error
    if failed:
        first = next(iter(failed.values()))
        raise _kind(first)(
            f"cannot {doing} on {', '.join(failed)}",
            what=[f"{name}: {'; '.join((error.message, *error.what))}" for name, error in failed.items()],
            state=f"done on {', '.join(done)}" if done else "done on no host",
            next=[*first.next, "resume when the host answers; what is done is not done again"],
        ) from first


def _kind(error: UpdaterError) -> type[UpdaterError]:
    """Its kind, or the one that it belongs to where making one takes more than words."""
    for kind in type(error).__mro__:
        if issubclass(kind, UpdaterError) and "__init__" not in vars(kind):
            return kind
    return UpdaterError


def require(targets: Sequence[Target], sites: Sequence[str], name: str) -> None:
    """Raises GateNotPassed when it is not so that all that is new goes to `sites`."""
    if faults := [*gaps(targets, sites), *leaks(targets, sites)]:
        raise GateNotPassed(f"{name} does not send to {', '.join(sites)} as it was told", what=faults)
