"""The story of one node's upgrade.

    stage     verify the bundle → mark the slot bad → write → read back → grow → packages → patches → files →
              configuration → boot entry → staged → non-blocking migrations
    activate  blocking migrations → flip to *trying* → reboot → health → good
    rollback  flip back → reboot
    confirm   what runs after every boot: goes on with activate or rollback, or notes that the node fell back

Each verb checks everything first, then opens a run in the journal and executes its steps. `resume` executes what is
left of an open run, `abort` undoes it. The run outlives a reboot, and is then finished by the other slot's agent.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from core.errors import UpdaterError
from core.journal import Facts, Run
from core.release import Release
from core.report import Report
from core.steps import Step, describe
from core.window import Window
from images.keys import load_trust
from images.read import Bundle
from images.source import without_credentials
from migrations.catalogue import Phase
from partitions.boot.state import Slot
from updater import migrating, staging, switching
from updater.carrying import Examined, carry_steps, examine, fingerprint
from updater.checks import (
    Purposes,
    activate_checks,
    in_progress,
    not_booted,
    raise_first,
    rollback_checks,
    stage_checks,
)
from updater.configured import RenderAgain, applied_since, configuration_checks
from updater.execution import Outcome, Plan, execute, locked
from updater.hooks import hooks
from updater.kept import CopyAgain, edited_since
from updater.migrating import Migrate, blocking_steps
from updater.node import Node
from updater.rehearsed import demanded, foreseen
from updater.verify import undeclared


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """How the operator wants a release staged. `rate_limit`: bytes a second (None: as node.toml says). `without`: names
    of carried things to leave out this once. `again`: write the slot even if it holds all this.
    """

    purposes: Purposes = field(default_factory=Purposes)
    rate_limit: int | None = None
    without: tuple[str, ...] = ()
    again: bool = False


# -- the stories


def stage_steps(node: Node, target: staging.Target, databases: Collection[str] = ()) -> list[Step]:
    """Put a release into the inactive slot, and migrate what can be migrated while the old one serves."""
    facts = node.facts() | {"target": target.slot, "target_release": target.bundle.manifest.release}
    return [
        *hooks(node.config.hooks, "before-stage", facts),
        staging.MarkBad(target=target),
        staging.Write(target=target),
        staging.ReadBack(target=target),
        staging.Grow(target=target),
        *carry_steps(target),
        staging.Carry(target=target),
        staging.BootEntry(target=target),
        staging.Seal(target=target),
        *([Migrate(target=target, databases=tuple(databases))] if databases else []),
        *hooks(node.config.hooks, "after-stage", facts),
    ]


def activate_steps(
    node: Node,
    slot: Slot,
    by_hand: bool,
    *,
    carried: Collection[str] = (),
    databases: Collection[str] = (),
    window: Window | None = None,
) -> list[Step]:
    """Boot the staged slot, and keep it if it is healthy. `carried`: "files-again" if kept files were edited since,
    "configuration-again" if another configuration was applied. `databases`: those with something left to migrate.
    """
    facts = node.facts() | {"target": slot, "target_release": str(node.release(slot) or "")}
    return [
        *hooks(node.config.hooks, "before-activate", facts),
        *([CopyAgain(node=node, slot=slot)] if "files-again" in carried else []),
        *([RenderAgain(node=node, slot=slot)] if "configuration-again" in carried else []),
        *blocking_steps(node, slot, tuple(databases), window),
        switching.Flip(node=node, slot=slot),
        *hooks(node.config.hooks, "after-activate", facts),
        switching.Reboot(node=node, slot=slot, by_hand=by_hand),
        *hooks(node.config.hooks, "before-confirm", facts),
        switching.Healthy(node=node, slot=slot),
        switching.Confirm(node=node, slot=slot),
        *hooks(node.config.hooks, "after-confirm", facts),
    ]


def rollback_steps(node: Node, slot: Slot, by_hand: bool) -> list[Step]:
    """Boot the slot that was confirmed before."""
    facts = node.facts() | {"target": slot, "target_release": str(node.release(slot) or "")}
    return [
        *hooks(node.config.hooks, "before-rollback", facts),
        switching.FlipBack(node=node, slot=slot),
        switching.Reboot(node=node, slot=slot, by_hand=by_hand),
        *hooks(node.config.hooks, "after-rollback", facts),
    ]


def steps_of(node: Node, run: Run, bundle: Bundle | None = None) -> list[Step]:
    """The steps of a run, from its plan as it was recorded."""
    plan = run.plan
    if run.verb == "stage":
        assert bundle is not None
        return stage_steps(node, _target(node, plan, bundle), plan.get("databases", ()))
    if run.verb == "activate":
        return activate_steps(
            node,
            plan["slot"],
            plan["by_hand"],
            carried=plan.get("carried", ()),
            databases=plan.get("databases", ()),
            window=Window.parse(plan["window"]) if plan.get("window") else None,
        )
    return rollback_steps(node, plan["slot"], plan["by_hand"])


# -- plans: the same stories, with every check made


def plan_stage(node: Node, bundle: Bundle, source: str, wishes: Wishes) -> Plan:
    """What `stage` would do with this bundle, with every check made, and what is carried tried on its root.

    Raises only where the node is unreadable.
    """
    slot = node.inactive
    checks = stage_checks(node, bundle, slot, wishes.purposes)
    examined, due = Examined(), migrating.Examined()
    if all(check.error is None for check in checks):
        examined = examine(node, bundle, wishes.without)
        due = migrating.examine_bundle(node, bundle)
        checks += undeclared(node)
        checks += foreseen(node, bundle)
    record = _stage_plan(node, bundle, source, wishes, examined, due)
    target = _target(node, record, bundle)
    return Plan(
        verb="stage",
        title=f"{node.release(node.booted) or 'unknown'} → {bundle.manifest.release} on {node.config.name}",
        checks=[*checks, *examined.checks, *due.checks],
        decisions=[*examined.decisions, *due.decisions],
        record=record,
        steps=describe(
            [
                *stage_steps(node, target, due.databases),
                *activate_steps(node, slot, by_hand=False, databases=due.of(Phase.BLOCKING)),
            ]
        ),
        way_back=_way_back_over(node, bundle.manifest.release, node.booted, due.readable_from),
    )


def plan_activate(
    node: Node,
    *,
    window: Window | None = None,
    by_hand: bool = False,
    accept_no_rollback: bool = False,
    rehearsal: Path | None = None,
) -> Plan:
    """What `activate` would do, with every check made. `rehearsal`: where the record of one is demanded to be."""
    slot = node.inactive
    release = node.release(slot)
    carried = ["files-again"] if edited_since(node, slot) else []
    carried += ["configuration-again"] if applied_since(node, slot) else []
    due = migrating.examine_slot(node, slot, window)
    databases = due.of(*migrating.BEFORE_FLIP)
    steps = activate_steps(node, slot, by_hand, carried=carried, databases=databases, window=window)
    checks = activate_checks(
        node, slot, window=window, accept_no_rollback=accept_no_rollback, readable_from=due.readable_from
    )
    return Plan(
        verb="activate",
        title=f"{node.release(node.booted) or 'unknown'} → {release or 'unknown'} on {node.config.name}",
        checks=[*checks, *configuration_checks(node, slot), *demanded(node, rehearsal), *due.checks],
        decisions=due.decisions,
        record={
            "slot": slot,
            "by_hand": by_hand,
            "carried": carried,
            "databases": databases,
            "migrates": [step.name for step in blocking_steps(node, slot, tuple(databases), window)],
            "window": str(window or ""),
        },
        steps=describe(steps),
        way_back=_way_back_over(node, str(release or ""), node.booted, due.readable_from),
    )


def plan_rollback(node: Node, *, by_hand: bool = False) -> Plan:
    """What `rollback` would do, with every check made."""
    slot = node.inactive
    return Plan(
        verb="rollback",
        title=f"{node.release(node.booted) or 'unknown'} → {node.release(slot) or 'unknown'} on {node.config.name}",
        checks=rollback_checks(node),
        steps=describe(rollback_steps(node, slot, by_hand)),
        way_back=f"forward again: updater activate    (slot {node.booted} stays as it is)",
    )


# -- verbs


def stage(node: Node, source: str, report: Report, wishes: Wishes) -> Outcome:
    """Check everything, then make the inactive slot hold the release. Staging what is staged already only verifies it.

    A stage of the same bundle that was interrupted goes on as it was begun. Raises UpdaterError.
    """
    with locked(node, f"stage {without_credentials(source)}"), open_bundle(node, source) as bundle:
        interrupted = node.journal.open_run()
        if interrupted is not None:
            if interrupted.verb == "stage" and interrupted.plan["content"] == bundle.manifest.image.content:
                not_booted(node, interrupted)
                _same_wishes(interrupted, wishes)
                report.note(f"going on with run {interrupted.id}")
                return execute(node, interrupted, steps_of(node, interrupted, bundle), report)
            raise in_progress(interrupted, "stage")
        if not wishes.again and _is_staged(node, bundle, wishes):
            text = f"{bundle.manifest.release} is staged in slot {node.inactive} already, verified"
            return Outcome(state="nothing", text=text)
        plan = plan_stage(node, bundle, source, wishes)
        raise_first(list(plan.checks), f"cannot stage {bundle.manifest.release}")
        for each in plan.checks:
            if each.warning:
                report.warning(f"{each.name}: {each.found}")
        run = node.journal.begin("stage", plan.record)
        return execute(node, run, steps_of(node, run, bundle), report)


def activate(
    node: Node,
    report: Report,
    *,
    window: Window | None = None,
    by_hand: bool = False,
    accept_no_rollback: bool = False,
    rehearsal: Path | None = None,
) -> Outcome:
    """Flip to the staged slot and reboot into it. It is confirmed after the boot, or loses its tries and falls back.

    `by_hand`: flip only; the operator reboots. `rehearsal`: only with a record of one that is there, a file or a
    directory. Raises UpdaterError with nothing changed.
    """
    with locked(node, "activate"):
        plan = plan_activate(
            node, window=window, by_hand=by_hand, accept_no_rollback=accept_no_rollback, rehearsal=rehearsal
        )
        raise_first(list(plan.checks), "cannot activate")
        node.journal.set_fact("flip-boot", None)
        run = node.journal.begin("activate", plan.record)
        return execute(node, run, steps_of(node, run), report)


def rollback(node: Node, report: Report, *, by_hand: bool = False) -> Outcome:
    """Flip to the other slot, which was confirmed before, and reboot into it.

    An activation that is not confirmed yet ends with it. Raises RollbackRefused with the reason, nothing changed.
    """
    with locked(node, "rollback"):
        plan = plan_rollback(node, by_hand=by_hand)
        raise_first(list(plan.checks), "cannot roll back")
        node.journal.set_fact("flip-boot", None)
        node.journal.set_fact("attempts", [])
        run = node.journal.begin(
            "rollback",
            {"slot": node.inactive, "by_hand": by_hand},
            ending=node.journal.open_run(),
            why="rolled back by the operator before it was confirmed",
        )
        return execute(node, run, steps_of(node, run), report)


def open_bundle(node: Node, source: str) -> Bundle:
    """Open a bundle with the keys that this node trusts. Raises SignatureInvalid, BundleInvalid, SourceUnreachable."""
    try:
        return Bundle.open(source, load_trust(node.config.trust.keys, node.config.trust.threshold))
    except UpdaterError as error:
        error.state = error.state or "this command changed nothing"
        error.next = error.next or (f"updater bundle inspect {without_credentials(source)}", "updater doctor")
        raise


def _same_wishes(run: Run, wishes: Wishes) -> None:
    """An interrupted stage goes on by its plan: what is wished for now must stand there. Raises Busy."""
    plan, other = run.plan, []
    if wishes.without and set(wishes.without) != set(plan.get("without", ())):
        other.append(f"--without: {', '.join(plan.get('without', ())) or 'nothing'}")
    if wishes.rate_limit is not None and wishes.rate_limit != plan["rate_limit"]:
        other.append(
            f"--rate-limit: {plan['rate_limit']} bytes a second" if plan["rate_limit"] else "--rate-limit: none"
        )
    if wishes.again and not plan.get("again"):
        other.append("--again: not given")
    if other:
        error = in_progress(run, "stage with these options")
        error.what = ("it was begun with other ones", *other)
        error.next = ("updater resume    goes on as it was begun", "updater abort     then stage with these options")
        raise error


def _is_staged(node: Node, bundle: Bundle, wishes: Wishes) -> bool:
    """Whether the slot holds just what staging this bundle would make of it now."""
    record = node.journal.slot(node.inactive)
    return (
        record.get("content") == bundle.manifest.image.content
        and node.staged(node.inactive, node.boot.read())
        and record.get("without", []) == list(wishes.without)
        and record.get("fingerprint") == fingerprint(node)
        and not edited_since(node, node.inactive)
        and staging.seal_holds(node, node.inactive)
    )


def _stage_plan(
    node: Node, bundle: Bundle, source: str, wishes: Wishes, examined: Examined, due: migrating.Examined
) -> Facts:
    return {
        "source": bundle.name if "://" in source else str(Path(source).resolve()),
        "release": bundle.manifest.release,
        "content": bundle.manifest.image.content,
        "slot": node.inactive,
        "from": str(node.release(node.booted) or ""),
        "rate_limit": node.config.stage.rate_limit if wishes.rate_limit is None else wishes.rate_limit,
        "carry": [str(path) for path in node.config.stage.carry],
        "carried": examined.kinds,
        "packages": examined.packages,
        "databases": due.databases,
        "migrates": ["migrate"] if due.databases else [],
        "without": list(wishes.without),
        "again": wishes.again,
        "fingerprint": fingerprint(node),
    }


def _target(node: Node, plan: Facts, bundle: Bundle) -> staging.Target:
    return staging.Target(
        node=node,
        bundle=bundle,
        slot=plan["slot"],
        source=plan["source"],
        rate_limit=plan["rate_limit"],
        carry=tuple(Path(path) for path in plan["carry"]),
        carried=tuple(plan.get("carried", ())),
        packages=tuple(plan.get("packages", ())),
        without=tuple(plan.get("without", ())),
        fingerprint=plan.get("fingerprint", ""),
    )


def _way_back_over(node: Node, release: str, slot: Slot, readable_from: int) -> str:
    current = node.release(slot)
    try:
        target = Release.parse(release)
    except ValueError:
        return "not known: the release is unknown"
    if current is None:
        return "not known: the running release is unknown"
    if current.number < readable_from:
        return f"until its blocking migrations begin; then none: only MR{readable_from} and later read the data"
    if node.policy.adjoining(target, current):
        return "at every step: the old slot stays whole and reads the new data (adjoining). No point of no return"
    return f"until {target} is confirmed; then none: {current} and {target} do not adjoin"
