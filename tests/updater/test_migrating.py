"""Data migrations in the story of a node, on a real SQLite database: what is due, what is refused, what stays."""

from __future__ import annotations

import json
import sqlite3
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from core.errors import (
    CatalogueInvalid,
    DatabaseFailed,
    MigrationFailed,
    MigrationStopped,
    NoSpace,
    RollbackRefused,
    WindowClosed,
    WrongState,
)
from core.report import Report
from core.window import Window
from migrations import snapshot
from migrations.phase import Phase
from tests.updater.crash import die_at, in_child, points
from tests.updater.lab import Lab, add_data, copy_sandbox, do, make_unhealthy, power_cycle, rows
from updater import migrate_verbs, upgrade
from updater.catalogues import kept
from updater.checks import Purposes
from updater.cli.main import app
from updater.node import open_node
from updater.status import status_of


@pytest.fixture
def served(node: Path) -> Path:
    """The node.toml of a node that serves a database."""
    add_data(node)
    return node


def plan(config: Path, bundle: Path) -> Any:
    with open_node(config) as node, upgrade.open_bundle(node, str(bundle)) as opened:
        return upgrade.plan_stage(node, opened, str(bundle), upgrade.Wishes(purposes=Purposes(jump=True)))


def found(config: Path) -> dict[str, str]:
    with open_node(config) as node:
        return {line.id: line.progress for line in migrate_verbs.lines(node, migrate_verbs.choose(node))}


def verb(config: Path, name: str, *arguments: Any, **options: Any) -> str:
    with open_node(config) as node:
        return str(getattr(migrate_verbs, name)(node, *arguments, **options))


def way_back(config: Path) -> tuple[bool, str]:
    with open_node(config) as node:
        status = status_of(node)
        return status.way_back, status.way_back_reason


def database(config: Path, sql: str) -> list[Any]:
    with sqlite3.connect(config.parent / "data/billing.sqlite") as db:
        found = db.execute(sql).fetchall()
    db.close()
    return found


def with_backups(config: Path) -> None:
    config.write_text(config.read_text().replace('backup = "none"', 'backup = "snapshot"'))


def test_the_plan_tells_all_of_it_and_changes_nothing(lab: Lab, served: Path) -> None:
    before = rows(served)
    made = plan(served, lab.with_data("MR96-1"))
    assert made.feasible
    assert [(each.name, each.kind) for each in made.decisions] == [
        ("0961-micros", "migration"),
        ("0962-names", "migration"),
    ]
    names = [step["step"] for step in made.steps]
    assert names.index("seal") < names.index("migrate") < names.index("migrate-blocking") < names.index("flip")
    assert rows(served) == before


def test_forth_and_back_between_adjoining_releases(lab: Lab, served: Path) -> None:
    do(served, "stage", lab.with_data("MR96-1"))
    assert found(served) == {"0961-micros": "done", "0962-names": "pending", "0963-balance": "pending"}
    assert all(row[3] == row[2] * 100 for row in rows(served)["accounts"])
    assert do(served, "activate") == "done"
    assert "by_name" in rows(served)["schema"]
    assert way_back(served)[0]
    assert do(served, "rollback") == "done"
    assert database(served, "SELECT count(balance) FROM accounts") == [(25,)]  # as the old release reads it
    assert do(served, "activate") == "done"
    with open_node(served) as node:
        assert str(node.data_release) == "MR96-1"


def test_a_fallback_leaves_the_data_migrated_and_says_so(lab: Lab, served: Path) -> None:
    make_unhealthy(served.parent, "MR96-1")
    do(served, "stage", lab.with_data("MR96-1"))
    assert do(served, "activate") == "fell-back"
    with open_node(served) as node:
        assert str(node.data_release) == "MR96-1"
        assert node.cannot_read(node.release("a")) is None  # type: ignore[arg-type]


def test_a_database_that_is_away_after_the_reboot_is_for_the_health_checks_to_find(lab: Lab, served: Path) -> None:
    do(served, "stage", lab.with_data("MR96-1"))
    assert do(served, "activate", by_hand=True) == "waiting"
    power_cycle(served)
    (served.parent / "data/billing.sqlite").rename(served.parent / "away")
    assert do(served, "confirm") == "done"


def test_what_the_old_release_cannot_read_needs_consent(lab: Lab, served: Path) -> None:
    text = 'database = "billing"\nphase = "blocking"\nreadable_from = "MR96"\n'
    text += '[[up]]\nsql = "ALTER TABLE accounts RENAME TO a"\n'
    do(served, "stage", lab.with_data("MR96-1", **{"0970-rename.toml": text}))
    assert "until its blocking migrations begin" in plan_activate(served).way_back
    with pytest.raises(RollbackRefused, match="no way back from MR96-1 to MR95-1"):
        do(served, "activate")
    assert do(served, "activate", accept_no_rollback=True) == "done"
    possible, why = way_back(served)
    assert not possible and "only MR96 and later" in why
    with pytest.raises(RollbackRefused, match="only MR96 and later"):
        do(served, "rollback")


