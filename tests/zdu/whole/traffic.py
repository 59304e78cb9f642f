"""Calls from outside, all the time: each with a re-INVITE and a BYE, and an identifier that is known beforehand."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from pathlib import Path

from tests.zdu.lab import OWN, Host, Process, until
from tests.zdu.programs import ROW, VIP, Outcome, ahead, outcome_of, rows
from vagrant.rehearsal.sip import CALLER

#: More than any rehearsal makes.
_ENDLESS = 10_000_000


class Traffic:
    """Calls at a rate (per second) through the virtual IP, twice `talk` seconds each, until `finish`."""

    def __init__(self, host: Host, *, rate: int, talk: float = 0.5) -> None:
        self.host = host
        self.rate = rate
        self.talk = talk
        self.statistics = host.directory / "traffic.csv"
        self._long: list[Process] = []
        self._began = time.monotonic()
        self.seconds = 0.0  # for how long it began calls
        self.process = host.start(
            *(*ahead(), "sipp", f"{VIP}:5060", "-sf", str(CALLER), "-i", host.address, "-p", "5060"),
            *("-m", str(_ENDLESS), "-r", str(rate), "-d", str(round(talk * 1000)), "-l", str(_ENDLESS)),
            *("-trace_stat", "-stf", str(OWN / self.statistics.name), "-fd", f"{round(ROW * 1000)}ms"),
            *("-cp", "8888", "-skip_rlimit", "-nostdin", "-cid_str", "%u-rehearsed@%s"),
            *("-trace_err", "-error_file", str(OWN / "errors")),
            log="traffic",
        )

    def long_call(self, seconds: float) -> Process:
        """One more call, that lasts so long."""
        number = len(self._long)
        words = ("-m", "1", "-d", str(round(seconds * 500)), "-p", str(5070 + number), "-cp", str(8900 + number))
        call = self.host.start(
            *("sipp", f"{VIP}:5060", "-sf", CALLER, "-i", self.host.address, "-nostdin"),
            *(*words, "-cid_str", f"%u-long{number}@%s"),
            log=f"long-{number}",
        )
        self._long.append(call)
        return call

    def last(self) -> dict[str, str]:
        """The last row of its statistics."""
        found = rows(self.statistics)
        return found[-1] if found else {}

    def made(self) -> int:
        """Calls that it has begun."""
        return int(self.last().get("OutgoingCall(C)", 0))

    def failed(self) -> int:
        """Calls that failed so far."""
        return int(self.last().get("FailedCall(C)", 0))

    def flows(self, calls: int = 1, timeout: float = 60) -> None:
        """Until so many more calls have been made."""
        before = self.made()
        until(lambda: self.made() >= before + calls, f"{calls} more calls\n{self.process.said()}", timeout, 0.1)

    def finish(self, timeout: float = 60) -> Outcome:
        """Begin no more calls, and wait until those that run have ended."""
        self.process.send(signal.SIGUSR1)
        self.seconds = time.monotonic() - self._began
        self.process.wait(timeout)
        told = outcome_of(self.last())
        good = sum(call.wait(timeout) == 0 for call in self._long)
        made, failed = told.made + len(self._long), told.failed + len(self._long) - good
        return replace(told, made=made, good=told.good + good, failed=failed)

    def names(self, made: int) -> set[str]:
        """The identifiers of all calls, when so many were made."""
        long = {f"1-long{number}@{self.host.address}" for number in range(len(self._long))}
        usual = range(1, made + 1 - len(long))
        return {f"{number}-rehearsed@{self.host.address}" for number in usual} | long

    def errors(self) -> list[str]:
        """What it complained of."""
        file: Path = self.host.directory / "errors"
        return file.read_text(errors="replace").splitlines() if file.exists() else []
