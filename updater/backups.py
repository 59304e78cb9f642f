"""Backups of the databases, made before their blocking migrations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from core.journal import Facts, StepRecord, StepState
from core.report import Report
from migrations import snapshot
from partitions.boot.state import Slot
from updater.node import Node
from updater.staging import size

#: So many backups of a database are kept, the newest ones.
KEPT = 2


def place(node: Node) -> Path:
    """Where they are kept."""
    return node.config.migrations.backups or node.config.data / "backups"


def room(node: Node, name: str) -> str:
    """What a backup needs and what there is. Raises NoSpace, DatabaseFailed."""
    if node.config.migrations.backup == "command":
        return f"by {node.config.migrations.backup_command[0]}"
    return f"{size(snapshot.require_space(node.config.databases[name], place(node)))} to {place(node)}"


@dataclass(frozen=True, kw_only=True)
class Backup:
    """A copy of each database as it was before."""

    node: Node
    slot: Slot
    databases: tuple[str, ...]
    name: str = "backup"

    def describe(self) -> str:
        """Of what, and how."""
        how = "your program" if self.node.config.migrations.backup == "command" else f"a copy in {place(self.node)}"
        return f"back up {', '.join(self.databases)}: {how}"

    def is_done(self, record: StepRecord | None) -> bool:
        """Only the journal can tell: what is copied later is no copy of what was before."""
        return record is not None and record.state is StepState.DONE

    def before(self) -> Facts:
        """How the backups of this run are called."""
        run = self.node.journal.open_run()
        return {"label": f"{self.node.release(self.slot)}-{run.id if run else 'by-hand'}"}

    def apply(self, facts: Facts, report: Report) -> str:
        """Make them; those that are complete already are kept. Then the oldest ones go."""
        made = []
        for name in self.databases:
            made.append(
                snapshot.take(
                    self.node.config.databases[name],
                    place(self.node) / name,
                    label=facts["label"],
                    report=report,
                    command=self.node.config.migrations.backup_command,
                )
            )
            for old in snapshot.every(place(self.node) / name)[:-KEPT]:
                snapshot.remove(old)
        return ", ".join(f"{each.path} ({size(each.bytes)})" for each in made)

    def undo(self, facts: Facts) -> None:
        """A backup does no harm."""
