"""Runs migrations: asks what is there, writes down what it is about to do, does it under the guards, and writes down
that it is done. After a crash at any point the same call goes on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from core.errors import MigrationFailed, MigrationStopped, RollbackRefused
from core.faults import point
from core.report import Report
from migrations import history
from migrations.action import ActionRun, Copier, Group
from migrations.catalogue import Action, Batch, Direction, Migration, Phase, Statement
from migrations.changes import Verb
from migrations.ddl import parse
from migrations.engines import Server
from migrations.guards import Budget, Clock, Limits, stopped
from migrations.history import Pending, Progress
from migrations.ledger import Entry, Key, Ledger, State, Who
from migrations.session import Session

_CONTROL: Final = re.compile(
    r"\s*(?:BEGIN|START\s+TRANSACTION|COMMIT|ROLLBACK|SAVEPOINT|RELEASE|END|ABORT|PREPARE\s+TRANSACTION|XA|LOCK|UNLOCK"
    r"|SET\s+(?:@@)?(?:SESSION\s+|LOCAL\s+|GLOBAL\s+)?(?:AUTOCOMMIT|TRANSACTION))\b",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a run did. `waits`: tries to lock that were refused; `longest_stall`: seconds, of those that we know of."""

    done: list[str] = field(default_factory=list)
    waits: int = 0
    longest_stall: float = 0.0
    seconds: float = 0.0


