"""The real world of a controller, with servers that are played: every action and every gate goes through the drivers of
a sites file, and the books are real ones (SQLite).
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from core import faults
from core.errors import (
    Busy,
    CommandFailed,
    ConfigError,
    FencedOff,
    GateNotPassed,
    HealthFailed,
    NotReady,
    SiteUnreachable,
)
from core.run import Result
from core.sql import Database, Engine, Reason, SqlError
from tests.zdu import controllerlab as lab
from tests.zdu.sitelab import installation, site
from zdu.conduct import PATIENCE
from zdu.controller import Controller
from zdu.drivers import ProbeConfig, ProbeKind, StandaloneConfig, StandaloneKind, SwitchConfig, VipConfig, VipKind
from zdu.effects import RealWorld
from zdu.gates import judge
from zdu.hands import Hands
from zdu.lease import take
from zdu.limits import DrainConfig
from zdu.records import Approve, Run, RunState
from zdu.runbook import Action, Gate, GateKind
from zdu.sites import SiteCheck, SiteCheckKind, SiteKind, Sites
from zdu.standalone import alone, schema
from zdu.standalone.delta import DeltaLedger, Mode
from zdu.standalone.entries import Xdr
from zdu.standalone.main import MainLedger
from zdu.standalone.session import Session
from zdu.standalone.sync import Synchronisation
from zdu.survey import admit, dry_run, refuse, releases
from zdu.tables import Tables
from zdu.world import Talk

pytestmark = pytest.mark.xdist_group("controller")

BUNDLE = "/depot/mr96-1.bundle"


class Played:
    """All servers: what they run, how their switches stand, and what they answer to the commands of drivers."""

    def __init__(self, dispatchers: int) -> None:
        self.guard = threading.RLock()
        self.runs: dict[str, str] = {}
        self.other: dict[str, str] = {}
        self.state = {"A": "open", "B": "open", "alone": "normal", "billing": "standby", "held": "no"}
        self.sends_to: dict[str, tuple[str, ...]] = {f"d{n + 1}": ("A", "B") for n in range(dispatchers)}
        self.gave: set[str] = set()
        self.keeps = ""
        self.vip = "d1"  # which is preferred
        self.moves: list[tuple[str, str]] = []  # of the virtual IP: who got it, and what made it move
        self.calls = {"A": 0, "B": 0}
        self.live = {"d1": 0, "d2": 0}  # calls that dispatchers count at each site
        self.jobs: dict[str, dict[str, Any]] = {}
        self.down: set[str] = set()
        self.skew: dict[str, str] = {}
        self.fences: list[int] = []
        self.tokens: dict[str, int] = {}
        self.restarts: list[tuple[str, set[str]]] = []  # of dispatchers: which one, and who stood by
        self.unfit: dict[str, str] = {}
        self.asked: list[tuple[str, ...]] = []

    def answer(self, name: str, argv: Sequence[str]) -> tuple[int, str]:
        program, *words = argv
        self.asked.append((name, *argv))
        site_name = name[0].upper()
        match program, words:
            case "count-calls", []:
                return 0, str(self.calls[site_name])
            case "maintenance", [verb]:
                if verb != "status":
                    self.state[site_name] = {"enter": "maintenance", "leave": "open"}[verb]
                return 0, self.state[site_name]
            case "billing", [verb]:
                self.state["billing"] = verb if verb != "status" else self.state["billing"]
                return 0, self.state["billing"]
            case "stand-alone", ["replica"]:
                held = self.state["held"] == "yes"
                told = {"read_only": True, "replicates": not held, "applied": True, "lag": None if held else 0}
                return 0, json.dumps(told)
            case "stand-alone", [("hold" | "join") as verb]:
                self.state["held"] = "yes" if verb == "hold" else "no"
                return 0, ""
            case "stand-alone", [verb]:
                if verb != "status":
                    self.state["alone"] = {"enter": "alone", "leave": "normal"}[verb]
                    self.state["billing"] = "active"
                return 0, self.state["alone"]
            case "check-site", []:
                return 0, ""
            case "front", ["targets"]:
                targets = [
                    {"destination": f"sip:{each}", "site": each, "state": "active" if each in self.sends_to[name] else
                     "draining", "live": self.live.get(name, 0)} for each in ("A", "B")]  # fmt: skip
                return 0, json.dumps({"targets": targets})
            case "front", ["send-to", *names]:
                self.sends_to[name] = tuple(names)
                return 0, ""
            case "front", ["restore"]:
                self.sends_to[name] = ("A", "B")
                return 0, ""
            case "vip", [verb]:
                return self._vip(name, verb), ""
            case "updater", ["--json", *verb]:
                return self._node(name, verb)
        raise AssertionError(argv)

    def _vip(self, name: str, verb: str) -> int:
        if verb in ("give", "take", "join") and self.keeps == name:
            self.keeps = ""
        if verb == "give":
            self.gave.add(name)
        if verb in ("take", "keep", "join"):
            self.gave.discard(name)
        if verb == "keep":
            self.keeps = name
        free = [each for each in self.sends_to if each not in self.gave]
        if free and self.keeps != self.vip != free[0]:
            self.vip = free[0]
            self.moves.append((self.vip, f"{name} {verb}"))
        return {"holds": int(self.vip != name), "ready": int(name in self.gave)}.get(verb, 0)

    def _node(self, name: str, words: list[str]) -> tuple[int, str]:
        match words:
            case ["status"]:
                slots = [
                    {"slot": "a", "release": self.runs[name], "state": "good", "booted": True, "next_boot": True},
                    {"slot": "b", "release": self.other.get(name, "MR94-1"), "state": "staged" if name in self.other
                     else "good"},
                ]  # fmt: skip
                at = self.skew.get(name, datetime.now(UTC).isoformat())
                return 0, json.dumps({"node": name, "at": at, "indicator": "OK", "slots": slots})
            case ["doctor"]:
                return 0, "[]"
            case ["confirm"]:
                return 0, json.dumps({"kind": "result", "data": {"text": "good"}})
            case ["plan", _]:
                if name in self.unfit:
                    error = HealthFailed(self.unfit[name], next=f"mend {name}").as_json()
                    return 23, json.dumps({"title": "plan", "steps": [], "checks": []}) + "\n" + json.dumps(
                        {"kind": "error", "error": error})  # fmt: skip
                return 0, json.dumps({"title": f"→ MR96-1 on {name}", "steps": [], "checks": []})
            case ["job", "fence"]:
                return 0, json.dumps({"token": self.tokens.get(name, 0), "job": ""})
            case ["job", "status", job, *_]:
                known = self.jobs.get(f"{name}:{job}")
                if known is None:
                    error = {"kind": "wrong state", "exit_code": 34, "message": "no such job"}
                    return 34, json.dumps({"kind": "error", "error": error})
                return 0, json.dumps(known)
            case ["job", "start", "--id", job, "--fence", fence, "--", verb, *_]:
                self.fences.append(int(fence))
                if verb == "stage":
                    self.other[name] = "MR96-1"
                if verb in ("activate", "rollback") and name in self.sends_to:
                    self.restarts.append((name, set(self.gave)))
                if verb in ("activate", "rollback"):
                    new = self.other.get(name, "MR95-1") if verb == "activate" else "MR95-1"
                    self.other[name], self.runs[name] = self.runs[name], new
                told = {"id": job, "state": "done", "result": {"text": f"{verb} on {name} done"}, "events": []}
                return 0, json.dumps(self.jobs.setdefault(f"{name}:{job}", told))
        raise AssertionError(words)


class PlayedShell:
    def __init__(self, played: Played, name: str) -> None:
        self.played = played
        self.name = name

    def run(self, argv: Sequence[str], *, input: str | None = None, timeout: float = 10) -> Result:
        with self.played.guard:
            if self.name in self.played.down:
                raise SiteUnreachable(f"{self.name} cannot be reached over SSH", next="mend the line")
            code, said = self.played.answer(self.name, argv)
        return Result(code=code, stdout=said + "\n", stderr="", seconds=0)

    def exists(self, path: Path) -> bool:
        raise AssertionError(path)

    def read(self, path: Path) -> bytes:
        raise AssertionError(path)

    def write(self, path: Path, data: bytes, mode: int | None = None) -> None:
        raise AssertionError(path)


class Installation:
    def __init__(self, folder: Path, dispatchers: int = 2) -> None:
        self.played = Played(dispatchers)
        self.books = {
            name: Database(engine=Engine.SQLITE, path=folder / f"{name}.sqlite") for name in ("main", "delta")
        }
        for database in self.books.values():
            assert database.path is not None
            database.path.touch()
        with Session(self.books["main"]) as main, Session(self.books["delta"]) as delta:
            schema.install_main(main)
            schema.install_delta(delta)
            MainLedger(main).open_account("ada", credit_limit=Decimal(100))
        check = SiteCheck(name="web", kind=SiteCheckKind.COMMAND, command=("check-site",), on="a-01")
        a = site("A", SiteKind.MAIN, database=self.books["main"], billing=None, checks=(check,))
        alone = StandaloneConfig(command=("stand-alone",), kind=StandaloneKind.COMMAND, delta=self.books["delta"])
        b = site(
            "B",
            SiteKind.SECONDARY,
            database=self.books["main"],  # a replica that is never behind
            standalone=alone,
            billing=SwitchConfig(command=("billing",), host="b-02"),
        )
        a = replace(a, maintenance=SwitchConfig(command=("maintenance",), host="a-01"))
        b = replace(b, maintenance=SwitchConfig(command=("maintenance",), host="b-01"))
        made = installation(sites=(a, b), dispatchers=dispatchers, drain=DrainConfig(interval=0.02))
        self.silent = folder / "silent"  # while it is there, nobody answers at the virtual IP
        asked = ("sh", "-c", f"test ! -e {self.silent}")
        probe = ProbeConfig(kind=ProbeKind.COMMAND, command=asked, timeout=0.2)
        vip = VipConfig(address="192.0.2.20", kind=VipKind.COMMAND, command=("vip",), probe=probe)
        database = Database(engine=Engine.SQLITE, path=folder / "zdu.sqlite")
        self.sites: Sites = replace(
            made,
            dispatchers=replace(made.dispatchers, vips=(vip,)),
            controller=replace(made.controller, database=database),
        )
        self.played.runs = dict.fromkeys(self.sites.servers, "MR95-1")
        self.runbook = lab.runbook(self.sites)

    def world(self, run: Run | None = None, fence: int = 1) -> RealWorld:
        hands = Hands(self.sites, fence, line=lambda name: PlayedShell(self.played, name))
        return RealWorld(self.sites, BUNDLE, "MR96-1", fence, hands)

    def controller(self, tables: Tables) -> Controller:
        return Controller(self.sites, tables, self.world, pace=lab.QUICK, samples=0.1)


@pytest.fixture
def fast() -> Iterator[Path]:
    with lab.short_folder() as folder:
        yield folder


@pytest.fixture
def acme(fast: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """With two dispatchers, unless told otherwise."""
    monkeypatch.setattr("zdu.agent.POLL", 0.01)
    yield Installation(fast, getattr(request, "param", 2))
    faults.arm(None)


@pytest.mark.parametrize("acme", [2, 3], indirect=True)
def test_a_whole_run_through_the_drivers(acme: Installation) -> None:
    charged = _charge_while_alone(acme)
    with Tables.open(acme.sites.controller.database) as tables:
        ended = acme.controller(tables).start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert ended.error is None, ended.error.as_json()
    assert ended.run.state is RunState.DONE
    assert set(acme.played.runs.values()) == {"MR96-1"}
    assert acme.played.state == {"A": "open", "B": "open", "alone": "normal", "billing": "standby", "held": "no"}
    assert set(acme.played.sends_to.values()) == {("A", "B")} and acme.played.vip == "d1"
    assert not acme.played.gave and not acme.played.keeps, "as without an upgrade"
    assert acme.played.moves == [("d2", "d1 give"), ("d1", "d2 give")], "by the steps that move it, and no other"
    assert acme.played.restarts == [(name, {name}) for name in acme.played.sends_to], "all others are in service"
    assert set(acme.played.fences) == {1}
    with Session(acme.books["main"]) as main:
        account = MainLedger(main).account("ada")
        assert charged == ["x1"] and account.balance == Decimal("1.20") and not account.locked


def test_a_run_that_stops_and_goes_back(acme: Installation) -> None:
    _charge_while_alone(acme)
    world = acme.world()
    world.act = _failing(world, Action.SYNC_CLOSE)  # type: ignore[method-assign]
    with Tables.open(acme.sites.controller.database) as tables:
        controller = Controller(acme.sites, tables, lambda *_: world, pace=lab.QUICK, samples=0.1)
        assert (
            controller.start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada").run.state is RunState.STOPPED
        )
        ended = acme.controller(tables).abort("bob")
        assert ended.error is None, ended.error.as_json()
    assert ended.run.state is RunState.ABORTED
    assert set(acme.played.runs.values()) == {"MR95-1"}
    assert acme.played.state["alone"] == "normal" and acme.played.state["A"] == acme.played.state["B"] == "open"
    with Session(acme.books["main"]) as main:
        account = MainLedger(main).account("ada")
        assert account.balance == Decimal("1.20") and not account.locked


def test_a_dry_run_asks_everybody_and_changes_nothing(acme: Installation) -> None:
    world = acme.world()
    found, silent = releases(world.hands, acme.sites)
    assert not silent and {str(release) for release in found.values()} == {"MR95-1"}
    before = (dict(acme.played.state), dict(acme.played.runs), dict(acme.played.sends_to))
    shown: list[str] = []
    findings = dry_run(world, acme.runbook, lambda finding: shown.append(finding.what))
    refuse(findings)
    assert len(shown) == len(findings) > len(acme.sites.servers)
    assert before == (acme.played.state, acme.played.runs, acme.played.sends_to) and not acme.played.jobs
    asked = {name for name, *_ in acme.played.asked}
    assert asked == set(acme.sites.servers)


def test_what_stands_against_a_run_is_told_at_once(acme: Installation) -> None:
    acme.played.down.add("b-03")
    acme.played.unfit["a-02"] = "patch 0009 does not apply"
    acme.played.skew["a-04"] = "2026-01-01T00:00:00+00:00"
    findings = dry_run(acme.world(), acme.runbook, lambda _: None)
    with pytest.raises(NotReady) as caught:
        refuse(findings)
    told = "\n".join(caught.value.what)
    assert "b-03 cannot be reached" in told and "patch 0009" in told and "clock of a-04" in told
    assert caught.value.state == "nothing was touched"


def test_tokens_that_begin_anew_are_found_before_anything_is_done(acme: Installation) -> None:
    """The records of a controller with token 57 were lost: everybody would refuse this one."""
    acme.played.tokens["b-03"] = 60
    with Session(acme.books["main"]) as main, Session(acme.books["delta"]) as delta:
        for session, table in ((main, "ledger_state"), (delta, "delta_state")):
            session.execute(f"UPDATE {table} SET fence = 57")
    world = acme.world()
    with pytest.raises(NotReady) as caught:
        refuse(dry_run(world, acme.runbook, lambda _: None))
    assert "b-03 (token 60), the ledger of A (token 57), the delta of B (token 57)" in caught.value.what[-1]
    assert "updater zdu fence --raise" in caught.value.next[-1]
    with pytest.raises(FencedOff, match="token 1"):
        admit(world.hands, acme.runbook)
    # What was not found before is found when the site is to stand alone, before its services do.
    step = lab.first(acme.runbook, Action.STANDALONE_ENTER)
    with pytest.raises(FencedOff):
        world.act(step, lab_talk())
    assert acme.played.state["alone"] == "normal"


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("replica", "its replica runs: no"),
        ("aside", "d2 stands by"),
        ("mixed", "b-03 runs MR94-1"),
        ("silent", "how maintenance stands"),
    ],
)
def test_what_is_not_in_its_ordinary_course_stands_against_a_run(acme: Installation, broken: str, told: str) -> None:
    """Replication that is broken already, a dispatcher left aside, a server on another release, half of a site."""
    played = acme.played
    if broken == "replica":
        played.state["held"] = "yes"
    elif broken == "aside":
        played.gave.add("d2")
    elif broken == "mixed":
        played.runs["b-03"] = "MR94-1"
    else:
        played.state["B"] = ""
    with pytest.raises(NotReady) as caught:
        refuse(dry_run(acme.world(), acme.runbook, lambda _: None))
    assert told in "\n".join(caught.value.what) and caught.value.state == "nothing was touched"
    assert not played.jobs and not played.moves


def test_restoring_a_dispatcher_that_is_preferred_does_not_move_the_address(acme: Installation) -> None:
    """Whatever was done before: only vip-move moves it, and only to a dispatcher that is ready."""
    steps = {step.id: step for step in acme.runbook.steps}
    world, played = acme.world(), acme.played
    for name in ("5/vip-move/d2", "5/dispatcher-standby/d1", "5/dispatcher-restore/d1"):
        world.act(steps[name], lab_talk())
    assert played.moves == [("d2", "d1 give")] and played.keeps == "d2" and not played.gave
    (need,) = steps["5/vip-move/d1"].needs
    played.gave.add("d1")
    assert not judge(need, world.look(need)).open, "d1 stands by"
    played.gave.clear()
    assert judge(need, world.look(need)).open
    world.act(steps["5/vip-move/d1"], lab_talk())
    assert played.vip == "d1" and not played.gave and not played.keeps


@pytest.mark.parametrize("acme", [2, 3], indirect=True)
@pytest.mark.parametrize("step", ["5/vip-move/d2", "5/vip-move/d1"])
def test_a_run_goes_back_from_the_midst_of_a_move(acme: Installation, step: str) -> None:
    """All but the one that is to get the address stand by."""
    played, under_way = acme.played, list[str]()

    def fail(point: str) -> None:
        if point == "vip:given" and under_way[-1] == step:
            raise HealthFailed("no")

    world = acme.world()
    act = world.act
    world.act = lambda step, talk: (under_way.append(step.id), act(step, talk))[1]  # type: ignore[method-assign]
    with Tables.open(acme.sites.controller.database) as tables:
        faults.arm(fail)
        controller = Controller(acme.sites, tables, lambda *_: world, pace=lab.QUICK, samples=0.1)
        stopped = controller.start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert stopped.run.state is RunState.STOPPED and played.gave == set(played.sends_to) - {step[-2:]}
        faults.arm(None)
        ended = acme.controller(tables).abort("bob")
        assert ended.error is None, ended.error.as_json()
    assert ended.run.state is RunState.ABORTED and set(played.runs.values()) == {"MR95-1"}
    assert played.vip == "d1" and not played.gave and not played.keeps


def test_after_a_move_all_dispatchers_are_ready(acme: Installation) -> None:
    """A run may wait for long at the next prompt, and go back from there."""
    world, steps = acme.world(), acme.runbook.by_id
    (need,) = steps["5/vip-move/d1"].needs
    world.act(steps["5/vip-move/d2"], lab_talk())
    assert acme.played.vip == acme.played.keeps == "d2" and judge(need, world.look(need)).open
    assert acme.played.moves == [("d2", "d1 give")]


def test_a_move_that_failed_is_tried_again(acme: Installation) -> None:
    """Nobody answers on d2: d1 has the address again. When that is mended, `resume` goes on."""
    played = acme.played
    with Tables.open(acme.sites.controller.database) as tables:
        faults.arm(lambda point: acme.silent.touch() if point == "vip:given" else None)
        stopped = acme.controller(tables).start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert stopped.error is not None and "did not move from d1 to d2" in stopped.error.message
        assert played.vip == "d1" and not played.gave, "as before"
        faults.arm(None)
        acme.silent.unlink()
        ended = acme.controller(tables).resume("ada")
        assert ended.error is None, ended.error.as_json()
    assert ended.run.state is RunState.DONE and played.vip == "d1" and not played.gave and not played.keeps


@pytest.mark.parametrize("acme", [3], indirect=True)
def test_a_move_that_not_everybody_heard_the_end_of_is_not_done(acme: Installation) -> None:
    """The address is where it should be; d3, which is cut off just then, would go on standing by."""
    world, played = acme.world(), acme.played
    step = next(step for step in acme.runbook.steps if step.id == "5/vip-move/d2")
    faults.arm(lambda point: played.down.add("d3") if point == "vip:moved" else None)
    with pytest.raises(GateNotPassed, match="is on d2, but not every host was told") as caught:
        world.act(step, lab_talk())
    assert "d3 cannot be reached" in caught.value.what[0]
    faults.arm(None)
    played.down.clear()
    assert played.gave == {"d3"}
    world.act(step, lab_talk())
    assert played.vip == played.keeps == "d2" and not played.gave


def test_a_dispatcher_that_stands_by_with_the_address_keeps_it(acme: Installation) -> None:
    """It was told to give it, and nobody took it."""
    world, played = acme.world(), acme.played
    for name in ("d1", "d2"):
        played.gave.add(name)
    (address,) = world.hands.vips
    address.admit("d1")
    assert address.holders() == ["d1"] and played.gave == {"d2"} and not played.moves


@pytest.mark.parametrize(
    ("word", "earlier", "closed"),
    [("resume", False, False), ("resume", False, True), ("abort", False, True), ("abort", True, True)],
)
def test_a_site_that_does_not_come_to_charge(
    acme: Installation, monkeypatch: pytest.MonkeyPatch, word: str, earlier: bool, closed: bool
) -> None:
    """Its replica is lost when nobody charges. Main stays closed where it is lost too, or the controller is killed."""
    if earlier:
        _stand_alone_once(acme)

    def lose(name: str) -> None:
        if name == "standalone:closed":
            faults.arm(None)
            raise SqlError("the server has gone away", reason=Reason.OTHER, code="2006")

    with Tables.open(acme.sites.controller.database) as tables:
        with monkeypatch.context() as patched:
            if closed:
                patched.setattr("zdu.standalone.alone._take_back", lambda *_: None)
            faults.arm(lose)
            ended = acme.controller(tables).start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert ended.run.state is RunState.STOPPED and "gone away" in ended.run.text
        with Session(acme.books["main"]) as main:
            assert main.one("SELECT mode FROM ledger_state") == ("closed" if closed else "open",)
        ended = getattr(acme.controller(tables), word)("bob")
        assert ended.error is None, ended.error.as_json()
        assert ended.run.state is (RunState.DONE if word == "resume" else RunState.ABORTED)
    with Session(acme.books["main"]) as main:
        assert main.one("SELECT mode, run FROM ledger_state") == ("open", "")
    assert acme.played.state["alone"] == "normal"


def test_a_site_that_charges_already_is_no_other_run_in_the_next_leg(acme: Installation) -> None:
    """The services did not follow: the step fails with the delta open, and is tried again."""
    answer = acme.played.answer

    def deaf(name: str, argv: Sequence[str]) -> tuple[int, str]:
        return (0, "normal") if tuple(argv) == ("stand-alone", "enter") else answer(name, argv)

    acme.played.answer = deaf  # type: ignore[method-assign]
    with Tables.open(acme.sites.controller.database) as tables:
        ended = acme.controller(tables).start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert ended.run.state is RunState.STOPPED
        acme.played.answer = answer  # type: ignore[method-assign]
        ended = acme.controller(tables).resume("ada")
        assert ended.error is None, ended.error.as_json()


def test_an_entry_that_waits_for_its_replica_is_aborted(acme: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was closed, and on a first upgrade there never was a run to synchronise."""
    monkeypatch.setitem(PATIENCE, GateKind.FOLLOWS, 20.0)
    answer = acme.played.answer

    def behind(name: str, argv: Sequence[str]) -> tuple[int, str]:
        if tuple(argv) == ("front", "send-to", "A"):
            acme.played.state["held"] = "yes"
        return answer(name, argv)

    acme.played.answer = behind  # type: ignore[method-assign]
    with Tables.open(acme.sites.controller.database) as tables:
        ended = acme.controller(tables).start(acme.runbook, bundle=BUNDLE, approve=Approve.NONE, who="ada")
        assert ended.run.state is RunState.STOPPED and "standalone-enter" in ended.run.text
        ended = acme.controller(tables).abort("bob")
        assert ended.error is None and ended.run.state is RunState.ABORTED
    with Session(acme.books["main"]) as main:
        assert main.one("SELECT mode, run FROM ledger_state") == ("open", "")


