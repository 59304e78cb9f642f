"""The engine: order, skipping, going on, undoing, and what is on record at each moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core import faults
from core.errors import UpdaterError
from core.journal import Facts, Journal, Run, StepRecord, StepState
from core.report import Event, Kind, Report
from core.steps import Handover, describe, run_steps, undo_steps


@dataclass
class World:
    """What the steps change."""

    done: set[str] = field(default_factory=set)
    log: list[str] = field(default_factory=list)


@dataclass
class Thing:
    """A step that puts its name into the world."""

    name: str
    world: World
    error: BaseException | None = None

    def describe(self) -> str:
        return f"do {self.name}"

    def is_done(self, record: StepRecord | None) -> bool:
        return self.name in self.world.done

    def before(self) -> Facts:
        return {"done before": sorted(self.world.done)}

    def apply(self, facts: Facts, report: Report) -> str:
        self.world.log.append(f"apply {self.name}")
        if self.error is not None:
            raise self.error
        self.world.done.add(self.name)
        return f"{self.name} is done"

    def undo(self, facts: Facts) -> None:
        self.world.log.append(f"undo {self.name} with {facts['done before']}")
        self.world.done.discard(self.name)


@dataclass
class Bench:
    """A journal with an open run, a world, and a report that is heard."""

    journal: Journal
    run: Run
    world: World
    events: list[Event]
    report: Report

    def steps(self, *names: str, **errors: BaseException) -> list[Thing]:
        return [Thing(name, self.world, errors.get(name)) for name in names]

    def states(self) -> dict[str, StepState]:
        return {name: record.state for name, record in self.journal.steps(self.run).items()}


def _bench(path: Path) -> Bench:
    journal = Journal.open(path)
    events: list[Event] = []
    return Bench(journal, journal.begin("test", {}), World(), events, Report(events.append))


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = _bench(tmp_path / "journal")
    with made.journal:
        yield made


def test_in_order_with_facts_and_details_on_record(bench: Bench) -> None:
    run_steps(bench.journal, bench.run, bench.steps("a", "b"), bench.report)
    assert bench.world.log == ["apply a", "apply b"]
    record = bench.journal.steps(bench.run)["b"]
    assert (record.state, record.facts, record.detail) == (StepState.DONE, {"done before": ["a"]}, "b is done")
    assert [(event.kind, event.step) for event in bench.events] == [
        (Kind.STARTED, "a"),
        (Kind.FINISHED, "a"),
        (Kind.STARTED, "b"),
        (Kind.FINISHED, "b"),
    ]


def test_what_the_machine_says_is_done_is_passed_over(bench: Bench) -> None:
    bench.world.done.add("a")
    run_steps(bench.journal, bench.run, bench.steps("a", "b"), bench.report)
    assert bench.world.log == ["apply b"]
    assert bench.states() == {"a": StepState.DONE, "b": StepState.DONE}
    assert (bench.events[0].kind, bench.events[0].step) == (Kind.SKIPPED, "a")


def test_what_the_machine_says_is_not_done_is_done_again_whatever_the_record_says(bench: Bench) -> None:
    run_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    bench.world.done.clear()
    run_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    assert bench.world.log == ["apply a", "apply a"]


def test_what_is_behind_is_not_asked_and_keeps_its_place(bench: Bench) -> None:
    run_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report, behind=1)
    assert bench.world.log == ["apply b", "apply c"]
    run_steps(bench.journal, bench.run, bench.steps("a", "b"), bench.report)
    assert list(bench.states()) == ["a", "b", "c"]


def test_a_failure_is_recorded_and_stops_and_resume_goes_on(bench: Bench) -> None:
    with pytest.raises(UpdaterError, match="broke"):
        run_steps(bench.journal, bench.run, bench.steps("a", "b", "c", b=UpdaterError("broke")), bench.report)
    assert bench.states() == {"a": StepState.DONE, "b": StepState.FAILED}
    assert bench.journal.steps(bench.run)["b"].detail == "broke"
    assert bench.journal.open_run() == bench.run
    run_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
    assert bench.world.log == ["apply a", "apply b", "apply b", "apply c"]
    assert set(bench.states().values()) == {StepState.DONE}


def test_an_interruption_leaves_the_intent(bench: Bench) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_steps(bench.journal, bench.run, bench.steps("a", a=KeyboardInterrupt()), bench.report)
    assert bench.states() == {"a": StepState.INTENT}
    assert bench.events[-1].kind is Kind.FAILED


def test_a_handover_leaves_the_intent_and_is_no_failure(bench: Bench) -> None:
    with pytest.raises(Handover):
        run_steps(bench.journal, bench.run, bench.steps("a", "b", a=Handover()), bench.report)
    assert bench.states() == {"a": StepState.INTENT}
    assert bench.events[-1].kind is Kind.FINISHED


def test_undo_goes_backwards_over_what_was_begun_with_the_first_facts(bench: Bench) -> None:
    with pytest.raises(UpdaterError):
        run_steps(bench.journal, bench.run, bench.steps("a", "b", "c", b=UpdaterError("broke")), bench.report)
    bench.world.log.clear()
    undo_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
    assert bench.world.log == ["undo b with ['a']", "undo a with []"]
    assert bench.states() == {"a": StepState.UNDONE, "b": StepState.UNDONE}
    undo_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
    assert len(bench.world.log) == 2


def test_after_undoing_it_begins_anew(bench: Bench) -> None:
    run_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    undo_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    run_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    assert bench.states() == {"a": StepState.DONE} and bench.world.done == {"a"}


def test_every_step_passes_the_same_points(bench: Bench, passed: list[str]) -> None:
    run_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    assert passed == ["a:before", "journal:intend:a", "a:intended", "a:applied", "journal:outcome:a", "a:done"]
    passed.clear()
    undo_steps(bench.journal, bench.run, bench.steps("a"), bench.report)
    assert passed == ["a:undo", "a:undone", "journal:outcome:a"]


def test_describe(bench: Bench) -> None:
    assert describe(bench.steps("a")) == [{"step": "a", "what": "do a"}]


class Cut(BaseException):
    """The power goes."""


@settings(max_examples=60, deadline=None)
@given(cuts=st.lists(st.integers(1, 40), max_size=6), undo=st.booleans())
def test_any_number_of_cuts_then_going_on_ends_as_if_there_were_none(
    cuts: list[int], undo: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bench = _bench(tmp_path_factory.mktemp("steps") / "journal")

    def cut_after(count: int) -> None:
        def action(_: str) -> None:
            nonlocal count
            count -= 1
            if count == 0:
                raise Cut

        faults.arm(action)

    with bench.journal:
        try:
            for cut in cuts:
                cut_after(cut)
                try:
                    run_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
                except Cut:
                    pass
            faults.arm(None)
            if undo:
                undo_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
                assert bench.world.done == set()
            else:
                run_steps(bench.journal, bench.run, bench.steps("a", "b", "c"), bench.report)
                assert bench.world.done == {"a", "b", "c"}
                assert set(bench.states().values()) == {StepState.DONE}
        finally:
            faults.arm(None)
