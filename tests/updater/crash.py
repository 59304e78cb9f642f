"""The crash harness: a scenario dies at every point that it passes, and what is left is resumed or aborted.

The points are not listed anywhere: a recording run finds them (`points`), so a new step, hook or point is taken in by
itself. The dying is real: the scenario runs in a child process that ends with `os._exit`, so no `finally` and no
`with` gets a chance, locks and mounts go as the kernel takes them, and what counts is what the files hold then.
"""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import signal
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from core import faults
from partitions.boot.state import other
from tests.updater.lab import attempt, copy_sandbox, look, power_cycle
from updater.status import STEPS, Indicator, Status

T = TypeVar("T")
Seen = dict[str, Any]

#: How one goes on after a death: whether the power was off in between, and the verb.
Way = tuple[bool, str]
WAYS: tuple[Way, ...] = ((False, "resume"), (False, "abort"), (True, "resume"), (True, "abort"))

#: Exit code of a child that died at the point where it should.
DIED = 77


# -- processes


class ChildFailed(AssertionError):
    """Something was raised in a child process: its traceback."""


def in_child(action: Callable[[], T]) -> T | None:
    """Run `action` in a forked process and return what it returns; None when it died at a crash point."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            gc.disable()  # it would touch, and so copy, every page that is shared with the parent
            try:
                answer: tuple[bool, Any] = (True, action())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writing, "wb") as out:
                pickle.dump(answer, out)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    try:
        with os.fdopen(reading, "rb") as source:
            raw = source.read()
    except BaseException:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        raise
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == DIED:
        return None
    if code != 0:
        raise ChildFailed(f"the child ended with {code}")
    good, value = pickle.loads(raw)
    if not good:
        raise ChildFailed(value)
    result: T = value
    return result


def spread(jobs: Sequence[Callable[[], T]]) -> list[T]:
    """Do all jobs, in as many forked processes as there are cores. In the order of the jobs."""
    workers = len(os.sched_getaffinity(0))
    results: dict[int, T] = {}
    errors: list[BaseException] = []

    def work(part: int) -> None:
        try:
            done = in_child(lambda: {n: jobs[n]() for n in range(part, len(jobs), workers)})
            results.update(done or {})
        except BaseException as error:
            errors.append(error)

    # The threads only wait for the processes that they forked.
    threads = [threading.Thread(target=work, args=(part,)) for part in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return [results[n] for n in range(len(jobs))]


# -- points


@dataclass(frozen=True, slots=True)
class Point:
    """The `number`-th passing (from 1) of the point `name` while the step `during` is the last one heard of."""

    during: str
    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}#{self.number} ({self.during or 'no step yet'})"


class _Counter:
    """Names the points that are passed. Threads may pass points at the same time."""

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()
        self.order: list[Point] = []
        self._during = ""
        self._lock = threading.Lock()

    def passed(self, name: str) -> Point:
        with self._lock:
            if name.startswith("journal:intend:"):
                self._during = name.removeprefix("journal:intend:")
            key = (self._during, name)
            self.seen[key] += 1
            point = Point(*key, self.seen[key])
            self.order.append(point)
            return point


def points(act: Callable[[], object]) -> list[Point]:
    """The points that `act` passes, run once in a child; of those passed often in one step the first, a middle and the
    last time.
    """

    def record() -> list[Point]:
        counter = _Counter()
        faults.arm(lambda name: void(counter.passed(name)))
        act()
        faults.arm(None)
        return [
            point
            for point in counter.order
            if point.number in (1, (last := counter.seen[point.during, point.name]) // 2 + 1, last)
        ]

    found = in_child(record)
    assert found is not None
    return found


def die_at(point: Point, act: Callable[[], object]) -> bool:
    """Run `act` in a child that dies at the point. False: it never came there."""

    def doomed() -> bool:
        counter = _Counter()

        def check(name: str) -> None:
            if counter.passed(name) == point:
                os._exit(DIED)

        faults.arm(check)
        act()
        return False

    return in_child(doomed) is None


def void(_: object) -> None:
    """Swallow a value."""


# -- scenarios


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is done (`act`, with a node.toml) to a copy of a prepared sandbox.

    `resumed`: verbs that `resume` may stand for once the run is over or never began (default: `act` itself).
    `only`: steps whose points are tried (default: all). `same_bytes`: whether slots come out byte for byte equal.
    """

    name: str
    prepared: Path
    act: Callable[[Path], object]
    finish: Callable[[Path], object] | None = None
    only: frozenset[str] = frozenset()
    same_bytes: bool = True


@dataclass
class Tried:
    """What a scenario came to: the points, how many crashes were played, and every fault found."""

    points: list[Point] = field(default_factory=list)
    crashes: int = 0
    ends: int = 0
    faults: list[str] = field(default_factory=list)


