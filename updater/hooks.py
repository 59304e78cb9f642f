"""The operator's hooks: drop-in directories of executables, run before and after each verb.

``<directory>/before-stage.d/*`` and so on, in the order of their names. Each gets the facts as one JSON object on its
standard input. A *before* hook that fails stops the verb with nothing changed; an *after* hook that fails is reported.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from core.errors import CommandFailed, HookFailed
from core.journal import Facts, StepRecord, StepState
from core.report import Report
from core.run import run
from updater.node_toml import HooksConfig

#: Every moment that hooks can be hung on.
MOMENTS = (
    "before-stage",
    "after-stage",
    "before-activate",
    "after-activate",
    "before-confirm",
    "after-confirm",
    "before-rollback",
    "after-rollback",
    "after-fallback",
)


def hooks_at(config: HooksConfig, moment: str) -> list[Path]:
    """The executables hung on a moment, in the order they run."""
    directory = config.directory / f"{moment}.d"
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if path.is_file() and os.access(path, os.X_OK))


def run_hooks(config: HooksConfig, moment: str, facts: Facts, report: Report) -> int:
    """Run the hooks of a moment, each within `config.deadline` seconds, and return how many ran.

    Raises HookFailed at the first *before* hook that fails; failing *after* hooks become warnings.
    """
    found = hooks_at(config, moment)
    for hook in found:
        try:
            run(hook, input=json.dumps({"moment": moment, **facts}), timeout=config.deadline)
        except CommandFailed as error:
            if not moment.startswith("before-"):
                report.warning(f"hook {hook.name} ({moment}) failed: {error.message}")
                continue
            raise HookFailed(
                f"hook {hook} stops this: {error.message}",
                what=error.what,
                next=[f"mend what {hook.name} complains of and try again", f"chmod -x {hook}    switches it off"],
            ) from error
    return len(found)


def hooks(config: HooksConfig, moment: str, facts: Facts) -> list[Hooks]:
    """The step that runs the hooks of a moment, in a list; an empty one where there are no hooks."""
    return [Hooks(config=config, moment=moment, facts=facts)] if hooks_at(config, moment) else []


@dataclass(frozen=True, slots=True, kw_only=True)
class Hooks:
    """A step that runs the hooks of one moment. Hooks may run again after a crash: that is in their contract."""

    config: HooksConfig
    moment: str
    facts: Facts

    @property
    def name(self) -> str:
        """Named after the moment."""
        return self.moment

    def describe(self) -> str:
        """The hooks by name."""
        return f"hooks: {', '.join(hook.name for hook in hooks_at(self.config, self.moment))}"

    def is_done(self, record: StepRecord | None) -> bool:
        """A hook's effect cannot be asked for, so here the record counts."""
        return record is not None and record.state is StepState.DONE

    def before(self) -> Facts:
        """Nothing to remember."""
        return {}

    def apply(self, facts: Facts, report: Report) -> str:
        """Run them in order."""
        count = run_hooks(self.config, self.moment, self.facts, report)
        return f"{count} hook{'s' * (count != 1)}"

    def undo(self, facts: Facts) -> None:
        """Hooks are the operator's; there is nothing we could undo."""
