"""What happens after a boot or an interruption: confirm, fall back, resume, abort."""

from __future__ import annotations

from core.errors import HealthFailed, HookFailed, Incompatible, UpdaterError, WrongState
from core.journal import Run, RunState, StepState
from core.report import Report
from core.steps import undo_steps
from images.read import Bundle
from partitions.boot.state import Slot, SlotState, mark_bad, other, roll_back
from updater.checks import not_booted
from updater.execution import Outcome, execute, locked, reporting
from updater.health import wait_healthy
from updater.hooks import run_hooks
from updater.node import Node
from updater.staging import SEAL
from updater.switching import Flip, flipped_in_this_boot, health_environment, restore_data
from updater.upgrade import open_bundle, steps_of


def confirm(node: Node, report: Report) -> Outcome:
    """What systemd runs after every boot: finish what the reboot interrupted, or settle a fallback.

    A trying slot that is not healthy in time is rebooted, until its tries are used up. On a node where nothing is
    under way, the health checks run and nothing changes. Raises HealthFailed, UpdaterError.
    """
    with locked(node, "confirm"):
        run = node.journal.open_run()
        if run is not None and run.verb in ("activate", "rollback"):
            return _go_on(node, run, report)
        if node.boot.read()[node.booted].state is SlotState.TRYING:
            # The journal was lost, or is that of another disk. The environment is what counts.
            return _prove(node, _begin_found(node), report)
        verdicts = wait_healthy(node.config.health, health_environment(node), report)
        state, count = node.boot.read()[node.booted].state, len(verdicts)
        text = f"slot {node.booted} is {state}; {count} health check{'s' * (count != 1)} pass{'es' * (count == 1)}"
        return Outcome(state="nothing", text=text)


def _go_on(node: Node, run: Run, report: Report) -> Outcome:
    """An activation or a rollback is open: find out how far the machine has come with it."""
    slot = run.plan["slot"]
    if node.booted == slot:
        return _prove(node, run, report) if run.verb == "activate" else execute(node, run, steps_of(node, run), report)
    if flipped_in_this_boot(node):
        return Outcome(state="nothing", text=f"{run.verb} {run.id} waits for the reboot into slot {slot}", run=run.id)
    if run.verb == "activate" and _was_tried(node, slot):
        return _fell_back(node, run, report)
    raise WrongState(
        f"{run.verb} {run.id} was interrupted: slot {node.booted} runs, not slot {slot}",
        state=f"slot {node.booted} is in service",
        next=["updater resume    goes on with it", "updater abort     stays in this slot"],
    )


def _was_tried(node: Node, slot: Slot) -> bool:
    """Whether the boot loader has been told to try the slot (or we were just writing down that it failed)."""
    return node.boot.read().primary == slot or "failed" in node.journal.slot(slot)


def _begin_found(node: Node) -> Run:
    """A run that has its flip behind it: the hooks and migrations before that were the other slot's."""
    run = node.journal.begin("activate", {"slot": node.booted, "by_hand": True})
    step = Flip(node=node, slot=node.booted)
    node.journal.intend(run, 0, step.name, step.before())
    return run


def _prove(node: Node, run: Run, report: Report) -> Outcome:
    """A slot on trial runs: health, then good; else boot again."""
    booted = node.booted
    left = node.boot.read()[booted].tries
    attempts = list(node.journal.fact("attempts") or [])
    if not attempts or attempts[-1]["boot_id"] != node.machine.boot_id():
        _unseal(node, booted)
        node.journal.outcome(run, "before-confirm", StepState.UNDONE)  # it was for another boot
        attempts.append({"boot_id": node.machine.boot_id(), "slot": booted, "left": left, "reason": ""})
        node.journal.set_fact("attempts", attempts)
    try:
        return execute(node, run, steps_of(node, run), report)
    except (HealthFailed, HookFailed) as error:
        attempts[-1]["reason"] = error.message
        node.journal.set_fact("attempts", attempts)
        what_next = f"rebooting to try again, {left} left" if left else f"rebooting into slot {other(booted)}"
        report.warning(f"slot {booted} is not confirmed: {error.message}; {what_next}")
        node.machine.reboot()
        return Outcome(state="rebooting", text=what_next, run=run.id)


