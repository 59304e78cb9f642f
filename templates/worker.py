"""Renders templates in a process of its own, with nothing to reach and little to spend; `templates.render` starts it.

One JSON object on standard input, one on standard output. A template that runs for ever, eats memory or writes without
end is stopped and named. Templates come from a signed release, but a fault in one must never hang a node at night.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import resource
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from templates.options import Level
from templates.tree import Instance, Place, Target, Tree, resolve

_NOBODY = 65534


class TooMuch(BaseException):
    """A template overran one of its limits. No Exception, so that nothing on the way takes it for one of its own."""


class Group:
    """The options of a group for one target: ``{{ ssh.port }}``. Remembers whether a secret was looked at."""

    __slots__ = ("_seen", "_values")

    def __init__(self, values: Mapping[str, Any], seen: set[str], name: str) -> None:
        self._values = {option: (f"{name}.{option}", value) for option, value in values.items()}
        self._seen = seen

    def __getitem__(self, option: str) -> Any:
        whole, value = self._values[option]
        self._seen.add(whole)
        return value

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)


class Scope(Mapping[str, Any]):
    """The groups of one target, resolved when first asked for."""

    def __init__(self, job: Job, target: Target, more: Mapping[str, Any]) -> None:
        self._job, self._target, self._more = job, target, more
        self._groups: dict[str, Group] | None = None

    def _resolved(self) -> dict[str, Group]:
        if self._groups is None:
            split: dict[str, dict[str, Any]] = {}
            for whole, value in resolve(self._job.tree, self._target, self._job.defaults).items():
                group, _, option = whole.partition(".")
                split.setdefault(group, {})[option] = value
            self._groups = {name: Group(own, self._job.seen, name) for name, own in split.items()}
        return self._groups

    def __getitem__(self, name: str) -> Any:
        return self._more[name] if name in self._more else self._resolved()[name]

    def __iter__(self) -> Iterator[str]:
        return iter({**self._resolved(), **self._more})

    def __len__(self) -> int:
        return len({**self._resolved(), **self._more})


class Job:
    """What was asked for, and the values that templates see."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.tree = Tree(
            values={Place(Level(level), name): own for level, name, own in data["values"]},
            instances={name: Instance(**each) for name, each in data["instances"].items()},
        )
        self.defaults: dict[str, Any] = data["defaults"]
        self.node: dict[str, str] = data["node"]
        self.texts: dict[str, str] = data["texts"]
        self.files: list[dict[str, str]] = data["files"]
        self.limits: dict[str, float] = data["limits"]
        self.seen: set[str] = set()

    def scope(self, name: str, environment: str = "") -> Scope:
        """What a template for the instance sees."""
        known = self.tree.instances.get(name)
        application = known.application if known else self.node["role"] if name == self.node["name"] else ""
        server = known.server if known else name
        own = {"name": name, "application": application, "server": server}
        target = Target(application=application, instance=name, environment=environment)
        return Scope(self, target, {"instance": own, **own} if not environment else {"name": environment})

    def context(self, name: str) -> dict[str, Any]:
        """All names of a template for the instance, groups resolved."""
        return {
            **self.scope(name),
            "node": self.node,
            "release": self.node["release"],
            "instances": [self.scope(each) for each in sorted(self.tree.instances)],
            "environments": [self.scope(name, each) for each in self.tree.environments()],
        }


def _environment(texts: dict[str, str]) -> Any:
    from jinja2 import FunctionLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FunctionLoader(lambda name: (texts[name], name, None) if name in texts else None),
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        cache_size=-1,
    )
    environment.filters["sh"] = lambda value: shlex.quote(str(value))
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment


def _confine(limits: Mapping[str, float]) -> None:
    """Give away what rendering does not need. Everything is imported by now."""
    with suppress(OSError):
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    memory = int(limits["memory"])
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_CPU, int(limits["seconds_all"]) + 1),
        (resource.RLIMIT_NOFILE, 3),  # the three that are open: nothing else can be
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        with suppress(OSError, ValueError):
            resource.setrlimit(what, (most, most))


def _too_long(*_: object) -> None:
    raise TooMuch("takes too long")


def _rendered(environment: Any, file: Mapping[str, str], context: dict[str, Any], most: float) -> str | None:
    if file["when"] and not environment.compile_expression(file["when"], undefined_to_none=False)(**context):
        return None
    parts, size = [], 0
    for part in environment.get_template(file["template"]).generate(context):
        size += len(part)
        if size > most:
            raise TooMuch(f"writes more than {int(most) >> 20} MiB")
        parts.append(part)
    return "".join(parts)


def _one(job: Job, environment: Any, file: Mapping[str, str], contexts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    from jinja2 import TemplateSyntaxError

    job.seen.clear()
    try:
        signal.setitimer(signal.ITIMER_PROF, job.limits["seconds"])
        name = file["instance"]
        if name not in contexts:
            contexts[name] = job.context(name)
        text = _rendered(environment, file, contexts[name], job.limits["output"])
        encoded = None if text is None else base64.b64encode(text.encode()).decode()
        return {"text": encoded, "used": sorted(job.seen)}
    except TemplateSyntaxError as error:
        return {"fault": f"{error.name or file['template']}, line {error.lineno}: {error.message}"}
    except TooMuch as error:
        return {"fault": f"{file['template']}: {error}"}
    except MemoryError:
        return {"fault": f"{file['template']}: needs too much memory"}
    except Exception as error:
        return {"fault": f"{_place(error, file)}: {error or type(error).__name__}"}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _place(error: BaseException, file: Mapping[str, str]) -> str:
    """The template and line where it happened, as Jinja has rewritten the traceback."""
    place, at = file["template"], error.__traceback__
    while at is not None:
        name = at.tb_frame.f_code.co_filename
        if name.endswith(".j2"):
            place = f"{name}, line {at.tb_lineno}"
        at = at.tb_next
    return place


def main() -> None:
    """Read the job, render, answer."""
    job = Job(json.load(sys.stdin))
    environment = _environment(job.texts)
    with suppress(Exception):  # has Jinja import what it imports late
        environment.from_string('{{ [1] | join("x") | json | sh }}{{ nothing }}').render()
    signal.signal(signal.SIGPROF, _too_long)
    gc.freeze()
    gc.set_threshold(100_000)  # compiling templates makes much that lives to the end
    _confine(job.limits)
    answers, total = [], 0
    contexts: dict[str, dict[str, Any]] = {}
    for file in job.files:
        print(file["template"], file=sys.stderr, flush=True)  # the last one named is to blame when the kernel ends us
        answer = _one(job, environment, file, contexts)
        total += len(answer.get("text") or "")
        if total > job.limits["output_all"]:
            answers.append({"fault": f"{file['template']}: all files together are too large"})
            break
        answers.append(answer)
    json.dump(answers, sys.stdout)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
