"""Data migrations in the story of a node: what is due on its databases, with every check made, and the steps for it.

The non-blocking migrations of a release are the last step of `stage`; the blocking ones come just before the flip.
Which statements are done, the databases themselves know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from core.errors import DatabaseFailed, UpdaterError, WindowClosed
from core.journal import Facts, StepRecord
from core.release import Policy, Release
from core.report import Report
from core.steps import Step
from core.window import Window
from images.read import Bundle
from migrations.action import Copier
from migrations.catalogue import Catalogue, Migration, Phase, Strategy
from migrations.engines import Server
from migrations.guards import Limits
from migrations.history import Pending
from migrations.runner import Outcome, Runner
from partitions.boot.state import Slot
from patches.lifetime import Decision
from updater.backups import Backup, room
from updater.catalogues import catalogue_in, catalogue_of, ours
from updater.checks import Check
from updater.checks import examine as examine_checks
from updater.node import Node
from updater.staging import Target

#: What is run before a flip: should a database have been added to the node since it was staged, all of it.
BEFORE_FLIP = (Phase.NON_BLOCKING, Phase.BLOCKING)


def limits(node: Node, *, window_end: datetime | None = None, cleanup: bool = False) -> Limits:
    """The limits of node.toml."""
    said = node.config.migrations
    return Limits(
        lock_wait=said.lock_wait,
        deadline=said.deadline,
        max_stall=said.max_stall,
        max_lag=said.max_lag,
        max_running=said.max_running or None,
        window_end=window_end,
        cleanup_allowed=cleanup,
    )


def server_of(node: Node, name: str) -> AbstractContextManager[Server]:
    """The server of a database of node.toml, opened for migrations. Raises SqlError, DatabaseFailed."""
    from migrations.servers import opened

    replicas = [each for each in node.config.migrations.replicas if each.of == name]
    return opened(node.config.databases[name], replicas)


def due(
    node: Node, catalogue: Catalogue, release: str, name: str, phases: Sequence[Phase]
) -> tuple[list[Pending], str]:
    """What is left to do on a database, and what kind of server it is. Looks only.

    Raises DatabaseFailed where it cannot be used (if there is something to do), MigrationFailed for an edited history.
    """
    with server_of(node, name) as server:
        runner = Runner(server, catalogue.of(database=name), release=release, run_id="plan")
        runner.verify_history()
        pending = runner.pending(phases)
        if pending:
            server.require_primary()
        return pending, server.version()


def run(
    node: Node,
    catalogue: Catalogue,
    release: str,
    run_id: str,
    phases: Sequence[Phase],
    report: Report,
    bounds: Limits,
) -> list[Outcome]:
    """Run what is pending of these phases on all databases of this node. Raises as `Runner` does."""
    outcomes = []
    for name in ours(node, catalogue):
        migrations = catalogue.of(database=name)
        with server_of(node, name) as server:
            runner = Runner(
                server,
                migrations,
                release=release,
                run_id=run_id,
                limits=bounds,
                report=report,
                copier=_copier(migrations),
            )
            outcomes.append(runner.run(phases))
    return outcomes


def _copier(migrations: Sequence[Migration]) -> Copier | None:
    if all(each.strategy is Strategy.NATIVE for each in migrations):
        return None
    from migrations.online_copy import online_copy

    return online_copy


def oldest_reader(release: Release, policy: Policy, migrations: Sequence[Migration]) -> int:
    """The number of the oldest release that can read the data after these migrations; 0: any."""
    oldest = 0
    for each in migrations:
        if each.readable_from is not None:
            oldest = max(oldest, each.readable_from)
        elif each.phase is Phase.BLOCKING:
            oldest = max(oldest, release.number - policy.rollback_distance)
        elif each.phase is Phase.CLEANUP:  # it removes what the releases before read
            oldest = max(oldest, release.number)
    return oldest


# -- plans


@dataclass(frozen=True, kw_only=True)
class Examined:
    """What came of looking: a check for each database, and a line for each migration. `databases`: those of the
    catalogue that this node migrates. `readable_from`: the oldest release that can read the result; 0: any.
    """

    checks: list[Check] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    pending: list[Pending] = field(default_factory=list)
    readable_from: int = 0

    @property
    def decisions(self) -> list[Decision]:
        """Every migration in words."""
        return [_line(each) for each in self.pending]

    def of(self, *phases: Phase) -> list[str]:
        """The databases with something left to do in these phases."""
        wanted = {each.migration.database for each in self.pending if each.migration.phase in phases}
        return [name for name in self.databases if name in wanted]


def examine_bundle(node: Node, bundle: Bundle) -> Examined:
    """What a release would migrate here. Nothing is raised: faults are in the checks."""
    try:
        with catalogue_in(bundle) as catalogue:
            return _examine(node, catalogue, Release.parse(bundle.manifest.release))
    except UpdaterError as error:  # the catalogue itself
        return Examined(checks=[Check(name="migrations", found=error.message, error=error)])


def examine_slot(node: Node, slot: Slot, window: Window | None) -> Examined:
    """What activating a slot would migrate. Whether it fits into the window is one of the checks."""
    release = node.release(slot)
    if release is None:
        return Examined()
    found = _examine(node, catalogue_of(node, slot), release)
    looks: dict[str, Callable[[], str]] = {}
    if all(check.error is None for check in found.checks) and node.config.migrations.backup != "none":
        looks |= {f"backup {name}": partial(room, node, name) for name in found.of(*BEFORE_FLIP)}
    if window is not None and found.pending:
        looks["migrations"] = lambda: _fits(found.pending, window)
    return replace(found, checks=[*found.checks, *examine_checks(looks)])


def _examine(node: Node, catalogue: Catalogue, release: Release) -> Examined:
    pending: list[Pending] = []

    def look(name: str) -> str:
        found, version = due(node, catalogue, str(release), name, BEFORE_FLIP)
        pending.extend(found)
        return f"{version}, {_counted(found)}"

    names = ours(node, catalogue)
    checks = examine_checks({f"database {name}": lambda name=name: look(name) for name in names})  # type: ignore[misc]
    checks += [
        Check(name=f"database {name}", found="not this node's to migrate")
        for name in catalogue.databases
        if name not in names
    ]
    oldest = oldest_reader(release, node.policy, [each.migration for each in pending])
    return Examined(checks=checks, databases=names, pending=pending, readable_from=oldest)


def _counted(pending: Sequence[Pending]) -> str:
    if not pending:
        return "nothing to migrate"
    counts = {phase: sum(each.migration.phase is phase for each in pending) for phase in Phase}
    return ", ".join(f"{count} {phase}" for phase, count in counts.items() if count)


def _line(each: Pending) -> Decision:
    migration = each.migration
    begun = f", {each.done} of {each.total} done" if each.done else ""
    how = ", as an online copy" if migration.strategy is Strategy.ONLINE_COPY else ""
    summary = f": {migration.summary}" if migration.summary else ""
    why = f"{migration.database}, {migration.phase}{how}, about {migration.expected:g} s{begun}{summary}"
    return Decision(kind="migration", name=migration.id, carried=True, why=why)


def _fits(pending: Sequence[Pending], window: Window) -> str:
    now = datetime.now()
    wanted = sum(each.migration.expected for each in pending)
    left = (window.closes(now) - now).total_seconds()
    if window.is_open(now) and wanted > left:
        raise WindowClosed(
            "the migrations do not fit into what is left of the window",
            what=f"they take about {wanted:g} s, and {window} ends in {left:.0f} s",
            next="a wider --window, or the next night",
        )
    return f"about {wanted:g} s of {left:.0f} s"


# -- the steps


def blocking_steps(node: Node, slot: Slot, databases: tuple[str, ...], window: Window | None) -> list[Step]:
    """What comes before the flip where something is left to migrate: a backup, unless it is not wanted, and that."""
    if not databases:
        return []
    backup = [] if node.config.migrations.backup == "none" else [Backup(node=node, slot=slot, databases=databases)]
    return [*backup, MigrateBlocking(node=node, slot=slot, databases=databases, window=window)]


@dataclass(frozen=True, kw_only=True)
class Migrate:
    """The last step of `stage`: the non-blocking migrations, while the old release serves."""

    target: Target
    databases: tuple[str, ...]
    name: str = "migrate"

    def describe(self) -> str:
        """Where."""
        return f"non-blocking migrations of {', '.join(self.databases)}"

    def is_done(self, record: StepRecord | None) -> bool:
        """The databases say that nothing is pending."""
        with catalogue_in(self.target.bundle) as catalogue:
            release = self.target.bundle.manifest.release
            return not any(
                due(self.target.node, catalogue, release, name, [Phase.NON_BLOCKING])[0] for name in self.databases
            )

    def before(self) -> Facts:
        """The databases remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Run them."""
        node, release = self.target.node, self.target.bundle.manifest.release
        with catalogue_in(self.target.bundle) as catalogue:
            done = run(node, catalogue, release, _run_id(node), [Phase.NON_BLOCKING], report, limits(node))
        return _told(done)

    def undo(self, facts: Facts) -> None:
        """They stay: the old release works with them, and the next try finds them done."""


@dataclass(frozen=True, kw_only=True)
class MigrateBlocking:
    """Just before the flip: what stops other queries."""

    node: Node
    slot: Slot
    databases: tuple[str, ...]
    window: Window | None = None
    name: str = "migrate-blocking"

    def describe(self) -> str:
        """Where."""
        return f"blocking migrations of {', '.join(self.databases)}"

    def is_done(self, record: StepRecord | None) -> bool:
        """The databases say that nothing is pending."""
        catalogue = catalogue_of(self.node, self.slot)
        release = str(self.node.release(self.slot) or "")
        return not any(due(self.node, catalogue, release, name, BEFORE_FLIP)[0] for name in self.databases)

    def before(self) -> Facts:
        """What was known about who can read the data."""
        return {"migrated": self.node.journal.fact("migrated")}

    def apply(self, facts: Facts, report: Report) -> str:
        """First the journal: from the first statement on, the data is the new release's."""
        node, slot = self.node, self.slot
        catalogue, release = catalogue_of(node, slot), node.release(slot)
        assert release is not None
        note_migrated(node, release, catalogue.of(*BEFORE_FLIP))
        bounds = limits(node, window_end=self._window_end())
        return _told(run(node, catalogue, str(release), _run_id(node), BEFORE_FLIP, report, bounds))

    def _window_end(self) -> datetime | None:
        """When what is open now closes. Raises WindowClosed: a resume on another day keeps to the hours too."""
        if self.window is None:
            return None
        now = datetime.now()
        if not self.window.is_open(now):
            raise WindowClosed(
                f"the window {self.window} is closed",
                what=f"it is {now:%H:%M}; it opens {self.window.opens(now):%Y-%m-%d %H:%M}",
                state="nothing was begun since; the activation is open",
                next=["updater resume    in the window", "updater abort"],
            )
        return self.window.closes(now).astimezone(UTC)

    def undo(self, facts: Facts) -> None:
        """What was migrated stays; where nothing was begun, the data is what it was."""
        catalogue, release = catalogue_of(self.node, self.slot), str(self.node.release(self.slot) or "")
        wanted = catalogue.of(Phase.BLOCKING)
        try:
            pending = [
                each
                for name in self.databases
                for each in due(self.node, catalogue, release, name, [Phase.BLOCKING])[0]
                if not each.done and each.progress.value == "pending"
            ]
        except DatabaseFailed:
            return  # not known: better too careful about who can read the data
        if len(pending) == len([each for each in wanted if each.database in self.databases]):
            self.node.journal.set_fact("migrated", facts.get("migrated"))


def note_migrated(node: Node, release: Release, migrations: Sequence[Migration]) -> None:
    """Remember that the data is, or is about to be, what this release makes of it."""
    before = node.journal.fact("migrated") or {}
    oldest = oldest_reader(
        release, node.policy, [each for each in migrations if each.database in node.config.databases]
    )
    if before and Release.parse(before["release"]) > release:
        release = Release.parse(before["release"])
    fact = {"release": str(release), "readable_from": max(oldest, int(before.get("readable_from", 0)))}
    node.journal.set_fact("migrated", fact)


def _run_id(node: Node) -> str:
    run = node.journal.open_run()
    return f"{node.config.name}:{run.id}" if run else f"{node.config.name}:by-hand"


def _told(outcomes: Sequence[Outcome]) -> str:
    done = sum(len(each.done) for each in outcomes)
    waits = sum(each.waits for each in outcomes)
    longest = max((each.longest_stall for each in outcomes), default=0.0)
    return f"{done} done, longest stall of a writer {longest:.2f} s, waited for locks {waits} times"
