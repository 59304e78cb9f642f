"""Into stand-alone mode, without a moment in which both sites charge, and with as short a one as can be in which none
does: the main ledger is closed, the replica must have seen that, and then the delta ledger opens.

The closing is a row like any other. When the replica shows it, it has everything that was charged before.
"""

from __future__ import annotations

import time
from typing import Final

from core.errors import DatabaseFailed, FencedOff, GateNotPassed, UpdaterError, ZduRefused
from core.faults import point
from zdu.standalone import fence as fences
from zdu.standalone.delta import Mode
from zdu.standalone.entries import identifier
from zdu.standalone.session import Session

#: Seconds between looks at the replica.
LOOK: Final = 0.01

#: Seconds during which nobody charges, at most: the replica had just caught up when they begin.
CLOSED: Final = 2.0


def enter(run: str, fence: int, *, main: Session | None, delta: Session, base: Session, patience: float = 10.0) -> None:
    """Have the site charge alone, as `run` (a name used once). `base`: its replica. Safe to repeat at any point.

    `main`: None when the main site is gone. What its last moments charged and the replica does not know is then not
    counted, and whoever has it must see that it does not authorize any more.

    Raises GateNotPassed when the replica does not catch up within `patience` seconds, DatabaseFailed when a database is
    lost (the main ledger is open after both, unless the error says otherwise), ZduRefused when another run is under way
    or the name was used before, FencedOff.
    """
    identifier(run, "run")
    fences.claim(delta, "delta_state", fence)
    mode, current = state_of(delta)
    if mode is not Mode.NORMAL:
        if current != run:
            raise ZduRefused(f"the site is on its own already, for run {current}", next="synchronise that run first")
        return
    delta.transaction(lambda: _begin(delta, run, fence))
    if main is None:
        _take_over(delta, base, run, fence)
        return
    fences.claim(main, "ledger_state", fence)
    if not_opened(main, delta) != run:  # else nobody charges already: an attempt before this one died there
        _announce(main, base, run, fence, patience)
    try:
        _close_main(main, base, run, fence)
        _take_over(delta, base, run, fence)
    except Exception as error:
        _take_back(main, delta, run, fence, error)
        raise


def give_up(run: str, fence: int, *, main: Session, delta: Session) -> None:
    """The way back from an `enter` that did not come to its end: the main ledger is opened again. Safe to repeat.

    Raises ZduRefused when the site is, or was, on its own: then the way back is the synchronisation.
    """
    fences.claim(delta, "delta_state", fence)  # waits for an opening of the delta whose answer was lost
    fences.claim(main, "ledger_state", fence)
    mode, current = state_of(delta)
    if mode is not Mode.NORMAL:
        raise ZduRefused(f"the site is on its own for run {current}", next="synchronise: lock, switch, transfer, close")
    state = state_of_run(delta, run)
    if state not in ("", "open"):
        raise ZduRefused(f"run {run} was on its own, and is {state}", next="synchronise: switch, transfer, close")
    main.transaction(lambda: _reopen(main, run, fence))


def not_opened(main: Session, delta: Session) -> str:
    """The run for which main is closed although its site never came to charge; empty: there is none. `give_up` is for
    that.
    """
    mode, _ = state_of(delta)
    row = main.retried(lambda: main.one("SELECT run FROM ledger_state WHERE id = 1 AND mode = 'closed'"))
    if row is None or mode is not Mode.NORMAL or state_of_run(delta, row[0]) != "open":
        return ""
    return str(row[0])


def state_of(delta: Session) -> tuple[Mode, str]:
    """Who charges, and the run for which the site is, or last was, on its own. Raises DatabaseFailed without tables."""
    row = delta.retried(lambda: delta.one("SELECT mode, run FROM delta_state WHERE id = 1"))
    if row is None:
        raise DatabaseFailed(f"{delta.database} has no delta tables", next="install them: schema.install_delta")
    return Mode(row[0]), str(row[1])


def state_of_run(delta: Session, run: str) -> str:
    """Open, switched or closed; empty when the delta does not know the run."""
    row = delta.retried(lambda: delta.one("SELECT state FROM delta_runs WHERE run = %s", (run,)))
    return str(row[0]) if row else ""


def _begin(delta: Session, run: str, fence: int) -> None:
    fences.require(delta, "delta_state", fence)
    row = delta.one("SELECT state FROM delta_runs WHERE run = %s", (run,))
    if row is None:
        delta.insert("delta_runs", "run, state, counts", [(run, "open", 1)])
    elif row[0] != "open":
        raise ZduRefused(f"run {run} was on its own before, and is {row[0]}", next="use a new name for each run")


def _announce(main: Session, base: Session, run: str, fence: int, patience: float) -> None:
    """While the main ledger still serves: a replica that lags would only show that when nobody serves any more. The
    token tells what it shows from what another attempt at the run has written.
    """
    main.transaction(lambda: _write_announcement(main, run, fence))
    query = "SELECT 1 FROM ledger_runs r JOIN ledger_state s ON s.fence = %s WHERE s.id = 1 AND r.run = %s"
    _await_replica(base, query, run, fence, patience, "the main ledger is open, as it was")


