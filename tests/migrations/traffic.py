"""Writers on a table while something is done to it, and how long the longest of their statements took."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from core.sql import Connection, Database, Reason, SqlError


@dataclass(slots=True)
class Traffic:
    """What the writers have seen. `acknowledged`: writes that the server confirmed."""

    longest: float = 0.0
    acknowledged: int = 0
    failures: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, seconds: float) -> None:
        with self._lock:
            self.longest = max(self.longest, seconds)
            self.acknowledged += 1

    def reset(self) -> None:
        """Forget the longest stall so far."""
        with self._lock:
            self.longest = 0.0


@contextmanager
def writers(
    database: Database, write: Callable[[Connection, int], None], count: int = 2, pause: float = 0.002
) -> Iterator[Traffic]:
    """`count` connections that call `write(connection, number)` again and again, with numbers that never repeat."""
    traffic, stop = Traffic(), threading.Event()

    def work(first: int) -> None:
        number = first
        with Connection.open(database) as connection:
            begun = time.monotonic()
            while not stop.is_set():
                try:
                    write(connection, number)
                except SqlError as error:
                    if error.reason is Reason.DEADLOCK:  # an application tries again; its stall goes on
                        continue
                    traffic.failures.append(str(error))
                    return
                except Exception as error:  # told by the test
                    traffic.failures.append(str(error))
                    return
                traffic.note(time.monotonic() - begun)
                number += count
                stop.wait(pause)
                begun = time.monotonic()

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(count)]
    for each in threads:
        each.start()
    until = time.monotonic() + 20
    while traffic.acknowledged < 5 * count and not traffic.failures and time.monotonic() < until:
        time.sleep(0.005)
    try:
        yield traffic
    finally:
        stop.set()
        for each in threads:
            each.join(30)
