"""What must be true before the first byte is written. Every check runs, so that all faults are seen at once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version

from core.errors import (
    BootEnvironment,
    Busy,
    DeviceFailed,
    Incompatible,
    NoSpace,
    NotPermitted,
    NotReady,
    RollbackRefused,
    UpdaterError,
    WindowClosed,
    WrongState,
)
from core.journal import Run
from core.release import Release
from core.window import Window
from images.read import Bundle
from partitions import disks
from partitions.boot.state import Slot, is_good, next_boot
from updater.node import Node
from updater.staging import seal_holds, size
from updater.switching import way_back

#: Bytes that the journal and the boot entry need on their filesystems, with room to spare.
JOURNAL_ROOM = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of a plan: what was looked at, what was found, and the error it comes to (None: it passed). `warning`:
    it passed, but the operator should see what was found.
    """

    name: str
    found: str
    error: UpdaterError | None = None
    warning: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Purposes:
    """What the operator does on purpose."""

    downgrade: bool = False
    jump: bool = False


def examine(looks: Mapping[str, Callable[[], str]]) -> list[Check]:
    """Make all checks, in order. Each returns what it found, or raises; nothing is raised from here."""
    checks = []
    for name, look in looks.items():
        try:
            checks.append(Check(name=name, found=look()))
        except UpdaterError as error:
            checks.append(Check(name=name, found=error.message, error=error))
        except OSError as error:
            checks.append(Check(name=name, found=str(error), error=NotReady(f"{name} cannot be checked: {error}")))
    return checks


def raise_first(checks: list[Check], cannot: str) -> None:
    """Raise the first failure, with all failures in its details."""
    failures = [check for check in checks if check.error is not None]
    if not failures:
        return
    first = failures[0].error
    assert first is not None
    others = [
        line
        for check in failures[1:]
        if check.error
        for line in (f"{check.name}: {check.error.message}", *(f"  {each}" for each in check.error.what[:5]))
    ]
    first.message = f"{cannot}: {first.message.removeprefix(f'{cannot}: ')}"
    first.args = (first.message,)
    first.what = (*first.what, *others)
    first.state = first.state or "nothing was changed"
    raise first


def stage_checks(node: Node, bundle: Bundle, slot: Slot, purposes: Purposes) -> list[Check]:
    """All checks of `stage`, in the order they are shown."""
    manifest = bundle.manifest
    return examine(
        {
            "rights": root,
            "signature": lambda: f"by {', '.join(bundle.signers)} ({node.config.trust.threshold} needed)",
            "compatible": lambda: _compatible(node, manifest.compatible, manifest.architecture),
            "agent": lambda: _agent(manifest.agent_suffices, manifest.minimum_agent),
            "release": lambda: _release(node, bundle, purposes),
            "running slot": lambda: _running(node),
            "boot environment": lambda: boot_usable(node),
            f"slot {slot}": lambda: _writable(node, slot, bundle.image.size),
            "space": lambda: _space(node, manifest.required_free),
        }
    )


def activate_checks(
    node: Node, slot: Slot, *, window: Window | None, accept_no_rollback: bool, readable_from: int = 0
) -> list[Check]:
    """All checks of `activate`, in the order they are shown. `readable_from`: the oldest release that can read what the
    migrations make of the data.
    """
    return examine(
        {
            "rights": root,
            "run": lambda: none_open(node, "activate"),
            f"slot {slot}": lambda: _activatable(node, slot),
            "boot environment": lambda: boot_usable(node),
            "way back": lambda: _way_back_accepted(node, slot, accept_no_rollback, readable_from),
            "window": lambda: _in_window(window),
        }
    )


def rollback_checks(node: Node) -> list[Check]:
    """All checks of `rollback`, in the order they are shown."""
    return examine(
        {
            "rights": root,
            "run": lambda: _unconfirmed_or_none(node),
            "way back": lambda: _has_way_back(node),
            "boot environment": lambda: boot_usable(node),
        }
    )


