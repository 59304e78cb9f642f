"""A controller that is killed at every step that is drawn, and in the middle of steps; another process goes on. In the
end the sites are as after an undisturbed run, and nobody was harmed meanwhile.

The sites live in this process; the controller is a child that asks them over a socket, and dies by SIGKILL.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import pytest

from core import faults
from core.errors import FencedOff
from core.sql import Database, Engine
from migrations.scratch import scratch_server
from tests.conftest import Drawn
from tests.zdu import controllerlab as lab
from updater.cli.context import interruptible
from zdu.controller import Controller
from zdu.engine import Engine as Pieces
from zdu.gates import Facts
from zdu.lease import holder
from zdu.records import Approve, RunState, Sample, StepState, Word
from zdu.runbook import Action, Gate, Runbook, Step
from zdu.runs import Runs
from zdu.sites import Sites
from zdu.standing import back, states
from zdu.tables import Tables
from zdu.world import Talk

pytestmark = pytest.mark.xdist_group("controller")

#: The places in a step at which the controller dies, in turn.
PLACES = ("begun", "act", "effect", "acted", "verified", "recorded")


class Server:
    """The sites, for children: each request is answered by a thread of ours."""

    def __init__(self, world: lab.MemoryWorld) -> None:
        self.world = world
        self.listener = Listener(family="AF_UNIX")
        self.fences: list[int] = []
        self.kill_at: tuple[str, int] | None = None  # a step's effect before which its controller dies
        self.killed: list[str] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Connection) -> None:
        while True:
            try:
                verb, what, fence, pid = connection.recv()
                connection.send(self._answer(verb, what, fence, pid))
            except (EOFError, OSError):
                return

    def _answer(self, verb: str, what: Any, fence: int, pid: int) -> Any:
        if verb == "look":
            return self.world.look(what)
        if verb == "sample":
            return self.world.sample()
        if self.fences and fence < max(self.fences):
            return FencedOff("a newer controller was here")  # as a node would: the old one was frozen in the asking
        self.fences.append(fence)

        def effect(step: Step, number: int) -> bool:
            if self.kill_at is not None and self.kill_at == (step.id, number):
                self.kill_at = None
                self.killed.append(step.id)
                os.kill(pid, signal.SIGKILL)
                return False
            return True

        self.world.on_effect = effect
        return self.world.act(what, _Still(fence))


class _Still:
    run = "run"
    job = "job"

    def __init__(self, fence: int) -> None:
        self.fence = fence

    def check(self) -> None:
        pass

    def note(self, text: str) -> None:
        pass


class FarWorld:
    """The sites, as the child sees them."""

    def __init__(self, address: str, fence: int) -> None:
        self._address = address
        self._fence = fence
        self._mine = threading.local()

    def look(self, gate: Gate) -> Facts:
        return self._ask("look", gate)  # type: ignore[no-any-return]

    def act(self, step: Step, talk: Talk) -> str:
        return self._ask("act", step)  # type: ignore[no-any-return]

    def sample(self) -> Sample:
        return self._ask("sample", None)  # type: ignore[no-any-return]

    def _ask(self, verb: str, what: Any) -> Any:
        if not hasattr(self._mine, "connection"):
            self._mine.connection = Client(self._address)
        self._mine.connection.send((verb, what, self._fence, os.getpid()))
        answer = self._mine.connection.recv()
        if isinstance(answer, FencedOff):
            raise answer
        return answer


def child(sites: Sites, address: str, runbook: Runbook | None, place: str, step: str, lease: float) -> None:
    """A controller's life: begins the run (`runbook`) or goes on with it; dies at a place in a step, if told to."""
    action = step.split("/")[1] if step else ""
    under_way: list[str] = []
    perform: Callable[[Pieces, int, str], dict[str, Any]] = Pieces.perform

    # Where nothing is left to be done, the places in the middle are not passed.
    places = {place} | ({"verified"} if place in ("act", "effect", "acted") else set())

    def dies(name: str) -> None:
        if step in under_way and name in {f"{action}:{each}" for each in places}:
            os.kill(os.getpid(), signal.SIGKILL)

    def watched(self: Pieces, number: int, name: str) -> dict[str, Any]:
        under_way.append(name)
        return perform(self, number, name)

    if step:
        setattr(Pieces, "perform", watched)  # noqa: B010
        faults.arm(dies)
    with interruptible(), Tables.open(sites.controller.database, patience=20) as tables:
        controller = Controller(
            sites,
            tables,
            lambda run, fence: FarWorld(address, fence),
            pace=lab.QUICK,
            samples=1.0,
            lease=lease,
        )
        if runbook is not None:
            ended = controller.start(runbook, bundle="mr96-1.bundle", approve=Approve.NONE, who="ada")
        else:
            ended = controller.resume("ada", stand_by=lease < 10)
        os._exit(0 if ended.error is None else 7)