def _fell_back(node: Node, run: Run, report: Report) -> Outcome:
    """The boot loader gave the old slot back to us. Say so in the journal, with the reason, and in the environment."""
    booted, failed = node.booted, run.plan["slot"]
    reason = node.journal.slot(failed).get("failed") or why_it_fell_back(node, failed)
    _unseal(node, failed, failed=reason)
    state = node.boot.read()
    if state.primary == failed:
        node.boot.write(roll_back(state, booted))
    restore_data(node, node.journal.steps(run)["flip"].facts)
    text = f"{node.release(failed) or 'the release'} in slot {failed} fell back: {reason}"
    told = reporting(node, run, report)
    told.warning(text)
    run_hooks(node.config.hooks, "after-fallback", node.facts() | {"failed": failed, "reason": reason}, told)
    node.journal.set_fact("attempts", [])
    node.journal.close(run, RunState.FELL_BACK, reason)
    return Outcome(state=RunState.FELL_BACK, text=text, run=run.id)


def why_it_fell_back(node: Node, failed: Slot) -> str:
    """From what each try left in the journal: the last reason given, or that the agent was never reached."""
    attempts = [each for each in node.journal.fact("attempts") or [] if each["slot"] == failed]
    reasons = [each["reason"] for each in attempts if each["reason"]]
    if reasons:
        return str(reasons[-1])
    if attempts:
        return "it booted and did not get as far as its health checks' end before the boot deadline"
    left = node.boot.read()[failed].tries
    if left:
        return f"the boot loader did not try it ({left} tries left): it cannot write the boot environment"
    return "it never came up: kernel panic, hang or power loss at each try"


# -- resume and abort


def resume(node: Node, report: Report) -> Outcome:
    """Go on with the open run. Raises WrongState when there is none."""
    with locked(node, "resume"):
        run = _require_open(node, "resume")
        if run.verb == "stage":
            not_booted(node, run)
            with _open_again(node, run) as bundle:
                return execute(node, run, steps_of(node, run, bundle), report)
        if node.booted == run.plan["slot"] or (_was_tried(node, run.plan["slot"]) and not flipped_in_this_boot(node)):
            return _go_on(node, run, report)
        return execute(node, run, steps_of(node, run), report)


def _open_again(node: Node, run: Run) -> Bundle:
    """The bundle that was being staged, from where it came. The journal has an address without user and query, and a
    server may not give the bundle to that: who knows the whole URL goes on with `stage`.

    Raises Incompatible where another bundle lies there now, and what `open_bundle` raises.
    """
    source = run.plan["source"]
    try:
        bundle = open_bundle(node, source)
        if bundle.manifest.image.content != run.plan["content"]:
            bundle.close()
            raise Incompatible(
                f"{source} is no longer the bundle that was being staged",
                next=["put the same bundle there again", "updater abort    and stage anew"],
            )
    except UpdaterError as error:
        error.state = f"stage {run.id} is open; this command changed nothing"
        if source.startswith(("http://", "https://")):
            error.next = ("updater stage URL    goes on with it, where the URL needs a user or a query", *error.next)
        raise
    return bundle


def abort(node: Node, report: Report) -> Outcome:
    """Undo the open run. Where the slot on trial runs already, this reboots into the old one."""
    with locked(node, "abort"):
        run = _require_open(node, "abort")
        told = reporting(node, run, report)
        if run.verb == "stage":
            _give_up_slot(node, run)
        else:
            undo_steps(node.journal, run, steps_of(node, run), told)
        node.journal.set_fact("attempts", [])
        node.journal.close(run, RunState.ABORTED, "aborted by the operator")
        primary = node.boot.read().primary
        if primary != node.booted:
            told.note(f"rebooting into slot {primary}")
            node.machine.reboot()
            return Outcome(state="rebooting", text=f"aborted; rebooting into slot {primary}", run=run.id)
        return Outcome(state=RunState.ABORTED, text=f"{run.verb} {run.id} is aborted", run=run.id)


def _require_open(node: Node, verb: str) -> Run:
    run = node.journal.open_run()
    if run is None:
        raise WrongState(
            f"nothing to {verb}: no upgrade is in progress", state="nothing was changed", next="updater status"
        )
    return run


def _give_up_slot(node: Node, run: Run) -> None:
    """Nothing of a stage is undone piece by piece: the slot is bad, and stays so until it is staged again. A slot that
    was not written to yet keeps what it holds.
    """
    slot, steps = run.plan["slot"], node.journal.steps(run)
    # The first byte is written only after the journal says that the slot is partial, and `seal` ends that.
    if "partial" in node.journal.slot(slot) or "seal" in steps:
        node.boot.write(mark_bad(node.boot.read(), slot))
        node.journal.set_slot(slot, {})


def _unseal(node: Node, slot: Slot, **facts: str) -> None:
    """The slot has been booted, or tried: its bytes are no longer those that were sealed."""
    record = {key: value for key, value in node.journal.slot(slot).items() if key not in SEAL}
    node.journal.set_slot(slot, record | facts)
