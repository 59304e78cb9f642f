"""The rehearsal at its full length, as ``make zdu`` starts it. Prints what happens, a table of what was seen from
outside, and a line per figure: ``figure NAME VALUE UNIT``.

    python -m tests.zdu.whole [CALLS] [RATE] [killed]

killed: the controller is killed in each step, and started again; no figures then.

Needs root, Kamailio, keepalived, sipp, MariaDB and sshd. Everything it makes goes away, also on Ctrl-C.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from bench.timing import Figure
from bench.zdu_controller import measure_step_overhead
from bench.zdu_plan import measure_plan
from bench.zdu_sync import measure_sync
from tests.zdu.whole.controller import Event
from tests.zdu.whole.story import Ending, killed_at_every_step, story, the_whole

CALLS, RATE = 20_000, 105


def main(calls: int, rate: int, killed: bool = False) -> None:
    """Rehearse, measure, print."""
    logs = Path(mkdtemp(prefix="zdu-logs-"))
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; at least {calls} calls, {rate} a second")
    print(
        "up: a caller, two dispatchers with one virtual IP, two sites with two servers each, a controller …", flush=True
    )
    begun = [0.0]

    def show(event: Event) -> None:
        begun[0] = begun[0] or event.at
        mark = {"finished": "✓", "failed": "✗", "phase": " ", "alert": "!"}.get(event.kind)
        if mark is not None and event.step:
            what = f"{event.step:<26} {event.text}" if event.kind != "phase" else f"\n{event.text}"
            print(f"{event.at - begun[0]:6.1f} s {mark} {what}"[:150], flush=True)

    try:
        with story(rate=rate, logs=logs, on_event=show, accounts=1000) as told:
            ending = killed_at_every_step(told) if killed else the_whole(told, calls=calls)
        _table(ending)
        if not killed:
            _figures(ending)
        ending.require_nothing_lost()
    except BaseException:
        print(f"what the programs wrote: {logs}")
        raise
    shutil.rmtree(logs)


def _figures(ending: Ending) -> None:
    print("the rest of the figures …", flush=True)
    figures = [
        Figure("zdu_calls", ending.calls.made, "calls", ">= 20000"),
        Figure("zdu_calls_per_s", ending.per_second, "calls/s", ">= 100"),
        Figure("zdu_failed_calls", ending.calls.made - ending.calls.good, "calls", "0"),
        Figure("vip_gap_ms", max(ending.gaps_ms), "ms", "<= 20"),
        Figure("drain_decision_ms", max(ending.drains_ms.values()), "ms", "<= 2000"),
        Figure("sync_xdrs_per_s", measure_sync(), "xDRs/s", ">= 5000"),
        Figure("plan_50x40_s", measure_plan(), "s", "<= 2"),
        Figure("step_overhead_ms", measure_step_overhead(), "ms", "<= 500"),
    ]
    print(f"load {os.getloadavg()[0]:.1f} at the end; wanted: {', '.join(f'{f.name} {f.wanted}' for f in figures)}")
    for figure in figures:
        print(f"figure {figure.name} {figure.value:.2f} {figure.unit}")


def _table(ending: Ending) -> None:
    calls, books = ending.calls, ending.books
    gaps = ", ".join(f"{gap:.1f}" for gap in ending.gaps_ms)
    drains = ", ".join(f"{site} {ms:.0f}" for site, ms in ending.drains_ms.items())
    rows = {
        "the upgrade took": f"{ending.seconds:.0f} s",
        "calls made": f"{calls.made}, {books.at_a} of them on A and {books.at_b} on B",
        "failed or cut": f"{calls.made - calls.good}",
        "slowest answer, messages sent again": f"below {calls.slowest_ms:.0f} ms, {calls.retransmissions}",
        "call records on the main database": f"{books.xdrs}; missing {books.missing}, foreign {books.foreign}",
        "of them charged on B alone": f"{books.posted}",
        "sums that do not hold": ", ".join(books.wrong) or "none",
        "tables that differ on the replica": ", ".join(books.differs) or "none",
        "calls that came to a closed site": f"{sum(ending.late.values())}",
        "virtual IP silent at each move": f"{gaps} ms",
        "from the last charge to the open gate": f"{drains} ms",
        "slowest charge after the end of a call": f"{ending.slowest_charge:.2f} s",
        "servers run": ", ".join(sorted(set(ending.runs.values()))),
    }
    print()
    for name, value in rows.items():
        print(f"  {name:<38} {value}")
    print()


if __name__ == "__main__":
    if os.geteuid() != 0:
        sys.exit("zdu: needs root, for network namespaces")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    words = sys.argv[1:]
    numbers = [int(word) for word in words if word != "killed"]
    calls, rate = (*numbers, *(CALLS, RATE)[len(numbers) :])
    with suppress(KeyboardInterrupt):
        main(calls, rate, killed="killed" in words)
        sys.exit(0)
    sys.exit("zdu: interrupted; everything it made is gone")
