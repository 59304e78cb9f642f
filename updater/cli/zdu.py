"""Zero-downtime upgrades across sites: run one, watch it, say something to it, read of it afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from updater.cli.carrying import table
from updater.cli.context import interruptible, print_json, settings
from updater.cli.zdu_plan import AcceptNoRollback, Downgrade, SitesFile, register, release_of, sites_path
from zdu.records import Approve, Word

if TYPE_CHECKING:
    from zdu.controller import Controller, Ended
    from zdu.hands import Hands
    from zdu.records import Run
    from zdu.runbook import Runbook
    from zdu.sites import Sites
    from zdu.tables import Tables

app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Upgrade whole sites, while everybody calls on.")
register(app)

RunName = Annotated[str, typer.Option("--run", metavar="RUN", help="Which run.", show_default="the last one")]
Who = Annotated[str, typer.Option("--as", metavar="NAME", help="Who you are, for the record.", show_default="user")]
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
    from zdu.survey import dry_run as look_over
    from zdu.survey import refuse

    where = _load(sites)
    with interruptible():
        runbook, hands = _planned(where, release, accept_no_rollback=accept_no_rollback, downgrade=downgrade)
    if where.controller.require_rehearsal and not dry_run:
        _require_rehearsal(runbook, rehearsed)
    if dry_run:
        world = RealWorld(where, bundle, runbook.target, 0, hands)
        with interruptible():
            findings = look_over(world, runbook, _show_finding)
        hands.close()
        refuse(findings)
        if not settings.json:
            print(
                f"{len(findings)} checks, nothing stands against {runbook.start} → {runbook.target}; nothing was touched"
            )
        return
    hands.close()
    with _controller(where) as controller:
        _end(controller.start(runbook, bundle=bundle, approve=approve, who=who or _user()))


@app.command()
def resume(sites: SitesFile = None, stand_by: StandBy = False, who: Who = "") -> None:
    """Go on with the open run: after a pause, a failure, or the death of its controller.

    Example: updater zdu resume --stand-by
    """
    where = _load(sites)
    with _controller(where) as controller:
        if not stand_by and _passed_on(controller, where, Word.RESUME, who or _user(), only_paused=True):
            return
        _end(controller.resume(who or _user(), stand_by=stand_by))


@app.command()
def abort(sites: SitesFile = None, who: Who = "") -> None:
    """Go the way back of the open run, from wherever it stands, to service on the old release.

    Example: updater zdu abort
    """
    where = _load(sites)
    with _controller(where) as controller:
        if not _passed_on(controller, where, Word.ABORT, who or _user()):
            _end(controller.abort(who or _user()))


@app.command()
def pause(sites: SitesFile = None, who: Who = "") -> None:
    """Begin no further step; what is under way comes to its end.

    Example: updater zdu pause
    """
    from core.errors import WrongState

    where = _load(sites)
    with _controller(where) as controller:
        known = controller.open_run()
        if not _passed_on(controller, where, Word.PAUSE, who or _user()):
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

    where = _load(sites)
    with _controller(where) as controller:
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
        controller.runs.say(known.id, Word.APPROVE, what, who or _user())
        _done({"run": known.id, "approved": what}, f"{what} is approved; the run {known.id} goes on")


@app.command()
def status(sites: SitesFile = None, name: RunName = "") -> None:
    """Show how a run stands, whether or not a controller works on it.

    Example: updater zdu status --json
    """
    from zdu.overview import overview
    from zdu.watch import text

    where = _load(sites)
    with _tables(where) as tables:
        view = overview(tables, where, _run(tables, where, name))
    if settings.json:
        print_json(view.as_json())
    else:
        print(text(view))


@app.command()
def watch(sites: SitesFile = None, name: RunName = "", who: Who = "") -> None:
    """Watch a run: a live view on a terminal, a line for each event elsewhere.

    Example: updater zdu watch
    """
    from zdu.watch import watch as look_on

    where = _load(sites)
    with interruptible(), _controller(where) as controller:
        known = _run(controller.tables, where, name)
        look_on(
            controller.tables,
            where,
            known,
            say=lambda word: _word(controller, where, Word(word), who or _user()),
        )


@app.command()
def history(sites: SitesFile = None) -> None:
    """List all runs, the last one first.

    Example: updater zdu history
    """
    from dataclasses import asdict

    from updater.cli.screen import local
    from zdu.runs import Runs

    where = _load(sites)
    with _tables(where) as tables:
        found = Runs(tables).all(where.name)
    if settings.json:
        print_json([asdict(each) for each in found])
        return
    table(
        [
            (r.id, f"{r.start} → {r.target}", str(r.state), local(r.began), local(r.ended), f"by {r.who}", r.text)
            for r in found
        ]
    )
    if not found:
        print(f"no run of {where.name} is on record")


@app.command()
def report(
    output: Annotated[Path | None, typer.Argument(help="The page to write.", show_default="zdu-RUN.html")] = None,
    sites: SitesFile = None,
    name: RunName = "",
) -> None:
    """Write the report of a run as one HTML page; with --json, print it as JSON.

    Example: updater zdu report upgrade.html
    """
    from core.errors import NotPermitted
    from core.files import write_atomic
    from zdu.report import as_html, as_json, outcome, read
    from zdu.runs import Runs

    where = _load(sites)
    with _tables(where) as tables:
        records = read(Runs(tables), _run(tables, where, name))
    if settings.json:
        print_json(as_json(records))
        return
    path = (output or Path(f"zdu-{records.run.id}.html")).absolute()
    try:
        write_atomic(path, as_html(records))
    except OSError as error:
        raise NotPermitted(f"{path} cannot be written", what=error.strerror or str(error)) from error
    print(f"{outcome(records)}\n{path}")


# -- what the commands share


def _load(sites: Path | None) -> Sites:
    from zdu.sites import load_sites

    return load_sites(sites_path(sites))


@contextmanager
def _tables(where: Sites) -> Iterator[Tables]:
    from zdu.tables import Tables

    with Tables.open(where.controller.database, patience=5) as tables:
        yield tables


@contextmanager
def _controller(where: Sites) -> Iterator[Controller]:
    """A controller of these sites; on a signal it leaves the run to the next one."""
    from core.errors import Interrupted
    from zdu.controller import Controller
    from zdu.effects import RealWorld
    from zdu.tables import Tables

    def world(known: Run, fence: int) -> RealWorld:
        return RealWorld(where, known.bundle, known.target, fence)

    with Tables.open(where.controller.database) as tables:
        try:
            with interruptible():
                yield Controller(where, tables, world, show=_show)
        except Interrupted as error:
            error.state = "the run is left as it is; calls are served as before"
            error.next = (
                "updater zdu status",
                "updater zdu resume    goes on",
                "updater zdu abort    goes the way back",
            )
            raise


def _planned(where: Sites, release: str, **wish: bool) -> tuple[Runbook, Hands]:
    """The runbook for what the servers run now, and the lines to them."""
    from zdu.hands import Hands
    from zdu.planning import plan
    from zdu.policy import Wish
    from zdu.survey import refuse, releases

    target = release_of(release)
    hands = Hands(where, 0)
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


def _run(tables: Tables, where: Sites, name: str) -> Run:
    from core.errors import WrongState
    from zdu.runs import Runs

    runs = Runs(tables)
    found = runs.run(name) if name else runs.last(where.name)
    if found is None or found.installation != where.name:
        raise WrongState(
            f"there is no run {name}" if name else f"no run of {where.name} is on record",
            state="this command changed nothing",
            next="updater zdu history" if name else "updater zdu plan RELEASE",
        )
    return found


def _passed_on(controller: Controller, where: Sites, word: Word, who: str, *, only_paused: bool = False) -> bool:
    """Leave a word with the controller that lives; False: none does, so the work is ours."""
    from zdu.controller import say
    from zdu.records import RunState

    known = controller.open_run()
    if only_paused and known.state is not RunState.PAUSED:
        return False  # `resume` then says who has it
    if not say(controller.tables, where, word, who):
        return False
    _done(
        {"run": known.id, "said": str(word)}, f"{word} is passed on to the controller of {known.id}: updater zdu watch"
    )
    return True


def _word(controller: Controller, where: Sites, word: Word, who: str) -> None:
    from core.errors import WrongState
    from zdu.controller import say

    if not say(controller.tables, where, word, who):
        raise WrongState("no controller works on the run", next=f"updater zdu {word}")


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
    _done({"run": ended.run.id, "state": str(ended.run.state)}, f"{words}; updater zdu report")


def _done(data: dict[str, Any], text: str) -> None:
    if settings.json:
        print_json({"kind": "result", "data": data | {"text": text}})
    else:
        print(text)


def _show(kind: str, step: str, text: str) -> None:
    """An event of a run that this process works on."""
    from updater.cli.context import unread
    from zdu.records import Told, now
    from zdu.watch import line_of

    try:
        if settings.json:
            print_json({"at": now(), "kind": kind, "step": step, "text": text})
        else:
            print(line_of(Told(id=0, at=now(), kind=kind, step=step, text=text, data={})), flush=True)
    except BrokenPipeError:
        unread()


def _show_finding(finding: Any) -> None:
    if settings.json:
        print_json({"kind": "check", "what": finding.what, "found": finding.found, "ok": finding.ok})
    else:
        print(f" {'✓' if finding.ok else '✗'} {finding.what:<40} {finding.found}", flush=True)


def _user() -> str:
    from zdu.lease import user

    return user()