def test_main_that_an_unknown_run_left_closed_is_opened_first(acme: Installation) -> None:
    """Its records are lost; by the delta it never came to charge."""
    with Session(acme.books["main"]) as main, Session(acme.books["delta"]) as delta:
        faults.arm(_die_at("standalone:closed"))
        with pytest.raises(KeyboardInterrupt):
            alone.enter("lost", 1, main=main, delta=delta, base=main)
        step = lab.first(acme.runbook, Action.STANDALONE_ENTER)
        assert "charges into its delta" in acme.world().act(step, lab_talk())
        assert alone.state_of(delta) == (Mode.STANDALONE, f"run.{step.id}")


def _die_at(place: str) -> Callable[[str], None]:
    def die(name: str) -> None:
        if name == place:
            faults.arm(None)
            raise KeyboardInterrupt

    return die


def _stand_alone_once(acme: Installation) -> None:
    """An upgrade that is over."""
    with Session(acme.books["main"]) as main, Session(acme.books["delta"]) as delta:
        alone.enter("before", 1, main=main, delta=delta, base=main)
        sync = Synchronisation("before", 1, main=main, delta=delta)
        sync.lock()
        sync.switch()
        sync.transfer()
        sync.close()


def lab_talk() -> Talk:
    """A step's way to a controller that wants nothing."""

    class Quiet:
        run, job, fence = "run", "job", 1

        def check(self) -> None:
            pass

        def note(self, text: str) -> None:
            pass

    return Quiet()


