"""Calls from outside, all the time: each with a re-INVITE and a BYE, and an identifier that is known beforehand."""

from __future__ import annotations

import csv
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from vagrant.network import Lan
from vagrant.rehearsal import sip
from vagrant.rehearsal.sites_places import CALLER, VIP

#: More than any rehearsal makes.
_ENDLESS = 10_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of the calls, by the caller's own count. `slowest_ms`: no call waited longer for its answer."""

    made: int
    good: int
    failed: int
    retransmissions: int
    slowest_ms: float

    @property
    def lost(self) -> int:
        """Calls that failed, were cut, or did not come to their end."""
        return self.made - self.good


class Calls:
    """Calls at a rate (per second) through the virtual IP, twice `talk` seconds each, until `finish`."""

    def __init__(self, lan: Lan, work: Path, *, rate: float, talk: float = 1.0) -> None:
        self.rate = rate
        self.statistics = work / "calls.csv"
        self.log = work / "calls.log"
        scenario = work / "caller.xml"
        scenario.write_text(sip.patient(sip.CALLER))
        self._ended = 0.0
        self._began = time.monotonic()
        period = 1000
        while rate * period / 1000 != int(rate * period / 1000) and period < 60_000:
            period += 1000
        self._process = lan.start(
            *("sipp", f"{VIP}:5060", "-sf", scenario, "-i", CALLER, "-p", "5060", "-nostdin"),
            *("-m", str(_ENDLESS), "-r", str(round(rate * period / 1000)), "-rp", str(period), "-l", str(_ENDLESS)),
            *("-d", str(round(talk * 1000)), "-trace_stat", "-stf", self.statistics, "-fd", "1"),
            *("-cp", "8888", "-skip_rlimit", "-cid_str", "%u-rehearsed@%s"),
            *("-trace_err", "-error_file", work / "calls-errors.log"),
            log=self.log,
        )

    def now(self) -> Outcome:
        """So far."""
        last = _last(self.statistics)
        return Outcome(
            made=int(last.get("OutgoingCall(C)", 0)),
            good=int(last.get("SuccessfulCall(C)", 0)),
            failed=int(last.get("FailedCall(C)", 0)),
            retransmissions=int(last.get("Retransmissions(C)", 0)),
            slowest_ms=_slowest(last),
        )

    @property
    def running(self) -> bool:
        """Whether the caller still calls."""
        return self._process.poll() is None

    @property
    def seconds(self) -> float:
        """For how long it began calls."""
        return (self._ended or time.monotonic()) - self._began

    def finish(self, timeout: float = 180) -> Outcome:
        """Begin no more calls, and wait until those that run have ended."""
        self._ended = time.monotonic()
        self._process.send_signal(signal.SIGUSR1)
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        return self.now()

    def stop(self) -> None:
        """Hang up at once."""
        if self.running:
            self._process.kill()
            self._process.wait()

    @staticmethod
    def names(made: int) -> set[str]:
        """The identifiers of all calls, when so many were made."""
        return {f"{number}-rehearsed@{CALLER}" for number in range(1, made + 1)}


def _last(statistics: Path) -> dict[str, str]:
    """The last whole row of a statistics file of sipp's."""
    if not statistics.exists():
        return {}
    found = list(csv.DictReader(statistics.read_text().rpartition("\n")[0].splitlines(), delimiter=";"))
    return found[-1] if found else {}


def _slowest(row: dict[str, str]) -> float:
    """The upper end of the last class of answer times that has calls in it."""
    found = 0.0
    for name, value in row.items():
        _, of_answers, limit = (name or "").partition("ResponseTimeRepartition1_")
        if of_answers and value.isdigit() and int(value) > 0:
            found = float("inf") if limit.startswith(">=") else max(found, float(limit.strip("<=")))
    return found
