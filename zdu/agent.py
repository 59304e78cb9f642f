"""The agent of a node, spoken to with ``updater --json …`` over a shell of its server.

Long work runs there as a job, under a name that the controller derives from its run and step. So a lost line harms
nothing, and asking a second time begins nothing twice. An error of the agent is raised here as what it is.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from core.errors import (
    CommandFailed,
    GateNotPassed,
    NotReady,
    SiteUnreachable,
    Terminated,
    UpdaterError,
    WrongState,
)
from core.run import Overran, Result
from zdu import node_answers as answers
from zdu.node_answers import JobState, NodeJob
from zdu.remote import Unreachable
from zdu.traffic.shell import Shell

#: Seconds between two looks, at least; and for how long a node is asked to wait for news of a job.
POLL: Final = 1.0
WAIT: Final = 5.0

#: A node is left alone for so many times as long as its last answer took, that the work there is not held up by the
#: looking; but for no longer than so many seconds.
ALONE: Final = 3.0
LONGEST: Final = 30.0

#: How often a job is begun anew whose process vanished, and how many names a step may use up in all.
TRIES: Final = 3
_NAMES: Final = 100

#: A node that reboots, or has too much to do: it is asked again.
AWAY: Final = (SiteUnreachable, Overran)

T = TypeVar("T")
Events = Callable[[Mapping[str, Any]], None]


def job_name(run: str, step: str) -> str:
    """The name of the job of a step: the same for every controller that carries out the run."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", f"{run}.{step.replace('/', '.')}")[:110]


