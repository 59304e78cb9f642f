"""What the agent will find on a data partition, say about it and do about it: asked of the agent's own functions, on
copies of its files."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from core.errors import UpdaterError
from core.journal import Journal
from partitions.boot.backend import open_backend
from partitions.boot.grub_config import ENVIRONMENT
from partitions.boot.state import Slot
from updater.node import Node
from updater.node_toml import load_node
from updater.status import Indicator, status_of
from vagrant import data as application
from vagrant.cuts.regions import extract
from vagrant.node import NODE_TOML, Lab

#: The stores of the agent, and beside each what SQLite may have left there.
_STORES = ("journal", "carried", "configuration")
_BESIDE = ("", "-journal", "-wal")
_DATABASE = str(Path("/", application.PLACE.relative_to("/data")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What `updater status` says right after the boot. `run`: verb and step under way, empty when none is."""

    indicator: str
    run: str
    state: str
    next: tuple[str, ...]
    slots: tuple[str, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Booted:
    """The machine that the disk was put into: it has just booted `slot`."""

    slot: Slot

    def booted_slot(self) -> Slot:
        """The slot that GRUB picked."""
        return self.slot

    def boot_id(self) -> str:
        """One that no journal knows."""
        return "after-the-cut"

    def architecture(self) -> str:
        """That of the lab."""
        return "x86_64"

    def reboot(self) -> None:
        """Nothing boots here."""

    def confirmed(self) -> None:
        """There is no deadline here."""


def stand(
    data: Path, work: Path, lab: Lab, slot: Slot, environment: bytes, faults: list[str]
) -> tuple[Standing | None, list[str]]:
    """Look at `data`, an ext4 image of the data partition whose journal was replayed, after a boot of `slot` that left
    this boot environment. Returns what the agent says, and `faults` with what was found added.
    """
    with TemporaryDirectory(prefix="agent-", dir=work) as scratch:
        root = Path(scratch)
        for name in ("updater", "acme", "esp/updater"):
            (root / name).mkdir(parents=True)
        names = [f"/updater/{store}.sqlite{beside}" for store in _STORES for beside in _BESIDE]
        names += [f"{_DATABASE}{beside}" for beside in _BESIDE]
        there = extract(data, {name: root / name.lstrip("/") for name in names})
        for name in sorted(there):
            if name.endswith(".sqlite"):
                faults += [f"{name}: {line}" for line in _integrity(root / name.lstrip("/"))]
        if _DATABASE not in there:
            faults.append("the application's data is gone")
        else:
            faults += _application(root / _DATABASE.lstrip("/"))
        if "/updater/journal.sqlite" not in there:
            faults.append("the agent's journal is gone")
            return None, faults
        if not environment:
            return None, faults  # the ESP's faults are known already
        (root / "esp" / ENVIRONMENT).write_bytes(environment)
        try:
            return _ask(root, lab, slot, faults), faults
        except UpdaterError as error:
            return None, [*faults, f"the agent: {error.message}"]


def _ask(root: Path, lab: Lab, slot: Slot, faults: list[str]) -> Standing:
    """The agent's status. Faults are added. Raises UpdaterError."""
    text = NODE_TOML.format(backend=lab.backend, tries=lab.tries, health=lab.health, deadline=lab.deadline)
    text += application.NODE_TOML
    for path, copy in (
        ("/data/updater", root / "updater"),
        (str(application.PLACE), root / _DATABASE.lstrip("/")),
        ("/efi", root / "esp"),
        ("/etc/updater/keys", lab.keys),
    ):
        text = text.replace(path, str(copy))
    config = root / "node.toml"
    config.write_text(text)
    node_config = load_node(config)
    boot = open_backend("grub", root / "esp", plain_filesystem=False)
    with Journal.open(node_config.journal) as journal:
        node = Node(path=config, config=node_config, machine=Booted(slot=slot), boot=boot, journal=journal)
        status = status_of(node)
    upgrade = status.upgrade
    if status.indicator is Indicator.CRITICAL:
        faults += [f"status is CRITICAL: {problem}" for problem in status.problems]
    if upgrade is not None and upgrade.next != ("updater resume", "updater abort"):
        faults.append(f"status does not say how to go on with {upgrade.verb} in step {upgrade.step}")
    return Standing(
        indicator=status.indicator.value,
        run=f"{upgrade.verb}, step {upgrade.step}" if upgrade else "",
        state=upgrade.state if upgrade else "",
        next=upgrade.next if upgrade else (),
        slots=tuple(f"{each.slot}{'*' if each.booted else ''} {each.state}" for each in status.slots),
        problems=status.problems,
    )


def _integrity(path: Path) -> list[str]:
    """Open an SQLite file as whoever uses it would, a hot journal replayed, and have SQLite check it."""
    copy = path.with_name(f"check-{path.name}")
    for beside in _BESIDE:
        other = path.with_name(path.name + beside)
        if other.exists():
            shutil.copyfile(other, copy.with_name(copy.name + beside))
    try:
        with closing(sqlite3.connect(copy)) as db:
            lines = [str(row[0]) for row in db.execute("PRAGMA integrity_check")]
    except sqlite3.Error as error:
        return [str(error)]
    return [] if lines == ["ok"] else lines


def _application(path: Path) -> list[str]:
    """No account of the application's may be lost."""
    wanted = (application.ACCOUNTS, application.ACCOUNTS * (application.ACCOUNTS + 1) / 8)
    try:
        with closing(sqlite3.connect(path)) as db:
            found = db.execute("SELECT count(balance), sum(balance) FROM accounts").fetchone()
    except sqlite3.Error as error:
        return [f"the application's data: {error}"]
    return [] if found == wanted else [f"the application's data: {found} accounts and balance, not {wanted}"]
