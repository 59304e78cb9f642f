"""Dying for real: a run in a child process that SIGKILL ends at a crash point, or at any instant."""

from __future__ import annotations

import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any

from core import faults


class ChildFailed(AssertionError):
    """Something was raised in a child: its traceback."""


def _spawn(action: Callable[[], Any]) -> tuple[int, int]:
    """Fork; the child pickles what `action` returns, or the traceback, into the pipe."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            try:
                answer: tuple[bool, Any] = (True, action())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writing, "wb") as out:
                pickle.dump(answer, out)
        finally:
            os._exit(0)
    os.close(writing)
    return child, reading


def _reap(child: int, reading: int) -> tuple[bool, Any]:
    """What the child returned; (False, None) when it was killed."""
    with os.fdopen(reading, "rb") as source:
        raw = source.read()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code == -signal.SIGKILL:
        return False, None
    good, value = pickle.loads(raw)
    if not good:
        raise ChildFailed(value)
    return True, value


def in_child(action: Callable[[], Any]) -> Any:
    """Run `action` in a child to its end."""
    return _reap(*_spawn(action))[1]


def points(action: Callable[[], Any]) -> list[str]:
    """The crash points that `action` passes, in order. It really runs, in a child."""

    def record() -> list[str]:
        seen: list[str] = []
        faults.arm(seen.append)
        action()
        return seen

    found: list[str] = in_child(record)
    return found


def dies_at(number: int, action: Callable[[], Any]) -> bool:
    """Run `action` in a child that is killed at the `number`-th point (from 0); whether it died."""

    def armed() -> None:
        passed = 0

        def pass_by(name: str) -> None:
            nonlocal passed
            if passed == number:
                os.kill(os.getpid(), signal.SIGKILL)
            passed += 1

        faults.arm(pass_by)
        action()

    return not _reap(*_spawn(armed))[0]


def killed_when(ready: Callable[[], Any], action: Callable[[], Any]) -> bool:
    """Run `action` in a child that is killed as soon as `ready` returns; whether it died before its end."""
    child, reading = _spawn(action)
    try:
        ready()
    finally:
        os.kill(child, signal.SIGKILL)
        died = not _reap(child, reading)[0]
    return died


def interrupted_when(ready: Callable[[], Any], action: Callable[[], Any]) -> str:
    """Run `action` in a child that gets Ctrl-C as soon as `ready` returns; its traceback, empty if it ended well."""
    child, reading = _spawn(action)
    try:
        ready()
    finally:
        os.kill(child, signal.SIGINT)
    try:
        _reap(child, reading)
    except ChildFailed as error:
        return str(error)
    return ""


def killed_after(seconds: float, action: Callable[[], Any]) -> bool:
    """Run `action` in a child that is killed after so long; whether it died before its end."""
    child, reading = _spawn(action)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return not _reap(child, reading)[0]


def together(*actions: Callable[[], Any]) -> list[Any]:
    """Run the actions at the same time, each in a child of its own."""
    children = [_spawn(action) for action in actions]
    return [_reap(*each)[1] for each in children]