class Agent:
    """The agent of one node. `shell` reaches its server; `command` is the agent; `fence` goes with every verb that
    changes something; `answer`: seconds for what it only has to look up; `poll`: seconds between two looks, and
    `pause` what waits for so long (it may raise, to end the waiting).

    Every call may raise SiteUnreachable, FencedOff, and what the agent itself ended with.
    """

    def __init__(
        self,
        shell: Shell,
        *,
        fence: int,
        command: str = "updater",
        answer: float = 60.0,
        poll: float = POLL,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.name = shell.name
        self._shell = shell
        self._command = command
        self._fence = fence
        self._patience = answer
        self._poll = poll
        self._pause = pause
        self._took = 0.0

    def start(self, job: str, *verb: str) -> NodeJob:
        """Have a verb begin as a job; if it is known by that name already, only how it stands. Safe to repeat."""
        words = ("job", "start", "--id", job, "--fence", str(self._fence), "--", *verb)
        return answers.job(self._answer(self._ask(*words)), self.name)

    def job(self, job: str, since: int = 0, *, wait: float = 0) -> NodeJob:
        """How a job stands, with its events from an offset on; while it runs without any, the node waits so many
        seconds for one. Raises WrongState when there is no such job.
        """
        words = ("job", "status", job, "--since", str(since), "--wait", f"{wait:g}")
        return answers.job(self._answer(self._ask(*words, wait=wait)), self.name)

    def fence(self) -> int:
        """The highest token that was seen there; 0: none was."""
        return answers.token(self._answer(self._ask("job", "fence")), self.name)

    def follow(self, job: str, within: float, *, on_event: Events | None = None) -> NodeJob:
        """Wait until a job has ended in any way, also while the node cannot be reached or is slow. Raises GateNotPassed
        after `within` seconds; the job goes on.
        """
        until = time.monotonic() + within
        offset, away = 0, ""
        while True:
            try:
                found = self.job(job, offset, wait=max(0, min(WAIT, until - time.monotonic())))
                away, offset = "", found.offset
                for event in found.events if on_event else ():
                    assert on_event is not None
                    on_event(event)
                if found.state is not JobState.RUNNING and not found.more:
                    return found
            except AWAY as error:
                away = self._awaited(error)
            else:
                if found.more:
                    continue
            if time.monotonic() > until:
                raise GateNotPassed(
                    f"{self.name}: job {job} has not ended within {within:g} s",
                    what=away,
                    state="it may go on there; nothing was broken off",
                    next=f"on {self.name}: updater job status {job}",
                )
            self._rest()

    def done(self, job: str, within: float, *verb: str, on_event: Events | None = None) -> NodeJob:
        """Have a verb run as a job to its good end. For verbs that are safe to repeat, and go on with what was left:
        one that ended under this name before, or whose process vanished, runs again, as `job`.2 and so on; one that
        is under way is waited for. Raises what the verb ended with.
        """
        for _ in range(TRIES):
            found = self.once(job, within, *verb, on_event=on_event)
            if found.state is JobState.DONE:
                return found
        raise CommandFailed(
            f"{self.name}: {' '.join(verb)} does not come to an end",
            what=f"its process vanished {TRIES} times; {found.why}",
            next=[f"on {self.name}: updater status", f"on {self.name}: updater history"],
        )

    def once(self, job: str, within: float, *verb: str, on_event: Events | None = None) -> NodeJob:
        """As `done`, but a job that vanished (or was terminated, as by a reboot) is returned as such."""
        name, under_way = self._through(within, lambda: self._turn(job))
        if not under_way:
            # A line that breaks meanwhile leaves open whether it began; under the same name it does so once.
            self._through(within, lambda: self.start(name, *verb))
        found = self.follow(name, within, on_event=on_event)
        terminated = found.error is not None and found.error.kind == Terminated.kind
        if found.state is JobState.FAILED and not terminated:
            raise found.error or CommandFailed(f"{self.name}: {' '.join(verb)} failed", what=found.why)
        return found

    # -- inside

    def _turn(self, job: str) -> tuple[str, bool]:
        """The name that is next for a job, and whether it is under way by that name."""
        for number in range(1, _NAMES):
            name = job if number == 1 else f"{job}.{number}"
            try:
                found = self.job(name)
            except WrongState:  # there is none by this name
                return name, False
            if found.state is JobState.RUNNING or not found.began:
                return name, found.began
        raise CommandFailed(f"{self.name}: {job} was tried {_NAMES} times", next=f"on {self.name}: updater job list")

    def _through(self, within: float, look: Callable[[], T]) -> T:
        """Look; again, for so many seconds, while the node cannot be reached or is slow."""
        until = time.monotonic() + within
        while True:
            try:
                return look()
            except AWAY as error:
                self._awaited(error)
                if time.monotonic() > until:
                    raise
            self._rest()

    def _awaited(self, error: UpdaterError) -> str:
        """What is said of a server that is down, or slow, for a while. Raises the error when time does not mend it."""
        if isinstance(error, Unreachable) and not error.may_pass:
            raise error
        return "; ".join((error.message, *error.what[:1]))

    def _rest(self) -> None:
        """Between two looks."""
        self._pause(max(self._poll, min(ALONE * self._took, LONGEST)))

    def _ask(self, *words: str, timeout: float | None = None, wait: float = 0) -> Result:
        """`wait`: seconds of the answer that the node may spend asleep."""
        result = self._shell.run([self._command, "--json", *words], timeout=(timeout or self._patience) + wait)
        self._took = max(0, result.seconds - wait)
        return result

    def _answer(self, result: Result) -> Any:
        """The answer of a verb. Raises what it ended with."""
        if result.code != 0:
            raise self._error(result)
        found = answers.last_object(result.stdout, self.name)
        if isinstance(found, dict) and found.get("kind") == "error":
            raise answers.error_of(found.get("error"), self.name)
        return found

    def _error(self, result: Result) -> UpdaterError:
        found = next(answers.objects(result.stdout), None)
        if isinstance(found, dict) and found.get("kind") == "error":
            return answers.error_of(found.get("error"), self.name)
        return self._speechless(result)

    def _speechless(self, result: Result) -> UpdaterError:
        said = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()][-4:]
        if result.code == 2:  # what a command line ends with that it does not understand
            return NotReady(
                f"the agent on {self.name} does not understand the controller",
                what=said,
                state="nothing was changed there",
                next=f"on {self.name}: updater --version    the controller needs the same or an adjoining release",
            )
        return CommandFailed(f"the agent on {self.name} ended with exit code {result.code}", what=said)
