"""How an action ends that was not done: what is said, and whether the same call can go on later."""

from __future__ import annotations

from core.errors import MigrationFailed, MigrationStopped, UpdaterError
from core.sql import Reason, SqlError
from migrations.catalogue import Direction, Migration, Statement
from migrations.engines import Presence
from migrations.guards import stopped

#: Reasons that somebody else can mend, after which the same statement goes on.
_MENDABLE = {
    Reason.KILLED: ("was broken off by somebody (KILL)", "ask who it was"),
    Reason.FULL: ("ran out of space", "free space there"),
    Reason.READ_ONLY: ("cannot write: the server has become read-only", "find out who made it read-only"),
    Reason.DENIED: ("lacks a privilege", "GRANT it to the user"),
}


def ended(step: str, error: SqlError, state: str) -> UpdaterError:
    """A clear no of the server, as our error."""
    if error.reason in _MENDABLE:
        words, first = _MENDABLE[error.reason]
        return broken_off(f"{step} {words}", error, state, first)
    message = f"{step} failed"
    mend = ["mend it in a new build of the release: a statement that has not run may be changed"]
    if error.reason is Reason.REFUSED:
        message = f"{step} cannot be done without blocking writers"
        mend = ["move it into the blocking phase, or take the strategy online-copy", "updater migrate lint DIR"]
    return MigrationFailed(message, what=_said(error), state=state, next=mend)


def broken_off(message: str, error: SqlError, state: str, first: str = "") -> MigrationStopped:
    """A stop from which it goes on; `first`: what is to be done before."""
    made = stopped(message, what=_said(error), state=state)
    made.next = (*((first,) if first else ()), *made.next)
    return made


def half(step: str, seq: int, statement: Statement, found: Presence, state: str) -> MigrationFailed:
    """A statement of which only a part is there."""
    return MigrationFailed(
        f"{step}: statement {seq + 1} is half there",
        what=[*found.text.splitlines(), _shown(statement)],
        state=state,
        next=[
            f"{found.rest};    by hand, does what is missing" if found.rest else "make it whole by hand",
            "updater resume    goes on then",
        ],
    )


def unknown(
    step: str, migration: Migration, direction: Direction, seq: int, found: Presence, state: str
) -> MigrationFailed:
    """A statement that was cut off, and left nothing by which one could tell."""
    statement = migration.actions(direction)[seq]
    assert isinstance(statement, Statement)
    down = " --down" if direction is Direction.DOWN else ""
    return MigrationFailed(
        f"{step}: nobody can tell whether statement {seq + 1} was done",
        what=[
            *found.text.splitlines(),
            _shown(statement),
            "it was broken off, the server does not do it as one with its record, and it has no probe",
        ],
        state=state,
        next=[
            f"updater migrate settle {migration.number} {seq + 1}{down} --done | --not-done    once you have looked",
            "updater resume    goes on then",
        ],
    )


def _shown(statement: Statement) -> str:
    where = f"{statement.where}: " if statement.where else ""
    return f"{where}{' '.join(statement.sql.split())[:300]}"


def _said(error: SqlError) -> list[str]:
    return [str(error), *error.what]
