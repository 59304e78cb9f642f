"""One tree of errors. Each says what happened, on what, what state the machine is in now, and what to do next.

Only the command line prints and exits; everything below raises one of these. ``exit_code`` is an interface:
numbers are never reused for another meaning (docs/exit-codes.md is checked against this file).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar


class UpdaterError(Exception):
    """Base of all errors that a user may see.

    ``message``: one line, without a full stop. ``what``: the details, one line each. ``state``: what holds on the
    machine now. ``next``: commands or actions that lead on, the likeliest first.
    """

    exit_code: ClassVar[int] = 1
    kind: ClassVar[str] = "error"

    def __init__(
        self, message: str, *, what: str | Iterable[str] = (), state: str = "", next: str | Iterable[str] = ()
    ):
        super().__init__(message)
        self.message = message
        self.what = _lines(what)
        self.state = state
        self.next = _lines(next)

    def as_json(self) -> dict[str, Any]:
        """The error as JSON-ready data: kind, exit_code, message, what, state, next."""
        return {
            "kind": self.kind,
            "exit_code": self.exit_code,
            "message": self.message,
            "what": list(self.what),
            "state": self.state,
            "next": list(self.next),
        }


def _lines(text: str | Iterable[str]) -> tuple[str, ...]:
    return tuple(line for line in ((text,) if isinstance(text, str) else text) if line)


class ConfigError(UpdaterError):
    """A file of the operator (node.toml and the like) cannot be read or does not hold together."""

    exit_code = 10
    kind = "configuration"


class NotReady(UpdaterError):
    """The node itself is not fit for the verb: a check of `updater doctor` that matters here fails."""

    exit_code = 11
    kind = "node not ready"


class NotPermitted(UpdaterError):
    """The user lacks the rights (mostly: not root)."""

    exit_code = 12
    kind = "not permitted"


class Busy(UpdaterError):
    """Another run holds the node."""

    exit_code = 13
    kind = "busy"


class BundleInvalid(UpdaterError):
    """The bundle is truncated, damaged or malformed."""

    exit_code = 20
    kind = "bundle invalid"


class SignatureInvalid(UpdaterError):
    """Signatures are missing, wrong, too few, expired, or by keys that this node does not trust."""

    exit_code = 21
    kind = "signature"


class Incompatible(UpdaterError):
    """A sound bundle, but not for this node: compatible string, architecture, agent version, or release policy."""

    exit_code = 22
    kind = "incompatible"


class ModificationConflict(UpdaterError):
    """Something the operator carries (package, patch, file, configuration) does not fit the release."""

    exit_code = 23
    kind = "modification conflict"


class NoSpace(UpdaterError):
    """Too little room: slot, data partition, or boot partition."""

    exit_code = 24
    kind = "no space"


class SourceUnreachable(UpdaterError):
    """Where the bundle is read from stalls, breaks off, or does not do what it says."""

    exit_code = 25
    kind = "source unreachable"


class Drifted(UpdaterError):
    """A slot has changes that are neither the release's nor declared."""

    exit_code = 26
    kind = "undeclared changes"


class CatalogueInvalid(UpdaterError):
    """A catalogue of migrations does not hold together, or `migrate lint` found errors in it."""

    exit_code = 27
    kind = "catalogue"


class NotRehearsed(UpdaterError):
    """A rehearsal of just this is demanded, and there is none, it failed, or it was one of something else."""

    exit_code = 28
    kind = "rehearsal"


class RehearsalFailed(UpdaterError):
    """An upgrade was rehearsed, and something would go wrong on the night; or the way back does not work."""

    exit_code = 29
    kind = "rehearsal failed"


class DeviceFailed(UpdaterError):
    """A slot's device fails, vanishes, or does not read back what was written."""

    exit_code = 30
    kind = "device"


class BootEnvironment(UpdaterError):
    """The boot loader's environment is missing, corrupt, or cannot be written."""

    exit_code = 31
    kind = "boot environment"


class HookFailed(UpdaterError):
    """A hook of the operator failed or overran its deadline."""

    exit_code = 32
    kind = "hook"


class HealthFailed(UpdaterError):
    """Required health checks did not pass before the deadline."""

    exit_code = 33
    kind = "health"


class WrongState(UpdaterError):
    """The verb makes no sense in the state that the node is in (nothing staged, nothing to resume, ...)."""

    exit_code = 34
    kind = "wrong state"


class RollbackRefused(UpdaterError):
    """There is no way back from here, or none that the release policy allows."""

    exit_code = 35
    kind = "rollback refused"


class WindowClosed(UpdaterError):
    """Outside the maintenance window that was asked for."""

    exit_code = 36
    kind = "window closed"


class DatabaseFailed(UpdaterError):
    """A database cannot be reached or used, or refused a statement."""

    exit_code = 37
    kind = "database"


class MigrationStopped(UpdaterError):
    """A migration stopped at a point from which it can go on: a lock, a limit, a deadline, a lost connection."""

    exit_code = 38
    kind = "migration stopped"


class MigrationFailed(UpdaterError):
    """A migration cannot go on by itself: a statement that failed or is half there, or a history that was edited."""

    exit_code = 39
    kind = "migration failed"


class CommandFailed(UpdaterError):
    """A program that was called failed, is missing, or overran its time limit."""

    exit_code = 40
    kind = "command"


class ZduRefused(UpdaterError):
    """A rule of the zero-downtime upgrade forbids it: what is asked for would put service, calls or money at risk."""

    exit_code = 50
    kind = "rule"


class SiteUnreachable(UpdaterError):
    """A server of a site cannot be reached, or is not the one that its host key says."""

    exit_code = 51
    kind = "site unreachable"


class GateNotPassed(UpdaterError):
    """What must be true before a zero-downtime upgrade goes on did not become true in time."""

    exit_code = 52
    kind = "gate"


class FencedOff(UpdaterError):
    """Another controller holds the run: this one may do nothing any more."""

    exit_code = 53
    kind = "fenced off"


class Interrupted(UpdaterError):
    """Ctrl-C (130), SIGTERM (143) or SIGHUP (129) reached us; the step under way was left in a state that resume
    understands."""

    exit_code = 130
    kind = "interrupted"


class Terminated(Interrupted):
    """SIGTERM: as `Interrupted`, with the exit code that init systems expect."""

    exit_code = 143
    kind = "terminated"


class HungUp(Interrupted):
    """SIGHUP: as `Interrupted`; the terminal is gone, with an ssh line perhaps."""

    exit_code = 129
    kind = "hung up"