def try_all(scenario: Scenario, work: Path, drawn: Callable[[Sequence[Way]], list[Way]]) -> Tried:
    """Die at every point of the scenario, and go on in the ways that are drawn for each."""
    work.mkdir()
    tried = Tried()
    recording = copy_sandbox(scenario.prepared, work / "recording")
    tried.points = [
        point for point in points(lambda: scenario.act(recording)) if not scenario.only or point.during in scenario.only
    ]
    known = _Known.of(scenario, work)
    jobs = [_job(scenario, known, point, drawn(WAYS), work / f"p{n}") for n, point in enumerate(tried.points)]
    for point, (ends, found) in zip(tried.points, spread(jobs), strict=True):
        tried.crashes += 1
        tried.ends += ends
        tried.faults += [f"{scenario.name}, dead at {point}, {fault}" for fault in found]
    shutil.rmtree(work)
    return tried


@dataclass(frozen=True, kw_only=True)
class _Known:
    """How things look where nobody died: before, after the scenario, and after the prepared run is finished instead."""

    before: Seen
    after: Seen
    finished: Seen
    aborted: Seen
    complete: frozenset[str]

    @property
    def ends(self) -> list[Seen]:
        """Where it may end."""
        return [self.after, self.finished, self.aborted]

    @classmethod
    def of(cls, scenario: Scenario, work: Path) -> _Known:
        copies = {name: copy_sandbox(scenario.prepared, work / f"known-{name}") for name in ("after", "finished", "ab")}
        before = _in_child(lambda: look(copies["after"]))
        void(in_child(lambda: scenario.act(copies["after"])))
        void(in_child(lambda: (scenario.finish or scenario.act)(copies["finished"])))
        void(in_child(lambda: attempt(copies["ab"], "abort")))
        after, finished, aborted = (
            _in_child(lambda config=config: look(config))  # type: ignore[misc]
            for config in copies.values()
        )
        ends = [before, after, finished]
        return cls(
            before=before,
            after=after,
            finished=finished,
            aborted=aborted,
            # A slot holds a complete system if an undisturbed run ever booted it or sealed it like this.
            complete=frozenset(
                end["content"][slot]
                for end in ends
                for slot in "ab"
                if slot == end["booted"] or "good" in end["environment"][slot] or "seal" in end["records"][slot]
            ),
        )


def _job(
    scenario: Scenario, known: _Known, point: Point, ways: Sequence[Way], work: Path
) -> Callable[[], tuple[int, list[str]]]:
    def job() -> tuple[int, list[str]]:
        work.mkdir()
        dead = copy_sandbox(scenario.prepared, work / "dead")
        found: list[str] = []
        ends = 0
        if not die_at(point, lambda: scenario.act(dead)):
            found.append("the point was not reached again")
        left = _in_child(lambda: look(dead))
        found += _judge_dead(left, known, scenario)
        for power, way in ways:
            ends += 1
            config = copy_sandbox(work / "dead", work / f"{way}-{power}")
            label = f"{'power cycle, ' if power else ''}{way}: "
            try:
                found += [label + fault for fault in _go_on(scenario, known, config, left, way=way, power=power)]
            except ChildFailed as error:
                found.append(f"{label}{error}")
        shutil.rmtree(work)
        return ends, found

    return job


# -- what must hold


def _go_on(scenario: Scenario, known: _Known, config: Path, dead: Seen, *, way: str, power: bool) -> list[str]:
    """Go on after the crash, in processes of their own, and say what is wrong in the end."""
    found: list[str] = []
    left = dead
    if power:
        told, left = _in_child(lambda: (attempt_after_boot(config), look(config)))
        # "wrong state" is how confirm says that an interrupted run needs a decision.
        if not told.startswith(("done", "nothing", "fell-back", "wrong state: ")):
            found.append(f"confirm says {told!r}")
        found += _judge_dead(left, known, scenario)
    never_began = left["runs"] == known.before["runs"] and left["open run"] == known.before["open run"] is None

    def on() -> tuple[str, Seen]:
        if left["open run"]:
            said = attempt(config, way)
        elif never_began:
            said = str(scenario.act(config)) if way == "resume" else "nothing to abort"
        else:
            said = "the run is over"
        seen = look(config)
        if seen["next boot"] != seen["booted"] and seen["open run"] is None:  # died just before the reboot
            attempt_after_boot(config)
            seen = look(config)
        if said.startswith("rollback refused"):  # from a slot that was never confirmed the way leads only on
            attempt(config, "resume")
            seen = look(config)
        return said, seen

    said, seen = _in_child(on)
    found += _judge_end(seen, known, scenario)
    found += [
        f"slot {slot} is said to be staged, and its seal is broken"
        for slot, shown in seen["slots"].items()
        if shown.endswith("staged") and seen["records"][slot].get("seal") != "holds"
    ]
    if seen["open run"] is not None:
        found.append(f"{said!r}, and a run is still open: {seen['open run']}")
    elif way == "resume" or said == "the run is over" or said.startswith("rollback refused"):
        ends = [known.after, known.finished] if said != "the run is over" else known.ends
        found += _differences(seen, *ends, scenario=scenario)
        missed = known.after["hooks"] - seen["hooks"]
        if missed and seen["last run"] == known.after["last run"]:
            found.append(f"hooks that never ran: {', '.join(sorted(missed))}")
    else:
        found += _judge_abort(seen, dead, known, said, rebooted=power, same_bytes=scenario.same_bytes)
    return found