def plan_activate(config: Path, window: Window | None = None) -> Any:
    with open_node(config) as node:
        return upgrade.plan_activate(node, window=window)


def test_nothing_is_written_where_the_database_cannot_be_used(lab: Lab, served: Path) -> None:
    slot = (served.parent / "slots/b.img").read_bytes()
    (served.parent / "data/billing.sqlite").rename(served.parent / "away")
    with pytest.raises(DatabaseFailed, match="cannot stage MR96-1"):
        do(served, "stage", lab.with_data("MR96-1"))
    assert (served.parent / "slots/b.img").read_bytes() == slot


def test_a_catalogue_with_faults_is_found_before_anything_is_written(lab: Lab, served: Path) -> None:
    slot = (served.parent / "slots/b.img").read_bytes()
    with pytest.raises(CatalogueInvalid, match="cannot stage") as caught:
        do(served, "stage", lab.with_data("MR96-1", **{"0961-again.toml": 'database = "nobody"\n'}))
    assert any("0961-again.toml" in line for line in caught.value.what)
    assert (served.parent / "slots/b.img").read_bytes() == slot


def test_what_was_unpacked_and_is_damaged_is_unpacked_anew(lab: Lab, served: Path) -> None:
    bundle = lab.with_data("MR96-1")
    do(served, "stage", bundle)
    with open_node(served) as node:
        (damaged := kept(node, "b") / "catalogue.toml").write_text("")
    with pytest.raises(CatalogueInvalid, match="damaged") as caught:
        do(served, "activate")
    assert str(damaged.parent) in str(caught.value) and "stage --again" in caught.value.next[0]
    do(served, "stage", bundle, again=True)
    assert do(served, "activate") == "done"


def test_an_edited_history_is_refused(lab: Lab, served: Path) -> None:
    do(served, "stage", lab.with_data("MR96-1"))
    text = (
        'database = "billing"\nphase = "non-blocking"\n[[up]]\nsql = "ALTER TABLE accounts ADD COLUMN other INTEGER"\n'
    )
    with pytest.raises(MigrationFailed, match="edited"):
        do(served, "stage", lab.with_data("MR96-2", **{"0961-micros.toml": text}))


def test_databases_of_others_are_left_alone(lab: Lab, node: Path) -> None:
    made = plan(node, lab.with_data("MR96-1"))
    assert made.feasible and not made.decisions
    assert [check.found for check in made.checks if check.name == "database billing"] == ["not this node's to migrate"]
    assert do(node, "stage", lab.with_data("MR96-1")) == "done"


