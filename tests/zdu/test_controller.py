"""The controller on an installation in memory: the whole run, what goes wrong in it, and what people say to it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core import faults
from core.errors import Busy, DatabaseFailed, FencedOff, GateNotPassed, HookFailed, RollbackRefused, WrongState
from tests.zdu import controllerlab as lab
from zdu.controller import Controller, Ended, say
from zdu.engine import Engine as Pieces
from zdu.gates import Facts
from zdu.lease import holder, take
from zdu.limits import DrainConfig, NotifyConfig, NotifyKind, WindowConfig
from zdu.records import Approve, RunState, Sample, StepState, Word
from zdu.runbook import Action, Gate
from zdu.sites import Sites

pytestmark = pytest.mark.xdist_group("controller")  # the workflow engine is one for a process

NONE = Approve.NONE


class Installation:
    """Sites, their model, and a controller of theirs."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.sites: Sites = lab.sites(folder, **more)
        self.model = lab.model(self.sites)
        self.world = lab.MemoryWorld(self.model)
        self.runbook = lab.runbook(self.sites, accept_no_rollback=True)

    def step(self, action: Action, where: str = "") -> str:
        return lab.first(self.runbook, action, where).id

    def start(self, controller: Controller, approve: Approve = NONE) -> Ended:
        return controller.start(self.runbook, bundle="mr96-1.bundle", approve=approve, who="ada")


@pytest.fixture
def fast() -> Iterator[Path]:
    with lab.short_folder() as folder:
        yield folder


@pytest.fixture
def acme(fast: Path) -> Installation:
    return Installation(fast)


@contextmanager
def under_way(work: Callable[[], Ended]) -> Iterator[list[Any]]:
    """The work in a thread of its own; its result, or error, is in the list at the end."""
    result: list[Any] = []

    def body() -> None:
        try:
            result.append(work())
        except BaseException as error:
            result.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield result
    finally:
        thread.join(60)
        assert not thread.is_alive()


def until(true: Callable[[], Any], seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.02)
    return found


