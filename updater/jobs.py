"""Long work, detached from whoever asked for it. The work itself is recorded in the node's journal, and goes on from
there; a job only says what became of one use of a verb.
"""

from __future__ import annotations

import re
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

from core.errors import CommandFailed, FencedOff, NotReady, UpdaterError, WrongState
from core.faults import point
from core.journal import Run
from core.run import run
from images.source import without_credentials
from updater.job_files import Asked, Ended, Jobs, jobs_of, now_text
from updater.node import Node

#: Verbs that may run as jobs: those of this node that take long, or that end in a reboot.
VERBS: Final = ("plan", "stage", "activate", "confirm", "rollback", "resume", "abort", "migrate", "verify")

#: The highest fencing token that was seen: a fact in the journal, so it holds across reboots and slots.
FENCE: Final = "fence"

#: Seconds for a started job to begin; the machine may be very busy.
BEGIN: Final = 300.0

#: Seconds between two looks at a job that is waited for.
LOOK: Final = 0.2

#: It is there where systemd runs the machine.
SYSTEMD: Final = Path("/run/systemd/system")

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_GLOBALS: Final = ("--config", "--json", "--debug")
#: What a job's process runs. It looks for modules where we found ours: the launcher may have brought us there.
_RUNNER: Final = "import sys; sys.path[:] = sys.argv[3:]; from updater.cli.job_runner import run_job; run_job()"


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"  # the verb ended with an error
    VANISHED = "vanished"  # its process is gone, and did not say how it ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job as it stands. `began`: False where its process never got as far as the verb, which may be started again.
    `verb`: its words, URLs without credentials. `result`: the verb's outcome; `error`: the verb's error. `rebooted`:
    the node has booted since it was asked for. `run`: what the node's journal says of the run that it belongs to: id,
    verb, state, outcome. `events`: those from the offset that was asked for; `offset`: where the next ones begin;
    `more`: there are some.
    """

    id: str
    verb: tuple[str, ...]
    fence: int
    state: JobState
    began: bool
    started: str
    ended: str = ""
    exit_code: int | None = None
    why: str = ""
    result: dict[str, Any] | None = None
    error: dict[str, Any] | None = None
    rebooted: bool = False
    run: dict[str, Any] | None = None
    events: list[dict[str, Any]] = field(default_factory=list)
    offset: int = 0
    more: bool = False

    def as_json(self) -> dict[str, Any]:
        """JSON-ready; the form is an interface (docs/jobs.md)."""
        return asdict(self)


# -- verbs


def start(node: Node, job: str, fence: int, verb: tuple[str, ...]) -> Job:
    """Have the verb run, detached from us; return when it has begun. The same name again begins nothing.

    Raises FencedOff when a controller with a higher token was here, WrongState when the name stands for something else
    or the verb cannot be a job, NotReady when it does not begin.
    """
    _check(job, fence, verb)
    jobs = jobs_of(node.config.data)
    with jobs.one_at_a_time():
        admit(node, fence, job)
        known = jobs.asked(job)
        if known is not None and known.verb != verb:
            raise WrongState(
                f"there is a job {job} already, and it is another one",
                what=[f"it is     {' '.join(_shown(known.verb))}", f"not       {' '.join(_shown(verb))}"],
                state="nothing was started",
                next=f"updater job status {job}",
            )
        if known is None or not jobs.began(job):
            jobs.write(Asked(id=job, verb=verb, fence=fence, at=now_text(), boot=node.machine.boot_id()))
            point("job:asked")
            _launch(node, jobs, job)
            jobs.forget_old()
    return status(node, job)


def admit(node: Node, fence: int, job: str) -> None:
    """Let a controller with this token act here, and no older one from now on. Raises FencedOff."""
    highest, by = fence_of(node)
    if fence < highest:
        raise FencedOff(
            f"a newer controller was here: its token is {highest}, that of this one is {fence}",
            what=f"job {by}" if by else "",
            state="nothing was started",
            next=[
                "leave the run to the other controller",
                "updater job fence --forget    if its records were lost, and tokens begin anew",
            ],
        )
    if fence > highest:
        node.journal.set_fact(FENCE, {"token": fence, "job": job, "at": now_text()})


def fence_of(node: Node) -> tuple[int, str]:
    """The highest token that was seen here (0: none), and the job that it came with."""
    fact = node.journal.fact(FENCE) or {}
    return int(fact.get("token", 0)), str(fact.get("job", ""))


def forget_fence(node: Node) -> int:
    """Begin anew with tokens. Returns the one that was forgotten."""
    with jobs_of(node.config.data).one_at_a_time():
        highest, _ = fence_of(node)
        node.journal.set_fact(FENCE, None)
    return highest


def status(node: Node, job: str, since: int = 0) -> Job:
    """How a job stands, with its events from an offset on. Only looks. Raises WrongState when there is no such job."""
    jobs = jobs_of(node.config.data)
    if not _ID.fullmatch(job):
        raise _no_such_job(job)
    # Asked for before the outcome: a process that ends in between has written it.
    lives = jobs.lives(job)
    asked = jobs.asked(job)
    if asked is None:
        raise _no_such_job(job)
    ended, began = jobs.ended(job), jobs.began(job)
    events, offset, more = jobs.events(job, since)
    last = jobs.last(job) if ended or not lives else {}
    result = last.get("data") if last.get("kind") == "result" else None
    error = last.get("error") if last.get("kind") == "error" else None
    rebooted = asked.boot != node.machine.boot_id()
    state, why = JobState.RUNNING, ""
    if ended is not None:
        state = JobState.DONE if ended.exit_code == 0 else JobState.FAILED
        if state is JobState.FAILED and error is None:
            error = _unsaid(jobs, asked, ended)
        why = str(error["message"]) if error else ""
    elif not lives:
        state = JobState.VANISHED
        if not began:
            why = "it never began: nothing was done, and it may be started again"
        else:
            booted = ", and the node has booted since" if rebooted else ""
            why = f"its process is gone{booted}; the node's journal knows the rest"
    found = _run_of(node, asked, result)
    return Job(
        id=job,
        verb=_shown(asked.verb),
        fence=asked.fence,
        state=state,
        began=began,
        started=asked.at,
        ended=ended.at if ended else "",
        exit_code=ended.exit_code if ended else None,
        why=why,
        result=result,
        error=error,
        rebooted=rebooted,
        run=_told(found) if found else None,
        events=events,
        offset=offset,
        more=more,
    )


def news(node: Node, job: str, since: int, within: float) -> Job:
    """As `status`, as soon as there is something new: an event after the offset, or an end. After `within` seconds
    without any, as it stands.
    """
    until = time.monotonic() + within
    while True:
        found = status(node, job, since)
        if found.state is not JobState.RUNNING or found.events or time.monotonic() >= until:
            return found
        time.sleep(LOOK)


# -- inside


def _no_such_job(job: str) -> WrongState:
    return WrongState(f"there is no job {job}", state="nothing was changed", next="updater job list")


def _check(job: str, fence: int, verb: tuple[str, ...]) -> None:
    if not _ID.fullmatch(job):
        raise WrongState(
            f"{job!r} is no name for a job",
            what="letters, digits, dots, dashes and underscores, at most 120",
            state="nothing was started",
        )
    if fence < 1:
        raise WrongState(f"{fence} is no fencing token", what="they begin at 1", state="nothing was started")
    if not verb or verb[0] not in VERBS:
        raise WrongState(
            f"{' '.join(_shown(verb)) or 'nothing'} cannot run as a job",
            what=f"what can: {', '.join(VERBS)}",
            state="nothing was started",
        )
    if any(word.partition("=")[0] in _GLOBALS for word in verb):
        raise WrongState(
            "global options stand before `job`, not in its verb",
            what=" ".join(_shown(verb)),
            state="nothing was started",
        )


def _shown(verb: tuple[str, ...]) -> tuple[str, ...]:
    """The words as they may stand on a screen: URLs without credentials, also in `--option=URL`."""
    words = []
    for word in verb:
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        words.append(f"{option}{equals}{without_credentials(value)}")
    return tuple(words)


def _launch(node: Node, jobs: Jobs, job: str) -> None:
    """Start its process where the end of our login does not reach it, and wait until it has begun."""
    runner = [sys.executable, "-I", "-c", _RUNNER, str(node.path.resolve()), job, *filter(None, sys.path)]
    refused: CommandFailed | None = None
    try:
        if SYSTEMD.is_dir():
            # In our directory: the verb's paths may be relative ones.
            unit = ["--quiet", "--collect", "--service-type=exec", "--same-dir", f"--unit=updater-job-{job}"]
            run("systemd-run", *unit, f"--description=updater: {job}", "--", *runner)
        else:
            # Its output must not be ours: whoever started us waits until nobody holds that any more.
            run("sh", "-c", 'exec setsid --fork "$@" </dev/null >/dev/null 2>&1', "sh", *runner)
    except CommandFailed as error:  # perhaps because a first try of ours got further than we know
        refused = error
    until = time.monotonic() + (BEGIN if refused is None else 1.0)
    while not jobs.began(job):
        if time.monotonic() > until:
            raise refused or NotReady(
                f"job {job} did not begin within {BEGIN:g} s",
                what=jobs.said(job),
                state="the verb was not started",
                next="the same command again    starts it if it has not begun by then",
            )
        time.sleep(0.02)


def _unsaid(jobs: Jobs, asked: Asked, ended: Ended) -> dict[str, Any]:
    """The error of a verb that ended without giving one."""
    error = UpdaterError(
        f"{asked.verb[0]} ended with exit code {ended.exit_code} and no word",
        what=jobs.said(asked.id),
        state="what it did is in the node's journal",
        next=["updater status", "updater history"],
    )
    return error.as_json() | {"exit_code": ended.exit_code}


def _run_of(node: Node, asked: Asked, result: dict[str, Any] | None) -> Run | None:
    """The run in the journal that the job opened or went on with: the one that it names, else the newest since."""
    if result and result.get("run"):
        with suppress(UpdaterError):
            return node.journal.run(str(result["run"]))
    if result is not None:
        return None
    newest = next(iter(node.journal.runs(limit=1)), None)
    since = datetime.fromisoformat(asked.at)
    continues = asked.verb[0] in ("stage", "confirm", "resume", "abort")
    if newest is not None and (
        newest.started >= since or (continues and (newest.ended is None or newest.ended >= since))
    ):
        return newest
    return None


def _told(found: Run) -> dict[str, Any]:
    return {
        "id": found.id,
        "verb": found.verb,
        "state": found.state.value,
        "release": str(found.plan.get("release", "")),
        "slot": str(found.plan.get("slot", "")),
        "outcome": found.outcome,
    }
