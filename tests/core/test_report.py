"""Events on their way to whoever listens."""

from __future__ import annotations

import io
import json

import pytest

from core.report import Event, Kind, Report, json_lines


def heard() -> tuple[Report, list[Event]]:
    events: list[Event] = []
    return Report(events.append), events


def test_every_sink_gets_every_event() -> None:
    one: list[Event] = []
    two: list[Event] = []
    report = Report(one.append, two.append)
    report.note("hello", size=1)
    assert one == two and one[0].kind is Kind.NOTE and one[0].data == {"size": 1}


def test_a_phase_says_how_long_it_took() -> None:
    report, events = heard()
    with report.phase("write", "to slot b") as said:
        said.update(text="done", bytes=5)
    assert [event.kind for event in events] == [Kind.STARTED, Kind.FINISHED]
    assert events[1].text == "done" and events[1].data["bytes"] == 5 and events[1].data["seconds"] >= 0


@pytest.mark.parametrize(
    ("error", "text"), [(RuntimeError("broken"), "broken"), (KeyboardInterrupt(), "KeyboardInterrupt")]
)
def test_a_phase_that_fails_says_so_and_lets_the_error_through(error: BaseException, text: str) -> None:
    report, events = heard()
    with pytest.raises(type(error)), report.phase("write"):
        raise error
    assert (events[-1].kind, events[-1].text) == (Kind.FAILED, text)


def test_progress_is_not_told_more_often_than_can_be_read_but_its_end_is() -> None:
    report, events = heard()
    for done in range(10_001):
        report.progress("write", done, 10_000)
    assert events[0].data["done"] == 0 and events[-1].data["done"] == 10_000
    assert len(events) < 100
    assert events[-1].data["rate"] > 0 and events[-1].data["left"] == 0


def test_json_lines_are_one_object_each() -> None:
    out = io.StringIO()
    report = Report(json_lines(out))
    report.warning("two\nlines", path=object())
    with report.phase("write"):
        pass
    lines = [json.loads(line) for line in out.getvalue().splitlines()]
    assert [line["kind"] for line in lines] == [event.value for event in (Kind.WARNING, Kind.STARTED, Kind.FINISHED)]
    assert lines[0]["text"] == "two\nlines"