def test_a_run_from_start_to_end(acme: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    take, look, taken = acme.world.sample, acme.world.look, threading.Event()

    def sample() -> Sample:
        found = take()
        if found.delta:
            taken.set()
        return found

    def patiently(gate: Gate) -> Facts:
        """A site on its own is looked at only after a sample was taken of it: here that lasts milliseconds."""
        if acme.model.alone:
            taken.wait(20)
        return look(gate)

    monkeypatch.setattr(acme.world, "sample", sample)
    monkeypatch.setattr(acme.world, "look", patiently)
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert ended.error is None and ended.run.state is RunState.DONE and ended.run.ended
        lab.in_service(acme.model, "MR96-1")
        runs, name = controller.runs, ended.run.id
        records = {record.step: record for record in runs.steps(name)}
        assert set(records) == {step.id for step in acme.runbook.steps}
        assert all(record.state is StepState.DONE and record.attempts == 1 for record in records.values())
        drained = records[acme.step(Action.DRAIN_WAIT, "A")]
        assert drained.evidence[-1]["open"] and "0 calls" in drained.evidence[-1]["seen"]
        assert all(datetime.fromisoformat(line["at"]) for record in records.values() for line in record.evidence)
        samples = runs.samples(name)
        assert any(sample.delta for sample in samples) and all(set(sample.calls) == {"A", "B"} for sample in samples)
        assert runs.samples(name, newest=2) == samples[-2:]
        assert [event.text[:7] for event in runs.events(name) if event.kind == "phase"] == [
            f"phase {number}" for number in range(1, 10)
        ]
        assert runs.open_run("acme") is None and runs.last("acme") == ended.run
        assert holder(controller.tables, "acme") is not None and not holder(controller.tables, "acme").alive  # type: ignore[union-attr]


def test_what_is_so_already_is_only_looked_at(acme: Installation) -> None:
    acme.model.nodes["a-03"].other = "MR96-1"
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        step = acme.step(Action.STAGE_NODE, "a-03")
        assert step not in acme.world.acted
        record = next(r for r in controller.runs.steps(ended.run.id) if r.step == step)
        assert record.text == "found so already" and record.evidence[0]["open"]


def test_a_step_that_fails_stops_the_run_and_resume_tries_it_again(acme: Installation) -> None:
    step = acme.step(Action.STAGE_NODE, "b-02")
    acme.world.faults.before[step] = HookFailed("b-02: the hook 10-quiesce failed", state="b-02 serves on", next="look")
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert isinstance(ended.error, HookFailed) and ended.error.state == "b-02 serves on"
        assert ended.run.state is RunState.STOPPED and "10-quiesce" in ended.run.text and not ended.run.ended
        begun = {record.step for record in controller.runs.steps(ended.run.id)}
        assert begun <= {each.id for each in acme.runbook.phases[0].steps}
        with pytest.raises(WrongState, match="is open"):
            acme.start(controller)
        again = controller.resume("bob")
        assert again.run.state is RunState.DONE and again.run.leg == 2
        lab.in_service(acme.model, "MR96-1")
        # What the first leg had done was not done again.
        assert all(acme.world.acted.count(each) == 1 for each in acme.world.acted)


def test_an_answer_that_is_lost_is_no_failure(acme: Installation) -> None:
    acme.world.faults.unanswered |= {acme.step(Action.VIP_MOVE), acme.step(Action.DISPATCH_TO)}
    acme.world.faults.unreachable["a-01"] = 3
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert ended.error is None
        record = next(r for r in controller.runs.steps(ended.run.id) if r.step == acme.step(Action.VIP_MOVE))
        assert any("the real state is asked" in line["seen"] for line in record.evidence)
    lab.in_service(acme.model, "MR96-1")


def test_a_gate_that_stays_shut_stops_the_run(acme: Installation) -> None:
    acme.world.on_effect = lambda step, _: step.action is not Action.MAINTENANCE_ENTER
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert isinstance(ended.error, GateNotPassed) and "is in maintenance: no" in ended.error.message
        acme.world.on_effect = lambda *_: True
        assert controller.resume("ada").error is None
    lab.in_service(acme.model, "MR96-1")


def test_a_fault_of_our_own_stops_the_run_too(acme: Installation) -> None:
    acme.world.faults.before[acme.step(Action.REPLICA_HOLD)] = KeyError("surprise")
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert ended.error is not None and "KeyError" in ended.error.message
        assert ended.run.state is RunState.STOPPED


def test_a_server_that_falls_back_stops_the_run_and_abort_restores_service(acme: Installation) -> None:
    acme.model.falls_back.add("a-03")
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        assert isinstance(ended.error, GateNotPassed) and "a-03" in ended.error.message
        back = controller.abort("bob")
        assert back.error is None and back.run.state is RunState.ABORTED
        lab.in_service(acme.model, "MR95-1")
        with pytest.raises(WrongState, match="no run is open"):
            controller.abort("bob")


@pytest.mark.parametrize(
    ("action", "where"), [(Action.STAGE_NODE, "a-02"), (Action.REPLICA_HOLD, ""), (Action.SYNC_CLOSE, "")]
)
def test_abort_from_where_it_stands(acme: Installation, action: Action, where: str) -> None:
    acme.world.faults.before[acme.step(action, where)] = HookFailed("no")
    with lab.controller(acme.sites, acme.world) as controller:
        assert acme.start(controller).run.state is RunState.STOPPED
        assert controller.abort("bob").run.state is RunState.ABORTED
    lab.in_service(acme.model, "MR95-1")


def test_a_way_back_that_fails_is_gone_on_with(acme: Installation) -> None:
    acme.world.faults.before[acme.step(Action.SYNC_LOCK)] = HookFailed("no")
    with lab.controller(acme.sites, acme.world) as controller:
        acme.start(controller)
        acme.world.on_effect = lambda step, _: step.action is not Action.ROLLBACK_NODE
        stopped = controller.abort("bob")
        assert stopped.run.state is RunState.STOPPED and stopped.error is not None
        with pytest.raises(WrongState, match="on its way back"):
            controller.abort("bob")
        acme.world.on_effect = lambda *_: True
        assert controller.resume("bob").run.state is RunState.ABORTED
    lab.in_service(acme.model, "MR95-1")


def test_no_abort_past_the_point_of_no_return(fast: Path) -> None:
    from core.release import Policy

    acme = Installation(fast, policy=Policy(rollback_distance=0))
    acme.world.faults.before[acme.step(Action.SYNC_LOCK)] = HookFailed("no")
    with lab.controller(acme.sites, acme.world) as controller:
        acme.start(controller)
        with pytest.raises(RollbackRefused):
            controller.abort("bob")
        assert controller.resume("bob").run.state is RunState.DONE


def test_approvals_phase_by_phase(acme: Installation) -> None:
    with (
        lab.controller(acme.sites, acme.world) as controller,
        under_way(lambda: acme.start(controller, Approve.PHASE)) as result,
    ):
        for number in range(1, 10):
            run = until(partial(_waits, controller, str(number)))
            assert run.state is RunState.WAITING and acme.runbook.phases[number - 1].title in run.text
            controller.runs.say(run.id, Word.APPROVE, "4.2", "mallory")  # for something else: opens nothing
            controller.runs.say(run.id, Word.APPROVE, str(number), "ada")
        until(lambda: result)
    assert result[0].run.state is RunState.DONE


def test_approvals_of_each_step(acme: Installation) -> None:
    with (
        lab.controller(acme.sites, acme.world) as controller,
        under_way(lambda: acme.start(controller, Approve.EACH)) as result,
    ):
        first, second = acme.runbook.batches[:2]
        run = until(lambda: _waits(controller, first[0].id))
        assert not controller.runs.steps(run.id)
        controller.runs.say(run.id, Word.APPROVE, first[0].id, "ada")
        until(lambda: _waits(controller, second[0].id))
        assert {record.step for record in controller.runs.steps(run.id)} == {step.id for step in first}
        controller.runs.say(run.id, Word.ABORT, "", "ada")
        until(lambda: result)
    assert result[0].run.state is RunState.ABORTED


def test_pause_between_steps(acme: Installation) -> None:
    paused: list[str] = []

    def pause(step: Any, number: int) -> bool:
        if step.action is Action.STAGE_NODE and not paused:
            run = controller.open_run().id
            paused.append(run)
            controller.runs.say(run, Word.PAUSE, "", "ada")
        return True

    acme.world.on_effect = pause
    with lab.controller(acme.sites, acme.world) as controller, under_way(lambda: acme.start(controller)) as result:
        run = until(lambda: paused and (r := controller.open_run()).state is RunState.PAUSED and r)
        before = len(controller.runs.steps(run.id))
        time.sleep(0.6)
        assert len(controller.runs.steps(run.id)) == before and "paused before 2/" in run.text
        controller.runs.say(run.id, Word.RESUME, "", "ada")
        until(lambda: result)
    assert result[0].run.state is RunState.DONE


def test_a_drain_that_does_not_end_is_told_about_and_waited_for(acme: Installation) -> None:
    acme.world.model.calls[999] = _endless(acme)
    pace = replace(lab.QUICK, drain=DrainConfig(interval=0.02, alert_after=0.1, alert_every=0.1))
    with (
        lab.controller(acme.sites, acme.world, pace=pace) as controller,
        under_way(lambda: acme.start(controller)) as result,
    ):
        run = until(lambda: controller.runs.open_run("acme"))
        told = until(lambda: found if len(found := _alerts(controller, run.id)) > 2 else None)
        assert "A has 1 calls" in told[0] and "no call is ended" in told[0]
        assert not result
        del acme.world.model.calls[999]
        until(lambda: result)
    assert result[0].error is None
    lab.in_service(acme.model, "MR96-1")


def test_abort_while_a_drain_waits(acme: Installation) -> None:
    acme.world.model.calls[999] = _endless(acme)
    with lab.controller(acme.sites, acme.world) as controller, under_way(lambda: acme.start(controller)) as result:
        step = acme.step(Action.DRAIN_WAIT, "A")
        run = until(
            lambda: (
                (r := controller.runs.open_run("acme"))
                and any(record.step == step for record in controller.runs.steps(r.id))
                and r
            )
        )
        assert say(controller.tables, acme.sites, Word.ABORT, "ada")
        until(lambda: result)
        assert result[0].run.state is RunState.ABORTED
        assert 999 in acme.model.calls  # nobody cut it
        assert [leg.runbook.back for leg in controller.runs.legs(run.id)] == [False, True]
        del acme.model.calls[999]
    lab.in_service(acme.model, "MR95-1")


def test_outside_of_a_window_nothing_is_taken_out_of_service(fast: Path) -> None:
    hour = datetime.now().hour
    closed = WindowConfig(hours=f"{(hour + 3) % 24:02}:00-{(hour + 14) % 24:02}:00")
    acme = Installation(fast, windows=(closed,))
    with lab.controller(acme.sites, acme.world) as controller, under_way(lambda: acme.start(controller)) as result:
        run = until(lambda: (r := controller.runs.open_run("acme")) and "window" in r.text and r)
        assert run.state is RunState.WAITING and not run.waits_for
        assert {record.step.partition("/")[0] for record in controller.runs.steps(run.id)} == {"1"}
        controller.runs.say(run.id, Word.ABORT, "", "ada")
        until(lambda: result)
    assert result[0].run.state is RunState.ABORTED


def test_two_controllers(acme: Installation) -> None:
    with lab.controller(acme.sites, acme.world) as controller:
        lease = take(controller.tables, "acme", purpose="start a run")
        with pytest.raises(Busy, match="another controller") as caught:
            acme.start(controller)
        assert lease.holder in caught.value.what[0]
        lease.release()
        assert acme.start(controller).run.state is RunState.DONE
        assert set(acme.world.fences) == {lease.fence + 1}


def test_a_controller_that_lost_the_installation_does_nothing_more(acme: Installation) -> None:
    taken: list[int] = []

    def steal(step: Any, number: int) -> bool:
        if step.action is Action.STANDALONE_ENTER and not taken:
            controller.tables.work(lambda db: db.execute("UPDATE zdu_holders SET until = 0, process = '0 gone'"))
            other = take(controller.tables, "acme", purpose="resume")
            taken.append(other.fence)
            other.release()
        return True

    acme.world.on_effect = steal
    with lab.controller(acme.sites, acme.world) as controller:
        with pytest.raises(FencedOff, match="lost the installation"):
            acme.start(controller)
        assert acme.world.acted[-1] == acme.step(Action.STANDALONE_ENTER)
        # It left no word on how the step ended; whoever goes on finds out.
        run = controller.open_run()
        assert [r.state for r in controller.runs.steps(run.id) if r.step == acme.world.acted[-1]] == [StepState.BEGUN]
        assert controller.resume("bob").run.state is RunState.DONE
        assert acme.world.fences == sorted(acme.world.fences) and acme.world.fences[-1] > taken[0]
    lab.in_service(acme.model, "MR96-1")


def test_a_node_that_knows_a_newer_token_ends_the_controller(acme: Installation) -> None:
    acme.world.faults.before[acme.step(Action.STAGE_NODE, "a-01")] = FencedOff("a-01 has seen token 9")
    with lab.controller(acme.sites, acme.world) as controller:
        with pytest.raises(FencedOff):
            acme.start(controller)
        assert controller.open_run().state is RunState.RUNNING


def test_an_interrupted_controller_leaves_the_run_to_the_next(acme: Installation) -> None:
    def interrupt(step: Any, number: int) -> bool:
        if step.action is Action.SYNC_TRANSFER and not interrupted:
            interrupted.append(True)
            controller.runs.hear = broken  # type: ignore[method-assign]
            controller.runs.step_ended = broken  # type: ignore[method-assign]
        return True

    def broken(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    interrupted: list[bool] = []
    acme.world.on_effect = interrupt
    with lab.controller(acme.sites, acme.world) as controller:
        with under_way(lambda: acme.start(controller)) as result:
            until(lambda: interrupted)
            time.sleep(0.3)
            # What cannot be recorded does not go on; another controller does.
            controller.tables.work(lambda db: db.execute("UPDATE zdu_holders SET fence = fence + 1"))
            until(lambda: result)
        assert isinstance(result[0], FencedOff)
    with lab.controller(acme.sites, acme.world) as controller:
        controller.tables.work(lambda db: db.execute("UPDATE zdu_holders SET until = 0"))
        assert controller.resume("bob").run.state is RunState.DONE
    lab.in_service(acme.model, "MR96-1")


def test_a_controller_that_died_when_it_had_closed_a_leg(acme: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workflow engine closes that leg again when the next one is under way."""
    step = acme.step(Action.STAGE_NODE, "b-02")
    acme.world.faults.before[step] = HookFailed("no")
    close, closed = Pieces.close, list[int]()

    def watched(self: Pieces, number: int, *outcome: Any) -> str:
        said = close(self, number, *outcome)
        closed.append(number)
        return said

    def cut(name: str) -> None:
        if name == "leg:closed":
            faults.arm(None)
            raise DatabaseFailed("cut off")

    def wait(now: Any, _: int) -> bool:
        return now.id != step or bool(until(lambda: 1 in closed))

    with lab.controller(acme.sites, acme.world) as controller:
        faults.arm(cut)
        with pytest.raises(DatabaseFailed, match="cut off"):
            acme.start(controller)
        assert controller.open_run().state is RunState.STOPPED
        monkeypatch.setattr(Pieces, "close", watched)
        acme.world.on_effect = wait
        ended = controller.resume("bob")
        assert closed == [1, 2] and ended.run.state is RunState.DONE and ended.run.leg == 2
        assert not [event for event in controller.runs.events(ended.run.id) if event.kind == "stopped"]
    lab.in_service(acme.model, "MR96-1")


@pytest.mark.parametrize("word", ["resume", "abort"])
def test_a_leg_of_another_version_is_begun_anew(acme: Installation, monkeypatch: pytest.MonkeyPatch, word: str) -> None:
    """Its controller died in the middle, and the program was exchanged: the workflow engine leaves such a leg alone."""

    def cut(name: str) -> None:
        if name == "stage-node:begun":
            faults.arm(None)
            raise DatabaseFailed("cut off")

    with lab.controller(acme.sites, acme.world) as controller:
        faults.arm(cut)
        with pytest.raises(DatabaseFailed, match="cut off"):
            acme.start(controller)
        monkeypatch.setattr("zdu.workflow.VERSION", "2")
        ended = getattr(controller, word)("bob")
        assert ended.run.state is (RunState.DONE if word == "resume" else RunState.ABORTED)
        assert controller.runs.legs(ended.run.id)[0].outcome == ""
    lab.in_service(acme.model, "MR96-1" if word == "resume" else "MR95-1")


def test_who_is_told(fast: Path) -> None:
    log = fast / "told"
    command = NotifyConfig(kind=NotifyKind.COMMAND, command=("sh", "-c", f"cat >> {log}"))
    deaf = NotifyConfig(kind=NotifyKind.WEBHOOK, url="http://127.0.0.1:9/secret-token", timeout=0.2)
    acme = Installation(fast, notify=(command, deaf))
    with lab.controller(acme.sites, acme.world) as controller:
        ended = acme.start(controller)
        untold = [event.text for event in controller.runs.events(ended.run.id) if event.kind == "untold"]
    assert ended.run.state is RunState.DONE
    assert '"event": "started"' in log.read_text()
    assert untold and not any("secret-token" in text for text in untold)


def _waits(controller: Controller, what: str) -> Any:
    run = controller.runs.open_run("acme")
    return run if run is not None and run.waits_for == what else None


def _alerts(controller: Controller, run: str) -> list[str]:
    return [event.text for event in controller.runs.events(run) if event.kind == "alert"]


def _endless(acme: Installation) -> Any:
    """A call on A that nobody hangs up."""
    from tests.zdu.world import Call

    acme.world.spare.add(999)
    acme.model.book.reserved[999] = ("ada", 0)
    return Call(site="A", account="ada", authorized=0)