def _close_main(main: Session, base: Session, run: str, fence: int) -> None:
    main.transaction(lambda: close_main(main, run, fence))
    query = "SELECT 1 FROM ledger_state WHERE id = 1 AND mode = 'closed' AND fence = %s AND run = %s"
    _await_replica(base, query, run, fence, CLOSED, "the main ledger is open again")


def _take_over(delta: Session, base: Session, run: str, fence: int) -> None:
    point("standalone:closed")
    covered = base.retried(lambda: base.rows("SELECT run FROM ledger_runs WHERE phase IN ('switched', 'closed')"))
    known = {name for (name,) in covered}
    delta.transaction(lambda: _open_delta(delta, run, fence, known))


def _take_back(main: Session, delta: Session, run: str, fence: int, error: Exception) -> None:
    """Nobody charges: main does again, unless the delta is open and only the answer to that was lost."""
    try:
        give_up(run, fence, main=main, delta=delta)
    except ZduRefused:
        return
    except FencedOff:
        raise
    except UpdaterError as also:
        raise DatabaseFailed(
            "the main ledger cannot be opened again now",
            what=[str(error), also.message],
            state="nobody charges while it is closed: engines wait, and keep their records",
            next=["updater zdu resume    closes it anew, or opens it", "updater zdu abort    opens it"],
        ) from error


def _write_announcement(main: Session, run: str, fence: int) -> None:
    fences.require(main, "ledger_state", fence)
    main.insert_missing("ledger_runs", "run, phase", "run", [(run, "announced")])


def close_main(main: Session, run: str, fence: int) -> None:
    """In a transaction: nothing is authorized or charged on main from now on, until the run opens it again."""
    fences.require(main, "ledger_state", fence, change=True)
    row = main.one("SELECT mode, run FROM ledger_state WHERE id = 1")
    assert row is not None
    if row[0] != "open" and row[1] != run:
        raise ZduRefused(f"the main ledger is closed for another run, {row[1]}", next="synchronise that run first")
    main.execute("UPDATE ledger_state SET mode = 'closed', run = %s WHERE id = 1", (run,))


def open_main(main: Session, run: str) -> bool:
    """In a transaction: once the site has handed over, main charges for all. No token is asked for: a run that was
    handed over stays so, and all its funds are locked then, whoever says it. False: it was open before.
    """
    row = main.one(f"SELECT mode, run FROM ledger_state WHERE id = 1{main.locked}")
    if row is None or row[0] != "closed" or row[1] != run:
        return False
    main.execute("UPDATE ledger_state SET mode = 'open', run = '', pending = %s WHERE id = 1", (run,))
    main.execute("UPDATE ledger_runs SET phase = 'switched' WHERE run = %s AND phase = 'announced'", (run,))
    return True


def handed_over(delta: Session) -> str:
    """The last run, when its site has handed over to main; empty otherwise."""
    row = delta.retried(
        lambda: delta.one(
            "SELECT s.run FROM delta_state s JOIN delta_runs r ON r.run = s.run "
            "WHERE s.id = 1 AND s.mode = 'normal' AND r.state = 'switched'"
        )
    )
    return str(row[0]) if row else ""


def _reopen(main: Session, run: str, fence: int) -> None:
    fences.require(main, "ledger_state", fence, change=True)
    main.execute(
        "UPDATE ledger_state SET mode = 'open', run = '' WHERE id = 1 AND mode = 'closed' AND run = %s", (run,)
    )


def _open_delta(delta: Session, run: str, fence: int, known: set[str]) -> None:
    """Charges of earlier runs that are not all copied yet count here, unless the replica `known`s their locks."""
    fences.require(delta, "delta_state", fence, change=True)
    for earlier, state in delta.rows("SELECT run, state FROM delta_runs WHERE run <> %s", (run,)):
        counts = int(state != "closed" and earlier not in known)
        delta.execute("UPDATE delta_runs SET counts = %s WHERE run = %s", (counts, earlier))
    delta.execute("UPDATE delta_state SET mode = 'standalone', run = %s, until = 0 WHERE id = 1", (run,))


def _await_replica(base: Session, query: str, run: str, fence: int, patience: float, state: str) -> None:
    """Until the replica shows what the query is for. Its values: the token, and the run."""
    until = time.monotonic() + patience
    while base.retried(lambda: base.one(query, (fence, run))) is None:
        if time.monotonic() > until:
            raise GateNotPassed(
                f"the replica {base.database} does not catch up",
                what=f"after {patience:g} s it has not seen what run {run} wrote on main",
                state=state,
                next="look at the replication (SHOW REPLICA STATUS), and try again",
            )
        point("standalone:await-replica")
        time.sleep(LOOK)
