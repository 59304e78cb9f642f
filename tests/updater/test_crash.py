"""Power is lost, or the process killed, at every point of every story; then resume, or abort, must end well. Which of
the two, and whether after a power cycle, is drawn for each point; ``make test-long`` tries all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from patches.registry import Kind, Registry
from templates.store import Author, Store
from templates.tree import GLOBAL
from tests.conftest import Drawn
from tests.updater.crash import Scenario, Tried, die_at, in_child, points, step_names, try_all
from tests.updater.lab import IMAGE, ROOMY, Lab, add_data, add_hooks, copy_sandbox, do, make_unhealthy
from updater.hooks import MOMENTS
from updater.node import open_node
from updater.status import AGAIN, CARRIED
from updater.upgrade import activate_steps, open_bundle, rollback_steps, stage_steps

#: All in one process: the last test looks at what all the others have passed.
pytestmark = pytest.mark.xdist_group("crash")

#: What a scenario begins with: verbs done to a fresh sandbox, each a list of words; the release of a bundle for stage.
Begin = tuple[tuple[str, ...], ...]

STAGED: Begin = (("stage", "MR96-1"),)
CONFIRMED: Begin = (*STAGED, ("activate",))  # b runs MR96-1, a is its way back
BACK: Begin = (*CONFIRMED, ("rollback",))  # a runs MR95-1, b holds MR96-1, confirmed


@dataclass(frozen=True)
class Case:
    """One scenario: what was done before, the verb that dies, and where a run is already open, at which point it was
    left open. `unhealthy`: a release whose health check fails. `finish`: the verb whose end `resume` may come to.
    `only`: the steps whose points are tried, where another case tries the others. `carried`: what the operator carries
    (see `carry`): "all"; or "edited" or "applied", where a kept file is edited, or a configuration is applied, after
    staging. `data`: the node serves a database.
    """

    begin: Begin
    act: tuple[str, ...]
    left_at: str = ""
    left_verb: tuple[str, ...] = ()
    unhealthy: str = ""
    finish: str = ""
    hooks: tuple[str, ...] = ()
    slot: int = IMAGE
    only: tuple[str, ...] = ()
    carried: str = ""
    data: bool = False


CASES = {
    "stage": Case((), ("stage", "MR96-1")),
    "stage, with hooks": Case((), ("stage", "MR96-1"), hooks=MOMENTS, only=MOMENTS),
    "stage, with room to grow": Case((), ("stage", "MR96-1"), slot=ROOMY, only=("grow",)),
    "stage, with all that is carried": Case((), ("stage", "MR96-1"), slot=ROOMY, only=CARRIED, carried="all"),
    "activate, kept files edited": Case((), ("activate",), slot=ROOMY, only=("files-again",), carried="edited"),
    "activate, configuration applied": Case(
        (), ("activate",), slot=ROOMY, only=("configuration-again",), carried="applied"
    ),
    "stage, with migrations": Case((), ("stage", "MR96-1 with data"), only=("migrate",), data=True),
    "activate, with migrations": Case(
        (("stage", "MR96-1 with data"),), ("activate",), only=("migrate-blocking", "flip"), data=True
    ),
    "activate, with migrations, fails": Case(
        (("stage", "MR96-1 with data"),), ("activate",), only=("migrate-blocking",), data=True, unhealthy="MR96-1"
    ),
    "abort of activate, migrated": Case(
        (("stage", "MR96-1 with data"),),
        ("abort",),
        "migrate-blocking:applied",
        ("activate",),
        finish="resume",
        data=True,
    ),
    "stage over a staged release": Case(STAGED, ("stage", "MR96-2")),
    "stage over a confirmed release": Case(BACK, ("stage", "MR96-2")),
    "stage over the way back": Case(CONFIRMED, ("stage", "MR97-1")),
    "stage the same again": Case(STAGED, ("stage again", "MR96-1")),
    "activate": Case(STAGED, ("activate",)),
    "activate, with hooks": Case(STAGED, ("activate",), hooks=MOMENTS, only=MOMENTS),
    "activate, fails": Case(STAGED, ("activate",), unhealthy="MR96-1", hooks=("after-fallback",)),
    "activate a confirmed slot": Case(BACK, ("activate",)),
    "activate a confirmed slot, fails": Case(BACK, ("activate",), unhealthy="MR96-1"),
    "rollback": Case(CONFIRMED, ("rollback",)),
    "rollback, with hooks": Case(CONFIRMED, ("rollback",), hooks=MOMENTS, only=MOMENTS),
    "rollback before it is confirmed": Case(STAGED, ("rollback",), "health:intended", ("activate",), finish="resume"),
    "abort of stage": Case((), ("abort",), "write:flushed", ("stage", "MR96-1"), finish="resume"),
    "abort of stage over the way back": Case(
        CONFIRMED, ("abort",), "mark:applied", ("stage", "MR97-1"), finish="resume"
    ),
    "abort of activate, not booted": Case(STAGED, ("abort",), "flip:applied", ("activate",), finish="resume"),
    "abort of activate, booted": Case(STAGED, ("abort",), "health:intended", ("activate",), finish="resume"),
    "abort of rollback": Case(CONFIRMED, ("abort",), "flip-back:done", ("rollback",), finish="resume"),
    "resume of stage": Case((), ("resume",), "write:before-flush", ("stage", "MR96-1")),
    "resume of activate, not booted": Case(STAGED, ("resume",), "flip:applied", ("activate",)),
    "resume of activate, booted": Case(STAGED, ("resume",), "health:intended", ("activate",)),
    "resume of rollback": Case(CONFIRMED, ("resume",), "flip-back:intended", ("rollback",)),
}


@dataclass
class Tally:
    """What all scenarios together came to."""

    tried: dict[str, Tried] = field(default_factory=dict)
    seconds: float = 0.0


@pytest.fixture(scope="module")
def prepare(lab: Lab, memory: Path) -> Callable[[Case, str], Path]:
    """Makes the sandbox that a case begins with."""
    cache: dict[tuple[int, Begin, bool], Path] = {}

    def begun(begin: Begin, slot: int, data: bool) -> Path:
        if (slot, begin, data) not in cache:
            before = begun(begin[:-1], slot, data) if begin else None
            home = memory / f"begun-{len(cache)}"
            if before is not None:
                config = copy_sandbox(before, home)
                act = _act(lab, begin[-1])  # makes bundles, which must outlive the child
                in_child(lambda: act(config))
            else:
                config = lab.sandbox(home, slot=slot)
                if data:
                    add_data(config)
            cache[slot, begin, data] = home
        return cache[slot, begin, data]

    def make(case: Case, name: str) -> Path:
        config = copy_sandbox(begun(case.begin, case.slot, case.data), memory / f"prepared-{name}")
        add_hooks(config.parent, case.hooks)
        if case.unhealthy:
            make_unhealthy(config.parent, case.unhealthy)
        if case.carried:
            in_child(lambda: carry(config))
        if case.carried in ("edited", "applied"):
            bundle = lab.bundle("MR96-1")
            in_child(lambda: do(config, "stage", bundle))
        if case.carried == "edited":
            (config.parent / "root/etc/ops/one").write_text("edited\n")
        if case.carried == "applied":
            in_child(lambda: apply(config, "ssh.port", 2222))
        if case.left_at:
            act = _act(lab, case.left_verb)
            trial = copy_sandbox(config.parent, memory / f"trial-{name}")
            wanted = next(point for point in points(lambda: act(trial)) if point.name == case.left_at)
            assert die_at(wanted, lambda: act(config))
        return config.parent

    return make


def carry(config: Path) -> None:
    """A patch, kept files and an applied configuration."""
    (config.parent / "root/etc/ops").mkdir(parents=True)
    for name in ("one", "two"):
        (config.parent / "root/etc/ops" / name).write_text(f"{name}\n")
    with Registry.of(config.parent / "data") as registry:
        registry.add(Kind.FILE, "/etc/ops", facts={"policy": "ask"})
        registry.add(Kind.PATCH, "0001-new", content=b"--- /dev/null\n+++ b/etc/new.conf\n@@ -0,0 +1 @@\n+new\n")
    apply(config, "ssh.port", 22)


def apply(config: Path, option: str, value: int) -> None:
    """A configuration in which this is set."""
    with Store.open(config.parent / "data/configuration.sqlite") as store:
        draft = store.clone(None, Author(who="erika"))
        store.set(draft.version, GLOBAL, option, value, Author(who="erika"))
        store.apply(draft.version, Author(who="erika"))


def _act(lab: Lab, words: tuple[str, ...]) -> Callable[[Path], object]:
    arguments = [
        lab.with_data(word.split()[0]) if word.endswith("with data") else lab.bundle(word) for word in words[1:]
    ]
    if words[0] == "stage again":
        return lambda config: do(config, "stage", *arguments, again=True)
    return lambda config: do(config, words[0], *arguments)


@pytest.fixture(scope="module")
def tally() -> Tally:
    return Tally()


@pytest.mark.parametrize("name", CASES)
def test_death_at_every_point(
    name: str,
    lab: Lab,
    memory: Path,
    prepare: Callable[[Case, str], Path],
    tally: Tally,
    drawn: Drawn,
    record_property: Callable[[str, object], None],
) -> None:
    case = CASES[name]
    begun = time.monotonic()
    label = name.replace(" ", "-").replace(",", "")
    scenario = Scenario(
        name=name,
        prepared=prepare(case, label),
        act=_act(lab, case.act),
        finish=_act(lab, (case.finish,)) if case.finish else None,
        only=frozenset(case.only),
        same_bytes=not case.carried,
    )
    tried = try_all(scenario, memory / f"crash-{label}", drawn)
    tally.tried[name] = tried
    tally.seconds += time.monotonic() - begun
    record_property("crash points", tried.crashes)
    print(f"{name}: {tried.crashes} deaths, {tried.ends} ways on, {time.monotonic() - begun:.1f} s")
    assert tried.crashes > 4
    print("\n".join(tried.faults))
    if tried.faults:
        pytest.fail(f"{len(tried.faults)} faults:\n" + "\n".join(tried.faults[:40]), pytrace=False)


def test_every_step_of_every_story_is_covered(tally: Tally, lab: Lab, place: Path) -> None:
    """Also the steps that are made tomorrow: the stories are asked for their steps, and the harness for the points."""
    if set(tally.tried) != set(CASES):
        pytest.skip("only after all scenarios")
    seen = {point.name for tried in tally.tried.values() for point in tried.points}
    config = lab.sandbox(place / "node")
    add_hooks(config.parent, MOMENTS)
    with open_node(config) as node, open_bundle(node, str(lab.bundle("MR96-1"))) as bundle:
        from updater.staging import Target

        target = Target(node=node, bundle=bundle, slot="b", source="", carried=CARRIED)
        stories = [
            stage_steps(node, target, ["billing"]),
            activate_steps(node, "b", False, carried=AGAIN, databases=["billing"]),
            rollback_steps(node, "b", False),
        ]
    names = {step.name for story in stories for step in story}
    assert names == step_names() | set(MOMENTS) - {"after-fallback"}
    # these need a mount, packages or a backup: test_carry.py, test_carrying.py and test_migrating.py have them die
    quiet = {"carry", "packages", "backup"}
    for name in names:
        assert f"journal:intend:{name}" in seen or name in ("packages", "backup"), f"nothing died before {name}"
        assert name in quiet or f"{name}:intended" in seen, f"nothing died in {name}"
    print(
        f"{sum(tried.crashes for tried in tally.tried.values())} deaths, "
        f"{sum(tried.ends for tried in tally.tried.values())} ways on, {tally.seconds:.0f} s"
    )