@pytest.fixture
def fast() -> Iterator[Path]:
    with lab.short_folder() as folder:
        yield folder


@pytest.fixture(scope="module")
def forks() -> Any:
    """Children that need not import everything anew."""
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["zdu.workflow", "zdu.controller", "tests.zdu.controllerlab"])
    return context


@contextmanager
def served(sites: Sites) -> Iterator[Server]:
    server = Server(lab.MemoryWorld(lab.model(sites)))
    try:
        yield server
    finally:
        server.listener.close()


def live(forks: Any, sites: Sites, server: Server, runbook: Runbook | None, place: str = "", step: str = "") -> int:
    """One life of a controller; its exit code (negative: the signal)."""
    process = forks.Process(target=child, args=(sites, server.listener.address, runbook, place, step, 15.0))
    process.start()
    process.join(60)
    if process.is_alive():
        process.kill()
        process.join()
        raise AssertionError("the controller hangs")
    assert process.exitcode is not None
    return int(process.exitcode)


def lives(
    forks: Any, sites: Sites, server: Server, first: Runbook | None, places: Sequence[str], deadly: set[str]
) -> list[str]:
    """Life after life of controllers, each one killed in the first `deadly` step that is not done yet, at the places in
    turn, until the run has ended; the steps in which they died.
    """
    died: list[str] = []
    book = first
    while not (run := _run(sites)) or not run.ended:
        step = _next_step(sites, deadly - set(died)) if run else lab.runbook(sites).steps[0]
        place = places[len(died) % len(places)]
        server.kill_at = (step.id, 0) if place == "effect" and step else None
        code = live(forks, sites, server, book, place, step.id if step else "")
        assert code in (0, -signal.SIGKILL), f"exit {code} in {step}"
        assert (code == 0) == bool(_run(sites).ended)
        book = None
        if code:
            assert step is not None
            died.append(step.id)
    return died


def _next_step(sites: Sites, deadly: set[str]) -> Step | None:
    """The first one of these steps of the current leg that is not done."""
    with Tables.open(sites.controller.database) as tables:
        runs = Runs(tables)
        run = runs.last(sites.name)
        assert run is not None
        known = states([leg := runs.leg(run.id, run.leg)], runs.steps(run.id))
        left = [step for step in leg.runbook.steps if known.get(step.id) is not StepState.DONE]
        return next((step for step in left if step.id in deadly and step.action is not Action.FINISH), None)


def test_killed_in_every_step(fast: Path, forks: Any, drawn: Drawn) -> None:
    sites = lab.sites(fast)
    runbook = lab.runbook(sites)
    deadly = {step.id for step in drawn(runbook.steps)}
    with served(sites) as server:
        died = lives(forks, sites, server, runbook, PLACES, deadly)
        lab.in_service(server.world.model, "MR96-1")
    run = _run(sites)
    assert run.state is RunState.DONE and run.leg == 1
    # In each batch with such a step somebody died; the steps beside had been done by then, or died as well.
    assert len(died) >= sum(any(step.id in deadly for step in batch) for batch in runbook.batches) - 1
    with Tables.open(sites.controller.database) as tables:
        records = Runs(tables).steps(run.id)
    assert {record.step for record in records} == {step.id for step in runbook.steps}
    assert all(record.state is StepState.DONE for record in records)
    assert max(record.fence for record in records) == len(died) + 1
    assert server.fences == sorted(server.fences)


def test_killed_on_the_way_back(fast: Path, forks: Any, drawn: Drawn) -> None:
    sites = lab.sites(fast)
    runbook = lab.runbook(sites)
    with served(sites) as server:
        stop = lab.first(runbook, Action.SYNC_TRANSFER)
        assert live(forks, sites, server, runbook, "begun", stop.id) == -signal.SIGKILL
        with Tables.open(sites.controller.database) as tables:
            run = _run(sites)
            way = back(sites, Runs(tables), run.id)
            Runs(tables).say(run.id, Word.ABORT, "", "ada")
        deadly = {step.id for step in drawn(way.steps)}
        # The first life after that only closes the leg; the others go the way back.
        assert live(forks, sites, server, None, "begun", way.steps[0].id) == -signal.SIGKILL
        died = lives(forks, sites, server, None, ("acted", "recorded"), deadly)
        assert _run(sites).state is RunState.ABORTED
        assert len(died) >= sum(any(step.id in deadly for step in batch) for batch in way.batches) / 2
        lab.in_service(server.world.model, "MR95-1")


