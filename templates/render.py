"""What the local files of a node should hold: templates and a configuration in, texts out. Nothing is written here.

The work is done by `templates.worker` in a confined process; all faults of all templates come back at once.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from dataclasses import asdict, dataclass
from typing import Any

from core.errors import CommandFailed, ModificationConflict
from core.run import run
from templates.manifest import FileSpec, Shipped
from templates.masking import Mask
from templates.store import secrets_in
from templates.tree import Tree

#: So many templates compile in the time that a process takes to start.
_WORTH_A_PROCESS = 40


#: The worker finds our packages where this process found them, and looks nowhere else.
_WORKER = "import sys; sys.path[:] = sys.argv[1:]; from templates.worker import main; main()"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What templates are told of the node beside the configuration. `release`: the one that the files are for."""

    name: str
    release: str = ""
    site: str = ""
    role: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What rendering may cost: CPU seconds and bytes of output per file and for all, bytes of memory."""

    seconds: float = 2.0
    seconds_all: float = 20.0
    output: int = 8 << 20
    output_all: int = 64 << 20
    memory: int = 768 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One file as it should be. `content` is None when its condition does not hold. `used`: options that were looked
    at; `sensitive`: a secret was among them.
    """

    spec: FileSpec
    target: str
    content: bytes | None
    used: tuple[str, ...]
    sensitive: bool
    restart: tuple[str, ...]
    reload: tuple[str, ...]


def render(shipped: Shipped, tree: Tree, node: NodeFacts, limits: Limits | None = None) -> list[Rendered]:
    """Render everything that the release ships for this node. The tree has the names of this release (`upgraded`).

    Raises ModificationConflict with every fault; nothing in it shows a secret.
    """
    limits = limits or Limits()
    jobs = _jobs(shipped, tree, node)
    secrets = shipped.schema.secrets
    mask = Mask(secrets_in([tree], secrets))
    answers = _work(shipped, tree, node, jobs, limits)
    faults = [mask(answer["fault"]) for answer in answers if "fault" in answer]
    if faults:
        raise _fault(faults)
    made = []
    for (spec, instance), answer in zip(jobs, answers, strict=True):
        names = {"instance": instance, "node": node.name}
        content = None if answer["text"] is None else base64.b64decode(answer["text"])
        made.append(
            Rendered(
                spec=spec,
                target=_filled(spec.target, names),
                content=content if content is None else _header(spec) + content,
                used=tuple(answer["used"]),
                sensitive=not secrets.isdisjoint(answer["used"]),
                restart=tuple(_filled(unit, names) for unit in spec.restart),
                reload=tuple(_filled(unit, names) for unit in spec.reload),
            )
        )
    doubles = sorted({each.target for each in made if sum(each.target == other.target for other in made) > 1})
    if doubles:
        raise _fault([f"{target}: two templates write it" for target in doubles])
    return made


def _jobs(shipped: Shipped, tree: Tree, node: NodeFacts) -> list[tuple[FileSpec, str]]:
    """Each file with the instance that it is for."""
    mine = tree.instances_on(node.name)
    if node.role and not mine:  # a server that the configuration does not name yet
        known = {node.name: node.role}
    else:
        known = {name: each.application for name, each in mine.items()}
    jobs = []
    for spec in shipped.manifest.files:
        if not spec.application:
            jobs.append((spec, node.name))
        jobs += [(spec, name) for name, application in sorted(known.items()) if application == spec.application]
    return jobs


def _header(spec: FileSpec) -> bytes:
    """Says where the file comes from. Nothing in it changes from one configuration to the next, or every file would."""
    if not spec.comment:
        return b""
    return (
        f"{spec.comment} Written by updater from the template {spec.template}: changes made here will be lost.\n"
        f"{spec.comment} Change the configuration instead: updater config list; updater config get OPTION --explain\n"
    ).encode()


def _filled(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(f"{{{name}}}", value.replace("/", "-"))
    return text


def _work(
    shipped: Shipped, tree: Tree, node: NodeFacts, jobs: list[tuple[FileSpec, str]], limits: Limits
) -> list[dict[str, Any]]:
    """The answers, in the order of the jobs. Many jobs are shared out among processes: compiling is all CPU."""
    from concurrent.futures import ThreadPoolExecutor

    workers = max(1, min(os.cpu_count() or 1, len(jobs) // _WORTH_A_PROCESS))
    shares = [jobs[number::workers] for number in range(workers)]
    with ThreadPoolExecutor(max_workers=workers) as pool:
        answers = list(pool.map(lambda share: _work_share(shipped, tree, node, share, limits), shares))
    if any(len(own) < len(share) for own, share in zip(answers, shares, strict=True)):  # it stopped at a fault
        return [answer for own in answers for answer in own]
    return [answers[number % workers][number // workers] for number in range(len(jobs))]


def _work_share(
    shipped: Shipped, tree: Tree, node: NodeFacts, jobs: list[tuple[FileSpec, str]], limits: Limits
) -> list[dict[str, Any]]:
    job = {
        "values": [(place.level, place.name, dict(own)) for place, own in tree.values.items()],
        "instances": {name: asdict(each) for name, each in tree.instances.items()},
        "defaults": shipped.schema.defaults,
        "node": asdict(node),
        "texts": shipped.texts,
        "files": [{"template": spec.template, "instance": instance, "when": spec.when} for spec, instance in jobs],
        "limits": asdict(limits),
    }
    try:
        done = run(
            sys.executable, "-I", "-c", _WORKER, *filter(None, sys.path),
            input=json.dumps(job), timeout=30 + 10 * limits.seconds_all, check=False,
        )  # fmt: skip
        if done.code == 0:
            answers: list[dict[str, Any]] = json.loads(done.stdout)
            return answers
        told = done.stderr
    except CommandFailed as error:  # the kernel ended it at one of the hard limits, or it hung
        told = "\n".join(error.what[1:])
    except ValueError:
        told = ""
    names = {spec.template for spec, _ in jobs}
    last = next((line for line in reversed(told.splitlines()) if line in names), "")
    if last:
        raise _fault([f"{last}: overran its limits of time or memory and was ended"])
    raise CommandFailed("templates cannot be rendered", what=_last(told), state="nothing was changed")


def _last(told: str) -> str:
    """Why the process itself failed, which is a fault of ours and not of a template."""
    return (told.splitlines() or ["the rendering process failed"])[-1][:200]


def _fault(faults: list[str]) -> ModificationConflict:
    return ModificationConflict(
        f"{len(faults)} template{'s' * (len(faults) != 1)} cannot be rendered",
        what=faults,
        state="nothing was written",
        next=[
            "updater config validate            shows values that do not fit the release",
            "updater config get OPTION --explain    shows where a value comes from",
        ],
    )