def in_progress(run: Run, verb: str) -> Busy:
    """The error for a verb that an open run is in the way of."""
    return Busy(
        f"cannot {verb}: {run.verb} {run.plan.get('release', '')} (run {run.id}) is in progress".replace("  ", " "),
        state="this command changed nothing",
        next=["updater resume    goes on with it", "updater abort     undoes it"],
    )


def not_booted(node: Node, run: Run) -> None:
    """An interrupted stage goes on only where its slot still is the one that does not run. Raises WrongState."""
    slot = run.plan["slot"]
    if slot != node.inactive:
        raise WrongState(
            f"stage {run.id} cannot go on: it is to write slot {slot}, and slot {slot} runs now",
            state=f"slot {slot} is in service; this command changed nothing",
            next="updater abort",
        )


def none_open(node: Node, verb: str) -> str:
    """Check that no run is open."""
    run = node.journal.open_run()
    if run is not None:
        raise in_progress(run, verb)
    return "none in progress"


def root() -> str:
    if os.geteuid() != 0:
        raise NotPermitted("this needs root", what=f"running as user {os.geteuid()}", next="run it with sudo")
    return "root"


def _compatible(node: Node, compatible: str, architecture: str) -> str:
    if compatible != node.config.compatible:
        raise Incompatible(
            f"the bundle is for {compatible!r}, this node is {node.config.compatible!r}",
            next="check that this is the bundle for this kind of server",
        )
    if architecture != node.machine.architecture():
        raise Incompatible(
            f"the bundle is for {architecture}, this machine is {node.machine.architecture()}",
            next="check that this is the bundle for this kind of server",
        )
    return f"{compatible}, {architecture}"


def _agent(suffices: Callable[[str], bool], minimum: str) -> str:
    ours = version("updater")
    if not suffices(ours):
        raise Incompatible(
            f"the bundle needs an agent of version {minimum} or later, this is {ours}",
            next="install a release in between, or update the agent's package",
        )
    return ours


def _release(node: Node, bundle: Bundle, purposes: Purposes) -> str:
    target = Release.parse(bundle.manifest.release)
    current = node.release(node.booted)
    if current is None:
        return f"{target}, over a release that is not known"
    policy = node.policy_for(bundle.manifest.policy)
    if not bundle.manifest.allows(current):
        raise Incompatible(
            f"{target} may not be installed over {current}",
            what=f"the bundle allows: {', '.join(bundle.manifest.installable_over)}",
            next="install one of these first",
        )
    downgrade = policy.forbids_downgrade(current, target, node.data_release or current, on_purpose=purposes.downgrade)
    downgrade = downgrade or (node.cannot_read(target) if target < current else None)
    if downgrade:
        mend = "stage a release that reads this data" if purposes.downgrade else "--allow-downgrade    if you mean it"
        raise Incompatible(downgrade, next=mend)
    jump = policy.forbids_jump(current, target)
    if jump and not purposes.jump:
        raise Incompatible(jump, next=["go step by step", "--allow-jump    if you mean it; there is no way back then"])
    return f"{current} → {target}"


def _running(node: Node) -> str:
    booted = node.booted
    state = node.boot.read()
    if not is_good(state, booted):
        raise WrongState(
            f"slot {booted}, which runs, is not confirmed: the other slot is its way back",
            next=["updater confirm    confirms it when its health checks pass", "updater rollback"],
        )
    if next_boot(state) != booted:
        raise WrongState(
            f"the next boot goes to slot {next_boot(state) or '?'}, the one that would be overwritten",
            next=["reboot first", f"updater rollback    keeps slot {booted}"],
        )
    return f"slot {booted} is good"


def boot_usable(node: Node) -> str:
    faults = node.boot.check()
    if faults:
        raise BootEnvironment(
            faults[0].message,
            what=[line for fault in faults for line in fault.what] + [fault.message for fault in faults[1:]],
            next=[fault.mend for fault in faults if fault.mend],
        )
    return f"{node.boot.kind}, readable and writable"


