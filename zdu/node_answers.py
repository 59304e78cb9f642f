"""What a node answers, as data: the JSON of ``updater --json``. Nodes run other releases of the agent than the
controller, before and after: keys that are not known here are passed over, and those that are missing have a default.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, TypeVar

from core.errors import CommandFailed, UpdaterError
from core.schema import SchemaError, structure

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotSeen:
    """A slot. `state`: good, trying, bad, staged or unknown. `note`: why it is as it is."""

    slot: str
    release: str = ""
    state: str = "unknown"
    tries: int = 0
    booted: bool = False
    next_boot: bool = False
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class UpgradeSeen:
    """The run that is open on a node. `state`: under way, interrupted, or waits for the reboot."""

    run: str
    verb: str
    release: str = ""
    step: str = ""
    number: int = 0
    of: int = 0
    state: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStatus:
    """Where a node stands (docs/status.md). `skew`: seconds that its clock is ahead of ours for certain."""

    node: str
    at: str
    indicator: str
    slots: tuple[SlotSeen, ...]
    problems: tuple[str, ...] = ()
    booted: str | None = None
    next_boot: str | None = None
    data_release: str = ""
    upgrade: UpgradeSeen | None = None
    way_back: bool = False
    way_back_reason: str = ""
    last_run: str = ""
    skew: float = 0.0

    @property
    def running(self) -> SlotSeen | None:
        """The slot that is booted, if the node can tell."""
        return next((slot for slot in self.slots if slot.booted), None)

    @property
    def other(self) -> SlotSeen | None:
        """The other one."""
        return next((slot for slot in self.slots if not slot.booted), None) if self.running else None

    @property
    def runs(self) -> str:
        """The release that is booted; empty where it is not known."""
        return self.running.release if self.running else ""

    @property
    def good(self) -> bool:
        """The booted slot is confirmed."""
        return self.running is not None and self.running.state == "good"

    @property
    def complete(self) -> str:
        """The release in the other slot if it could be booted: staged, on trial, or confirmed once; else empty."""
        other = self.other
        return other.release if other is not None and other.state in ("staged", "trying", "good") else ""

    @property
    def booting(self) -> str:
        """The release that the node boots into, between the flip and the confirmation; empty at rest."""
        coming = next((slot for slot in self.slots if slot.next_boot), None)
        if coming is None or (coming.booted and coming.state != "trying"):
            return ""
        return coming.release

    def fell_back(self, release: str) -> str:
        """Why the release did not stay, if it was tried and the node went back; else empty."""
        notes = (slot.note for slot in self.slots if slot.release == release and not slot.booted)
        return next((note for note in notes if note.startswith("fell back")), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckSeen:
    """A check of a plan, or a finding of the doctor. `mend`: what to do about it."""

    name: str
    found: str = ""
    ok: bool = True
    mend: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSeen:
    """A step of a node's plan."""

    step: str
    what: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodePlan:
    """What staging and activating a bundle would do on a node. `error`: why it cannot be done, if so."""

    title: str
    checks: tuple[CheckSeen, ...]
    steps: tuple[StepSeen, ...]
    way_back: str = ""
    error: UpdaterError | None = None


class JobState(StrEnum):
    """Where a job on a node stands (docs/jobs.md)."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    VANISHED = "vanished"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRun:
    """A run, as the node's journal has it. `state`: open, done, failed, aborted or fell-back."""

    id: str
    verb: str
    state: str
    release: str = ""
    outcome: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeJob:
    """A job on a node. `result`: the verb's outcome (state, text, run); `error`: what it ended with, as our own error.
    `run`: the run that it belongs to. `events`: since the offset that was asked for; the next begin at `offset`.
    """

    id: str
    state: JobState
    verb: tuple[str, ...] = ()
    fence: int = 0
    began: bool = True
    started: str = ""
    ended: str = ""
    exit_code: int | None = None
    why: str = ""
    rebooted: bool = False
    offset: int = 0
    more: bool = False
    run: NodeRun | None = None
    result: Mapping[str, Any] | None = None
    error: UpdaterError | None = None
    events: tuple[Mapping[str, Any], ...] = ()

    @property
    def text(self) -> str:
        """How it ended, in one line; empty while it runs."""
        return str((self.result or {}).get("text", "")) or self.why


@dataclass(frozen=True, slots=True, kw_only=True)
class MigrationSeen:
    """A migration of the newest release on a node, on one database. `phase`: non-blocking, blocking or cleanup;
    `progress`: "done" when it is; so many statements `done` of `total`.
    """

    id: str
    database: str = ""
    phase: str = ""
    progress: str = ""
    done: int = 0
    total: int = 0
    summary: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fence:
    token: int


# -- from JSON


def objects(out: str) -> Iterator[Any]:
    """The lines of JSON that a node printed, the last one first; what is none is passed over."""
    for line in reversed(out.splitlines()):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def last_object(out: str, server: str) -> Any:
    """The last of them. Raises CommandFailed when there is none."""
    for found in objects(out):
        return found
    raise CommandFailed(
        f"the agent on {server} gave no answer that can be read",
        what=[line for line in out.splitlines() if line.strip()][-3:],
        next=f"on {server}: updater --json status",
    )


