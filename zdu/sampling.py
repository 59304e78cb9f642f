"""How traffic stands, recorded every few seconds while a controller runs: what the screen and the report show."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from typing import Final

from core.errors import UpdaterError
from zdu.records import now
from zdu.runs import Runs
from zdu.world import World

#: Seconds between two samples, at least; and how many times as long as the last one took.
EVERY: Final = 3.0
ALONE: Final = 3.0


class Sampler:
    """Samples in the background. Use as a context manager."""

    def __init__(self, runs: Runs, run: str, world: World, every: float = EVERY) -> None:
        self._runs = runs
        self._run = run
        self._world = world
        self._every = every
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="zdu-samples", daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)  # a source that hangs holds nobody up

    def _work(self) -> None:
        while True:
            began = time.monotonic()
            try:
                at = now()
                self._runs.sampled(self._run, replace(self._world.sample(), at=at))
            except UpdaterError:  # a sample that is missing is seen as a gap
                pass
            if self._ended.wait(max(self._every, ALONE * (time.monotonic() - began))):
                return