def test_a_switch_that_does_not_say_how_it_stands(acme: Installation) -> None:
    acme.played.state["A"] = "perhaps"
    with pytest.raises(CommandFailed, match="how maintenance stands"):
        acme.world().hands.stands("maintenance", acme.sites.main.maintenance)


def test_without_a_delta_database_nothing_is_synchronised(acme: Installation) -> None:
    b = acme.sites.by_name["B"]
    assert b.standalone is not None
    with pytest.raises(ConfigError, match="delta database of B"):
        acme.world().hands.delta_ledger(replace(b, standalone=replace(b.standalone, delta=None)))


def test_a_sample_never_fails(acme: Installation) -> None:
    acme.played.calls["A"] = 3
    acme.played.down.add("b-03")
    sample = acme.world().sample()
    assert sample.calls == {"A": 3, "B": None} and sample.lag == {"B": 0.0}


def test_the_drain_gate_says_why_it_is_shut(acme: Installation) -> None:
    world, played, gate = acme.world(), acme.played, Gate(kind=GateKind.NO_CALLS, site="A")
    assert judge(gate, world.look(gate)).open
    played.live["d2"] = 3
    assert judge(gate, world.look(gate)).open, "it does not hold the virtual IP, and sees no call end"
    played.live["d1"] = 4
    shut = judge(gate, world.look(gate))
    assert shut.found == "A: 0 calls by its own count, but d1: 4" and shut.at_odds and not shut.open
    played.calls["A"] = 2
    shut = judge(gate, world.look(gate))
    assert shut.found == "A has 2 calls" and not shut.at_odds and not shut.open
    played.down.add("a-03")
    shut = judge(gate, world.look(gate))
    assert "calls not known" in shut.found and "a-03 cannot be reached" in shut.found and not shut.open