@pytest.mark.parametrize("engine", [Engine.SQLITE, Engine.POSTGRESQL])
def test_a_second_controller_takes_over(fast: Path, forks: Any, engine: Engine) -> None:
    """It stands by, with everything loaded, while the first one works; when that is killed, it goes on by itself."""
    with _database(engine, fast) as database:
        sites = lab.sites(fast)
        sites = replace(sites, controller=replace(sites.controller, database=database))
        runbook = lab.runbook(sites)
        with served(sites) as server:
            kill = lab.first(runbook, Action.REPLICA_HOLD)
            address = server.listener.address
            one = forks.Process(target=child, args=(sites, address, runbook, "act", kill.id, 6.0))
            one.start()
            try:
                _until(lambda: _open(sites) is not None)
                two = forks.Process(target=child, args=(sites, address, None, "", "", 6.0))
                two.start()
                one.join(60)
                assert one.exitcode == -signal.SIGKILL
                two.join(60)
                assert two.exitcode == 0
            finally:
                for process in (one, two):
                    if process.is_alive():
                        process.kill()
                    process.join()
            lab.in_service(server.world.model, "MR96-1")
            assert sorted(set(server.fences)) == [1, 2]
        assert _run(sites).state is RunState.DONE


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_run_to_the_next_controller_at_once(fast: Path, forks: Any, sent: int) -> None:
    sites = lab.sites(fast)
    with served(sites) as server:
        one = forks.Process(target=child, args=(sites, server.listener.address, lab.runbook(sites), "", "", 15.0))
        one.start()
        try:
            _until(lambda: len(server.fences) > 20)
            assert one.pid is not None
            os.kill(one.pid, sent)
            one.join(20)
            assert one.exitcode not in (None, 0) and one.exitcode > 0
        finally:
            if one.is_alive():
                one.kill()
            one.join()
        with Tables.open(sites.controller.database) as tables:
            left = holder(tables, sites.name)
            assert left is not None and not left.who and not left.alive
            assert Runs(tables).open_run(sites.name) is not None
        assert live(forks, sites, server, None) == 0
        lab.in_service(server.world.model, "MR96-1")


def test_a_frozen_controller_that_wakes_up_does_nothing_more(fast: Path, forks: Any) -> None:
    with _database(Engine.POSTGRESQL, fast) as database:
        sites = lab.sites(fast)
        sites = replace(sites, controller=replace(sites.controller, database=database))
        runbook = lab.runbook(sites)
        with served(sites) as server:
            address = server.listener.address
            one = forks.Process(target=child, args=(sites, address, runbook, "", "", 6.0))
            one.start()
            two = forks.Process(target=child, args=(sites, address, None, "", "", 6.0))
            try:
                _until(lambda: len(server.fences) > 15)
                assert one.pid is not None
                os.kill(one.pid, signal.SIGSTOP)
                two.start()
                _until(lambda: 2 in server.fences)
                os.kill(one.pid, signal.SIGCONT)
                two.join(90)
                one.join(30)
                assert two.exitcode == 0 and one.exitcode not in (0, None)
            finally:
                for process in (one, two):
                    if process.is_alive():
                        os.kill(process.pid or 0, signal.SIGCONT)
                        process.kill()
                    if process.pid is not None:
                        process.join()
            lab.in_service(server.world.model, "MR96-1")
            # Once the second one had begun, the first one did not get a word in.
            assert server.fences == sorted(server.fences)
        assert _run(sites).state is RunState.DONE


@contextmanager
def _database(engine: Engine, folder: Path) -> Iterator[Database]:
    if engine is Engine.SQLITE:
        yield Database(engine=engine, path=folder / "shared.sqlite")
        return
    with scratch_server(engine) as server:
        yield server.database


def _open(sites: Sites) -> Any:
    with Tables.open(sites.controller.database) as tables:
        return Runs(tables).open_run(sites.name)


def _run(sites: Sites) -> Any:
    with Tables.open(sites.controller.database) as tables:
        return Runs(tables).last(sites.name)


def _until(true: Any, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come"
        time.sleep(0.05)
