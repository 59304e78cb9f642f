"""Threads that share one list of work, stay out of the way of the machine's real job, and stop together."""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
_LEAST_BEST_EFFORT = (2 << 13) | 7  # what `ionice -c2 -n7` sets


class Stopped(Exception):
    """Another thread failed, or the run was interrupted: give up what you do. Never leaves `each`."""


class Pace:
    """A limit in bytes per second over all threads (0: none).

    Keeps a clock of when the next transfer may begin. It may lag at most 50 ms behind real time, so that a pause is
    not made up for by a burst.
    """

    def __init__(self, rate: int, stopped: threading.Event) -> None:
        self._rate = rate
        self._stopped = stopped
        self._lock = threading.Lock()
        self._next = 0.0

    def take(self, size: int) -> None:
        """Wait until `size` more bytes may go. Raises Stopped."""
        if self._rate <= 0:
            return
        with self._lock:
            now = time.monotonic()
            begin = max(self._next, now - 0.05)
            self._next = begin + size / self._rate
        if begin > now and self._stopped.wait(begin - now):
            raise Stopped


def each(
    items: Iterable[T], worker: Callable[[], Callable[[T], None]], *, threads: int, stopped: threading.Event
) -> None:
    """Handle every item, in `threads` threads; each calls `worker` once for a handler with buffers of its own.

    Items are handed out in order. After the first failure no more are handed out, those under way are awaited, and
    the failure of the earliest item is raised. An interrupt of the calling thread stops the others the same way.
    """
    feed = enumerate(items)
    lock = threading.Lock()
    failures: list[tuple[int, BaseException]] = []

    def work() -> None:
        index = -1
        try:
            _step_back()
            handle = worker()
            while not stopped.is_set():
                with lock:
                    index, item = next(feed, (-1, None))
                if index < 0:
                    return
                handle(item)  # type: ignore[arg-type]
        except Stopped:
            return
        except BaseException as error:
            failures.append((index, error))
            stopped.set()

    with ThreadPoolExecutor(threads, thread_name_prefix="slot") as pool:
        try:
            wait([pool.submit(work) for _ in range(threads)])
        finally:
            stopped.set()
    if failures:
        raise min(failures, key=lambda failure: failure[0])[1]


def _step_back() -> None:
    """Lower this thread's priority for the processor and for the disk. It ends with the thread."""
    os.setpriority(os.PRIO_PROCESS, 0, max(10, os.getpriority(os.PRIO_PROCESS, 0)))  # 0: the calling thread
    number = _IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        ctypes.CDLL(None).syscall(number, 1, 0, _LEAST_BEST_EFFORT)  # 1, 0: the calling thread
