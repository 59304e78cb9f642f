"""Migrations by hand: what is due and what was done, a phase outside of an upgrade, and the way back of the data."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from core.errors import MigrationFailed, RollbackRefused, WrongState
from core.release import Release
from core.report import Report
from migrations.catalogue import Catalogue, Direction, Migration, Phase
from migrations.history import Progress, progress
from migrations.ledger import Entry, Key, State
from migrations.runner import Runner
from partitions.boot.state import SLOTS, Slot, other
from updater.catalogues import catalogue_of, ours
from updater.execution import locked
from updater.migrating import limits, note_migrated, run, server_of
from updater.node import Node
from updater.switching import way_back


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A migration as a database has it. `at`: when it ended, UTC; `release`: with which it ran."""

    id: str
    database: str
    phase: str
    progress: str
    done: int
    total: int
    expected: float
    reversible: bool
    summary: str
    release: str = ""
    at: str = ""
    seconds: float | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The catalogue that is meant: that of the newest release on the node which has one."""

    slot: Slot
    release: Release
    catalogue: Catalogue


def choose(node: Node) -> Chosen:
    """Raises WrongState when no release on the node has migrations for its databases."""
    found = [
        Chosen(slot=slot, release=release, catalogue=catalogue)
        for slot in SLOTS
        if (release := node.release(slot)) is not None and ours(node, catalogue := catalogue_of(node, slot))
    ]
    if not found:
        raise WrongState(
            "no release on this node has migrations for its databases",
            what=f"node.toml names {', '.join(node.config.databases) or 'no databases'}",
            state="nothing was changed",
            next=["updater stage BUNDLE", "updater doctor"],
        )
    return max(found, key=lambda each: (each.release, each.slot == node.booted))


def lines(node: Node, chosen: Chosen) -> list[Line]:
    """Every migration of the catalogue on this node's databases, by number. Looks only."""
    found = []
    for name in ours(node, chosen.catalogue):
        migrations = chosen.catalogue.of(database=name)
        with server_of(node, name) as server:
            runner = Runner(server, migrations, release=str(chosen.release), run_id="look")
            runner.verify_history()
            entries = runner.entries()
        found += [_line(migration, entries) for migration in migrations]
    return sorted(found, key=lambda each: each.id)


def _line(migration: Migration, entries: dict[Key, Entry]) -> Line:
    rows = [entries.get((migration.number, Direction.UP, seq)) for seq in range(len(migration.up))]
    done = [row for row in rows if row is not None and row.state is State.FINISHED]
    ended = max((row.finished_at for row in done if row.finished_at), default=None)
    return Line(
        id=migration.id,
        database=migration.database,
        phase=migration.phase.value,
        progress=progress(migration, entries).value,
        done=len(done),
        total=len(migration.up),
        expected=migration.expected,
        reversible=migration.reversible,
        summary=migration.summary,
        release=done[-1].release if done else "",
        at=ended.isoformat(timespec="seconds") if ended else "",
        seconds=sum(row.seconds or 0.0 for row in done) if done else None,
    )


def run_phase(node: Node, phase: Phase, report: Report, *, give_up: bool = False, until: datetime | None = None) -> str:
    """Run what is pending of a phase. The clean-up waits until no way back needs what it removes; `give_up`: now.

    Raises WrongState, RollbackRefused, and what the runner raises.
    """
    with locked(node, f"migrate {phase}"):
        chosen = choose(node)
        if phase is Phase.CLEANUP:
            _may_clean_up(node, chosen, give_up)
        elif phase is Phase.BLOCKING:
            _require_adjoining(node, chosen)
        if phase is not Phase.NON_BLOCKING:
            note_migrated(node, chosen.release, chosen.catalogue.of(phase))
        bounds = limits(node, window_end=until, cleanup=True)
        run_id = f"{node.config.name}:by-hand"
        done = run(node, chosen.catalogue, str(chosen.release), run_id, [phase], report, bounds)
    names = [name for each in done for name in each.done]
    return f"{', '.join(names)} done" if names else f"nothing is pending in phase {phase}"


