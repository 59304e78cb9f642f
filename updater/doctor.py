"""What an upgrade relies on, checked one by one, each fault with its mend. Only looks."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from core.errors import UpdaterError
from core.files import read_only, remount
from core.journal import Journal
from partitions import checks
from partitions.boot.backend import open_backend
from partitions.boot.state import other
from updater.health import checks_of
from updater.hooks import MOMENTS, hooks_at
from updater.init import UNITS
from updater.machine import machine_of
from updater.node_toml import NodeConfig, load_node

#: A clock before this is that of a machine whose battery is empty.
EARLIEST = datetime(2025, 1, 1, tzinfo=UTC)
ROOM = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What one check found. `mend`: what to do; empty when all is well."""

    name: str
    found: str
    mend: tuple[str, ...] = ()


def examine_node(path: Path) -> list[Finding]:
    """All checks, in an order in which faults are best mended."""
    try:
        config = load_node(path)
    except UpdaterError as error:
        lines = "; ".join((error.message, *error.what))
        return [Finding(name="configuration", found=lines, mend=error.next or (f"edit {path}",))]
    return [Finding(name="configuration", found=str(path)), *_node(config)]


def _node(config: NodeConfig) -> Iterator[Finding]:
    yield _found("rights", _rights)
    yield _found("clock", _clock)
    yield _found("data directory", lambda: _data(config))
    yield _found("journal", lambda: _journal(config))
    yield _found("keys", lambda: _keys(config))
    slots = config.slots
    yield _found("slot a", lambda: checks.usable(slots.a.device))
    yield _found("slot b", lambda: checks.usable(slots.b.device))
    yield _found("slots are equal", lambda: checks.equal(slots.a.device, slots.b.device))
    machine = machine_of(config)
    yield _found("running slot", lambda: f"slot {machine.booted_slot()}")
    yield _found("inactive slot", lambda: checks.unused(slots[other(machine.booted_slot())].device))
    yield from _boot(config)
    if config.machine == "host":
        yield _found("root", lambda: checks.runs_from(slots[machine.booted_slot()].device))
        yield from (_found(unit, lambda unit=unit: _unit(unit)) for unit in UNITS)  # type: ignore[misc]
        yield _found("watchdog", _watchdog)
    yield _found("health checks", lambda: _health(config))
    yield _found("hooks", lambda: _hooks(config))


class _FaultError(Exception):
    def __init__(self, found: str, *mend: str) -> None:
        super().__init__(found)
        self.found, self.mend = found, mend


def _found(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name=name, found=look())
    except _FaultError as fault:
        return Finding(name=name, found=fault.found, mend=fault.mend)
    except UpdaterError as error:
        found = "; ".join((error.message, *error.what))
        return Finding(name=name, found=found, mend=error.next or ("see the message",))
    except OSError as error:
        return Finding(name=name, found=str(error), mend=("see the message",))


def _rights() -> str:
    if os.geteuid() != 0:
        raise _FaultError("not root: some checks need it", "run it with sudo")
    return "root"


def _clock() -> str:
    now = datetime.now(UTC)
    if now < EARLIEST:
        raise _FaultError(f"the clock says {now:%Y-%m-%d}", "set the clock (chronyc makestep, or timedatectl set-time)")
    return f"{now:%Y-%m-%d %H:%M} UTC"


def _data(config: NodeConfig) -> str:
    if not config.data.is_dir():
        raise _FaultError(f"{config.data} does not exist", f"mount the data partition, then: mkdir -p {config.data}")
    mode = config.data.stat().st_mode
    if mode & stat.S_IWOTH:
        raise _FaultError(f"{config.data} is writable by everybody", f"chmod o-w {config.data}")
    if read_only(config.data):
        raise _FaultError(
            f"{config.data} is mounted read-only",
            *remount(config.data),
        )
    free = shutil.disk_usage(config.data).free
    if free < ROOM:
        raise _FaultError(f"only {free >> 20} MiB free on {config.data}", f"free at least {ROOM >> 20} MiB")
    if config.machine == "host" and config.data.stat().st_dev == Path("/").stat().st_dev:
        raise _FaultError(
            f"{config.data} lies in the running slot and will be lost with it",
            "put it on the data partition, and say so under `data` in node.toml",
        )
    return f"{config.data}, {free >> 20} MiB free"


def _journal(config: NodeConfig) -> str:
    if not config.journal.exists():
        return "none yet"
    with Journal.open(config.journal) as journal:
        run = journal.open_run()
        return f"{config.journal}{f'; {run.verb} {run.id} is open' if run else ''}"


def _keys(config: NodeConfig) -> str:
    from images.keys import load_trust

    trust = load_trust(config.trust.keys, config.trust.threshold)
    for path in config.trust.keys:
        if path.stat().st_mode & stat.S_IWOTH:
            raise _FaultError(f"{path} is writable by everybody", f"chmod o-w {path}")
    return f"{', '.join(trust.keys)}; {trust.threshold} must have signed"


def _boot(config: NodeConfig) -> Iterator[Finding]:
    backend = open_backend(config.boot.backend, config.boot.esp, plain_filesystem=config.machine == "host")
    faults = backend.check()
    for fault in faults:
        what = "; ".join((fault.message, *fault.what))
        yield Finding(name="boot environment", found=what, mend=(fault.mend or "see the message",))
    if not faults:
        yield Finding(name="boot environment", found=f"{backend.kind} at {config.boot.esp}")


def _unit(unit: str) -> str:
    from core.run import run

    state = run("systemctl", "is-enabled", "--", unit, check=False).stdout.strip() or "not found"
    if state not in ("enabled", "static", "linked"):
        raise _FaultError(f"{unit} is {state}", "updater init --install", f"systemctl enable {unit}")
    return state


def _watchdog() -> str:
    devices = sorted(Path("/dev").glob("watchdog?"))
    if not devices:
        raise _FaultError(
            "no hardware watchdog: a kernel that hangs is not rebooted",
            "load the driver of the board's watchdog (iTCO_wdt, sp5100_tco, softdog as a last resort)",
        )
    return ", ".join(map(str, devices))


def _health(config: NodeConfig) -> str:
    checks = checks_of(config.health)
    names = [check.name for check in checks]
    for place, name in enumerate(names):
        if name in names[:place]:  # node.toml has each name once, so this is a drop-in
            program = config.health.drop_in / name
            raise _FaultError(
                f"two checks are called {name}: one in node.toml, and {program}",
                f"mv {program} {program}-2    or rename the one in node.toml",
            )
    return f"{len(checks)}, {sum(check.required for check in checks)} required"


def _hooks(config: NodeConfig) -> str:
    directory = config.hooks.directory
    if not directory.is_dir():
        return "none"
    known = {f"{moment}.d" for moment in MOMENTS}
    strange = sorted(path.name for path in directory.iterdir() if path.name not in known)
    if strange:
        raise _FaultError(f"{directory} holds {', '.join(strange)}", f"the names are: {', '.join(sorted(known))}")
    loose = [
        path for moment in MOMENTS for path in hooks_at(config.hooks, moment) if path.stat().st_mode & stat.S_IWOTH
    ]
    if loose:
        raise _FaultError(f"{loose[0]} is writable by everybody", f"chmod o-w {loose[0]}")
    return f"{sum(len(hooks_at(config.hooks, moment)) for moment in MOMENTS)} in {directory}"
