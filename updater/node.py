"""The node, opened: its configuration, machine, boot loader and journal in one hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import NotPermitted, NotReady, UpdaterError
from core.journal import Facts, Journal
from core.release import Policy, Release
from partitions.boot.backend import open_backend
from partitions.boot.contract import BootBackend
from partitions.boot.state import BootState, Slot, SlotState, other
from updater.machine import Machine, machine_of
from updater.node_toml import NodeConfig, load_node

#: A running root says here which release it is, for nodes whose first release was not installed by `stage`.
RELEASE_FILE = Path("/etc/updater-release")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """Everything that a verb needs of this node."""

    path: Path
    config: NodeConfig
    machine: Machine
    boot: BootBackend
    journal: Journal

    @property
    def booted(self) -> Slot:
        """The slot that runs now. Raises NotReady where the machine does not say."""
        return self.machine.booted_slot()

    @property
    def inactive(self) -> Slot:
        """The slot that does not run now: the one that `stage` writes."""
        return other(self.booted)

    def device(self, slot: Slot) -> Path:
        """The slot's device, or its file in a sandbox."""
        return self.config.slots[slot].device

    def release(self, slot: Slot) -> Release | None:
        """The release in a slot as the journal has it; for the running slot, else as its root says. None: unknown."""
        text = self.journal.slot(slot).get("release")
        if text is None and self.config.machine == "host" and slot == self.booted and RELEASE_FILE.exists():
            text = RELEASE_FILE.read_text(encoding="utf-8").strip()
        try:
            return Release.parse(text) if text else None
        except ValueError:
            return None

    def remember_running(self) -> None:
        """Note in the journal which release runs, where only the running root itself can say so."""
        booted = self.booted
        release = self.release(booted)
        if release is not None and "release" not in self.journal.slot(booted):
            self.journal.set_slot(booted, {"release": str(release)})

    @property
    def ran_release(self) -> Release | None:
        """The newest release that has run on the data (None: unknown)."""
        text = self.journal.fact("data-release")
        return self._release_of_data(text) if text else self.release(self.booted)

    @property
    def data_release(self) -> Release | None:
        """The newest release that has run on the data, or migrated it (None: unknown)."""
        migrated = self.journal.fact("migrated")
        found = (self.ran_release, self._release_of_data(migrated["release"]) if migrated else None)
        return max((each for each in found if each is not None), default=None)

    def _release_of_data(self, text: str) -> Release:
        try:
            return Release.parse(text)
        except (ValueError, TypeError) as error:
            raise NotReady(
                "the journal does not tell which release the data is at", what=str(error), next="updater doctor"
            ) from error

    def cannot_read(self, software: Release) -> str | None:
        """Why this software cannot run on the data as it is now, or None."""
        migrated = self.journal.fact("migrated") or {}
        oldest = int(migrated.get("readable_from", 0))
        if software.number < oldest:
            return (
                f"the data was migrated for {migrated['release']}, and {software} cannot read it: only MR{oldest} "
                "and later can"
            )
        data = self.data_release
        return self.policy.forbids_data(software, data) if data is not None else None

    @property
    def policy(self) -> Policy:
        """The release policy of this node."""
        return self.config.policy

    def policy_for(self, overrides: Facts | None) -> Policy:
        """The node's policy with what a release says of itself (its manifest's `policy`)."""
        return replace(self.config.policy, **overrides) if overrides else self.config.policy

    def staged(self, slot: Slot, state: BootState) -> bool:
        """Whether the slot holds a complete release that was never booted."""
        return state[slot].state is SlotState.BAD and "seal" in self.journal.slot(slot)

    def facts(self) -> Facts:
        """What hooks are told of the node."""
        booted = self.booted
        return {
            "node": self.config.name,
            "site": self.config.site,
            "role": self.config.role,
            "booted": booted,
            "release": str(self.release(booted) or ""),
        }


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except PermissionError as error:
        raise NotPermitted(
            f"no permission to look into {path}", state="nothing was changed", next="run it as root (sudo)"
        ) from error


@contextmanager
def open_node(path: Path) -> Iterator[Node]:
    """Open the node that node.toml at `path` describes. Raises ConfigError, NotReady, NotPermitted."""
    config = load_node(path)
    if not _is_directory(config.data):
        raise NotReady(
            f"the data directory {config.data} does not exist",
            what="the journal lives there; the data partition may not be mounted",
            state="nothing was changed",
            next=[f"findmnt {config.data.parent}", "updater doctor", "updater init    creates it on a new node"],
        )
    boot = open_backend(config.boot.backend, config.boot.esp, plain_filesystem=config.machine == "host")
    try:
        opened = Journal.open(config.journal)
    except UpdaterError as error:
        error.state = error.state or "nothing was changed"
        raise
    with opened as journal:
        yield Node(path=path, config=config, machine=machine_of(config), boot=boot, journal=journal)