def test_a_locked_database_stops_the_stage_and_resume_goes_on(lab: Lab, served: Path) -> None:
    served.write_text(served.read_text() + "deadline = 1.5\n")
    holder = sqlite3.connect(served.parent / "data/billing.sqlite", isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(MigrationStopped) as caught:
        do(served, "stage", lab.with_data("MR96-1"))
    assert any("updater resume" in line for line in caught.value.next)
    with open_node(served) as node:
        shown = status_of(node)
        assert shown.upgrade is not None and shown.upgrade.step == "migrate"
    holder.execute("ROLLBACK")
    holder.close()
    assert do(served, "resume") == "done"
    assert found(served)["0961-micros"] == "done"


def test_a_window_that_is_too_short_is_found_before(lab: Lab, served: Path) -> None:
    long = 'database = "billing"\nphase = "blocking"\nexpected = 90000\n[[up]]\nsql = "CREATE TABLE t (a)"\n'
    do(served, "stage", lab.with_data("MR96-1", **{"0970-long.toml": long}))
    now = datetime.now()
    window = Window((now - timedelta(minutes=2)).time(), (now + timedelta(minutes=5)).time())
    with pytest.raises(WindowClosed, match="do not fit"):
        do(served, "activate", window=window)
    assert "by_name" not in rows(served)["schema"]


def test_a_backup_is_made_first_and_made_once(lab: Lab, served: Path) -> None:
    with_backups(served)
    do(served, "stage", lab.with_data("MR96-1"))
    assert do(served, "activate") == "done"
    [kept] = snapshot.every(served.parent / "data/backups/billing")
    db = sqlite3.connect(kept.data)
    assert db.execute("SELECT count(*) FROM accounts").fetchone() == (25,)
    assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'by_name'").fetchone()
    db.close()


def test_no_room_for_the_backup_is_found_before(lab: Lab, served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_backups(served)
    do(served, "stage", lab.with_data("MR96-1"))
    monkeypatch.setattr(snapshot, "RESERVE", 1 << 60)
    with pytest.raises(NoSpace):
        do(served, "activate")
    assert "by_name" not in rows(served)["schema"]


def test_dying_around_the_backup(lab: Lab, served: Path, place: Path) -> None:
    with_backups(served)
    in_child(lambda: do(served, "stage", lab.with_data("MR96-1")))
    trial = copy_sandbox(served.parent, place / "trial")
    died = [each for each in points(lambda: do(trial, "activate")) if each.during == "backup"]
    assert len(died) > 3
    for number, each in enumerate(died):
        config = copy_sandbox(served.parent, place / f"n{number}")
        assert die_at(each, lambda config=config: do(config, "activate"))  # type: ignore[misc]
        assert in_child(lambda config=config: do(config, "resume")) == "done"  # type: ignore[misc]
        assert len(snapshot.every(config.parent / "data/backups/billing")) == 1
        assert not list((config.parent / "data/backups/billing").glob(".*"))


def test_the_clean_up_waits_for_the_way_back(lab: Lab, served: Path) -> None:
    do(served, "stage", lab.with_data("MR96-1"))
    with pytest.raises(WrongState, match="does not run"):
        verb(served, "run_phase", Phase.CLEANUP, Report())
    do(served, "activate")
    with pytest.raises(RollbackRefused, match="take the way back"):
        verb(served, "run_phase", Phase.CLEANUP, Report())
    assert "0963-balance" in verb(served, "run_phase", Phase.CLEANUP, Report(), give_up=True)
    assert "balance" not in json.dumps(rows(served)["schema"]["accounts"])
    assert not way_back(served)[0]


def test_undo_takes_back_what_the_release_did(lab: Lab, served: Path) -> None:
    before = rows(served)["schema"]
    do(served, "stage", lab.with_data("MR96-1"))
    do(served, "activate")
    with pytest.raises(WrongState, match="MR96-1 runs"):
        verb(served, "undo", Report())
    do(served, "rollback")
    assert "0962-names, 0961-micros" in verb(served, "undo", Report())
    assert rows(served)["schema"].keys() == before.keys()
    assert set(found(served).values()) == {"pending"}


@pytest.mark.parametrize(
    ("phase", "line"),
    [
        ("non-blocking", "nothing is pending in phase non-blocking"),
        ("cleanup", "0963-balance"),
        ("blocking", "0971-id"),
    ],
)
def test_a_dry_run_shows_what_the_phase_would_do(lab: Lab, served: Path, phase: str, line: str) -> None:
    do(served, "stage", lab.with_data("MR96-1"))
    do(served, "activate")
    blocking = index("id").replace("non-blocking", "blocking")
    do(served, "stage", lab.with_data("MR97-1", **{"0971-id.toml": blocking}))
    done = CliRunner().invoke(app, ["--config", str(served), "migrate", "run", "--phase", phase, "--dry-run"])
    assert done.exit_code == 0
    assert done.output.count("097") + done.output.count("096") == (phase != "non-blocking") and line in done.output


def index(column: str) -> str:
    """A migration that makes an index."""
    return (
        f'database = "billing"\nphase = "non-blocking"\n[[up]]\nsql = "CREATE INDEX by_{column} ON accounts ({column})"'
        f'\n[[down]]\nsql = "DROP INDEX by_{column}"\n'
    )


@pytest.mark.parametrize("down_to", [None, 97])
def test_undo_leaves_what_other_releases_did(lab: Lab, served: Path, down_to: int | None) -> None:
    """A number that is too low (97 in place of 971) takes back nothing that the running release needs."""
    do(served, "stage", lab.with_data("MR96-1"))
    do(served, "activate")
    before = found(served)
    more = {"0971-balance.toml": index("balance")}
    do(served, "stage", lab.with_data("MR97-1", **more))
    do(served, "stage", lab.with_data("MR97-2", **more, **{"0972-id.toml": index("id")}))
    assert verb(served, "undo", Report(), down_to=down_to) == "taken back: 0972-id, 0971-balance"
    assert found(served) == before | {"0971-balance": "pending", "0972-id": "pending"}


def test_undo_down_to_a_number(lab: Lab, served: Path) -> None:
    more = {"0971-balance.toml": index("balance"), "0972-id.toml": index("id")}
    do(served, "stage", lab.with_data("MR96-1", **more))
    assert verb(served, "undo", Report(), down_to=972) == "taken back: 0972-id"


def test_a_node_without_migrations(node: Path) -> None:
    with pytest.raises(WrongState, match="no release on this node has migrations"):
        found(node)
