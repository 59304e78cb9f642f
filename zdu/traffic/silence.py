"""How long an address is silent while something is done, seen from where it is asked: by the controller itself, or from
another host. What cannot be seen is not told, and holds nothing up.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final

from core.errors import UpdaterError
from zdu.traffic import pulse as words
from zdu.traffic.pulse import Pulse
from zdu.traffic.shell import ENDING, Shell

#: Seconds that the first answer is waited for: without one there is nothing to compare with.
_FIRST: Final = 2.0

#: Seconds after which a host that was forgotten asks no more.
_LIMIT: Final = 60.0

#: Seconds of asking after the work is done: what comes late is seen as well.
_AFTER: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """What was heard. `asked`: questions; `lost`: those not answered within 0.5 s; `seconds`: the longest time between
    two questions that were answered, with one between them that was not (0: there was none); `every`: seconds between
    two questions, and so how closely one can see.
    """

    asked: int
    lost: int
    seconds: float
    every: float

    def __str__(self) -> str:
        told = f"asked {self.asked} times meanwhile, every {self.every * 1000:g} ms: "
        return told + (f"no answer for {self.seconds * 1000:.0f} ms" if self.lost else "always answered")


class Listener:
    """Asks between entering and leaving. `shell`: the host that asks; None: the controller. `silence`: what was heard,
    after it was left; None: there never was an answer.
    """

    def __init__(self, shell: Shell | None, way: str, address: str, port: int, said: str, every: float) -> None:
        self.silence: Silence | None = None
        self._shell = shell
        self._way, self._address, self._port, self._said, self._every = way, address, port, said, every
        self._flag = Path(f"/tmp/updater-pulse-{os.urandom(12).hex()}")
        self._first = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def __enter__(self) -> Listener:
        self._thread.start()
        deadline = time.monotonic() + _FIRST
        while not self._begun() and self._thread.is_alive() and time.monotonic() < deadline:
            self._first.wait(0.02)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: TracebackType | BaseException | None) -> None:
        self._over.set()
        if self._shell is not None:
            if kind is None:
                time.sleep(_AFTER)
            with suppress(UpdaterError):
                self._shell.run(["rm", "-f", str(self._flag)])
        self._thread.join(_FIRST if kind is None else 0)

    def _begun(self) -> bool:
        if self._shell is None:
            return self._first.is_set()
        try:
            return self._shell.exists(self._flag)
        except ENDING:
            raise
        except UpdaterError:
            return False

    def _ask(self) -> None:
        with suppress(BaseException):  # what ends the work is said to the one who works, too
            asked, lost, seconds = self._here() if self._shell is None else self._there(self._shell)
            if asked > lost:
                self.silence = Silence(asked=asked, lost=lost, seconds=seconds, every=self._every)

    def _here(self) -> tuple[int, int, float]:
        pulse = Pulse(self._way, self._address, self._port, self._said, self._every)
        end, after = time.monotonic() + _LIMIT, 0.0
        while time.monotonic() < end and not (after and time.monotonic() > after):
            if pulse.beat():
                self._first.set()
            if self._over.is_set() and not after:
                after = time.monotonic() + _AFTER
        return pulse.end()

    def _there(self, shell: Shell) -> tuple[int, int, float]:
        where = f"{self._address} {self._port}"
        argv = ["python3", "-I", "-c", _script(), self._way, where, str(self._every), str(_LIMIT), str(self._flag)]
        told = shell.run(argv, input=self._said, timeout=_LIMIT + 10).stdout.split()
        asked, lost, seconds = told
        return int(asked), int(lost), float(seconds)


@cache
def _script() -> str:
    return Path(words.__file__).read_text(encoding="utf-8")