def _may_clean_up(node: Node, chosen: Chosen, give_up: bool) -> None:
    if node.booted != chosen.slot:
        raise WrongState(
            f"{chosen.release} does not run: its clean-up removes what {node.release(node.booted)} reads",
            state="nothing was changed",
            next="updater activate",
        )
    back = node.release(other(node.booted))
    possible, why = way_back(node)
    if possible and not give_up and (back is None or back.number < chosen.release.number):
        raise RollbackRefused(
            "the clean-up would take the way back",
            what=f"one can go back to {why}; it reads what the clean-up removes",
            state="nothing was changed",
            next=[
                "updater stage BUNDLE    the next release overwrites that slot; clean up then",
                "--give-up-way-back    if you mean it: there is no rollback any more",
            ],
        )


def _require_adjoining(node: Node, chosen: Chosen) -> None:
    current = node.release(node.booted)
    if current is not None and not node.policy.adjoining(current, chosen.release):
        raise RollbackRefused(
            f"{current}, which runs, cannot read what {chosen.release} makes of the data: they do not adjoin",
            state="nothing was changed",
            next="updater activate --accept-no-rollback    migrates, and boots the new release",
        )


def undo(node: Node, report: Report, *, down_to: int | None = None) -> str:
    """Take back the migrations that were run with the newest release, the last first, down to a number (included; None:
    all of them). What ran with another build of it counts, too, unless that is older than the running release.

    Raises WrongState while that release runs, RollbackRefused where one of them has no way back.
    """
    with locked(node, "migrate undo"):
        chosen = choose(node)
        if node.booted == chosen.slot:
            raise WrongState(
                f"{chosen.release} runs, and needs what would be taken back",
                state="nothing was changed",
                next="updater rollback    first; then updater migrate undo",
            )
        names: list[str] = []
        for name in reversed(ours(node, chosen.catalogue)):
            with server_of(node, name) as server:
                migrations = chosen.catalogue.of(database=name)
                runner = Runner(
                    server,
                    migrations,
                    release=str(chosen.release),
                    run_id=f"{node.config.name}:undo",
                    limits=limits(node),
                    report=report,
                )
                ran = _of_release(node, chosen.release, runner.entries())
                back = [each for each in migrations if each.number in ran and each.number >= (down_to or 0)]
                names += runner.undo(back).done
        if not _left(node, chosen):
            node.journal.set_fact("migrated", None)
    return f"taken back: {', '.join(names)}" if names else "nothing to take back"


def _of_release(node: Node, release: Release, entries: dict[Key, Entry]) -> set[int]:
    """The numbers of what ran with a release, or with another build of it that is newer than the one that runs: never
    what the running release brought, or one before it.
    """
    current = node.release(node.booted)
    found = set()
    for entry in entries.values():
        ran = Release.parse(entry.release)
        its = ran == release or (ran.number == release.number and (current is None or ran > current))
        if its and entry.state is not State.UNDONE:
            found.add(entry.number)
    return found


def _left(node: Node, chosen: Chosen) -> bool:
    """Whether anything of the blocking kind is still done."""
    return any(line.phase != Phase.NON_BLOCKING and line.progress != Progress.PENDING for line in lines(node, chosen))


def settle(node: Node, number: int, statement: int, *, down: bool, done: bool, report: Report) -> str:
    """Write down what the operator found out about a statement (from 1) that nobody else can tell of."""
    with locked(node, "migrate settle"):
        chosen = choose(node)
        migration = next((each for each in chosen.catalogue.migrations if each.number == number), None)
        if migration is None or migration.database not in node.config.databases:
            raise MigrationFailed(
                f"{number:04} is no migration of {chosen.release} on this node",
                state="nothing was changed",
                next="updater migrate status",
            )
        with server_of(node, migration.database) as server:
            runner = Runner(
                server, chosen.catalogue.migrations, release=str(chosen.release), run_id="settle", report=report
            )
            runner.settle(number, Direction.DOWN if down else Direction.UP, statement - 1, done=done)
    return f"statement {statement} of {migration.id} counts as {'done' if done else 'not begun'}"
