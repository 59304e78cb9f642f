"""Which sites get new calls, registrations and requests. Calls that are there go on where they are: a destination that
is held gets nothing new, and whatever belongs to a call or a session passes.

A dispatcher is one program on all dispatcher hosts. Each host decides by itself, so each of them is told, and asked
again afterwards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from core.errors import CommandFailed, UpdaterError
from core.schema import SchemaError, structure
from zdu.drivers import DispatcherConfig, DispatcherKind
from zdu.traffic.drain import Reading
from zdu.traffic.shell import ENDING, Shell
from zdu.traffic.targets import Dispatcher, State, Target, count_live, from_all, on_each, require, require_known


def dispatcher(config: DispatcherConfig, shells: Sequence[Shell]) -> Dispatcher:
    """The driver for a program that runs on these hosts."""
    from zdu.traffic.haproxy import HaproxyHost
    from zdu.traffic.held import HeldDispatcher
    from zdu.traffic.kamailio import KamailioHost

    if config.kind is DispatcherKind.COMMAND:
        return CommandDispatcher(config, shells)
    of_host = KamailioHost if config.kind is DispatcherKind.KAMAILIO else HaproxyHost
    return HeldDispatcher(config, [of_host(config, shell) for shell in shells])


@dataclass(frozen=True, slots=True, kw_only=True)
class _Said:
    """A destination in the words of a command."""

    destination: str
    site: str
    state: State
    kept: bool = True
    live: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    targets: tuple[_Said, ...]


class CommandDispatcher:
    """The operator's program, run on each dispatcher host: ``targets`` prints JSON, ``{"targets": [{"destination": …,
    "site": …, "state": "active"|"draining"|"down"}]}`` and, if it likes, ``kept`` and ``live`` of each; ``send-to
    SITE…`` and ``restore`` switch.
    """

    def __init__(self, config: DispatcherConfig, shells: Sequence[Shell]) -> None:
        self.config = config
        self.shells = shells
        self.name = config.name or config.command[0]

    def check(self) -> list[str]:
        """Does it tell, and does it know each site?"""
        faults = []
        for shell in self.shells:
            try:
                told = {target.site for target in self._targets(shell)}
            except ENDING:
                raise
            except UpdaterError as error:
                faults.append("; ".join((error.message, *error.what)))
            else:
                faults += [f"{self.name} on {shell.name} has no destination of {site}" for site in self._sites - told]
        return faults

    def targets(self) -> list[Target]:
        """All destinations on all hosts."""
        return from_all(self.shells, self._targets)

    def live(self, site: str) -> list[Reading]:
        """What the program says in ``live``."""
        return from_all(
            self.shells,
            lambda shell: count_live(
                shell.name, lambda: [target.live for target in self._targets(shell) if target.site == site]
            ),
        )

    def send_to(self, sites: Sequence[str]) -> list[Target]:
        """Tell it everywhere, and ask it everywhere."""
        require_known(self.name, sorted(self._sites), sites)
        on_each(self.shells, lambda shell: self._run(shell, "send-to", *sites), f"send to {', '.join(sites)}")
        found = self.targets()
        require(found, sites, self.name)
        return found

    def restore(self) -> list[Target]:
        """Tell it everywhere."""
        on_each(self.shells, lambda shell: self._run(shell, "restore"), "restore the dispatcher")
        return self.targets()

    @property
    def _sites(self) -> set[str]:
        return {target.site for target in self.config.targets}

    def _targets(self, shell: Shell) -> list[Target]:
        said = self._run(shell, "targets")
        try:
            answer = structure(json.loads(said), _Answer)
        except (ValueError, SchemaError) as error:
            raise CommandFailed(
                f"{self.name} on {shell.name} does not tell its targets", what=[str(error)[:300], said[:300]]
            ) from error
        return [
            Target(
                host=shell.name,
                site=one.site,
                destination=one.destination,
                state=one.state,
                kept=one.kept,
                ours=one.state is State.DRAINING,
                live=one.live,
            )
            for one in answer.targets
        ]

    def _run(self, shell: Shell, *verb: str) -> str:
        result = shell.run([*self.config.command, *verb], timeout=self.config.timeout)
        if result.code != 0:
            raise CommandFailed(
                f"{' '.join([self.name, *verb])} fails on {shell.name} with exit code {result.code}",
                what=(result.stderr or result.stdout).strip().splitlines()[-3:],
            )
        return result.stdout
