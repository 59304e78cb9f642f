"""Waiting until a site is empty of calls: reads, asks `zdu.traffic.drain.judge`, tells, and reads again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from zdu.limits import DrainConfig
from zdu.traffic.drain import Drain, Reading, Verdict, judge


def wait_empty(
    read: Callable[[], Reading],
    config: DrainConfig,
    *,
    cross: Callable[[], Sequence[Reading]] = lambda: (),
    explained: Callable[[], Mapping[str, str]] = dict,
    on_verdict: Callable[[Verdict, Reading], None] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
    waited: float = 0.0,
) -> Verdict:
    """Until the gate is open; its verdict. When `stop` says so (pause, abort), the last verdict, which is not open.

    `read`: the site's own count (`Calls.read`). `cross`: others that see its calls (`Dispatcher.live`), asked only when
    the site counts none. `on_verdict` is called after every reading, and is where alerts are sent from. `waited`:
    seconds that were waited before, by a controller that was ended meanwhile; its zeros do not count any more.
    """
    drain = Drain(since=time.monotonic() - waited)
    while True:
        own = read()
        drain, verdict = judge(drain, config, own, cross() if own.count == 0 else (), explained())
        on_verdict(verdict, own)
        if verdict.open or stop():
            return verdict
        time.sleep(max(0.0, own.at + config.interval - time.monotonic()))
