"""Power cuts in the story of a rehearsal, with a machine that is played; and what a rehearsal leaves behind."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from core.errors import CommandFailed, ConfigError, RehearsalFailed
from core.journal import RunState
from images.keys import generate
from updater import rehearsed
from vagrant.qemu import MachineError
from vagrant.rehearsal import custom, guest, node
from vagrant.rehearsal.custom import Step
from vagrant.rehearsal.options import Options
from vagrant.rehearsal.story import NEW, OLD, StopRehearsal, Story, _Seen
from zdu.rehearsal import Grade, Phase, judge

STEPS = ("flip", "reboot", "health", "confirm")


class Played:
    """A machine in an activation: what it has done of it, and whether a boot is on its way."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.begun: list[str] = []
        self.open = self.booting = self.running = False
        self.slot: str = OLD

    def begin(self, words: str, unit: str) -> None:
        self.begun.append(words)
        if words == "resume" and not self.open:
            raise MachineError("there is nothing to resume")
        self.open = True

    def boots(self) -> None:
        self.booting, self.slot = True, NEW if "flip" in self.done else OLD

    def arrive(self) -> str:
        if self.slot == OLD and self.open and not self.booting:  # the verb, as far as its reboot
            self.done += [step for step in STEPS[:2] if step not in self.done]
            self.boots()
        if not self.booting:
            raise MachineError("a boot that answers by SSH: not within 600 s")
        self.booting = False
        return self.slot

    def watch(self, journal: str, step: str, last: int, seconds: float) -> str:
        if not self.open:
            return ""
        self.done += [each for each in STEPS[: STEPS.index(step)] if each not in self.done]
        return "intent"

    def kill(self) -> None:
        self.running = False

    def start(self) -> None:
        self.boots()

    def settled(self) -> dict[str, Any]:
        if self.open and self.slot == NEW:
            self.done, self.open = list(STEPS), False
        upgrade = {"verb": "activate", "step": "flip"} if self.open else None
        return {"upgrade": upgrade, "booted": self.slot}

    def updater(self, words: str) -> guest.Said:
        data: Any = [] if words.startswith("history") else {"state": "rebooting"}
        return guest.Said(code=0, data=data, error={}, seconds=0)


def story(*cuts: str) -> tuple[Story, Played]:
    played: Any = Played()
    config: Any = SimpleNamespace(data=Path("/data"))
    nothing: Any = None
    told = Story(
        guest=played, config=config, exported=nothing, bundle="next.bundle", start="MR95-1", target="MR96-1",
        cuts=list(cuts), tell=lambda text: None,
    )  # fmt: skip
    return told, played


@pytest.mark.parametrize(
    ("cuts", "begun"),
    [
        (("health",), ["activate"]),
        (("health", "confirm"), ["activate"]),
        (("flip", "health"), ["activate", "resume"]),
        (("flip", "health", "confirm"), ["activate", "resume"]),
    ],
)
def test_the_power_is_cut_at_one_step_after_the_other(cuts: Sequence[str], begun: list[str]) -> None:
    told, played = story(*cuts)
    seen = _Seen()
    told._do("activate", "activate", seen)
    assert told.happened == list(cuts) and not told.cuts and not told.uncut()
    assert played.begun == begun
    assert played.done == list(STEPS) and not played.open
    assert [remark.split(",")[0] for remark in seen.remarks] == [f"power cut at {step}" for step in cuts]
    assert not seen.failed


def test_what_is_over_after_a_cut_is_not_resumed(monkeypatch: pytest.MonkeyPatch) -> None:
    told, played = story("flip", "health")

    def over(*args: object) -> dict[str, Any]:
        played.open = False
        return {"upgrade": None, "booted": OLD}

    monkeypatch.setattr(played, "settled", over)
    told._do("activate", "activate", _Seen())
    assert played.begun == ["activate"]
    assert told.happened == ["flip"] and told.cuts == ["health"]


def test_a_cut_that_did_not_come_fails_the_verdict() -> None:
    told, _ = story("packages")
    (finding,) = told.uncut()
    assert finding.grade is Grade.FAILS and "packages" in finding.text


def test_a_step_that_does_not_come_ends_the_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    told, played = story("flip")
    monkeypatch.setattr(played, "watch", lambda *_: "")
    with pytest.raises(StopRehearsal):
        told._do("activate", "activate", _Seen())
    assert told.cuts == ["flip"] and not told.happened


