"""`python -m vagrant.cuts [N]`: cut the power at N points of recorded upgrades, and check what every cut leaves.

Exits with 1 when a point is bad, and says how to try that point alone.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from vagrant.cuts.boots import boot
from vagrant.cuts.check import Verdict
from vagrant.cuts.disks import CutDisk
from vagrant.cuts.log import WriteLog
from vagrant.cuts.points import Point, choose, parse
from vagrant.cuts.record import ACTS as RECORDED
from vagrant.cuts.record import Recording, recording
from vagrant.cuts.replay import replay

#: What is recorded and cut by default: every phase of an upgrade's life.
ACTS = ("stage", "switch", "sick")


def main(argv: Sequence[str] | None = None) -> int:
    """0 when no point was bad."""
    words = _parser().parse_args(argv)
    seed = words.seed or f"{random.SystemRandom().randrange(1 << 32):08x}"
    acts = [words.point.act] if words.point else words.act or list(ACTS)
    print(f"seed {seed}", flush=True)
    recordings = {act: recording(act) for act in acts}
    points = [words.point] if words.point else chosen(recordings, words.count, seed)
    verdicts = list(_told(recordings, points, seed))
    bad = [verdict for verdict in verdicts if verdict.faults]
    show(recordings, verdicts)
    if words.point:
        print(verdicts[0])
    failed = _boots(recordings, verdicts, seed, words.boots)
    for verdict in bad[:20]:
        print(f"\nBAD  {verdict.phase}; again: python -m vagrant.cuts --seed {seed} --point {verdict.point}")
        print("".join(f"     {fault}\n" for fault in verdict.faults), end="")
    if len(bad) > 20:
        print(f"\n... and {len(bad) - 20} more")
    print(f"figure cut_points {len(verdicts)} points")
    print(f"figure cut_bad {len(bad) + failed} points")
    return 1 if bad or failed else 0


def chosen(recordings: Mapping[str, Recording], count: int, seed: str) -> list[Point]:
    """`count` points of all recordings together: every flush of each, and a fair share of points between."""
    sizes: dict[str, tuple[Sequence[int], int]] = {}
    for act, each in recordings.items():
        with WriteLog(each.log) as log, CutDisk(each.base, log) as disk:
            sizes[act] = (disk.flushes, len(disk.entries))
    flushes = sum(len(found) + 1 for found, _ in sizes.values())
    points: list[Point] = []
    for number, (act, (found, entries)) in enumerate(sizes.items(), start=1):
        share = count * (len(found) + 1) // flushes if number < len(sizes) else count - len(points)
        points += choose(act, found, entries, share, seed)
        print(f"{act}: {entries} writes and flushes, {len(found)} flushes, {share} points", flush=True)
    return points


def _told(recordings: Mapping[str, Recording], points: Sequence[Point], seed: str) -> Sequence[Verdict]:
    """The verdicts, with a line now and then."""
    began = shown = time.monotonic()
    found: list[Verdict] = []
    for verdict in replay(recordings, points, seed):
        found.append(verdict)
        now = time.monotonic()
        if now - shown > 15 or len(found) == len(points):
            bad = sum(1 for each in found if each.faults)
            print(f"{len(found)} of {len(points)} points in {now - began:.0f} s, {bad} bad", flush=True)
            shown = now
    return sorted(found, key=lambda each: each.point)


def show(recordings: Mapping[str, Recording], verdicts: Sequence[Verdict]) -> None:
    """A table: for each phase the points, what boots, and what status says. `fsck`: points at which a filesystem's
    last commit is torn, which the fsck at boot mends and old kernels do not forgive without it."""
    print(f"\n{'phase':<34}{'points':>8}{'bad':>6}{'fsck':>6}")
    for act, each in recordings.items():
        for mark in dict.fromkeys(mark.name for mark in each.marks):
            here = [verdict for verdict in verdicts if verdict.point.act == act and verdict.phase == mark]
            if not here:
                continue
            bad = sum(1 for verdict in here if verdict.faults)
            mended = sum(1 for verdict in here if verdict.mended)
            print(f"{act + ': ' + mark:<34}{len(here):>8}{bad:>6}{mended:>6}")
            kinds: Counter[str] = Counter(outcome(verdict) for verdict in here)
            for kind, count in kinds.most_common():
                print(f"{'':<10}{count:>5} x {kind}")
    print(flush=True)


def outcome(verdict: Verdict) -> str:
    """What boots after the cut, and what the agent says then."""
    boots = f"boots {verdict.slot}{' (on trial)' if verdict.counted else ''}" if verdict.slot else "asks the operator"
    if verdict.standing is None:
        return f"{boots}; status unknown"
    slots = ", ".join(verdict.standing.slots)
    run = f"{verdict.standing.run} {verdict.standing.state}" if verdict.standing.run else "nothing open"
    return f"{boots}; {slots}; {run}"


def _boots(recordings: Mapping[str, Recording], verdicts: Sequence[Verdict], seed: str, count: int) -> int:
    """Boot a sample for real, one of as many different phases as there are; how many failed."""
    draw = random.Random(f"{seed}:boots")
    phases: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for verdict in verdicts:
        phases[verdict.point.act, verdict.phase].append(verdict)
    failed = 0
    for key in draw.sample(sorted(phases), min(count, len(phases))):
        verdict = draw.choice(phases[key])
        began = time.monotonic()
        seen = boot(recordings[verdict.point.act], verdict.point, verdict.phase, seed)
        seconds = time.monotonic() - began
        print(f"booted {seen.point} ({seen.phase}) in {seconds:.0f} s: slot {seen.slot or '-'}; {seen.said}", end="")
        print(f"; {seen.did or 'nothing to do'}; then {seen.ended or '-'}", flush=True)
        fault = seen.fault
        if not fault and verdict.slot != seen.slot:
            fault = f"the check expected slot {verdict.slot}"
        if fault:
            failed += 1
            print(f"BAD  {fault}\n     again: python -m vagrant.cuts --seed {seed} --point {seen.point} --boots 1")
    return failed


def _point(word: str) -> Point:
    try:
        point = parse(word)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    if point.act not in RECORDED:
        raise argparse.ArgumentTypeError(f"{word!r}: there is no recording {point.act}, but {', '.join(RECORDED)}")
    return point


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vagrant.cuts", description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=5000, metavar="N", help="points in all (5000)")
    parser.add_argument("--seed", default="", help="of all that is drawn; by default another one each time")
    parser.add_argument("--point", type=_point, help="only this point, as it was printed; needs its --seed")
    parser.add_argument("--act", action="append", choices=list(RECORDED), help="only this recording. Repeatable")
    parser.add_argument("--boots", type=int, default=3, metavar="K", help="points that are booted for real too (3)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
