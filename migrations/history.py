"""What the ledger means for a catalogue: which migrations are pending, how far each is, and whether history was edited.
Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from migrations.catalogue import Direction, Migration, Phase
from migrations.ledger import Entry, Key, State


class Progress(StrEnum):
    """How far a migration is."""

    PENDING = "pending"
    BEGUN = "begun"
    DONE = "done"
    UNDOING = "undoing"  # taken back by half


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A migration that is not done. `done` of `total` actions are. `late`: one with a higher number ran before it."""

    migration: Migration
    progress: Progress
    done: int
    total: int
    late: bool = False


def progress(migration: Migration, entries: Mapping[Key, Entry]) -> Progress:
    """How far a migration is."""
    if any(
        entry.state is not State.UNDONE
        for entry in entries.values()
        if entry.number == migration.number and entry.direction is Direction.DOWN
    ):
        return Progress.UNDOING
    states = [_state(migration.number, seq, entries) for seq in range(len(migration.up))]
    if all(state is State.FINISHED for state in states):
        return Progress.DONE
    return Progress.BEGUN if any(state in (State.FINISHED, State.STARTED) for state in states) else Progress.PENDING


def pending(migrations: Sequence[Migration], entries: Mapping[Key, Entry], phases: Sequence[Phase]) -> list[Pending]:
    """The migrations of these phases (all, if none is given) that are not done, by number."""
    found = []
    ran = {phase: [m.number for m in migrations if m.phase is phase and _finished(m, entries)] for phase in Phase}
    for migration in sorted(migrations, key=lambda each: each.number):
        state = progress(migration, entries)
        if state is Progress.DONE or (phases and migration.phase not in phases):
            continue
        found.append(
            Pending(
                migration=migration,
                progress=state,
                done=_finished(migration, entries),
                total=len(migration.up),
                late=state is Progress.PENDING and migration.number < max(ran[migration.phase], default=-1),
            )
        )
    return found


def faults(migrations: Sequence[Migration], entries: Mapping[Key, Entry], release: str) -> list[str]:
    """Where what ran is not what the catalogue says, in words."""
    known = {migration.number: migration for migration in migrations}
    databases = {migration.database for migration in migrations}
    found = []
    for entry in entries.values():
        begun = entry.state is State.STARTED and entry.position is not None  # a batch that has changed rows
        if entry.direction is not Direction.UP or not (entry.state is State.FINISHED or begun):
            continue
        migration = known.get(entry.number)
        ran = f"{entry.number:04}-{entry.name}, statement {entry.seq + 1}"
        if migration is None:
            if entry.release == release and entry.database in databases:
                found.append(f"{ran}: ran with {entry.release}, and is not in the catalogue any more")
        elif entry.seq >= len(migration.up):
            found.append(f"{ran}: ran with {entry.release}, and {migration.id} has no such statement any more")
        elif migration.up[entry.seq].checksum != entry.checksum:
            where = migration.up[entry.seq].where
            found.append(f"{ran}: was changed after it ran with {entry.release}{f' ({where})' if where else ''}")
    for migration in migrations:
        rows = [entries.get((migration.number, Direction.UP, seq)) for seq in range(len(migration.up))]
        ended = [row for row in rows if row is not None and row.state is State.FINISHED]
        if ended and len(ended) < len(migration.up) and len(ended) == ended[-1].total:
            found.append(f"{migration.id}: has {len(migration.up)} statements, and had {len(ended)} when it ran")
    return found


def _finished(migration: Migration, entries: Mapping[Key, Entry]) -> int:
    return sum(_state(migration.number, seq, entries) is State.FINISHED for seq in range(len(migration.up)))


def _state(number: int, seq: int, entries: Mapping[Key, Entry]) -> State | None:
    entry = entries.get((number, Direction.UP, seq))
    return entry.state if entry else None
