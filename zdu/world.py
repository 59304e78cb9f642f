"""What a controller asks of the sites: three questions. Real sites answer them (`zdu.effects`); in tests, a model."""

from __future__ import annotations

from typing import Protocol

from zdu.gates import Facts
from zdu.records import Sample
from zdu.runbook import Gate, Step


class Talk(Protocol):
    """What a step under way has to say to the controller, and to ask of it."""

    @property
    def fence(self) -> int:
        """The fencing token: goes with everything that is asked of servers."""
        ...

    @property
    def run(self) -> str:
        """The id of the run, the same in all its legs."""
        ...

    @property
    def job(self) -> str:
        """A name for the work of this step, the same after a crash: work of the same name is not begun twice."""
        ...

    def check(self) -> None:
        """To be called at least every second of waiting: does not return when the waiting has to end."""
        ...

    def note(self, text: str) -> None:
        """Something worth recording with the step."""
        ...


class World(Protocol):
    """The sites. `look` and `act` may raise any UpdaterError: SiteUnreachable where a server does not answer, FencedOff
    where one has seen a newer token.
    """

    def look(self, gate: Gate) -> Facts:
        """Read from the real state what is needed to judge a gate. Changes nothing. Raises where the gate will not open
        by itself, however long one waits.
        """
        ...

    def act(self, step: Step, talk: Talk) -> str:
        """Make sure of what the step is for; a line on what was done. Safe to repeat, and after dying half-way."""
        ...

    def sample(self) -> Sample:
        """How traffic stands now. Never raises: what could not be read is None."""
        ...