def attempt_after_boot(config: Path) -> str:
    """Power off and on, and what systemd starts then."""
    power_cycle(config)
    return attempt(config, "confirm")


def _judge_dead(seen: Seen, known: _Known, scenario: Scenario) -> list[str]:
    """What holds at any moment: it boots into something complete, and status says something sensible."""
    shown: Status = seen["status"]
    found = _judge_end(seen, known, scenario)
    if seen["open run"] is None:
        return found
    if shown.upgrade is None or not shown.upgrade.step:
        found.append("status does not show the open run")
    elif shown.upgrade.state == "under way":
        found.append("status takes a dead run for one under way")
    elif shown.upgrade.next != ("updater resume", "updater abort"):
        found.append(f"status offers {shown.upgrade.next}")
    elif shown.upgrade.state == "interrupted" and shown.indicator is Indicator.OK:
        found.append("status says OK while a run is interrupted")
    return found


def _judge_end(seen: Seen, known: _Known, scenario: Scenario) -> list[str]:
    """The boot environment is sound, and the next boot picks a slot that holds a complete system."""
    found = list(seen["broken"])
    if "by_name" in seen["rows"].get("schema", ()) and not seen["migrated"]:
        found.append("the data was changed for good, and the journal does not know")
    pick = seen["next boot"]
    if pick is None:
        found.append("no slot is fit for the next boot")
    elif scenario.same_bytes and seen["content"][pick] not in known.complete:
        found.append(f"the next boot goes to slot {pick}, which holds no complete system")
    if scenario.same_bytes:
        found += [
            f"slot {slot} is said to be staged, and is not complete"
            for slot, shown in seen["slots"].items()
            if shown.endswith("staged") and seen["content"][slot] not in known.complete
        ]
    return found


def _judge_abort(seen: Seen, dead: Seen, known: _Known, said: str, *, rebooted: bool, same_bytes: bool) -> list[str]:
    """The old slot is good, and booted or next. Where nothing had changed yet, nothing has changed."""
    found: list[str] = []
    booted = known.before["booted"]
    old = booted if "good" in known.before["environment"][booted] else other(booted)
    if seen["booted"] == booted != old and "trying" in seen["environment"][booted]:
        return found  # it died before it left the slot on trial, so the trial goes on
    if seen["booted"] != old or seen["next boot"] != old:
        found.append(f"{said!r}: slot {seen['booted']} runs, {seen['next boot']} is next, and {old} was the old one")
    if seen["environment"][old] != known.before["environment"][old]:
        found.append(f"{said!r}: slot {old} is {seen['environment'][old]}, was {known.before['environment'][old]}")
    migrated = seen["migrated"] != known.before["migrated"]
    never_left = known.before["boot"] == dead["boot"] and not rebooted
    if never_left and known.before["open run"] is None and not seen["last run"].startswith("stage"):
        found += [
            f"{said!r}: {key}: {known.before[key]} -> {seen[key]}"
            # what was migrated stays migrated
            for key in ("environment", "slots", *(("content",) if same_bytes else ()), *(() if migrated else ("data",)))
            if seen[key] != known.before[key]
        ]
    whole = ("environment", "primary", "content", "records", "slots", "data", "migrated", "rows", "booted")
    if not dead["wrote"] and all(dead[key] == known.before[key] for key in whole):
        changed = [f"{key}: {known.before[key]} -> {seen[key]}" for key in whole if seen[key] != known.before[key]]
        if changed and known.before["open run"] is None:
            found.append(f"{said!r}: nothing was touched when it died, and now {changed}")
    return found


def _differences(seen: Seen, *ends: Seen, scenario: Scenario) -> list[str]:
    """How the end differs from the nearest of the ends that it may have."""
    ignored = {"runs", "hooks", "status", "boot", "wrote"} | (set() if scenario.same_bytes else {"content", "records"})
    told = [
        [f"{key} is {seen[key]}, should be {end[key]}" for key in end if key not in ignored and seen[key] != end[key]]
        for end in ends
    ]
    return min(told, key=len)


def _in_child(action: Callable[[], T]) -> T:
    found = in_child(action)
    assert found is not None, "it died, and nothing was armed"
    return found


def step_names() -> frozenset[str]:
    """The names of all steps of all stories, hooks left out."""
    return frozenset(name for names in STEPS.values() for name in names)
