"""How long an address does not answer: one question after the other, and which of them got an answer. Run here, or on
another host: there it is sent as text to the system's Python, so it knows nothing but the standard library (of 3.7 or
later).
"""
# ruff: noqa: PTH108, PTH110  (pathlib is slow to load)

from __future__ import annotations

import os
import re
import select
import socket
import sys
import time

#: Seconds after which an answer comes too late: SIP would have asked again by then.
LATE = 0.5


class Pulse:
    """`way`: ``udp``, where `said` (``@HERE@``: our own address, ``@NUMBER@``: which question this is) is answered with
    that number behind ``CSeq:``; or ``tcp``, where a connection is an answer. One question each `every` seconds.
    """

    def __init__(self, way: str, host: str, port: int, said: str, every: float) -> None:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        family, self._address = found[0], found[4]
        self._said = said
        self._every = every
        self._asked: list[float] = []
        self._answered: dict[int, float] = {}  # number of the question → when the answer came
        self._open: dict[socket.socket, int] = {}
        self._family = family
        self._udp: socket.socket | None = None
        if way == "udp":
            self._udp = socket.socket(family, socket.SOCK_DGRAM)
            self._udp.setblocking(False)
            self._udp.connect(self._address)
            own = self._udp.getsockname()
            name = f"[{own[0]}]:{own[1]}" if ":" in own[0] else f"{own[0]}:{own[1]}"
            self._said = said.replace("@HERE@", name)

    def beat(self) -> bool:
        """Ask once, and listen until the next question is due. Returns whether anything was answered so far."""
        due = time.monotonic() + self._every
        self._ask()
        while True:
            waiting = [self._udp] if self._udp else []
            left = max(0.0, due - time.monotonic())
            readable, writable, _ = select.select(waiting, list(self._open), [], left)
            if readable:
                self._hear()
            for connection in writable:
                self._connected(connection)
            if time.monotonic() >= due:
                return bool(self._answered)

    def end(self) -> tuple[int, int, float]:
        """Questions asked, those that were not answered in time, and the longest time without an answer (seconds): from
        the last question that was answered before to the first one after. The last ones may still be under way, and are
        not counted.
        """
        now = time.monotonic()
        while self._open or self._udp:  # those under way, for as long as a good answer takes
            if not self._last_missing() or time.monotonic() - now > LATE:
                break
            self._listen_on()
        good = [number for number, at in sorted(self._answered.items()) if at - self._asked[number] <= LATE]
        for connection in self._open:
            connection.close()
        if self._udp:
            self._udp.close()
        if not good:
            return len(self._asked), len(self._asked), 0.0
        counted = good[-1] - good[0] + 1
        silences = [self._asked[b] - self._asked[a] for a, b in zip(good, good[1:]) if b - a > 1]  # noqa: B905, RUF007
        return counted, counted - len(good), max(silences, default=0.0)

    def _ask(self) -> None:
        number = len(self._asked)
        self._asked.append(time.monotonic())
        try:
            if self._udp is not None:
                self._udp.send(self._said.replace("@NUMBER@", str(number + 1)).encode())
            else:
                connection = socket.socket(self._family, socket.SOCK_STREAM)
                connection.setblocking(False)
                self._open[connection] = number
                connection.connect_ex(self._address)
        except OSError:  # nobody has the address at the moment
            pass

    def _hear(self) -> None:
        assert self._udp is not None
        try:
            while True:
                found = re.search(rb"^CSeq:\s*(\d+)", self._udp.recv(65535), re.MULTILINE | re.IGNORECASE)
                if found and 0 < int(found.group(1)) <= len(self._asked):
                    self._answered.setdefault(int(found.group(1)) - 1, time.monotonic())
        except OSError:  # no more, or somebody says that nobody listens there
            pass

    def _connected(self, connection: socket.socket) -> None:
        number = self._open.pop(connection)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
            self._answered[number] = time.monotonic()
        connection.close()

    def _last_missing(self) -> bool:
        return len(self._asked) - 1 not in self._answered

    def _listen_on(self) -> None:
        waiting = [self._udp] if self._udp else []
        readable, writable, _ = select.select(waiting, list(self._open), [], 0.01)
        if readable:
            self._hear()
        for connection in writable:
            self._connected(connection)


def _remote(way: str, where: str, every: float, limit: float, flag: str) -> None:
    """Ask until the file `flag`, which is made with the first answer, is gone, or `limit` seconds are over."""
    host, port = where.split()
    pulse = Pulse(way, host, int(port), sys.stdin.read(), every)
    end, made = time.monotonic() + limit, False
    try:
        while time.monotonic() < end:
            if pulse.beat() and not made:
                os.close(os.open(flag, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
                made = True
            if made and not os.path.exists(flag):
                break
    finally:
        if made and os.path.exists(flag):
            os.unlink(flag)
    print(*pulse.end())


if __name__ == "__main__":
    _remote(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), sys.argv[5])