@pytest.mark.parametrize(
    ("state", "step", "said"), [("open", "write", "intent"), ("done", "write", "intent"), ("done", "packages", "")]
)
def test_nobody_waits_for_a_step_of_a_run_that_is_over(tmp_path: Path, state: str, step: str, said: str) -> None:
    journal = tmp_path / "journal.sqlite"
    with sqlite3.connect(journal) as db:
        db.execute("CREATE TABLE runs (id TEXT, state TEXT)")
        db.execute("CREATE TABLE steps (run TEXT, name TEXT, state TEXT)")
        db.execute("INSERT INTO runs VALUES ('one', 'done'), ('two', ?)", [state])
        db.execute("INSERT INTO steps VALUES ('one', 'packages', 'done'), ('two', 'write', 'intent')")
    program = guest._WATCH.format(journal=journal, step=step, after=1, seconds=60, open=RunState.OPEN)
    done = subprocess.run(
        [sys.executable, "-I", "-"], input=program, capture_output=True, text=True, timeout=20, check=False
    )
    assert (done.stdout.strip(), done.returncode) == (said, 0 if said else 1)


# -- what is left behind


def options(**changed: Any) -> Options:
    return Options(bundle="n", current="c", export=Path("e"), **changed)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"report": "night.html", "record": "night.json"}, "the same file"),
        ({"report": "night.json"}, "the same file"),
        ({"report": "night.html", "record": "./sub/../night.json"}, "the same file"),
        ({"report": "nowhere/night.html"}, "cannot be written"),
        ({"record": "nowhere/r.json"}, "cannot be written"),
        ({"record": "sub"}, "cannot be written"),
        ({"record": "r.json", "sign": "none.pem"}, "cannot be used"),
    ],
)
def test_what_cannot_be_written_afterwards_is_refused_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: dict[str, str], why: str
) -> None:
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(node, "_able", lambda: None)
    wanted = options(**{name: each if name == "sign" else Path(each) for name, each in words.items()})
    with pytest.raises(ConfigError, match=why), node.stage(wanted):
        pass


def test_the_documented_names_are_taken(tmp_path: Path) -> None:
    key, _ = generate(tmp_path / "hall.pem")
    wanted = options(report=tmp_path / "night.html", record=tmp_path / "mr96-1.json", sign=str(key))
    assert node.prepared(wanted) is not None
    assert node.prepared(options()) is None


def scene() -> Any:
    manifest = SimpleNamespace(node=SimpleNamespace(name="n1"), carried=(), kept=(), configured="")
    machine = SimpleNamespace(cpus=2, memory=1024)
    return SimpleNamespace(
        export=SimpleNamespace(manifest=manifest), guest=machine, start="MR95-1", target="MR96-1", identity="x",
        signer=None,
    )  # fmt: skip


def test_the_verdict_is_told_even_if_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(node, "accelerator", lambda: "tcg")
    with pytest.raises(ConfigError):
        node.finish(options(record=tmp_path / "gone/r.json"), scene(), what="node", phases=[], findings=[], seconds=1)
    assert "PASSED" in capsys.readouterr().out


def test_the_record_has_the_cuts_that_happened_and_none_that_were_only_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node, "accelerator", lambda: "tcg")
    told, _ = story("seal")
    wanted = options(record=tmp_path / "r.json", report=tmp_path / "night.html", cuts=("write", "seal"))
    findings = [*judge([Phase(name="stage", seconds=1, remarks=("noted",))], ["stage"]), *told.uncut()]
    with pytest.raises(RehearsalFailed, match="never cut at seal"):
        node.finish(wanted, scene(), what="node", phases=[], findings=findings, seconds=1, cuts=("write",))
    record = rehearsed.read(tmp_path / "r.json", None)
    assert record.faults == ("power@write",) and not record.passed
    assert json.loads((tmp_path / "night.json").read_text())["findings"][0]["phase"] == "power cuts"


# -- steps on the host


def test_a_step_that_overruns_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    play = scene()
    play.guest.ssh_words = lambda: ["ssh", "node"]
    play.installed = SimpleNamespace(bundle="b")
    pid = tmp_path / "pid"
    step = Step(run=f"sleep 60 & echo $! > {pid}; wait", on="host", timeout=1)
    with pytest.raises(CommandFailed, match="within 1 s"):
        custom._on_host(play, step)
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until it is reaped
            os.kill(int(pid.read_text()), 0)
            time.sleep(0.05)
    said = custom._on_host(play, Step(run='echo "$REHEARSAL_NODE: $REHEARSAL_SSH" >&2; cat; exit 3', on="host"))
    assert said == (3, "n1: ssh node\n")