class Runner:
    """The migrations of one database, and the server that it is on.

    Raises of all methods: SqlError and DatabaseFailed when the server cannot be used at all, LockHeld (Busy) when
    another run has it, MigrationStopped at a point from which the same call goes on, MigrationFailed where it cannot.
    """

    def __init__(
        self,
        server: Server,
        migrations: Sequence[Migration],
        *,
        release: str,
        run_id: str,
        limits: Limits | None = None,
        report: Report | None = None,
        clock: Clock | None = None,
        copier: Copier | None = None,
    ) -> None:
        self._server = server
        self._migrations = sorted(migrations, key=lambda each: each.number)
        self._who = Who.here(run_id, release)
        self._limits = limits or Limits()
        self._report = report or Report()
        self._clock = clock or Clock()
        self._copier = copier

    # -- looking

    def entries(self) -> dict[Key, Entry]:
        """What the ledger says."""
        return Ledger(self._server.connection).entries()

    def pending(self, phases: Sequence[Phase] = ()) -> list[Pending]:
        """What is left to do, in order; changes nothing."""
        return history.pending(self._migrations, self.entries(), phases)

    def verify_history(self) -> None:
        """Raises MigrationFailed where a migration was changed after it ran."""
        found = history.faults(self._migrations, self.entries(), self._who.release)
        if found:
            raise MigrationFailed(
                f"the history of {self._server.connection.database} was edited",
                what=found,
                state="nothing was changed by this run",
                next="give the change as a new migration, and leave those that have run as they were",
            )

    # -- doing

    def run(self, phases: Sequence[Phase]) -> Outcome:
        """Run what is pending of these phases."""
        if Phase.CLEANUP in phases and not self._limits.cleanup_allowed:
            raise MigrationStopped(
                "the clean-up cannot run yet",
                what="the previous release is still a way back, and reads what the clean-up removes",
                state="nothing was changed",
                next="updater migrate run    once the new release is there to stay",
            )
        with self._session() as session:
            self.verify_history()
            done: list[str] = []
            pending = history.pending(self._migrations, session.ledger.entries(), phases)
            self._refuse_forms([each.migration for each in pending], *Direction)
            for each in pending:
                self._may_begin(each, session, done)
                self._migrate(session, each.migration, Direction.UP)
                done.append(each.migration.id)
            return _outcome(session.budget, done)

    def undo(self, migrations: Sequence[Migration]) -> Outcome:
        """Take these back, the last first. Raises RollbackRefused when one of them says no way, or is done
        by half and its way changes rows: before any is begun.
        """
        stuck = [each.id for each in migrations if not each.reversible]
        if stuck:
            raise RollbackRefused(
                "not all of these migrations can be taken back",
                what=[f"{name}: says no way back (down)" for name in stuck],
                state="nothing was changed",
                next="restore the backup that was made before them, or go forward",
            )
        with self._session() as session:
            self.verify_history()
            self._refuse_forms(migrations, Direction.DOWN)
            entries = session.ledger.entries()
            self._refuse_half(migrations, entries)
            done: list[str] = []
            for migration in sorted(migrations, key=lambda each: each.number, reverse=True):
                if history.progress(migration, entries) is Progress.PENDING:
                    continue
                self._migrate(session, migration, Direction.DOWN)
                point("migrate:undoing")
                session.persist(lambda number=migration.number: session.ledger.undone(number))  # type: ignore[misc]
                point("migrate:undone")
                done.append(migration.id)
            return _outcome(session.budget, done)

    def settle(self, number: int, direction: Direction, seq: int, *, done: bool) -> None:
        """What the operator found out about a statement that nobody else can tell of: whether its effect is there."""
        with self._session() as session:
            entry = session.ledger.entries().get((number, direction, seq))
            if entry is None or entry.state is not State.STARTED:
                raise MigrationFailed(
                    f"there is nothing to settle about statement {seq + 1} of {number:04}",
                    what=f"it is {entry.state.value if entry else 'not begun'}",
                    state="nothing was changed",
                    next="updater migrate status",
                )
            if self._is_known(entry):
                raise MigrationFailed(
                    f"there is nothing to settle about statement {seq + 1} of {number:04}",
                    what="it and its record are one transaction: the ledger knows how far it is",
                    state="nothing was changed",
                    next="updater resume    goes on from there",
                )
            if done:
                with session.ledger.writing():
                    session.ledger.finished(entry.key, 0.0, "the operator says so")
            else:
                session.ledger.forget(entry.key)

    # -- parts

    def _refuse_forms(self, migrations: Iterable[Migration], *directions: Direction) -> None:
        """A statement that ends the transaction it runs in would be done, but not on record. And of an index without a
        name each try would leave one.
        """
        statements = [
            (f"{migration.id}: {action.where}: {' '.join(action.sql.split())[:80]}", action.sql)
            for migration in migrations
            for direction in directions
            for action in migration.actions(direction)
            if isinstance(action, Statement)
        ]
        if found := [said for said, sql in statements if parse(sql, self._server.engine).is_nameless]:
            raise MigrationFailed(
                "an index that is built CONCURRENTLY needs a name",
                what=found,
                state="nothing was changed by this run",
                next="CREATE INDEX CONCURRENTLY name ON …    else what a broken try leaves cannot be found",
            )
        if found := [said for said, sql in statements if _CONTROL.match(sql)]:
            raise MigrationFailed(
                "transactions and locks are the runner's own affair",
                what=found,
                state="nothing was changed by this run",
                next="leave these statements out: each statement is a transaction, and so is each chunk of a batch",
            )

    def _refuse_half(self, migrations: Iterable[Migration], entries: dict[Key, Entry]) -> None:
        """The way back changes rows as if all of the way forth had been gone."""
        half = [
            migration
            for migration in migrations
            if history.progress(migration, entries) is Progress.BEGUN
            and any(self._changes_rows(action) for action in migration.down)
        ]
        if half:
            raise RollbackRefused(
                "not all of these migrations can be taken back",
                what=[f"{each.id}: is done by half, and its way back (down) changes rows" for each in half],
                state="nothing was changed",
                next=[f"updater migrate run --phase {each.phase}    does the rest; then take it back" for each in half],
            )

    def _changes_rows(self, action: Action) -> bool:
        """What is not understood may."""
        if isinstance(action, Batch):
            return True
        rows = (Verb.INSERT, Verb.UPDATE, Verb.DELETE, Verb.UNKNOWN)
        return any(change.verb in rows for change in parse(action.sql, self._server.engine).changes)

    def _is_known(self, entry: Entry) -> bool:
        """Whether the ledger itself tells how much of an action is done."""
        migration = next((each for each in self._migrations if each.number == entry.number), None)
        actions = migration.actions(entry.direction) if migration else ()
        action = actions[entry.seq] if entry.seq < len(actions) else None
        if entry.position is not None or isinstance(action, Batch):
            return True
        return action is not None and self._server.atomic(action)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        budget = Budget(limits=self._limits, clock=self._clock)
        session = Session(server=self._server, who=self._who, budget=budget, report=self._report)
        session.begin()
        try:
            yield session
        finally:
            session.end()

    def _may_begin(self, each: Pending, session: Session, done: list[str]) -> None:
        migration = each.migration
        if each.progress is Progress.UNDOING:
            raise MigrationFailed(
                f"{migration.id} is taken back by half",
                what=f"{each.done} of {each.total} statements are recorded as done, and taking them back has begun",
                state=_so_far(done),
                next="updater migrate undo    takes it back to its end",
            )
        if migration.phase is Phase.BLOCKING and (why := session.budget.fits(migration.expected)):
            raise stopped(f"{migration.id} is not begun", what=[why], state=_so_far(done))
        if why := session.budget.spent():
            raise stopped(f"{migration.id} is not begun", what=[why], state=_so_far(done))
        if each.late:
            self._report.warning(f"{migration.id} runs now, after migrations with higher numbers")

    def _migrate(self, session: Session, migration: Migration, direction: Direction) -> None:
        """All actions of a migration, from where it is."""
        step = f"migrate {migration.id}" if direction is Direction.UP else f"undo {migration.id}"
        waits = session.budget.waits
        with self._report.phase(step, migration.summary) as said:
            for group in self._groups(migration, direction):
                run = ActionRun(session=session, migration=migration, direction=direction, group=group, step=step)
                run.persist(self._copier)
            waits = session.budget.waits - waits
            said["text"] = f"waited for locks {waits} times" if waits else "done"
            said |= {"waits": waits, "longest_stall": round(session.budget.longest, 3)}

    def _groups(self, migration: Migration, direction: Direction) -> list[Group]:
        """The actions as they are done: each alone, or neighbours together where the engine can do them as one."""
        groups: list[Group] = []
        joined = False
        for seq, action in enumerate(migration.actions(direction)):
            joins = self._server.whole and isinstance(action, Statement) and self._server.atomic(action)
            if joins and joined:
                groups[-1].append((seq, action))
            else:
                groups.append([(seq, action)])
            joined = joins
        return groups


def _outcome(budget: Budget, done: list[str]) -> Outcome:
    return Outcome(
        done=done,
        waits=budget.waits,
        longest_stall=budget.longest,
        seconds=budget.clock.steady() - budget.began,
    )


def _so_far(done: list[str]) -> str:
    return f"done in this run: {', '.join(done)}; the next was not begun" if done else "nothing was changed by this run"
