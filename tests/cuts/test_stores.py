"""The stores of the agent and of the controller, and the files that the configuration is put into, in power cuts:
at flush boundaries and between them, on a filesystem that replays its journal as after a real one. What was
acknowledged is there, a transaction is there whole or not at all, and work goes on from what is left.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.store import Store as AnyStore
from templates.store import Author, Store
from templates.tree import GLOBAL
from tests.templates import configlab
from tests.updater import lab as nodes
from tests.updater.crash import in_child
from tests.zdu import controllerlab as sites
from updater import catalogues
from updater.node import open_node
from updater.upgrade import open_bundle
from vagrant.outages.stores import AfterCut, CutVolume
from zdu.records import Approve, RunState, StepState
from zdu.tables import Tables

pytestmark = [
    pytest.mark.root,
    pytest.mark.xdist_group("controller"),  # the workflow engine is one for a process
    pytest.mark.skipif(os.geteuid() != 0, reason="mounts filesystems, so it needs root"),
    pytest.mark.skipif(not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is missing"),
    pytest.mark.skipif(not Path("/dev/fuse").exists(), reason="there is no FUSE"),
]

#: Cuts of a test: at so many flush boundaries, and at so many points between them. $STORE_CUTS multiplies both.
FLUSHES, TORN = 30, 25
MORE = int(os.environ.get("STORE_CUTS", "1"))

ME = Author(who="me", why="because")


@pytest.fixture
def volume() -> Iterator[CutVolume]:
    """A filesystem under which the power will be cut."""
    with tempfile.TemporaryDirectory(prefix="cut-volume-") as work:
        yield CutVolume(Path(work))


@pytest.fixture
def rng() -> random.Random:
    """The choices of this run; the seed is shown when the test fails."""
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Any:
    """Print a line in spite of pytest."""

    def say(line: str) -> None:
        with capsys.disabled():
            print(f"\n  {line}")

    return say


def content(path: Path) -> str:
    """All that an SQLite file holds, as SQL; it is opened as any program would, and has to be sound."""
    db = sqlite3.connect(path)
    try:
        assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        return "\n".join(db.iterdump())
    finally:
        db.close()


class Commits:
    """The states that a store went through, one for each commit; each is acknowledged when the commit has returned."""

    def __init__(self, volume: CutVolume, path: Path) -> None:
        self.volume, self.path = volume, path
        self.states = [content(path)]
        volume.acknowledge(0)

    @contextmanager
    def noted(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Note every commit of a store in this file."""
        plain, commits = AnyStore._transaction, self

        @contextmanager
        def transaction(store: AnyStore) -> Iterator[sqlite3.Connection]:
            with plain(store) as db:
                yield db
            if store.path == commits.path:
                commits.states.append(content(commits.path))
                commits.volume.acknowledge(len(commits.states) - 1)

        with monkeypatch.context() as patched:
            patched.setattr(AnyStore, "_transaction", transaction)
            yield

    def check(self, cut: AfterCut) -> None:
        """What is found is one of the states, and none older than the last one acknowledged."""
        last = max(each for each in cut.said if isinstance(each, int))
        found = content(self.path)
        assert found in self.states, f"{cut}: half a transaction"
        assert found in self.states[last:], f"{cut}: commit {last} was acknowledged, and is gone"


def test_the_journal_of_a_node_and_its_sandbox(
    volume: CutVolume, rng: random.Random, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tell: Any
) -> None:
    lab = nodes.Lab.create(tmp_path)
    new = lab.bundle("MR96-1")
    with volume:
        config = lab.sandbox(volume.root / "node")
        os.sync()
        commits = Commits(volume, volume.root / "node/data/journal.sqlite")
        with commits.noted(monkeypatch):
            assert nodes.do(config, "stage", new) == "done"
            assert nodes.do(config, "activate") == "done"
            assert nodes.do(config, "rollback") == "done"
    counted = finished = 0
    old = ""
    for cut in volume.after_cuts(rng, flushes=FLUSHES * MORE, torn=TORN * MORE):
        counted += 1
        commits.check(cut)
        nodes.power_cycle(config)
        seen = nodes.look(config)
        old = old or seen["content"]["a"]
        assert not seen["broken"] and seen["next boot"], cut
        assert seen["content"]["a"] == old, cut  # the way back is whole whenever the power goes
        assert seen["status"].indicator != "CRITICAL", (cut, seen["status"])
        if rng.random() < 0.4:
            finished += 1
            nodes.attempt(config, "confirm")
            if nodes.look(config)["open run"]:
                verb = rng.choice(("resume", "abort"))
                assert nodes.do(config, verb) in ("done", "aborted", "fell-back"), (cut, verb)
            seen = nodes.look(config)
            assert seen["open run"] is None and not seen["broken"], cut
    tell(f"journal: {len(commits.states)} commits, {counted} cuts, {finished} of them gone on from, 0 bad")


