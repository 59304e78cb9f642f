"""Signals that ask us to end: they arrive, wherever Python is, and wait where something would be left behind."""

from __future__ import annotations

import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from core import stopping
from core.run import run
from core.stopping import ASK_US_TO_END, Stopped, not_now, stoppable


class Dying:
    """A signal comes while this is being finalized."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def __del__(self) -> None:
        signal.raise_signal(self.number)


@pytest.mark.parametrize("number", ASK_US_TO_END)
def test_it_says_which_and_no_handler_of_ours_is_left(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in ASK_US_TO_END]
    with pytest.raises(Stopped) as raised, stoppable():
        signal.raise_signal(number)
    assert raised.value.signal is number and str(raised.value) == number.name
    assert [signal.getsignal(each) for each in ASK_US_TO_END] == before


@pytest.mark.parametrize("again", ASK_US_TO_END)
def test_another_one_does_not_stop_the_cleaning_up(again: signal.Signals) -> None:
    cleaned = []
    with pytest.raises(Stopped) as raised, stoppable():
        try:
            signal.raise_signal(signal.SIGINT)
        finally:
            signal.raise_signal(again)
            cleaned.append("whole")
    assert cleaned == ["whole"] and raised.value.signal is signal.SIGINT


def test_another_one_counts_again_when_the_first_came_to_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SAME_WISH", 0.0)
    with pytest.raises(Stopped) as raised, stoppable():
        with suppress(BaseException):  # what a careless library does
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
    assert raised.value.signal is signal.SIGTERM


@pytest.mark.parametrize("number", ASK_US_TO_END)
def test_one_that_falls_into_a_finalizer_is_not_lost(number: signal.Signals) -> None:
    with pytest.raises(Stopped) as raised, stoppable():
        Dying(number)
        time.sleep(10)
    assert raised.value.signal is number


def test_it_waits_until_what_is_being_made_can_be_cleaned_up() -> None:
    made = []
    with pytest.raises(Stopped), stoppable(), not_now():
        with not_now():
            signal.raise_signal(signal.SIGTERM)
        made.append("whole")
    assert made == ["whole"]


def test_it_waits_for_an_error_too() -> None:
    with pytest.raises(Stopped) as raised, stoppable(), not_now():
        signal.raise_signal(signal.SIGTERM)
        raise OSError("no space")
    assert isinstance(raised.value.__context__, OSError)


def test_other_threads_hold_nothing_up() -> None:
    inside, enough = threading.Event(), threading.Event()

    def hold() -> None:
        with not_now():
            inside.set()
            enough.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert inside.wait(10)
        with pytest.raises(Stopped), stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        enough.set()
        thread.join()


def test_an_ignored_one_stays_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stoppable():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_no_program_is_left_whenever_it_comes() -> None:
    main = threading.main_thread().ident
    assert main is not None
    mark = f"30.{time.monotonic_ns()}"
    for step in range(30):
        timer = threading.Timer(step / 1000, signal.pthread_kill, (main, signal.SIGTERM))
        with pytest.raises(Stopped), stoppable():
            timer.start()
            run("sleep", mark)
    until = time.monotonic() + 5  # a killed one takes a moment to die
    while left := [path for path in Path("/proc").glob("[0-9]*/cmdline") if mark.encode() in _read(path)]:
        assert time.monotonic() < until, left


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""  # it ended meanwhile
