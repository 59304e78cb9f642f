"""The books of a site that stands alone, as the controller's steps want them: seen, locked, switched, posted, closed.

Each time a site stands alone is a run of the ledger of its own, with a name that is used once: that of the run and the
step that began it, the same in all legs.
"""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

from zdu.hands import Hands
from zdu.sites import Site
from zdu.standalone import alone
from zdu.standalone import fence as fences
from zdu.standalone.delta import Mode
from zdu.standalone.session import Session
from zdu.standalone.sync import Locked, Progress, Synchronisation
from zdu.world import Talk

#: Accounts that changed since they were locked, at most: the switch locks the last ones while nobody charges.
_FEW = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Books:
    """How the books of a site stand. `run`: of the ledger; `open`: not closed yet. `locked`: the main database holds
    back what the delta amounts to, up to what the switch will see to. `balanced`: both sides were compared and closed.
    """

    run: str
    alone: bool
    open: bool
    locked: bool
    untransferred: int
    balanced: bool


def books_of(hands: Hands, site: Site) -> Books:
    """How the books of a site stand."""
    with closing(hands.delta_ledger(site)) as delta:
        mode, run = alone.state_of(delta)
        row = delta.retried(lambda: delta.one("SELECT state FROM delta_runs WHERE run = %s", (run,)))
        state = str(row[0]) if row else "closed"
        counts = (
            "SELECT (SELECT count(*) FROM delta_xdrs WHERE run = %s AND transferred = 0),"
            " (SELECT count(*) FROM delta_accounts WHERE run = %s AND changes <> copied)"
        )
        found = delta.retried(lambda: delta.one(counts, (run, run)))
    left, unlocked = (int(found[0]), int(found[1])) if found else (0, 0)
    locked = state != "open"
    if state == "open":
        with closing(hands.main_ledger()) as main:
            seen = main.retried(lambda: main.one("SELECT mode, run FROM ledger_state WHERE id = 1"))
        locked = seen is not None and seen[0] == "closed" and seen[1] == run and unlocked <= _FEW
    return Books(
        run=run,
        alone=mode is not Mode.NORMAL,
        open=state != "closed",
        locked=locked,
        untransferred=left,
        balanced=state == "closed",
    )


def claim(hands: Hands, site: Site, talk: Talk) -> None:
    """Have both ledgers know our token. Raises FencedOff when they have seen a newer one."""
    with _both(hands, site) as (main, delta):
        fences.claim(delta, "delta_state", talk.fence)
        fences.claim(main, "ledger_state", talk.fence)


def enter(hands: Hands, site: Site, talk: Talk, step: str) -> str:
    """Have the site charge alone, by its ledger. `step`: the id of the step that wants it."""
    run = f"{talk.run}.{step}"
    with _both(hands, site) as (main, delta), closing(hands.replica_ledger(site)) as base:
        _give_up(talk, main, delta, but=run)
        alone.enter(run, talk.fence, main=main, delta=delta, base=base)
    return f"{site.name} charges into its delta database"


def lock(hands: Hands, site: Site, talk: Talk) -> str:
    """Hold back on main what the delta has. A site that never came to charge is given up: the main ledger opens."""
    with _both(hands, site) as (main, delta):
        _give_up(talk, main, delta)
        sync = _sync(talk, main, delta)
        if sync is None:
            return f"{site.name} did not stand alone"
        done = sync.lock()
    return _said(done)


def switch(hands: Hands, site: Site, talk: Talk) -> str:
    """Have the main ledger charge for all again."""
    with _both(hands, site) as (main, delta):
        sync = _sync(talk, main, delta)
        if sync is None:
            return f"{site.name} did not stand alone"
        done = sync.switch()
    return f"{_said(done)}; nobody charged for {1000 * done.gap:.0f} ms"


def transfer(hands: Hands, site: Site, talk: Talk) -> str:
    """Post the call records on main."""

    def check(_: Progress) -> None:
        talk.check()

    with _both(hands, site) as (main, delta):
        sync = _sync(talk, main, delta)
        if sync is None:
            return f"{site.name} has no call records to post"
        done = sync.transfer(check)
    return f"{done.done} of {done.total} call records are on main"


def close(hands: Hands, site: Site, talk: Talk) -> str:
    """Compare both sides, and close the delta."""
    with _both(hands, site) as (main, delta):
        sync = _sync(talk, main, delta)
        if sync is None:
            return f"{site.name} has no delta that is open"
        sums = sync.close()
    return f"both sides agree: {sums.xdrs} call records, {sums.amount} in all; the delta is closed"


class _both:
    """Both ledgers, for one piece of work."""

    def __init__(self, hands: Hands, site: Site) -> None:
        self._main = hands.main_ledger()
        self._delta = hands.delta_ledger(site)

    def __enter__(self) -> tuple[Session, Session]:
        return self._main, self._delta

    def __exit__(self, *_: object) -> None:
        self._main.close()
        self._delta.close()


def _sync(talk: Talk, main: Session, delta: Session) -> Synchronisation | None:
    """Of the run that the site is, or last was, on its own for; None when that is closed, or there never was one."""
    _, run = alone.state_of(delta)
    if alone.state_of_run(delta, run) in ("", "closed"):
        return None
    return Synchronisation(run, talk.fence, main=main, delta=delta)


def _give_up(talk: Talk, main: Session, delta: Session, *, but: str = "") -> None:
    """Open main where it is closed for a site that never came to charge; `but`: not for this run, which goes on."""
    run = alone.not_opened(main, delta)
    if run not in ("", but):
        alone.give_up(run, talk.fence, main=main, delta=delta)
        talk.note(f"the main ledger is open again: it was closed for {run}")


def _said(done: Locked) -> str:
    beyond = f"; beyond their limit: {', '.join(done.beyond[:5])}" if done.beyond else ""
    return f"{done.accounts} accounts held back, {done.calls} calls handed over{beyond}"