def test_the_catalogue_of_a_release(volume: CutVolume, rng: random.Random, tmp_path: Path, tell: Any) -> None:
    lab = nodes.Lab.create(tmp_path)
    new = lab.with_data("MR96-1")
    with volume:
        config = lab.sandbox(volume.root / "node")
        nodes.add_data(config)
        assert nodes.do(config, "stage", lab.bundle("MR96-2")) == "done"  # has no catalogue
        os.sync()
        with open_node(config) as node, open_bundle(node, str(new)) as bundle:
            volume.acknowledge("nothing kept")
            catalogues.keep(node, "b", bundle)
            volume.acknowledge("kept")
            whole = catalogues.catalogue_of(node, "b")
        assert whole.migrations
        (volume.root / "later").touch()
        os.sync()
    counted = 0
    for cut in volume.after_cuts(rng, flushes=0, torn=TORN * MORE):
        counted += 1
        with open_node(config) as node:
            found = catalogues.catalogue_of(node, "b")
        assert found == whole or (not found.migrations and "kept" not in cut.said), cut
    tell(f"catalogue: {counted} cuts, 0 bad")


def test_the_store_of_configurations(
    volume: CutVolume, rng: random.Random, monkeypatch: pytest.MonkeyPatch, tell: Any
) -> None:
    path = volume.root / "configurations.sqlite"
    with volume, Store.open(path) as store:
        commits = Commits(volume, path)
        with commits.noted(monkeypatch):
            store.clone(None, ME)
            for version in range(1, 8):
                for number in range(4):
                    store.set(version, GLOBAL, "app.port", version * 100 + number, ME)
                store.set(version, configlab.at("environment:acme"), "app.name", f"n{version}", ME)
                store.apply(version, ME)
                store.clone(version, ME)
            store.apply(store.earlier().version, ME)
    counted = 0
    for cut in volume.after_cuts(rng, flushes=FLUSHES * MORE, torn=TORN * MORE):
        counted += 1
        commits.check(cut)
        with Store.open(path) as store:
            for each in store.listed():
                store.tree(each.version)  # it is what was applied: its digest is compared
            draft = store.clone(None, ME)
            store.set(draft.version, GLOBAL, "app.port", 1, ME)
            assert store.apply(draft.version, ME).active
    tell(f"configurations: {len(commits.states)} commits, {counted} cuts, 0 bad")


