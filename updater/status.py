"""Where the node stands: slots, boot, upgrade, way back, and one indicator for monitoring. Only looks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from core.errors import UpdaterError
from core.files import read_only
from core.journal import Run, RunState, StepState
from partitions.boot.state import SLOTS, BootState, Slot, SlotState, next_boot
from updater.node import Node
from updater.progress import last_progress
from updater.switching import way_back


class Indicator(StrEnum):
    """What monitoring is told. The order is that of Nagios' exit codes."""

    OK = "OK"
    WARNING = "WARNING"
    CRITICAL = "CRITICAL"

    @property
    def exit_code(self) -> int:
        """0, 1 or 2."""
        return list(Indicator).index(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotStatus:
    """A slot. `state`: good, trying, bad, or staged (complete, never booted); unknown without a boot environment."""

    slot: str
    release: str
    state: str
    tries: int
    booted: bool
    next_boot: bool
    written: str
    content: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upgrade:
    """The run under way or interrupted; `step` is the `number`-th of `of`."""

    run: str
    verb: str
    release: str
    step: str
    number: int
    of: int
    state: str
    since: str
    next: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """The whole. `problems`: why the indicator is what it is. Times are ISO 8601, UTC."""

    at: str
    node: str
    site: str
    role: str
    sandbox: bool
    indicator: Indicator
    problems: tuple[str, ...]
    slots: tuple[SlotStatus, ...]
    booted: str | None
    next_boot: str | None
    data_release: str
    upgrade: Upgrade | None
    way_back: bool
    way_back_reason: str
    last_run: str

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; the form is an interface (docs/status.md)."""
        return asdict(self)


#: Steps of each verb in their order, hooks left out, for "step 2 of 7". Kept beside the stories by a test.
CARRIED = ("packages", "patches", "files", "configuration")
#: What `activate` does once more, where it changed after `stage`.
AGAIN = ("files-again", "configuration-again")
#: These are steps only where the plan has something for them.
_OPTIONAL = (*CARRIED, *AGAIN, "migrate", "backup", "migrate-blocking")
STEPS = {
    "stage": ("mark", "write", "verify", "grow", *CARRIED, "carry", "entry", "seal", "migrate"),
    "activate": (*AGAIN, "backup", "migrate-blocking", "flip", "reboot", "health", "confirm"),
    "rollback": ("flip-back", "reboot"),
}


def status_of(node: Node) -> Status:
    """Ask the machine and the journal. What cannot be read makes the indicator CRITICAL; it is never an error."""
    problems: list[tuple[Indicator, str]] = []
    booted = _try(lambda: node.booted, problems)
    state = _try(node.boot.read, problems)
    problems += [
        (Indicator.CRITICAL, f"{path} is mounted read-only: nothing can be activated, confirmed or rolled back")
        for path in (node.config.boot.esp, node.config.data)
        if read_only(path)
    ]
    upgrade = _upgrade(node)
    possible, reason = False, "not known"
    if booted is not None and state is not None:
        problems += _judge(node, booted, state, upgrade)
        possible, reason = _try(lambda: way_back(node), problems) or (possible, reason)
    runs, settled = node.journal.runs(limit=1), node.journal.settled()
    if settled is not None and settled.state is RunState.FELL_BACK:
        problems.append((Indicator.WARNING, f"the last activation fell back: {settled.outcome}"))
    after = next_boot(state) if state is not None else None
    return Status(
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        node=node.config.name,
        site=node.config.site,
        role=node.config.role,
        sandbox=node.config.machine == "sandbox",
        indicator=max((level for level, _ in problems), key=lambda level: level.exit_code, default=Indicator.OK),
        problems=tuple(text for _, text in problems),
        slots=tuple(_slot(node, slot, state, booted, after) for slot in SLOTS),
        booted=booted,
        next_boot=after,
        data_release=str(_try(lambda: node.data_release, []) or ""),
        upgrade=upgrade,
        way_back=possible,
        way_back_reason=reason,
        last_run=f"{runs[0].verb} {runs[0].id}: {_ending(runs[0])}" if runs and upgrade is None else "",
    )


def _ending(run: Run) -> str:
    """How a run ended; why it fell back stands with the slot."""
    return "fell back" if run.state is RunState.FELL_BACK else run.outcome


def _try(look: Any, problems: list[tuple[Indicator, str]]) -> Any:
    try:
        return look()
    except UpdaterError as error:
        problems.append((Indicator.CRITICAL, error.message))
        return None


def _slot(node: Node, slot: Slot, state: BootState | None, booted: str | None, after: str | None) -> SlotStatus:
    record = node.journal.slot(slot)
    note = ""
    if state is None:
        shown = "unknown"
    elif node.staged(slot, state):
        shown = "staged"
    else:
        shown = state[slot].state.value
    if record.get("partial"):
        note = f"incomplete{_progress(node)}"
    elif record.get("failed") and shown == "bad":
        note = f"fell back: {record['failed']}"
    return SlotStatus(
        slot=slot,
        release=str((_try(lambda: node.release(slot), []) if booted else record.get("release")) or ""),
        state=shown,
        tries=state[slot].tries if state is not None else 0,
        booted=slot == booted,
        next_boot=slot == after,
        written=record.get("written", ""),
        content=record.get("content", ""),
        note=note,
    )


def _progress(node: Node) -> str:
    """How far the write came that was interrupted, as far as it said so."""
    found = last_progress(node.config)
    return f", {found[0]} % written at {found[1]}" if found else ""


def _judge(node: Node, booted: Slot, state: BootState, upgrade: Upgrade | None) -> list[tuple[Indicator, str]]:
    found: list[tuple[Indicator, str]] = []
    if next_boot(state) is None:
        found.append((Indicator.CRITICAL, "no slot is fit for the next boot: the boot loader would ask the operator"))
    elif next_boot(state) != booted and upgrade is None:
        found.append((Indicator.WARNING, f"the next boot goes to slot {next_boot(state)}, slot {booted} runs"))
    if state[booted].state is SlotState.TRYING:
        left = state[booted].tries
        found.append((Indicator.WARNING, f"slot {booted} is on trial, {left} tries left; it is not confirmed yet"))
    if state[booted].state is SlotState.BAD:
        found.append((Indicator.CRITICAL, f"slot {booted} runs, and the boot environment calls it bad"))
    if upgrade is not None and upgrade.state == "interrupted":
        found.append((Indicator.WARNING, f"{upgrade.verb} is interrupted in step {upgrade.step}"))
    return found


def _upgrade(node: Node) -> Upgrade | None:
    run = node.journal.open_run()
    if run is None:
        return None
    planned = [*run.plan.get("carried", ()), *run.plan.get("migrates", ())]
    names = tuple(name for name in STEPS.get(run.verb, ()) if name not in _OPTIONAL or name in planned)
    step = _current_step(node, run, names)
    under_way = _is_locked(node)
    # Somebody booted the slot that a stage was to write: that one does not go on.
    lost = run.verb == "stage" and run.plan["slot"] == _try(lambda: node.booted, [])
    waits = step == "reboot" and node.journal.fact("flip-boot") == _try(node.machine.boot_id, [])
    state = "under way" if under_way else "waits for the reboot" if waits else "interrupted"
    return Upgrade(
        run=run.id,
        verb=run.verb,
        release=str(run.plan.get("release") or node.journal.slot(run.plan["slot"]).get("release") or ""),
        step=step,
        number=names.index(step) + 1 if step in names else 0,
        of=len(names),
        state=state,
        since=run.started.isoformat(timespec="seconds"),
        next=() if under_way else ("updater abort",) if lost else ("updater resume", "updater abort"),
    )


def _current_step(node: Node, run: Run, names: tuple[str, ...]) -> str:
    steps = node.journal.steps(run)
    pending = [name for name in names if name not in steps or steps[name].state is not StepState.DONE]
    return pending[0] if pending else names[-1] if names else ""


def _is_locked(node: Node) -> bool:
    """Whether a process works on the node right now."""
    import fcntl
    import os

    try:
        fd = os.open(node.config.lock, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


# -- forms for monitoring


def nagios(status: Status) -> str:
    """One line for a Nagios-like receiver, with performance data."""
    what = "; ".join(status.problems) or f"{_running(status)}, way back: {'yes' if status.way_back else 'no'}"
    perfdata = [f"{slot.slot}_tries={slot.tries}" for slot in status.slots]
    perfdata += [f"way_back={int(status.way_back)}", f"upgrade={int(status.upgrade is not None)}"]
    return f"UPDATER {status.indicator} - {what} | {' '.join(perfdata)}"


def prometheus(status: Status) -> str:
    """Metrics in the text format, for the node exporter's textfile collector or a scrape."""
    name = f'node="{_label(status.node)}"'
    lines = [
        "# HELP updater_indicator 0 OK, 1 WARNING, 2 CRITICAL",
        "# TYPE updater_indicator gauge",
        f"updater_indicator{{{name}}} {status.indicator.exit_code}",
        "# HELP updater_way_back whether rollback is possible",
        "# TYPE updater_way_back gauge",
        f"updater_way_back{{{name}}} {int(status.way_back)}",
        "# HELP updater_upgrade_open whether a run is open",
        "# TYPE updater_upgrade_open gauge",
        f"updater_upgrade_open{{{name}}} {int(status.upgrade is not None)}",
        "# HELP updater_slot_info the slots; 1 each",
        "# TYPE updater_slot_info gauge",
    ]
    lines += [
        f'updater_slot_info{{{name},slot="{slot.slot}",release="{_label(slot.release)}",state="{slot.state}",'
        f'booted="{int(slot.booted)}",next_boot="{int(slot.next_boot)}"}} 1'
        for slot in status.slots
    ]
    lines += ["# HELP updater_slot_tries boots left on trial", "# TYPE updater_slot_tries gauge"]
    lines += [f'updater_slot_tries{{{name},slot="{slot.slot}"}} {slot.tries}' for slot in status.slots]
    lines += [
        "# HELP updater_checked_timestamp_seconds when this was looked at",
        "# TYPE updater_checked_timestamp_seconds gauge",
        f"updater_checked_timestamp_seconds{{{name}}} {datetime.fromisoformat(status.at).timestamp():.0f}",
    ]
    return "\n".join(lines) + "\n"


def _running(status: Status) -> str:
    running = next((slot for slot in status.slots if slot.booted), None)
    return f"{running.release or 'unknown release'} runs in slot {running.slot}" if running else "no slot runs"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
