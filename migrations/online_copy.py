"""Strategy online-copy: pt-online-schema-change fills an altered copy of a table, triggers keep it in step with what is
written meanwhile, and one rename puts it in the table's place.

The tool copies; the rename is ours: under the lock limits of the run, and with names that nobody else uses. So what is
left of a copy that broke off can be told from everything else, and is removed before the next try.
"""

from __future__ import annotations

from contextlib import suppress
from itertools import count
from typing import Final

from core.errors import MigrationFailed
from core.faults import point
from core.sql import Connection, Reason, SqlError
from migrations.catalogue import Migration, Statement
from migrations.copy_fit import TABLES, Copy, read_copy, require_fit, require_lossless, require_space
from migrations.copy_tool import fill
from migrations.engines import Effect
from migrations.guards import stopped
from migrations.session import Session


def online_copy(session: Session, migration: Migration, statement: Statement, step: str) -> None:
    """Make the change of an ALTER TABLE by copying, or find that it is made. Nothing is left of the copy then.

    Raises MigrationFailed where the table does not allow it, MigrationStopped when a limit of the run is reached,
    NoSpace when the server's disk has no room for a second table, and SqlError when it is worth another try.
    """
    connection = session.server.connection
    copy = read_copy(connection, migration, statement)
    clear(connection, copy)
    if _is_made(session, copy, statement, step):
        _drop_old(connection, copy)
        return
    require_fit(connection, copy, migration)
    require_space(connection, copy)
    try:
        with _short_waits(connection):
            require_lossless(connection, copy, migration)
        _wait_until_free(session, copy, step)
        fill(session, copy, step)
        point("migrate:copied")
        _swap(session, copy, step)
    except BaseException:
        with suppress(SqlError):  # if not now, then at the next try
            clear(session.server.connection, copy)
        raise
    point("migrate:swapped")
    _is_made(session, copy, statement, step)
    _drop_old(session.server.connection, copy)


def clear(connection: Connection, copy: Copy) -> None:
    """Remove what a copy that broke off has left: the tool's own sessions, its triggers, and the copy. Triggers first:
    without the copy they would refuse every write.
    """
    for (thread,) in connection.execute(
        "SELECT id FROM information_schema.processlist WHERE user = SUBSTRING_INDEX(USER(), '@', 1)"
        " AND info REGEXP %s AND LOCATE(%s, info) > 0 AND id <> CONNECTION_ID()",
        (_OF_THE_TOOL, copy.quoted(copy.new)),
    ).rows:
        with suppress(SqlError):  # it has just ended
            connection.execute(f"KILL CONNECTION {int(thread)}")
    with _short_waits(connection):
        for (trigger,) in connection.execute(
            "SELECT trigger_name FROM information_schema.triggers WHERE event_object_schema = %s"
            " AND event_object_table = %s AND trigger_name LIKE 'pt\\\\_osc\\\\_%%' AND action_statement LIKE %s",
            (copy.schema, copy.table, f"%{copy.new}%"),
        ).rows:
            connection.execute(f"DROP TRIGGER IF EXISTS {copy.quoted(str(trigger))}")
            point("migrate:copy-cleared")
        connection.execute(f"DROP TABLE IF EXISTS {copy.quoted(copy.new)}")


#: How the tool's own statements begin that name the copy. Not those of its triggers: they run in others' sessions.
_OF_THE_TOOL: Final = "^(INSERT LOW_PRIORITY IGNORE INTO|CREATE TABLE|ALTER TABLE|CREATE TRIGGER) "


# -- before


def _is_made(session: Session, copy: Copy, statement: Statement, step: str) -> bool:
    """Whether the copy is in the table's place: then the old rows stand beside it. Raises MigrationFailed when they do,
    and the table is not what the statement asks for.
    """
    found = session.server.presence(statement)
    replaced = session.server.connection.one(f"SELECT 1 FROM {TABLES}", (copy.schema, copy.old)) is not None
    if replaced and found.effect not in (Effect.THERE, Effect.UNKNOWN):
        raise MigrationFailed(
            f"{step}: a copy has replaced {copy.table}, but it is not what the statement asks for",
            what=found.text.splitlines(),
            state=f"its rows as they were are in {copy.old}; what was written since is in {copy.table} only",
            next=[f"compare by hand: SHOW CREATE TABLE {copy.table}; SHOW CREATE TABLE {copy.old}"],
        )
    return replaced or found.effect is Effect.THERE


def _wait_until_free(session: Session, copy: Copy, step: str) -> None:
    """Until no long transaction would keep the tool's triggers, and everybody behind them, waiting."""
    for attempt in count():
        if session.server.free([copy.table]):
            return
        _rest(session, copy, step, attempt)


# -- the copy takes the table's place


def _swap(session: Session, copy: Copy, step: str) -> None:
    """Rename both tables at once, as soon as the lock is granted within the limits."""
    connection, budget = session.server.connection, session.budget
    swap = (
        f"RENAME TABLE {copy.quoted(copy.table)} TO {copy.quoted(copy.old)}, "
        f"{copy.quoted(copy.new)} TO {copy.quoted(copy.table)}"
    )
    for attempt in count():
        if session.server.free([copy.table]) or attempt % 3 == 2:
            begun = budget.clock.steady()
            try:
                with _short_waits(connection, budget.limits.lock_wait):
                    connection.execute(swap)
                return
            except SqlError as error:
                if error.reason not in (Reason.LOCKED, Reason.DEADLOCK):
                    raise
                budget.waits += 1
                budget.stall(budget.clock.steady() - begun)
        _rest(session, copy, step, attempt)


def _rest(session: Session, copy: Copy, step: str, attempt: int) -> None:
    """Wait before the next try, and say for whom. Raises MigrationStopped at a limit."""
    holders = session.server.holders([copy.table])
    if attempt == 0 and holders:
        session.report.note(f"{step} waits for {holders[0]}")
    if why := session.budget.spent():
        raise stopped(
            f"{step} was stopped: {why}",
            what=[f"held by: {holder}" for holder in holders[:5]],
            state=f"the copy of {copy.table} was thrown away; the table is as it was",
        )
    session.budget.clock.sleep(session.budget.rest(attempt))


def _drop_old(connection: Connection, copy: Copy) -> None:
    """Drop the table's old rows, which a copy known to be good has replaced, and the triggers on them."""
    point("migrate:old-kept")
    with _short_waits(connection):
        connection.execute(f"DROP TABLE IF EXISTS {copy.quoted(copy.old)}")


class _short_waits:
    """Within it a statement waits for a lock for so many seconds (at least one), and then gives up."""

    def __init__(self, connection: Connection, seconds: float = 1.0) -> None:
        self.connection = connection
        self.seconds = max(1, round(seconds))

    def __enter__(self) -> None:
        row = self.connection.one("SELECT @@SESSION.lock_wait_timeout")
        self.before = int(row[0]) if row else 86400
        self.connection.execute(f"SET SESSION lock_wait_timeout = {self.seconds}")

    def __exit__(self, *_: object) -> None:
        with suppress(SqlError):
            self.connection.execute(f"SET SESSION lock_wait_timeout = {self.before}")
