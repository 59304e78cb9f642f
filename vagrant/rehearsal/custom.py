"""`updater rehearse custom`: steps of the operator's own on such a machine, judged by their exit codes.

A step is a program on this host, which finds the machine by its environment, or a table ``[[step]]`` of a TOML file:
``run`` (a shell command), ``on`` ("guest", the default, or "host"), ``exit`` (0), ``timeout`` (seconds), ``reboots``.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from core.errors import CommandFailed, ConfigError
from core.run import run
from core.schema import load_toml
from vagrant.qemu import MachineError
from vagrant.rehearsal.node import Stage, finish, stage, tell
from vagrant.rehearsal.options import Options
from zdu.rehearsal import Phase, judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One step. `exit`: the code that it must end with. `timeout`: seconds. `reboots`: the machine restarts by it, and
    the next step waits until it is up again.
    """

    run: str
    name: str = ""
    on: Literal["guest", "host"] = "guest"
    exit: int = 0
    timeout: float = 3600.0
    reboots: bool = False

    def __post_init__(self) -> None:
        if not self.run.strip():
            raise ValueError("run: is empty")
        if self.timeout <= 0:
            raise ValueError("timeout: must be more than 0 seconds")


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """A file of steps."""

    step: tuple[Step, ...] = field(default_factory=tuple)


def steps_of(scripts: Sequence[Path]) -> list[Step]:
    """All steps, in their order. Raises ConfigError."""
    return [step for path in scripts for step in _steps(path)]


def _steps(path: Path) -> Iterator[Step]:
    if path.suffix == ".toml":
        yield from load_toml(path, Steps, what="the steps of a rehearsal").step
    elif path.is_file() and os.access(path, os.X_OK):
        yield Step(name=path.name, run=shlex.quote(str(path.resolve())), on="host")
    else:
        raise ConfigError(f"{path} is neither a program nor a .toml file", state="nothing was rehearsed")


def rehearse_custom(scripts: Sequence[Path], options: Options) -> None:
    """Do the steps until one fails. Raises as `rehearse_node` does."""
    steps = steps_of(scripts)
    names = ["boot", *(_name(number, step) for number, step in enumerate(steps, 1))]
    began = time.monotonic()
    with stage(options) as scene:
        phases: list[Phase] = []
        for name, step in zip(names, [None, *steps], strict=True):
            tell(name)
            phases.append(_boot(scene) if step is None else _done(scene, name, step))
            if phases[-1].failed:
                break
        finish(
            options,
            scene,
            what="custom",
            phases=phases,
            findings=judge(phases, names, scene.installed.missing),
            seconds=time.monotonic() - began,
        )


def _name(number: int, step: Step) -> str:
    return step.name or f"step {number}"


def _boot(scene: Stage) -> Phase:
    began = time.monotonic()
    failed: tuple[str, ...] = ()
    try:
        scene.guest.start()
        scene.guest.arrive()
        scene.guest.settled()
    except MachineError as error:
        failed = tuple(str(error).splitlines()[:12])
    return _phase(scene, "boot", began, failed)


def _done(scene: Stage, name: str, step: Step) -> Phase:
    began = time.monotonic()
    failed: tuple[str, ...] = ()
    try:
        code, said = _in_guest(scene, step) if step.on == "guest" else _on_host(scene, step)
        if code != step.exit:
            failed = (f"exit {code}, not {step.exit}", *said.splitlines()[-8:])
        elif step.reboots:
            scene.guest.arrive()
            scene.guest.settled()
    except (MachineError, CommandFailed) as error:
        failed = tuple(str(error).splitlines()[:12])
    return _phase(scene, name, began, failed)


def _phase(scene: Stage, name: str, began: float, failed: tuple[str, ...]) -> Phase:
    found = None if failed or not scene.guest.running else scene.guest.standing()
    return Phase(name=name, seconds=round(time.monotonic() - began, 1), expected=found, found=found, failed=failed)


def _in_guest(scene: Stage, step: Step) -> tuple[int, str]:
    variables = " ".join(f"{name}={shlex.quote(value)}" for name, value in _names(scene).items())
    done = scene.guest.run(f"export {variables}; {step.run}", timeout=step.timeout, check=False)
    return done.code, done.stdout + done.stderr


def _on_host(scene: Stage, step: Step) -> tuple[int, str]:
    environment = {**os.environ, **_names(scene), "REHEARSAL_SSH": shlex.join(scene.guest.ssh_words())}
    done = run("sh", "-c", f"exec 2>&1\n{step.run}", env=environment, timeout=step.timeout, check=False)
    return done.code, done.stdout


def _names(scene: Stage) -> dict[str, str]:
    """What steps find in their environment. REHEARSAL_BUNDLE is a path in the machine."""
    return {
        "REHEARSAL_NODE": scene.export.manifest.node.name,
        "REHEARSAL_START": scene.start,
        "REHEARSAL_RELEASE": scene.target,
        "REHEARSAL_BUNDLE": scene.installed.bundle if scene.target else "",
    }
