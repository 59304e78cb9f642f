"""Verbs that run detached: a lost line or a closed terminal does not end them."""

from __future__ import annotations

from typing import Annotated

import typer

from updater.cli.context import opened, print_json, settings

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Run a verb detached from your terminal, and ask how it stands. Controllers work with it.",
)

Id = Annotated[str, typer.Argument(metavar="ID", help="Name of the job.")]


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def start(
    verb: Annotated[list[str], typer.Argument(metavar="VERB…", help="A verb of this node with its options.")],
    job: Annotated[str, typer.Option("--id", metavar="ID", help="Its name; the same name never runs twice.")],
    fence: Annotated[
        int, typer.Option(metavar="N", help="The asker's fencing token: refused if a higher one was here.")
    ],
) -> None:
    """Start a verb, detached; return when it has begun. If the name is known already, only say how that job stands.

    Example: updater job start --id 4711-stage --fence 1 stage mr96-1.bundle
    """
    from updater import jobs

    words = tuple(verb[1:] if verb[:1] == ["--"] else verb)
    with opened() as (node, _):
        _show(jobs.start(node, job, fence, words))


@app.command()
def status(
    job: Id,
    since: Annotated[int, typer.Option(min=0, metavar="OFFSET", help="Events from here on (an answer's offset).")] = 0,
    wait: Annotated[
        float, typer.Option(min=0, metavar="SECONDS", help="Wait so long for an event or the end, if there is none.")
    ] = 0,
) -> None:
    """Show how a job stands: running, done, failed, or vanished (its process is gone without a word).

    Example: updater job status 4711-stage --wait 60
    """
    from updater import jobs

    with opened() as (node, _):
        _show(jobs.news(node, job, since, wait))


@app.command("list")
def listing() -> None:
    """List the jobs that are kept, the oldest first.

    Example: updater job list
    """
    from updater import jobs
    from updater.job_files import jobs_of

    with opened() as (node, _):
        found = [jobs.status(node, each) for each in jobs_of(node.config.data).ids()]
    if settings.json:
        print_json([{key: value for key, value in each.as_json().items() if key != "events"} for each in found])
        return
    for each in found:
        _line(each)
    if not found:
        print("no jobs are kept")


@app.command()
def fence(
    forget: Annotated[
        bool, typer.Option("--forget", help="Begin anew: for a controller whose records were lost.")
    ] = False,
) -> None:
    """Show the highest fencing token that was seen here: controllers with a lower one are refused.

    Example: updater job fence
    """
    from updater import jobs

    with opened() as (node, _):
        token, by = (jobs.forget_fence(node), "") if forget else jobs.fence_of(node)
    if settings.json:
        print_json({"token": 0 if forget else token, "job": by})
    elif forget:
        print(f"forgotten: token {token}" if token else "there was none")
    else:
        print(f"token {token}   since job {by}" if token else "none was seen")


def _show(job: object) -> None:
    from updater.jobs import Job

    assert isinstance(job, Job)
    if settings.json:
        print_json(job.as_json())
        return
    _line(job)
    if job.result:
        print(f"        {job.result.get('text', '')}")
    if job.why:
        print(f"      ! {job.why}")
    if job.run:
        print(f"run     {job.run['verb']} {job.run['id']}: {job.run['outcome'] or job.run['state']}")


def _line(job: object) -> None:
    from updater.cli.screen import local
    from updater.jobs import Job

    assert isinstance(job, Job)
    code = f" ({job.exit_code})" if job.exit_code else ""
    print(f"{job.id:<32} {f'{job.state}{code}':<14} {local(job.started)}   {' '.join(job.verb)}")