def test_a_source_that_hangs_is_known_to_everybody_who_counts(acme: Installation) -> None:
    """However often a gate is looked at: no second question before the first one was answered."""
    hands, site = acme.world().hands, acme.sites.main
    release, asked = threading.Event(), list[str]()

    def hang(name: str, argv: Sequence[str]) -> tuple[int, str]:
        asked.append(name)
        release.wait(10)
        return 0, "0"

    acme.played.answer = hang  # type: ignore[method-assign]
    acme.played.guard = threading.Lock()  # type: ignore[assignment]
    for _ in range(3):
        counted = hands.calls(replace(site, calls=replace(site.calls, timeout=0.05)))
        assert counted.read().count is None
    assert len(asked) == 1
    release.set()


def test_leaving_is_noticed_before_a_server_is_asked(acme: Installation) -> None:
    def gone() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        acme.world().hands.watched(gone).node("a-01").status()
    assert not acme.played.asked


def test_tokens_go_on_above_all_that_were_seen(acme: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from updater.cli import zdu as cli
    from updater.cli import zdu_common as common

    monkeypatch.setattr("zdu.hands.RemoteShell", lambda name, reach: PlayedShell(acme.played, name))
    monkeypatch.setattr(common, "load", lambda _: acme.sites)
    acme.played.tokens["a-01"] = 57
    acme.played.down.add("b-03")

    def call(*words: str) -> tuple[str, BaseException | None]:
        result = CliRunner().invoke(cli.app, list(words))
        return result.output, result.exception

    said, error = call("fence")
    assert error is None and "gets token 1\n" in said and "b-03 cannot be reached" in said
    assert "token 57   it would refuse that controller" in said
    acme.played.down.clear()
    said, error = call("run", "MR96-1", "--bundle", BUNDLE)
    assert isinstance(error, FencedOff) and "a-01 (token 57)" in error.what[0] and not acme.played.jobs
    with Tables.open(acme.sites.controller.database) as tables:
        lease = take(tables, "acme", purpose="try")
        said, error = call("fence", "--raise")
        assert isinstance(error, Busy), "not behind the back of a controller that lives"
        lease.release()
    said, error = call("fence", "--raise")
    assert error is None and "gets token 59\n" in said and "refuse" not in said
    said, error = call("run", "MR96-1", "--bundle", BUNDLE, "--approve", "none")
    assert error is None and set(acme.played.fences) == {59}


def _charge_while_alone(acme: Installation) -> list[str]:
    """One call on B, charged as soon as B stands alone."""
    charged: list[str] = []
    answer = acme.played.answer

    def watched(name: str, argv: Sequence[str]) -> tuple[int, str]:
        if argv[0] == "front" and argv[1:] == ["send-to", "B"] and not charged:
            with Session(acme.books["delta"]) as delta, Session(acme.books["main"]) as main:
                ledger = DeltaLedger(delta, main)
                ledger.authorize("ada", call="c1", price=Decimal("0.10"))
                ledger.charge(
                    Xdr.of_call(
                        "x1", account="ada", call="c1", price=Decimal("0.10"), seconds=720, started=datetime.now(UTC)
                    )
                )
            charged.append("x1")
        return answer(name, argv)

    acme.played.answer = watched  # type: ignore[method-assign]
    return charged


def _failing(world: RealWorld, action: Action) -> Callable[..., str]:
    act = world.act

    def made(step: Any, talk: Any) -> str:
        if step.action is action:
            raise HealthFailed("no")
        return act(step, talk)

    return made


def test_the_command_line_from_dry_run_to_report(
    acme: Installation, monkeypatch: pytest.MonkeyPatch, fast: Path
) -> None:
    from typer.testing import CliRunner

    from updater.cli import zdu as cli
    from updater.cli import zdu_common as common

    monkeypatch.setattr("zdu.hands.RemoteShell", lambda name, reach: PlayedShell(acme.played, name))
    monkeypatch.setattr(common, "load", lambda _: acme.sites)

    def call(*words: str) -> tuple[str, BaseException | None]:
        result = CliRunner().invoke(cli.app, list(words))
        return result.output, result.exception

    run = ("run", "MR96-1", "--bundle", BUNDLE, "--approve", "none")
    said, error = call(*run, "--dry-run")
    assert error is None and "nothing was touched" in said and not acme.played.jobs
    acme.played.unfit["b-02"] = "patch 0009 does not apply"
    said, error = call(*run)
    assert isinstance(error, HealthFailed) and "patch 0009" in error.message
    assert "✗ 1/check-node/b-02" in said and error.next[-2:] == (
        "updater zdu resume    tries again",
        "updater zdu abort    goes the way back",
    )
    said, error = call("status")
    assert error is None and "stopped:" in said
    said, error = call(*run)
    assert error is not None and "is open" in str(error)
    acme.played.unfit.clear()
    said, error = call("resume")
    assert error is None and "is done; updater zdu report" in said
    assert set(acme.played.runs.values()) == {"MR96-1"}
    said, error = call("report", str(fast / "page.html"))
    assert error is None and "was upgraded from MR95-1 to MR96-1" in said
    said, error = call(*run)
    assert error is not None and "something-to-do" in str(error)
