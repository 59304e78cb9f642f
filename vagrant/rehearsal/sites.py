"""A whole zero-downtime upgrade, rehearsed on machines that really boot: two sites with a server each, two dispatchers
with one virtual IP, a caller, a controller. ``make rehearse``; docs/vagrant.md.

    python -m vagrant.rehearsal.sites [--rate CALLS] [--cut power:SITE/SERVER@STEP]... [--report DIRECTORY]

Prints what happens, what was seen from outside, and a line per figure: ``figure NAME VALUE UNIT``. Ends with 0 if
nothing would fail on the night. Everything it makes goes away, also on Ctrl-C.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from math import isfinite
from pathlib import Path
from typing import Any

from core.run import run
from vagrant.node import Lab
from vagrant.qemu import MachineError
from vagrant.rehearsal import sites_books, sites_release
from vagrant.rehearsal.sites_calls import Calls, Outcome
from vagrant.rehearsal.sites_machines import Installation, RehearsalError, installation, until
from vagrant.rehearsal.sites_places import BOOKS, DELTA, PLACES, A, B
from vagrant.rehearsal.sites_run import UPDATER, Controller, Cut, Event
from vagrant.serve import Server

#: Calls a second: what four emulated machines on two cores carry while all of them are being staged.
RATE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """What came of a rehearsal. `seconds`: of the upgrade; `planned`: as the plan had it. `steps`: ids of planned steps
    that were not done; `boots`: per machine, the slots that it booted. `cuts`: of the power; `uncut`: those that were
    wanted and did not come.
    """

    seconds: float
    planned: float
    code: int
    error: str
    stops: tuple[str, ...]
    undone: tuple[str, ...]
    calls: Outcome
    per_second: float
    books: sites_books.Books
    at: dict[str, int]
    runs: dict[str, str]
    boots: dict[str, list[str]]
    late: dict[str, int]
    report: dict[str, Any]
    cuts: tuple[str, ...]
    uncut: tuple[str, ...]

    def faults(self) -> list[str]:
        """What would fail on the night."""
        books, found = self.books, []
        if self.code:
            found.append(f"the upgrade ended with {self.code}: {self.error}")
        found += [f"it stopped and had to be resumed: {each}" for each in self.stops]
        if self.undone:
            found.append(f"not done: {', '.join(self.undone)}")
        if self.calls.lost:
            found.append(f"{self.calls.lost} of {self.calls.made} calls failed or were cut")
        if books.missing or books.foreign:
            found.append(f"{books.missing} calls were not charged, {books.foreign} charges have no call")
        found += [f"the books: {each}" for each in books.wrong]
        found += [f"the replica differs: {each}" for each in books.differs]
        if set(books.migrated) != {"A", "B"}:
            found.append(f"the databases are changed on {', '.join(books.migrated) or 'no site'} only")
        found += [
            f"{name} runs {release or 'an unknown release'}, not {sites_release.NEW}"
            for name, release in self.runs.items()
            if release != sites_release.NEW
        ]
        found += [f"{name} did not boot slot b" for name, slots in self.boots.items() if "b" not in slots]
        found += [f"{count} calls came to {site} while it was closed" for site, count in self.late.items() if count]
        found += [f"this power cut did not come: {each}" for each in self.uncut]
        return found


def rehearse(made: Installation, *, bundle: str, rate: float, cuts: list[Cut], begun: float) -> Ending:
    """The upgrade under calls, in an installation that is in service."""
    with _calls(made, rate) as calls:
        until(lambda: calls.now().good >= 5 or not calls.running, "the first calls end", 120)
        if not calls.now().good:
            raise RehearsalError(f"no call gets through:\n{calls.log.read_text(errors='replace')[-2000:]}")
        _say(begun, f"calls flow, {rate:g} a second")
        controller = Controller(made, lambda event: _show(begun, event), cuts)
        plan = controller.ask("plan", sites_release.NEW, "--from", sites_release.OLD)
        steps = [step for phase in plan["phases"] for step in phase["steps"]]
        for cut in cuts:
            if not any(cut.falls(step["id"]) for step in steps):
                raise RehearsalError(f"{cut}: the plan has no such step")
        began = time.monotonic()
        code = controller.upgrade(bundle)
        seconds = time.monotonic() - began
        outcome = calls.finish()
    for place in (A, B):
        with suppress(RehearsalError):
            until(lambda place=place: made.live(place) == 0, f"every call of {place.site} is charged", 120)  # type: ignore[misc]
    done = {event.step for event in controller.events if event.kind in ("finished", "passed")}
    with made.lan.inside():
        books = sites_books.look(
            made.database(A, BOOKS), made.database(B, BOOKS), made.database(B, DELTA), calls.names(outcome.made)
        )
    return Ending(
        seconds=seconds,
        planned=plan["seconds"],
        code=code,
        error=str(controller.error.get("message", "")),
        stops=tuple(controller.stops),
        undone=tuple(step["id"] for step in steps if step["id"] not in done),
        calls=outcome,
        per_second=outcome.made / calls.seconds,
        books=books,
        at={place.site: sum(words[:1] == ["begin"] for words in made.lines(place)) for place in (A, B)},
        runs=made.runs(),
        boots={place.name: [boot.slot for boot in made.machine(place).boots] for place in PLACES},
        late={place.site: made.late(place) for place in (A, B)},
        report=controller.ask("report") if controller.events else {},
        cuts=tuple(controller.happened),
        uncut=tuple(map(str, controller.cuts)),
    )


@contextmanager
def _calls(made: Installation, rate: float) -> Iterator[Calls]:
    calls = Calls(made.lan, made.work, rate=rate)
    try:
        yield calls
    finally:
        calls.stop()


def _table(ending: Ending) -> None:
    calls, books = ending.calls, ending.books
    slowest = f"below {calls.slowest_ms:.0f} ms" if isfinite(calls.slowest_ms) else "longer than sipp counts"
    moves = [f"{move['step']}: {move['text']}" for move in ending.report.get("vip_moves", [])]
    boots = ", ".join(f"{name} {'→'.join(slots)}" for name, slots in ending.boots.items())
    rows = {
        "the upgrade took": f"{ending.seconds / 60:.1f} min; the plan had {ending.planned / 60:.0f} min",
        "calls made": f"{calls.made}, {ending.per_second:.1f} a second; {ending.at['A']} on A, {ending.at['B']} on B",
        "failed or cut": f"{calls.lost}",
        "slowest answer, messages sent again": f"{slowest}, {calls.retransmissions}",
        "call records on the main database": f"{books.xdrs}; missing {books.missing}, foreign {books.foreign}",
        "of them charged on B alone": f"{books.posted}",
        "sums that do not hold": ", ".join(books.wrong) or "none",
        "tables that differ on the replica": ", ".join(books.differs) or "none",
        "databases changed on": ", ".join(books.migrated) or "no site",
        "calls that came to a closed site": f"{sum(ending.late.values())}",
        "slots booted": boots,
        "servers run": ", ".join(f"{name} {release}" for name, release in ending.runs.items()),
        "power cuts": ", ".join(ending.cuts) or "none",
    }
    print()
    for name, value in rows.items():
        print(f"  {name:<38} {value}")
    for move in moves:
        print(f"  {'virtual IP':<38} {move}")
    if ending.report:
        print("\n  steps, as planned and as they went (s)")
        phases = [phase for leg in ending.report["legs"] for phase in leg["runbook"]["phases"]]
        for name, expected, took in _durations(ending.report, {s["id"]: s for each in phases for s in each["steps"]}):
            print(f"    {name:<28}{expected:>8.0f}{took:>8.0f}")
    for deviation in ending.report.get("deviations", []):
        print(f"  not as planned: {deviation}")
    print()


def _durations(report: dict[str, Any], planned: dict[str, Any]) -> Iterator[tuple[str, float, float]]:
    for step in report["steps"]:
        if step["ended"]:
            took = datetime.fromisoformat(step["ended"]) - datetime.fromisoformat(step["began"])
            yield step["step"], planned.get(step["step"], {}).get("seconds", 0.0), took.total_seconds()


def _say(begun: float, text: str) -> None:
    print(f"{time.monotonic() - begun:6.0f} s  {text}"[:150], flush=True)


def _show(begun: float, event: Event) -> None:
    mark = {"finished": "✓", "failed": "✗", "phase": "▸", "alert": "!", "cut": "⚡"}.get(event.kind)
    if mark is not None:
        _say(begun, f"{mark} {f'{event.step:<24} ' if event.step and event.kind != 'phase' else ''}{event.text}")


def _leave(ending: Ending, made: Installation, directory: Path, verdict: list[str]) -> None:
    """The report of the run as JSON (for ``updater zdu run --rehearsed``) and as a page, and what was written."""
    directory.mkdir(parents=True, exist_ok=True)
    if not ending.report:
        return
    told = {**ending.report, "verdict": verdict}
    (directory / "rehearsal.json").write_text(json.dumps(told, indent=1, default=str))
    run(UPDATER, "zdu", "report", directory / "rehearsal.html", "--sites", made.work / "sites.toml", timeout=120)
    print(f"report: {directory}/rehearsal.html, and rehearsal.json for `updater zdu run --rehearsed`")


def main(argv: list[str]) -> int:
    """Rehearse, and say what would fail on the night."""
    parser = argparse.ArgumentParser(prog="python -m vagrant.rehearsal.sites", description=__doc__.split("\n\n")[0])
    parser.add_argument("--rate", type=float, default=RATE, help="calls a second (default %(default)g)")
    parser.add_argument("--cut", action="append", default=[], type=_cut, metavar="power:SITE/SERVER@STEP")
    parser.add_argument("--report", type=Path, metavar="DIRECTORY", help="leave the report there")
    wanted = parser.parse_args(argv)
    if os.geteuid() != 0:
        print("rehearse: needs root, for a network of its own and root trees", file=sys.stderr)
        return 1
    try:
        return _rehearse(wanted.rate, wanted.cut, wanted.report)
    except (RehearsalError, MachineError) as error:
        print(f"rehearse: {error}", file=sys.stderr)
        return 1


def _cut(word: str) -> Cut:
    try:
        return Cut.parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error  # of others argparse does not tell the message


def _rehearse(rate: float, cuts: list[Cut], report: Path | None) -> int:
    begun = time.monotonic()
    lab = Lab()
    _say(begun, "releases and disks (cached after the first time) …")
    bundle = sites_release.bundle(lab, sites_release.NEW)
    sites_release.disk(lab)
    _say(begun, f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; four machines boot …")
    with (
        tempfile.TemporaryDirectory(prefix="updater-sites-") as work,
        Server(bundle.parent) as depot,
        installation(Path(work), say=lambda text: _say(begun, text)) as made,
    ):
        _say(begun, "in service on the old release")
        url = depot.url(bundle.name, guest=True)
        ending = rehearse(made, bundle=url, rate=rate, cuts=cuts, begun=begun)
        _table(ending)
        verdict = ending.faults()
        if report:
            _leave(ending, made, report.absolute(), verdict)
    minutes = (time.monotonic() - begun) / 60
    for fault in verdict:
        print(f"would fail on the night: {fault}")
    print("verdict: " + ("it would fail" if verdict else "nothing would fail on the night"))
    print(f"figure rehearse_min {minutes:.2f} min")
    print(f"figure rehearse_failed_calls {ending.calls.lost} calls", flush=True)
    return 1 if verdict else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("rehearse: interrupted; everything it made is gone")
