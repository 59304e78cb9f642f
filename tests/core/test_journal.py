"""The journal: one open run, durable records, a form that only grows, and clear words when the disk is full or ill."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from core import faults
from core.errors import Busy, NoSpace, NotReady, UpdaterError
from core.journal import Journal, RunState, StepState, _letters
from core.report import Event, Kind


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.sqlite"


def test_a_run_from_its_beginning_to_its_end(path: Path) -> None:
    with Journal.open(path) as journal:
        run = journal.begin("stage", {"release": "MR96-1"})
        assert journal.open_run() == run and run.state is RunState.OPEN and run.ended is None
        journal.intend(run, 0, "write", {"held": {}})
        journal.outcome(run, "write", StepState.DONE, "573 MB")
        journal.record(run, Event(kind=Kind.NOTE, text="hello", data={"n": 1}))
    with Journal.open(path) as journal:  # another process
        step = journal.steps(run)["write"]
        assert (step.state, step.facts, step.detail) == (StepState.DONE, {"held": {}}, "573 MB")
        assert journal.events(run)[0]["data"] == {"n": 1}
        journal.close(run, RunState.DONE, "staged")
        assert journal.open_run() is None
        assert journal.runs()[0].outcome == "staged" and journal.runs()[0].ended is not None


def test_only_one_run_is_open_whatever_asks(path: Path) -> None:
    with Journal.open(path) as journal, Journal.open(path) as another:
        run = journal.begin("stage", {})
        with pytest.raises(Busy) as caught:
            another.begin("activate", {})
        assert "updater abort" in " ".join(caught.value.next)
        journal.close(run, RunState.ABORTED, "")
        assert another.begin("activate", {}).id != run.id


def test_ids_are_days_and_letters(path: Path) -> None:
    assert [_letters(n) for n in (0, 25, 26, 27, 701, 702)] == ["a", "z", "aa", "ab", "zz", "aaa"]
    with Journal.open(path) as journal:
        ids = []
        for _ in range(30):
            run = journal.begin("stage", {})
            journal.close(run, RunState.DONE, "")
            ids.append(run.id)
        assert len(set(ids)) == 30 and ids[0].endswith("-a") and ids[27].endswith("-ab")
        assert [run.id for run in journal.runs(limit=3)] == ids[:-4:-1]
        with pytest.raises(UpdaterError, match="no run 2026"):
            journal.run("2026-01-01-a")


def test_the_first_facts_of_a_step_stay(path: Path) -> None:
    """They describe the state before any of its effects."""
    with Journal.open(path) as journal:
        run = journal.begin("stage", {})
        journal.intend(run, 0, "mark", {"held": "MR94-1"})
        journal.outcome(run, "mark", StepState.FAILED, "no")
        journal.intend(run, 0, "mark", {"held": "nothing any more"})
        record = journal.steps(run)["mark"]
        assert (record.facts, record.state, record.ended) == ({"held": "MR94-1"}, StepState.INTENT, None)


def test_steps_come_in_their_order(path: Path) -> None:
    with Journal.open(path) as journal:
        run = journal.begin("stage", {})
        for seq, name in ((2, "c"), (0, "a"), (1, "b")):
            journal.intend(run, seq, name, {})
        assert list(journal.steps(run)) == ["a", "b", "c"]


def test_slots_and_facts_are_replaced_whole(path: Path) -> None:
    with Journal.open(path) as journal:
        assert journal.slot("a") == {} and journal.fact("x") is None
        journal.set_slot("a", {"release": "MR95-1", "seal": "1"})
        journal.set_slot("a", {"release": "MR96-1"})
        journal.set_fact("x", [1])
        journal.set_fact("x", {"y": None})
        assert journal.slot("a") == {"release": "MR96-1"} and journal.fact("x") == {"y": None}


# -- other agents' journals


def test_a_later_agent_may_add_columns_tables_and_keys(path: Path) -> None:
    with Journal.open(path) as journal:
        run = journal.begin("stage", {"release": "MR96-1", "of a later agent": [1]})
        journal.intend(run, 0, "write", {})
    with sqlite3.connect(path) as later:
        later.execute("ALTER TABLE runs ADD COLUMN approved_by TEXT")
        later.execute("ALTER TABLE steps ADD COLUMN cost INTEGER NOT NULL DEFAULT 0")
        later.execute("ALTER TABLE slots ADD COLUMN other TEXT")
        later.execute("CREATE TABLE approvals (run TEXT)")
    later.close()
    with Journal.open(path) as journal:
        run = journal.run(run.id)
        journal.intend(run, 1, "verify", {})
        journal.set_slot("b", {"release": "MR96-1"})
        journal.close(run, RunState.DONE, "")
        assert len(journal.steps(run)) == 2 and journal.slot("b")["release"] == "MR96-1"


def test_a_journal_of_the_first_form_is_read(path: Path) -> None:
    """An agent of today on the journal of an agent that knew fewer tables: what is missing is added."""
    with sqlite3.connect(path) as old:
        old.execute(
            "CREATE TABLE runs (id TEXT PRIMARY KEY, verb TEXT NOT NULL, plan TEXT NOT NULL, state TEXT NOT NULL,"
            " agent TEXT NOT NULL, started TEXT NOT NULL, ended TEXT, outcome TEXT NOT NULL DEFAULT '')"
        )
        values = "'2026-01-01-a', 'stage', '{}', 'open', '0', '2026-01-01T00:00:00+00:00', NULL, ''"
        old.execute(f"INSERT INTO runs VALUES ({values})")
    old.close()
    with Journal.open(path) as journal:
        run = journal.open_run()
        assert run is not None and run.id == "2026-01-01-a"
        journal.set_fact("x", 1)


def test_a_journal_that_asks_for_a_newer_reader_is_left_alone(path: Path) -> None:
    Journal.open(path).__exit__()
    with sqlite3.connect(path) as later:
        later.execute("INSERT INTO journal VALUES (99)")
    later.close()
    before = path.read_bytes()
    with pytest.raises(NotReady, match="newer agent") as caught:
        Journal.open(path)
    assert caught.value.next and path.read_bytes() == before


# -- when the disk is ill


@pytest.mark.parametrize("damage", [b"no database at all" * 300, b"SQLite format 3\0" + b"\xff" * 8000])
def test_a_damaged_journal_says_so(path: Path, damage: bytes) -> None:
    path.write_bytes(damage)
    with pytest.raises(NotReady) as caught:
        Journal.open(path)
    assert caught.value.exit_code == 11 and "untouched" in caught.value.state


def test_damage_in_the_middle_is_found_when_it_is_read(path: Path) -> None:
    with Journal.open(path) as journal:
        run = journal.begin("stage", {"x": "y" * 20_000})
    raw = bytearray(path.read_bytes())
    raw[4096:] = b"\xa5" * (len(raw) - 4096)
    path.write_bytes(raw)
    with pytest.raises(NotReady), Journal.open(path) as journal:
        journal.run(run.id)


def _everything(journal: Journal) -> None:
    run = journal.begin("stage", {"release": "MR96-1"})
    for seq, name in enumerate(("mark", "write", "seal")):
        journal.intend(run, seq, name, {"held": "x" * 500})
        journal.record(run, Event(kind=Kind.STARTED, step=name, text="y" * 500))
        journal.outcome(run, name, StepState.DONE, "z" * 500)
    journal.set_slot("b", {"release": "MR96-1"})
    journal.set_fact("data-release", "MR96-1")
    journal.close(run, RunState.DONE, "staged")


@pytest.mark.root
def test_no_space_at_every_write(small_tmpfs: Callable[[int], Path]) -> None:
    """The disk is full from the n-th write on: each time the error says so, what was written before is there, and
    once there is room again everything goes on.
    """
    place = small_tmpfs(400 << 10)
    names: list[str] = []
    faults.arm(names.append)
    try:
        with Journal.open(place / "trial") as journal:
            _everything(journal)
    finally:
        faults.arm(None)
    (place / "trial").unlink()
    assert {name.split(":")[1] for name in names} >= {"begin", "intend", "outcome", "slot", "fact", "close"}

    for full_from in range(len(names)):
        path = place / "journal.sqlite"
        passed = 0

        def fill(_: str, *, since: int = full_from) -> None:
            nonlocal passed
            if passed == since:
                with (place / "ballast").open("wb", buffering=0) as ballast:
                    try:
                        while True:
                            ballast.write(bytes(4096))
                    except OSError:
                        pass
            passed += 1

        with Journal.open(path) as journal:
            faults.arm(fill)
            try:
                with pytest.raises(NoSpace):
                    _everything(journal)
            finally:
                faults.arm(None)
        with Journal.open(path) as journal:  # still full: reading works
            run = journal.open_run()
            assert (run is None) == (full_from == 0), names[full_from]
        (place / "ballast").unlink()
        with Journal.open(path) as journal:
            if run is not None:
                journal.close(run, RunState.ABORTED, "")
            _everything(journal)
        path.unlink()


@pytest.mark.root
def test_no_space_to_make_one(small_tmpfs: Callable[[int], Path]) -> None:
    place = small_tmpfs(8 << 10)
    with pytest.raises(NoSpace):
        Journal.open(place / "journal.sqlite")


def test_a_commit_that_fails_leaves_nothing_open(path: Path) -> None:
    """Another process reads all the while: the value is not there, and the next write goes through once it has read."""
    with Journal.open(path) as journal, Journal.open(path) as reader:
        journal.set_fact("data-release", 95)
        journal._db.execute("PRAGMA busy_timeout = 10")
        reader._db.execute("BEGIN")
        assert reader.fact("data-release") == 95
        with pytest.raises(Busy):
            journal.set_fact("data-release", 96)
        assert journal.fact("data-release") == 95
        reader._db.execute("COMMIT")
        journal.set_fact("data-release", 97)
        assert reader.fact("data-release") == 97