def _writable(node: Node, slot: Slot, image: int) -> str:
    device = node.device(slot)
    if not device.exists():
        raise DeviceFailed(f"{device} does not exist", next=["lsblk -o NAME,PARTLABEL,SIZE", "updater doctor"])
    users = disks.users_of(device)
    if users:
        raise NotReady(f"{device} is in use", what=[str(user) for user in users], next=f"umount {device}")
    room = disks.size_of(device)
    if room < image:
        raise NoSpace(
            f"the image is larger than slot {slot}",
            what=f"image {size(image)} ({image} bytes), slot {size(room)} ({room} bytes)",
            next="enlarge both slots, or have the bundle built with a smaller --size",
        )
    return f"{size(room)}, idle"


def _space(node: Node, required: int) -> str:
    wanted = max(required, JOURNAL_ROOM)
    free = shutil.disk_usage(node.config.data).free
    if free < wanted:
        raise NoSpace(
            f"{node.config.data} has {size(free)} free, {size(wanted)} are needed",
            next=f"du -xh --max-depth=1 {node.config.data} | sort -h",
        )
    return f"{size(free)} free of {size(wanted)} needed"


def _unconfirmed_or_none(node: Node) -> str:
    run = node.journal.open_run()
    if run is None:
        return "none in progress"
    if run.verb == "activate" and node.booted == run.plan["slot"]:
        return f"{run.id} is not confirmed yet and ends with the rollback"
    raise in_progress(run, "roll back")


def _activatable(node: Node, slot: Slot) -> str:
    state = node.boot.read()
    if not is_good(state, node.booted):
        raise WrongState(f"slot {node.booted}, which runs, is not confirmed", next="updater confirm")
    if is_good(state, slot):
        return f"{node.release(slot) or 'release unknown'}, confirmed before"
    if not node.staged(slot, state):
        why = node.journal.slot(slot).get("failed")
        raise WrongState(
            f"slot {slot} holds nothing to activate",
            what=f"it is bad: {why}" if why else (),
            next="updater stage BUNDLE",
        )
    if not seal_holds(node, slot):
        raise DeviceFailed(
            f"slot {slot} is no longer what was staged",
            what="its bytes differ from the ones that were sealed: something wrote to it",
            next="updater stage --again BUNDLE",
        )
    return f"{node.release(slot)}, staged and verified"


def _way_back_accepted(node: Node, slot: Slot, accept: bool, readable_from: int) -> str:
    target, current = node.release(slot), node.release(node.booted)
    if target is None or current is None:
        return "not known: a release is unknown"
    forbidden = node.cannot_read(target)
    if forbidden:
        raise Incompatible(forbidden, next="updater stage BUNDLE    of a release that reads this data")
    lost = ""
    if not node.policy.adjoining(target, current):
        lost = "they do not adjoin"
    elif current.number < readable_from:
        lost = f"its migrations leave data that only MR{readable_from} and later can read"
    if not lost:
        return f"yes ({current} reads the data of {target})"
    if not accept:
        raise RollbackRefused(
            f"there is no way back from {target} to {current}: {lost}",
            next="--accept-no-rollback    if you mean it",
        )
    return "no (accepted)"


def _has_way_back(node: Node) -> str:
    possible, why = way_back(node)
    if not possible:
        raise RollbackRefused(why, state=f"slot {node.booted} runs on", next="updater status")
    return why


def _in_window(window: Window | None) -> str:
    now = datetime.now()
    if window is None:
        return "none asked for"
    if not window.is_open(now):
        raise WindowClosed(
            f"the window {window} is closed",
            what=f"it is {now:%H:%M}; it opens {window.opens(now):%Y-%m-%d %H:%M}",
            next="--wait    waits for it",
        )
    return f"{window} is open"
