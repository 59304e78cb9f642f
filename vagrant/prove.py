"""`updater prove-rollback`: the release in the other slot is booted in a container, on copies, before it is needed."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from core.errors import ConfigError, DatabaseFailed, HealthFailed, NoSpace, NotReady, RehearsalFailed
from core.files import inside
from core.report import Report
from core.scratch import scratch
from core.sql import Engine
from partitions import mounts
from updater.checks import raise_first, rollback_checks
from updater.cli.context import opened, print_json, settings
from updater.execution import locked
from updater.exporting import mount_of
from updater.health import checks_of, wait_healthy
from updater.node import Node
from updater.node_toml import CheckKind, HealthCheck, HealthConfig, load_node
from updater.staging import size
from vagrant import container
from vagrant.container import Container

#: Bytes that stay free on the data partition.
_RESERVE = 64 << 20


@dataclass(kw_only=True)
class Proof:
    """What was seen. `copies`: bytes of each database's copy. `failed_units`: units of the release that did not start
    in the container; only health checks decide.
    """

    slot: str
    release: str
    boot_seconds: float = 0.0
    seconds: float = 0.0
    copies: dict[str, int] = field(default_factory=dict)
    checks: list[str] = field(default_factory=list)
    failed_units: list[str] = field(default_factory=list)
    without: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def prove(without: Sequence[str]) -> None:
    """Prove it, and print what was seen. `without`: databases that are left out. Raises RollbackRefused where there is
    no way back, NotReady where none can be proved here, RehearsalFailed where it does not work.
    """
    with opened() as (node, report), locked(node, "prove-rollback"):
        raise_first(rollback_checks(node), "there is no way back to prove")
        if node.config.machine == "sandbox":
            raise NotReady("a sandbox's slots hold nothing that boots", state="nothing was changed")
        container.require()
        proof = _proved(node, without, report)
    if settings.json:
        print_json({"kind": "result", "data": proof.as_json()})
        return
    for name, count in proof.copies.items():
        print(f"database {name}: a copy of {size(count)}")
    for name in proof.without:
        print(f"database {name}: NOT proved, left out")
    for name in proof.failed_units:
        print(f"unit {name}: does not start in a container")
    text = (
        f"proved: {proof.release} in slot {proof.slot} boots ({proof.boot_seconds:.1f} s), and is healthy on copies of"
    )
    print(f"{text} the data: {', '.join(proof.checks)}")


def _proved(node: Node, without: Sequence[str], report: Report) -> Proof:
    slot = node.inactive
    began = time.monotonic()
    proof = Proof(slot=slot, release=str(node.release(slot) or "the release"), without=sorted(set(without)))
    with (
        scratch(node.config.data, "prove") as work,
        mounts.mounted(node.device(slot), read_only=True) as lower,
    ):
        with report.phase("copy", "copies of the databases"):
            copies = _copies(node, without, work, proof)
        health = _health(node, lower)
        mount = mount_of(node.config.data)
        view = mount if mount != Path("/") else None
        deadline = float(node.config.boot.deadline)
        started = time.monotonic()
        with (
            report.phase("boot", f"{proof.release} in a container"),
            container.booted(lower, work, data=view, copies=copies, deadline=deadline) as old,
        ):
            proof.boot_seconds = round(time.monotonic() - started, 1)
            failed = old.run("systemctl", "--failed", "--plain", "--no-legend").stdout.splitlines()
            proof.failed_units = [line.split()[0] for line in failed if line.split()]
            proof.checks = _healthy(node, old, health, proof, report)
    proof.seconds = round(time.monotonic() - began, 1)
    return proof


def _copies(node: Node, without: Sequence[str], work: Path, proof: Proof) -> dict[Path, Path]:
    """Path → copy, of every SQLite database of the node that is not left out."""
    databases = node.config.databases
    if unknown := sorted(set(without) - set(databases)):
        raise ConfigError(f"there is no database {unknown[0]}", what=f"node.toml has {', '.join(databases) or 'none'}")
    wanted = {name: each for name, each in databases.items() if name not in without}
    servers = [name for name, each in wanted.items() if each.engine is not Engine.SQLITE]
    if servers:
        raise NotReady(
            f"the data of {servers[0]} is a server's, and is not copied here",
            state="nothing was changed",
            next=[
                f"updater prove-rollback --without {servers[0]}    proves the rest",
                "updater migrate prove DIR    replays the old release's statements on a scratch server",
            ],
        )
    files = {name: each.path for name, each in wanted.items() if each.path is not None and each.path.exists()}
    needed = sum(path.stat().st_size for path in files.values())
    free = shutil.disk_usage(node.config.data).free
    if needed + _RESERVE > free:
        raise NoSpace(
            f"{node.config.data} has {size(free)} free, copies of the databases need {size(needed + _RESERVE)}",
            state="nothing was changed",
        )
    copies: dict[Path, Path] = {}
    for name, path in files.items():
        copy = work / f"{name}.sqlite"
        _copy(path, copy)
        about = path.stat()
        os.chown(copy, about.st_uid, about.st_gid)
        copy.chmod(about.st_mode & 0o7777)
        copies[path] = copy
        proof.copies[name] = copy.stat().st_size
    return copies


def _copy(source: Path, target: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as old,
            closing(sqlite3.connect(target)) as new,
        ):
            old.backup(new, pages=4096)
    except sqlite3.Error as error:
        raise DatabaseFailed(f"{source} cannot be copied", what=str(error), state="nothing was changed") from error


def _health(node: Node, lower: Path) -> HealthConfig:
    """The health checks of the old release: those of its own node.toml, and of its own directory."""
    config = load_node(inside(lower, node.path)).health
    found = checks_of(replace(config, drop_in=inside(lower, config.drop_in)))
    here = str(inside(lower, config.drop_in))
    checks = tuple(
        replace(each, command=(each.command[0].replace(here, str(config.drop_in), 1), *each.command[1:]))
        if each.command
        else each
        for each in found
    )
    return replace(config, checks=checks, drop_in=Path("/nonexistent"))


def _healthy(node: Node, old: Container, health: HealthConfig, proof: Proof, report: Report) -> list[str]:
    """Wait for all checks, each made inside. Raises RehearsalFailed."""
    moved = replace(health, checks=tuple(_inside(each, old) for each in health.checks))
    environment = {"UPDATER_SLOT": proof.slot, "UPDATER_RELEASE": proof.release}
    try:
        verdicts = old.in_network(lambda: wait_healthy(moved, environment, report))
    except HealthFailed as error:
        raise RehearsalFailed(
            f"the way back does not work: {proof.release} is {error.message}",
            what=[f"unit {name} does not start in a container" for name in proof.failed_units],
            state=f"nothing was changed; slot {node.booted} runs on",
            next=["mend it while this release serves", "updater rehearse node …    shows it in a whole machine"],
        ) from error
    return [each.name for each in verdicts if not each.reason]


def _inside(check: HealthCheck, old: Container) -> HealthCheck:
    """The same check as a command in the container; ports and pages are looked at in its network anyway."""
    if check.kind is CheckKind.UNIT:
        words = old.words("systemctl", "is-active", "--", check.unit)
        return replace(check, kind=CheckKind.COMMAND, command=words)
    if check.kind is CheckKind.COMMAND:
        return replace(check, command=old.words(*check.command))
    return check