def test_a_store_that_does_not_wait_for_the_disk_is_found_out(
    volume: CutVolume, rng: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = volume.root / "configurations.sqlite"
    with volume, Store.open(path) as store:
        os.sync()
        commits = Commits(volume, path)
        store._db.execute("PRAGMA synchronous = OFF")
        with commits.noted(monkeypatch):
            for _ in range(20):
                store.clone(None, ME)

    def lost(cut: AfterCut) -> bool:
        try:
            commits.check(cut)
        except (AssertionError, sqlite3.DatabaseError):
            return True
        return False

    assert any(lost(cut) for cut in volume.after_cuts(rng, flushes=5, torn=10))


def test_files_of_the_configuration(volume: CutVolume, rng: random.Random, tmp_path: Path, tell: Any) -> None:
    names = ("one.conf", "two.conf", "three.conf")
    shipped = configlab.section(
        tmp_path / "section", {f"{name}.j2": f"{name} {{{{ app.port }}}}\n" * 300 for name in names}
    )
    root, data = volume.root / "slot", volume.root / "data"
    with volume:
        (root / "etc").mkdir(parents=True)
        data.mkdir()
        configlab.put(shipped, configlab.tree(app_port=1), root, data)
        os.sync()
        texts = [_texts(root, names)]
        volume.acknowledge(0)
        for port in range(2, 9):
            configlab.put(shipped, configlab.tree(app_port=port), root, data)
            texts.append(_texts(root, names))
            volume.acknowledge(len(texts) - 1)
    counted = 0
    for cut in volume.after_cuts(rng, flushes=FLUSHES * MORE, torn=TORN * MORE):
        counted += 1
        found, last = _texts(root, names), cut.said[-1]
        for name, text in found.items():
            assert text in {each[name] for each in texts[last : last + 2]}, f"{cut}: {name} is neither old nor new"
        if rng.random() < 0.1:  # templates are rendered in a process of their own, which takes its time
            configlab.put(shipped, configlab.tree(app_port=8), root, data)
            assert _texts(root, names) == texts[-1], cut
    tell(f"files of the configuration: {counted} cuts, 0 bad")


def _texts(root: Path, names: tuple[str, ...]) -> dict[str, str]:
    return {name: (root / "etc" / name).read_text() for name in names}


def test_the_controller_of_a_zero_downtime_upgrade(volume: CutVolume, rng: random.Random, tell: Any) -> None:
    folder = volume.root / "controller"
    of, path = sites.sites(folder), folder / "zdu.sqlite"
    with volume:
        folder.mkdir()
        # in a process of its own: the engine's connections end with it, and only then can the filesystem be unmounted
        recorded = in_child(lambda: _upgraded(of, path, volume))
    assert recorded is not None
    volume.acknowledged, worlds = recorded
    counted = resumed = 0
    for cut in volume.after_cuts(rng, flushes=FLUSHES * MORE, torn=TORN * MORE):
        counted += 1
        content(path)
        found, said = _steps(path), cut.said[-1]
        for step, rank in said.items():
            assert found.get(step, (0, 0)) >= rank, f"{cut}: {step} was {rank}, and is {found.get(step)}"
        if resumed < 6 * MORE and rng.random() < 0.1:
            resumed += 1
            then = [model for entries, model in worlds if entries <= cut.point]
            in_child(partial(_goes_on, of, then[-1] if then else sites.model(of), cut))
    tell(f"controller: {counted} cuts, {resumed} of them gone on from, 0 bad")


def _upgraded(of: Any, path: Path, volume: CutVolume) -> tuple[Any, list[tuple[int, Any]]]:
    """A whole upgrade. What was acknowledged, and what the sites were like when the log had so many entries."""
    world = sites.MemoryWorld(sites.model(of))
    worlds: list[tuple[int, Any]] = []
    plain, plain_act = Tables.transact, world.act

    def transact(tables: Tables, work: Any) -> Any:
        result = plain(tables, work)
        volume.acknowledge(_steps(path))
        return result

    def act(step: Any, talk: Any) -> str:
        said = plain_act(step, talk)
        worlds.append((volume.entries, copy.deepcopy(world.model)))
        return said

    with sites.controller(of, world) as controller, pytest.MonkeyPatch.context() as patched:
        os.sync()
        volume.acknowledge(_steps(path))
        patched.setattr(Tables, "transact", transact)
        patched.setattr(world, "act", act)
        book = sites.runbook(of, accept_no_rollback=True)
        ended = controller.start(book, bundle="mr96-1.bundle", approve=Approve.NONE, who="ada")
        assert ended.run.state is RunState.DONE, ended
    sites.in_service(world.model, "MR96-1")
    return volume.acknowledged, worlds


def _steps(path: Path) -> dict[str, tuple[int, int]]:
    """Each step and run of the controller's with a rank that only grows."""
    states = {StepState.BEGUN: 0, StepState.FAILED: 1, StepState.DONE: 2}
    db = sqlite3.connect(path)
    try:
        steps = db.execute("SELECT run || leg || step, attempts, state FROM zdu_steps").fetchall()
        runs = db.execute("SELECT id, leg, ended <> '' FROM zdu_runs").fetchall()
        fences = db.execute("SELECT 'fence ' || installation, fence FROM zdu_holders").fetchall()
    finally:
        db.close()
    return {
        **{name: (attempts, states[StepState(state)]) for name, attempts, state in steps},
        **{name: (leg, ended) for name, leg, ended in runs},
        **{name: (fence, 0) for name, fence in fences},
    }


def _goes_on(of: Any, model: Any, cut: AfterCut) -> None:
    """Another controller takes over what the cut left, and brings it to its end."""
    world = sites.MemoryWorld(model)
    with sites.controller(of, world) as controller:
        run = controller.runs.open_run(of.name)
        if run is None:
            return
        ended = controller.resume("bob")
        assert ended.run.state is RunState.DONE, (cut, ended)
    sites.in_service(model, "MR96-1")
