"""One action of a migration, tried until it is done or a limit is reached."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NoReturn

from core.faults import point
from core.sql import Reason, SqlError
from migrations.batches import BatchRun, Pace
from migrations.catalogue import Action, Batch, Direction, Migration, Phase, Statement, Strategy
from migrations.ddl import parse
from migrations.endings import broken_off, ended, half, unknown
from migrations.engines import Effect, Guard, Holder, Presence, Work
from migrations.guards import BREATH, stopped
from migrations.ledger import Key, State
from migrations.session import LOST, MOST_LOST, REFUSED_FOR_NOW, Session

#: Actions done as one, each with its place in the migration.
Group = list[tuple[int, Action]]

#: Makes the change of a statement by an online copy, under the session's budget.
Copier = Callable[[Session, Migration, Statement, str], None]

#: While a transaction is known to keep a table locked, only every so many rounds is a lock asked for nevertheless.
PATIENCE = 3


@dataclass(slots=True, kw_only=True)
class ActionRun:
    """A group of actions under way. `there`: those whose effect was found to be there; `reached`: of those in the
    transaction under way, how many have run.
    """

    session: Session
    migration: Migration
    direction: Direction
    group: Group
    step: str
    online: bool = False
    there: dict[int, str] = field(default_factory=dict)
    reached: int = 0
    began: float = 0.0
    seen: list[Holder] = field(default_factory=list)
    pace: Pace | None = None

    def persist(self, copier: Copier | None) -> None:
        """Do it, over refused locks and lost connections."""
        self.online = self.migration.phase is not Phase.BLOCKING
        attempt = lost = 0
        failed: SqlError | None = None
        while True:
            try:
                if failed is None:
                    self.session.stopping(self._state(), self._blockers(), trying=attempt > 0)
                    self.began = self.session.budget.clock.steady()
                    if not self._kept_away(attempt):
                        return self._try(copier)
                    self._rest(attempt)
                    attempt += 1
                elif failed.reason in LOST:
                    lost += 1
                    if lost > MOST_LOST:
                        message = f"{self.step} has lost its connection {lost} times"
                        raise broken_off(message, failed, self._state()) from failed
                    self.session.reconnect(failed)
                    self.there.clear()
                elif failed.reason in REFUSED_FOR_NOW:
                    self._refused(failed)
                    self._rest(attempt)
                    attempt += 1
                elif not self._goes_on_after(failed):
                    self._give_up(failed)
                failed = None
            except SqlError as error:  # what is done about an error can fail in the same ways
                failed = error

    # -- one try

    def _try(self, copier: Copier | None) -> None:
        session = self.session
        entries = session.ledger.entries()
        left = []
        for seq, action in self.group:
            entry = entries.get(self._key(seq))
            if entry is None or entry.state is not State.FINISHED:
                left.append((seq, action, entry is not None and entry.state is State.STARTED))
        if not left:
            return
        for seq, action, started in left:
            if isinstance(action, Statement):
                self._look(seq, action, started)
        with session.ledger.writing():
            for seq, action, _ in left:
                session.ledger.intended(self.migration, self.direction, seq, action, session.who)
        point("migrate:intended")
        first_seq, first, _ = left[0]
        if isinstance(first, Batch):
            self._batch(first_seq, first)
        elif self._is_copy(first):  # done already, too: it clears away what a copy has left
            assert isinstance(first, Statement)
            if copier is None:
                from migrations.online_copy import online_copy

                copier = online_copy
            copier(session, self.migration, first, self.step)
            with session.ledger.writing():
                session.ledger.finished(self._key(first_seq), self._elapsed(), "by online copy")
        else:
            self._statements([(seq, action) for seq, action, _ in left if isinstance(action, Statement)])
        point("migrate:recorded")

    def _look(self, seq: int, statement: Statement, started: bool) -> None:
        """Ask whether the effect is there already, unless the ledger is the one who knows."""
        if seq in self.there:
            return
        server = self.session.server
        if server.atomic(statement) and not statement.probe:
            return
        found = server.presence(statement)
        if found.effect is Effect.THERE:
            self._found(seq, found, started)
        elif found.effect is Effect.HALF:
            raise half(self.step, seq, statement, found, self._state())
        elif found.effect is Effect.UNKNOWN and started and not server.atomic(statement):
            raise unknown(self.step, self.migration, self.direction, seq, found, self._state())

    def _found(self, seq: int, found: Presence, started: bool) -> None:
        """A statement need not run: an earlier try had done it, or somebody did it by hand."""
        self.there[seq] = f"found there: {found.text}"
        say = self.session.report.note if started else self.session.report.warning
        say(f"{self.step}: statement {seq + 1} is done already: {found.text}")

    def _statements(self, left: list[tuple[int, Statement]]) -> None:
        session = self.session
        self.reached = 0
        work = [
            Work(statement=statement, record=self._recorder(seq), done=seq in self.there) for seq, statement in left
        ]
        blocking = not self.online
        guard = Guard(
            lock_wait=session.budget.limits.lock_wait,
            online=self.online,
            time_limit=session.budget.time_limit(blocking=blocking),
        )
        self.began = session.budget.clock.steady()
        if all(each.done for each in work):
            with session.ledger.writing():
                for each in work:
                    each.record()
            return
        with self._ticking():
            session.server.execute(work, guard)
        if blocking:
            session.budget.stall(self._elapsed())

    def _recorder(self, seq: int) -> Callable[[], None]:
        def record() -> None:
            self.session.ledger.finished(self._key(seq), self._elapsed(), self.there.get(seq, ""))
            self.reached += 1

        return record

    def _batch(self, seq: int, batch: Batch) -> None:
        session = self.session
        self.pace = self.pace or Pace(most=batch.rows, pause=batch.pause)
        run = BatchRun(
            server=session.server,
            ledger=session.ledger,
            batch=batch,
            key=self._key(seq),
            step=self.step,
            budget=session.budget,
            report=session.report,
            stopping=lambda: session.stopping(self._state(), trying=False),
            pace=self.pace,
        )
        detail = run.run(Guard(lock_wait=session.budget.limits.lock_wait, online=self.online))
        point("migrate:batch-ended")
        with session.ledger.writing():
            session.ledger.finished(self._key(seq), self._elapsed(), detail)

    # -- locks

    def _tables(self) -> tuple[str, ...]:
        """The tables that must be locked as a whole."""
        tables: dict[str, None] = {}
        for _, action in self.group:
            if isinstance(action, Statement):
                parsed = parse(action.sql, self.session.server.engine)
                if parsed.is_ddl:
                    tables |= dict.fromkeys(parsed.tables)
                    tables |= dict.fromkeys(change.references for change in parsed.changes if change.references)
        return tuple(tables)

    def _kept_away(self, attempt: int) -> bool:
        """Whether a long transaction is known to keep us away: then nobody has to queue behind a try of ours."""
        tables = self._tables()
        if not tables:
            return False
        server = self.session.server
        self.seen = server.holders(tables)
        if not self.seen or attempt % PATIENCE == PATIENCE - 1 or server.free(tables):
            return False
        if attempt == 0:
            self.session.report.note(f"{self.step}: before a try to lock {', '.join(tables)}: {self.seen[0]}")
        return any(holder.certain for holder in self.seen)

    def _refused(self, error: SqlError) -> None:
        budget = self.session.budget
        waited = self._elapsed()
        budget.waits += 1
        budget.stall(waited if not self.online else min(waited, budget.limits.lock_wait))
        if self.pace:
            self.pace.refused()
        tables = self._tables()
        self.seen = self.session.server.holders(tables) if tables else []
        by = f"; {self.seen[0]}" if self.seen else ""
        self.session.report.note(f"{self.step} was refused a lock ({error.reason}){by}", waits=budget.waits)

    def _rest(self, attempt: int) -> None:
        """Wait before the next try; shorter, when those who kept us away are gone."""
        session, tables = self.session, self._tables()
        if why := session.budget.spent():
            raise stopped(f"{self.step} was stopped: {why}", what=self._blockers(), state=self._state())
        rest = session.budget.rest(attempt)
        ids = {holder.id for holder in self.seen}
        while rest > 0:
            nap = min(rest, BREATH)
            session.budget.clock.sleep(nap)
            rest -= nap
            if rest > 0 and ids and not ids & {holder.id for holder in session.server.holders(tables)}:
                return

    def _blockers(self) -> list[str]:
        """Who kept us away at the last look."""
        if self.seen:
            return [f"held by: {holder}" for holder in self.seen[:5]]
        waits = self.session.budget.waits
        return ["no transaction is old enough to be named: there are many short ones"] if waits else []

    # -- faults

    def _goes_on_after(self, error: SqlError) -> bool:
        """Whether another try makes sense: the statement is done already, or may be done in another way."""
        if error.reason is Reason.REFUSED and self.migration.phase is Phase.CLEANUP and self.online:
            self.session.report.warning(f"{self.step} cannot be done without blocking writers, and now blocks them")
            self.online = False
            return True
        if error.reason in (Reason.EXISTS, Reason.MISSING):
            entries = self.session.ledger.entries()
            left = [
                (seq, action)
                for seq, action in self.group
                if (entry := entries.get(self._key(seq))) is None or entry.state is not State.FINISHED
            ]
            if self.reached < len(left):
                seq, action = left[self.reached]
                if isinstance(action, Statement) and not action.probe and seq not in self.there:
                    found = self.session.server.presence(action)
                    if found.effect is Effect.THERE:
                        self._found(seq, found, False)
                        return True
        return False

    def _give_up(self, error: SqlError) -> NoReturn:
        """The server said a clear no: nothing of the statement is there, except where it has no transactions."""
        session = self.session
        server = session.server
        for seq, action in self.group:
            if isinstance(action, Statement) and (server.atomic(action) or parse(action.sql, server.engine).is_ddl):
                session.persist(lambda seq=seq: session.ledger.forget(self._key(seq)))  # type: ignore[misc]
        if error.reason is Reason.OVERRAN:
            if not self.online:
                session.budget.stall(self._elapsed())
            self.seen = server.holders(self._tables()) if self._tables() else []
            if why := session.budget.spent(trying=False):
                raise stopped(f"{self.step} was stopped: {why}", what=self._blockers(), state=self._state())
            message = f"{self.step} took longer than it may, and was broken off after {self._elapsed():.1f} s"
            raise broken_off(message, error, self._state()) from error
        raise ended(self.step, error, self._state()) from error

    # -- small things

    def _key(self, seq: int) -> Key:
        return self.migration.number, self.direction, seq

    def _is_copy(self, action: Action) -> bool:
        return self.migration.strategy is Strategy.ONLINE_COPY and self.direction is Direction.UP

    def _elapsed(self) -> float:
        return self.session.budget.clock.steady() - self.began

    def _state(self) -> str:
        first = self.group[0][0]
        return (
            f"{first} of {len(self.migration.actions(self.direction))} statements of {self.migration.id} are done"
            f"{' in taking it back' if self.direction is Direction.DOWN else ''}; the rest is not"
        )

    @contextmanager
    def _ticking(self) -> Iterator[None]:
        """Progress while the server works: by the time that it is expected to take."""
        ended = threading.Event()
        expected = max(round(self.migration.expected), 1)
        report, step, clock, began = self.session.report, self.step, self.session.budget.clock, self.began

        def tick() -> None:
            while not ended.wait(1):
                report.progress(step, min(round(clock.steady() - began), expected), expected, "s")

        thread = threading.Thread(target=tick, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
