"""Zero-downtime upgrades across sites: run one, watch it, say something to it, read of it afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli import zdu_common as common
from updater.cli.context import interruptible, print_json, settings
from updater.cli.zdu_common import Who
from updater.cli.zdu_plan import AcceptNoRollback, Downgrade, SitesFile, register, release_of
from updater.cli.zdu_views import register as register_views
from zdu.words import Approve, Word

if TYPE_CHECKING:
    from zdu.controller import Ended
    from zdu.hands import Hands
    from zdu.runbook import Runbook
    from zdu.sites import Sites

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Upgrade whole sites, while everybody calls on.")
register(app)

StandBy = Annotated[
    bool, typer.Option("--stand-by", help="Wait until the controller that has the run is gone, then take over.")
]


@app.command()
def run(
    release: Annotated[str, typer.Argument(help="Such as MR96-1.")],
    bundle: Annotated[str, typer.Option(help="Where servers find it: a path on each of them, or a URL.")],
    sites: SitesFile = None,
    approve: Annotated[Approve, typer.Option(help="What has to be approved before it begins.")] = Approve.PHASE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Look at every server, change nothing.")] = False,
    accept_no_rollback: AcceptNoRollback = False,
    downgrade: Downgrade = False,
    rehearsed: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The JSON report of the rehearsal of this upgrade.")
    ] = None,
    who: Who = "",
) -> None:
    """Upgrade all sites to a release. Interrupted or killed, it stays where it is: updater zdu resume.

    Example: updater zdu run MR96-1 --bundle https://depot.example/mr96-1.bundle --approve phase
    """
    from zdu.effects import RealWorld
    from zdu.survey import admit, refuse
    from zdu.survey import dry_run as look_over

    where = common.load(sites)
    with interruptible():
        runbook, hands = _planned(where, release, accept_no_rollback=accept_no_rollback, downgrade=downgrade)
        if not dry_run:
            admit(hands, runbook)
    if where.controller.require_rehearsal and not dry_run:
        _require_rehearsal(runbook, rehearsed)
    if dry_run:
        world = RealWorld(where, bundle, runbook.target, hands.fence, hands)
        with interruptible():
            findings = look_over(world, runbook, _show_finding)
        hands.close()
        refuse(findings)
        if not settings.json:
            print(f"{len(findings)} checks pass for {runbook.start} → {runbook.target}; nothing was touched")
        return
    hands.close()
    with common.controller_of(where) as controller:
        _end(controller.start(runbook, bundle=bundle, approve=approve, who=who or common.user()))


@app.command()
def resume(sites: SitesFile = None, stand_by: StandBy = False, who: Who = "") -> None:
    """Go on with the open run: after a pause, a failure, or the death of its controller.

    Example: updater zdu resume --stand-by
    """
    where = common.load(sites)
    with common.controller_of(where) as controller:
        if not stand_by and common.passed_on(controller, where, Word.RESUME, who or common.user(), only_paused=True):
            return
        _end(controller.resume(who or common.user(), stand_by=stand_by))


@app.command()
def abort(sites: SitesFile = None, who: Who = "") -> None:
    """Go the way back of the open run, from wherever it stands, to service on the old release.

    Example: updater zdu abort
    """
    where = common.load(sites)
    with common.controller_of(where) as controller:
        if not common.passed_on(controller, where, Word.ABORT, who or common.user()):
            _end(controller.abort(who or common.user()))


@app.command()
def pause(sites: SitesFile = None, who: Who = "") -> None:
    """Begin no further step; what is under way comes to its end.

    Example: updater zdu pause
    """
    from core.errors import WrongState

    where = common.load(sites)
    with common.controller_of(where) as controller:
        known = controller.open_run()
        if not common.passed_on(controller, where, Word.PAUSE, who or common.user()):
            raise WrongState(
                f"nobody works on the run {known.id}",
                what=f"it is {known.state}{': ' + known.text if known.text else ''}",
                state="no further step begins before somebody resumes it",
                next=["updater zdu resume", "updater zdu abort"],
            )


@app.command()
def approve(
    what: Annotated[str, typer.Argument(help="The phase or the step that waits, as `status` shows it.")],
    sites: SitesFile = None,
    who: Who = "",
) -> None:
    """Let a phase or a step begin. Anything but what waits now is refused.

    Example: updater zdu approve 4
    """
    from core.errors import WrongState

    where = common.load(sites)
    with common.controller_of(where) as controller:
        known = controller.open_run()
        if what != known.waits_for or not what:
            raise WrongState(
                f"{what} does not wait for approval",
                what=f"{known.waits_for} does"
                if known.waits_for
                else f"nothing does; the run {known.id} is {known.state}",
                state="nothing was approved",
                next=f"updater zdu approve {known.waits_for}" if known.waits_for else "updater zdu status",
            )
        controller.runs.say(known.id, Word.APPROVE, what, who or common.user())
        common.done({"run": known.id, "approved": what}, f"{what} is approved; the run {known.id} goes on")


@app.command()
def fence(
    sites: SitesFile = None,
    above: Annotated[
        bool, typer.Option("--raise", help="Go on above all of them: for a controller whose records were lost.")
    ] = False,
) -> None:
    """Show the highest fencing tokens that servers and ledgers have seen: they refuse controllers with a lower one.

    Example: updater zdu fence
    """
    from zdu.hands import Hands
    from zdu.lease import next_token, take
    from zdu.tokens import seen

    where = common.load(sites)
    hands = Hands(where, 0)
    with interruptible():
        found = seen(hands)
    hands.close()
    with common.tables_of(where) as tables:
        if above:
            take(tables, where.name, purpose="raise the token", above=max(each.token for each in found)).release()
        ours = next_token(tables, where.name)
    if settings.json:
        told = [{"where": e.where, "token": e.token, "error": e.error and e.error.message} for e in found]
        print_json({"next": ours, "seen": told})
        return
    print(f"the next controller gets token {ours}")
    for each in found:
        stale = "   it would refuse that controller" if each.token > ours else ""
        print(f"   {each.where:<20} {each.error.message if each.error else f'token {each.token}{stale}'}")


register_views(app)


def _planned(where: Sites, release: str, **wish: bool) -> tuple[Runbook, Hands]:
    """The runbook for what the servers run now, and the lines to them, with the token that a controller would get."""
    from zdu.hands import Hands
    from zdu.lease import next_token
    from zdu.planning import plan
    from zdu.policy import Wish
    from zdu.survey import refuse, releases

    target = release_of(release)
    with common.tables_of(where) as tables:
        hands = Hands(where, next_token(tables, where.name))
    found, silent = releases(hands, where)
    refuse(silent)
    return plan(where, Wish(target=target, found=found, **wish)), hands


def _require_rehearsal(runbook: Runbook, path: Path | None) -> None:
    """The sites file asks for a rehearsal: its report must fit."""
    import json

    from core.errors import ZduRefused
    from zdu.rehearsed import differs

    why = "no report of a rehearsal was given"
    if path is not None:
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            why = differs(told if isinstance(told, dict) else {}, runbook)
        except (OSError, ValueError) as error:
            why = f"{path} cannot be read: {error}"
    if why:
        raise ZduRefused(
            f"the upgrade to {runbook.target} is refused by the rule rehearsal",
            what=why,
            state="nothing was touched",
            next=[
                "updater zdu report --json > rehearsal.json    where it was rehearsed",
                f"updater zdu run {runbook.target} --rehearsed rehearsal.json …",
                "or set controller.require_rehearsal = false in the sites file",
            ],
        )


def _end(ended: Ended) -> None:
    """How the run stands when the controller leaves it."""
    if ended.error is not None:
        error = ended.error
        error.next = (*error.next, "updater zdu resume    tries again", "updater zdu abort    goes the way back")
        error.next = tuple(dict.fromkeys(error.next))
        if not error.state:
            error.state = f"the run {ended.run.id} has stopped; calls are served as before"
        raise error
    text = {"done": "is done", "aborted": "was taken back"}.get(str(ended.run.state), str(ended.run.state))
    words = f"{ended.run.start} → {ended.run.target}: the run {ended.run.id} {text}"
    common.done({"run": ended.run.id, "state": str(ended.run.state)}, f"{words}; updater zdu report")


def _show_finding(finding: Any) -> None:
    if settings.json:
        print_json({"kind": "check", "what": finding.what, "found": finding.found, "ok": finding.ok})
    else:
        print(f" {'✓' if finding.ok else '✗'} {finding.what:<40} {finding.found}", flush=True)