def status(data: Any, server: str, *, asked: datetime, answered: datetime) -> NodeStatus:
    """The answer of ``status``, asked and answered at these times of ours."""
    table = _table(data, server)
    made = _shape(
        table | {"slots": [], "upgrade": None, "skew": _skew(str(table.get("at", "")), asked, answered)},
        NodeStatus,
        server,
    )
    told = {each.name: getattr(made, each.name) for each in fields(NodeStatus)}
    told["slots"] = tuple(_shape(slot, SlotSeen, server) for slot in _list(table.get("slots")))
    told["upgrade"] = _shape(table["upgrade"], UpgradeSeen, server) if table.get("upgrade") else None
    return NodeStatus(**told)


def plan(data: Any, server: str, error: UpdaterError | None) -> NodePlan:
    """The answer of ``plan``."""
    table = _table(data, server)
    return NodePlan(
        title=str(table.get("title", "")),
        checks=checks(table.get("checks"), server),
        steps=tuple(_shape(step, StepSeen, server) for step in _list(table.get("steps"))),
        way_back=str(table.get("way_back", "")),
        error=error,
    )


def checks(data: Any, server: str) -> tuple[CheckSeen, ...]:
    """A list of checks, as ``plan`` and ``doctor`` give it."""
    return tuple(_shape(each, CheckSeen, server) for each in _list(data))


def job(data: Any, server: str) -> NodeJob:
    """The answer of ``job start`` and ``job status``."""
    table = _table(data, server)
    made = _shape(table | dict.fromkeys(("run", "result", "error")) | {"events": []}, NodeJob, server)
    told = {each.name: getattr(made, each.name) for each in fields(NodeJob)}
    told["run"] = _shape(table["run"], NodeRun, server) if table.get("run") else None
    told["result"] = dict(table["result"]) if isinstance(table.get("result"), dict) else None
    told["error"] = error_of(table["error"], server) if table.get("error") else None
    told["events"] = tuple(event for event in _list(table.get("events")) if isinstance(event, dict))
    return NodeJob(**told)


def token(data: Any, server: str) -> int:
    """The answer of ``job fence``: the highest token that was seen; 0: none was."""
    return _shape(_table(data, server), _Fence, server).token


def migrations(data: Any, server: str) -> tuple[MigrationSeen, ...]:
    """The answer of ``migrate status``."""
    return tuple(_shape(each, MigrationSeen, server) for each in _list(_table(data, server).get("migrations")))


def error_of(data: Any, server: str) -> UpdaterError:
    """The error that a node ended with, as the same error here: its kind, exit code, state and what to do next. The
    message names the server; what is to be typed is typed there.
    """
    table = data if isinstance(data, dict) else {}
    kind, code = str(table.get("kind", "")), table.get("exit_code")
    shape = next((each for each in _errors() if each.kind == kind), None)
    if shape is None:  # of an agent that knows more than we do
        shape = type("NodeError", (UpdaterError,), {"kind": kind or "error", "exit_code": code if code else 1})
    return shape(
        f"{server}: {table.get('message') or 'an error without words'}",
        what=[str(line) for line in _list(table.get("what"))],
        state=str(table.get("state", "")),
        next=[f"on {server}: {line}" for line in _list(table.get("next"))],
    )


def _errors(base: type[UpdaterError] = UpdaterError) -> Iterator[type[UpdaterError]]:
    """All errors of the ground, the wider ones first."""
    pending = [base]
    while pending:
        shape = pending.pop(0)
        if shape.__module__ == base.__module__:
            yield shape
            pending += shape.__subclasses__()


def _skew(at: str, asked: datetime, answered: datetime) -> float:
    """How far its clock is off for certain: it was read at some moment between our question and the answer, which comes
    late from a busy server; and it gives whole seconds.
    """
    try:
        theirs = datetime.fromisoformat(at)
        theirs = theirs if theirs.tzinfo else theirs.replace(tzinfo=UTC)
    except ValueError:
        return 0.0
    ahead, behind = theirs - answered, asked - (theirs + timedelta(seconds=1))
    return round(max(ahead.total_seconds(), 0.0) - max(behind.total_seconds(), 0.0), 1)


def _shape(data: Any, shape: type[T], server: str) -> T:
    known = {each.name for each in fields(shape)}  # type: ignore[arg-type]
    told = {key: value for key, value in _table(data, server).items() if key in known}
    try:
        return structure(_plain(told, shape), shape)
    except SchemaError as error:
        raise CommandFailed(
            f"the answer of the agent on {server} is not understood",
            what=error.faults,
            next=f"on {server}: updater --json status",
        ) from error


def _plain(told: dict[str, Any], shape: type[Any]) -> dict[str, Any]:
    """Without what is made in other ways: fields that are left out take their default."""
    return {key: value for key, value in told.items() if not (value is None and _has_default(shape, key))}


def _has_default(shape: type[Any], key: str) -> bool:
    from dataclasses import MISSING

    return any(each.name == key and each.default is not MISSING for each in fields(shape))


def _table(data: Any, server: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise CommandFailed(f"the answer of the agent on {server} is not understood", what=str(data)[:200])
    return data


def _list(data: Any) -> list[Any]:
    return data if isinstance(data, list) else []
