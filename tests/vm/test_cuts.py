"""The power is cut at 500 points of a recorded upgrade in a machine; and a planted fault of the kind is found."""

from __future__ import annotations

from vagrant.cuts.__main__ import chosen, outcome
from vagrant.cuts.points import Point
from vagrant.cuts.record import recording
from vagrant.cuts.replay import replay

SEED = "short"


def test_no_cut_of_an_upgrade_and_its_rollback_is_bad() -> None:
    recordings = {"switch": recording("switch")}
    points = chosen(recordings, 500, SEED)
    verdicts = list(replay(recordings, points, SEED, processes=2))
    assert len(verdicts) == len(set(points)) == 500
    bad = [f"{verdict.point} in {verdict.phase}: {verdict.faults}" for verdict in verdicts if verdict.faults]
    assert not bad, f"seed {SEED}: {bad[:5]}"
    # the cuts came to all that the recording has: both slots, on trial and not, with and without something open
    assert {(verdict.slot, verdict.counted) for verdict in verdicts} >= {("a", False), ("b", True), ("b", False)}
    seen = {verdict.phase for verdict in verdicts}
    assert seen >= {"activate", "trial", "rollback", "rolled back"}, seen
    said = {outcome(verdict) for verdict in verdicts}
    assert any("activate, step" in text and "interrupted" in text for text in said), said


def test_an_environment_that_is_truncated_and_written_anew_is_found() -> None:
    recordings = {"planted": recording("planted")}
    points = chosen(recordings, 150, SEED)
    bad = [verdict for verdict in replay(recordings, points, SEED, processes=2) if verdict.faults]
    assert bad
    # the file's chain or its content, whichever the drawn writes tore
    named = ("updater/grubenv", "the boot environment")
    assert all(any(name in fault for name in named) for verdict in bad for fault in verdict.faults)
    again = Point("planted", bad[0].point.index, bad[0].point.number, bad[0].point.how)
    assert [verdict.faults for verdict in replay(recordings, [again], SEED)] == [bad[0].faults]
