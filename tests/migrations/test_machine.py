"""Random catalogues, random crashes, random undoing: the database is always that of a run that nothing disturbed."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Phases
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

from core import faults
from core.sql import Connection, Database, Engine
from migrations.catalogue import Action, Migration, Phase
from migrations.history import Progress
from migrations.servers import open_server
from tests.migrations.runlab import Lab, batch, look, migration


class Died(BaseException):
    """The process is no more."""


def dies_at(number: int, lab: Lab, act: Callable[[Lab, Any], object]) -> bool:
    """Act until the `number`-th point, where the connection breaks off and nothing of ours runs any more."""
    server = open_server(lab.database)
    passed, died = 0, False

    def pass_by(name: str) -> None:
        nonlocal passed, died
        passed += 1
        if passed > number:
            faults.arm(None)
            died = True
            raw = server.connection.raw
            (raw._force_close if lab.database.engine is Engine.MARIADB else raw.close)()
            raise Died

    faults.arm(pass_by)
    try:
        act(lab, server)
    except BaseException:  # what is still cleared up falls over the broken connection
        if not died:
            raise
    finally:
        faults.arm(None)
        server.close()
    return died


@dataclass
class Shape:
    """What the tables should look like after all migrations so far: columns and indexes (name → column) by table."""

    columns: dict[str, list[str]] = field(default_factory=dict)
    indexes: dict[str, dict[str, str]] = field(default_factory=dict)
    names: int = 0

    def new(self, letter: str) -> str:
        self.names += 1
        return f"{letter}{self.names}"


def change(shape: Shape, engine: Engine, draw: Callable[[Any], Any]) -> tuple[Action | str, Action | str | None]:
    """One more change of the shape: how it is made, and how it is taken back (None: it cannot be)."""
    free = {t: [c for c in columns if c not in shape.indexes[t].values()] for t, columns in shape.columns.items()}
    kinds = ["create"]
    if shape.columns:
        kinds += ["add", "index", "insert", "update", "batch", "rename table", "delete"]
        kinds += ["rename column", "drop column"] * any(free.values())
        kinds += ["drop index"] * any(shape.indexes.values())
        kinds += ["drop"] * (len(shape.columns) > 2) + ["several"] * (engine is Engine.MARIADB)
    kind = draw(st.sampled_from(kinds))
    if kind == "create":
        table = shape.new("t")
        shape.columns[table], shape.indexes[table] = [], {}
        return (
            f"CREATE TABLE {table} (id INTEGER NOT NULL PRIMARY KEY, n INTEGER NOT NULL DEFAULT 0)",
            f"DROP TABLE {table}",
        )
    conditions: dict[str, Mapping[str, Any]] = {
        "rename column": free, "drop column": free, "drop index": shape.indexes
    }  # fmt: skip
    needs = conditions.get(kind, {})
    table = draw(st.sampled_from(sorted(t for t in shape.columns if needs.get(t, not needs))))
    on = f" ON {table}" * (engine is Engine.MARIADB)
    match kind:
        case "add":
            column = shape.new("c")
            shape.columns[table].append(column)
            return (
                f"ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT {draw(st.integers(0, 9))}",
                f"ALTER TABLE {table} DROP COLUMN {column}",
            )
        case "several":
            column, index = shape.new("c"), shape.new("i")
            shape.columns[table].append(column)
            shape.indexes[table][index] = column
            return (
                f"ALTER TABLE {table} ADD COLUMN {column} INTEGER NOT NULL DEFAULT 1, ADD INDEX {index} ({column})",
                f"ALTER TABLE {table} DROP INDEX {index}, DROP COLUMN {column}",
            )
        case "index":
            index, column = shape.new("i"), draw(st.sampled_from(["n", *shape.columns[table]]))
            shape.indexes[table][index] = column
            return f"CREATE INDEX {index} ON {table} ({column})", f"DROP INDEX {index}{on}"
        case "drop index":
            index = draw(st.sampled_from(sorted(shape.indexes[table])))
            column = shape.indexes[table].pop(index)
            return f"DROP INDEX {index}{on}", f"CREATE INDEX {index} ON {table} ({column})"
        case "rename column":
            column, new = draw(st.sampled_from(free[table])), shape.new("c")
            shape.columns[table] = [new if each == column else each for each in shape.columns[table]]
            return (
                f"ALTER TABLE {table} RENAME COLUMN {column} TO {new}",
                f"ALTER TABLE {table} RENAME COLUMN {new} TO {column}",
            )
        case "drop column":
            column = draw(st.sampled_from(free[table]))
            shape.columns[table].remove(column)
            return f"ALTER TABLE {table} DROP COLUMN {column}", None
        case "rename table":
            new = shape.new("t")
            shape.columns[new], shape.indexes[new] = shape.columns.pop(table), shape.indexes.pop(table)
            return f"ALTER TABLE {table} RENAME TO {new}", f"ALTER TABLE {new} RENAME TO {table}"
        case "drop":
            del shape.columns[table], shape.indexes[table]
            return f"DROP TABLE {table}", None
        case "insert":
            shape.names += 1
            first = shape.names * 100
            values = ", ".join(f"({first + n}, {n})" for n in range(draw(st.integers(1, 5))))
            return (
                f"INSERT INTO {table} (id, n) VALUES {values}",
                f"DELETE FROM {table} WHERE id >= {first} AND id < {first + 100}",
            )
        case "update":
            return f"UPDATE {table} SET n = n + 3", f"UPDATE {table} SET n = n - 3"
        case "batch":
            rows = draw(st.integers(1, 6))
            return tuple(
                batch(table, f"UPDATE {table} SET n = n {way} 10 WHERE id > :low AND id <= :high", rows=rows)
                for way in "+-"
            )  # type: ignore[return-value]
    return f"DELETE FROM {table} WHERE n > {draw(st.integers(0, 40))}", None


class Machine(RuleBasedStateMachine):
    """A database that is disturbed, and one that is not."""

    engine: ClassVar[Engine] = Engine.SQLITE
    fresh: ClassVar[Callable[[], Database]]
    away: ClassVar[Callable[[Database], None]]

    def __init__(self) -> None:
        super().__init__()
        self.shape = Shape()
        self.shapes: list[Shape] = []
        self.catalogue: list[Migration] = []
        self.labs = [Lab(type(self).fresh()), Lab(type(self).fresh())]
        for lab in self.labs:
            lab.migrations = self.catalogue

    @property
    def disturbed(self) -> Lab:
        return self.labs[0]

    @rule(data=st.data(), count=st.integers(1, 4), phase=st.sampled_from([Phase.NON_BLOCKING, Phase.BLOCKING]))
    def release(self, data: st.DataObject, count: int, phase: Phase) -> None:
        """One more migration."""
        pairs = [change(self.shape, self.engine, data.draw) for _ in range(count)]
        downs = [] if any(down is None for _, down in pairs) else [down for _, down in reversed(pairs) if down]
        if any(not isinstance(up, str) or "RENAME TO" in up for up, _ in pairs):
            phase = Phase.BLOCKING  # LOCK=NONE is not for every rename
        self.catalogue.append(migration(len(self.catalogue) + 1, [up for up, _ in pairs], downs, phase=phase))
        self.labs[1].run()

    @precondition(lambda self: self.catalogue)
    @rule(point=st.integers(0, 40))
    def crash(self, point: int) -> None:
        dies_at(point, self.disturbed, lambda lab, server: lab.run(server=server))

    @precondition(lambda self: self.catalogue)
    @rule()
    def run_to_the_end(self) -> None:
        if self.disturbed.runner().pending() and any(
            each.progress is Progress.UNDOING for each in self.disturbed.runner().pending()
        ):
            return
        self.disturbed.run()
        self.compare()

    @precondition(lambda self: self.catalogue and self.catalogue[-1].reversible)
    @rule(points=st.lists(st.integers(0, 15), max_size=3))
    def undo(self, points: list[int]) -> None:
        """The last one is taken back, with crashes on the way, and is there again afterwards."""
        self.disturbed.run()
        last = self.catalogue[-1]
        for point in points:
            dies_at(point, self.disturbed, lambda lab, server: lab.undo(last, server=server))
        self.disturbed.undo(last)
        self.labs[1].undo(last)
        self.compare()
        self.disturbed.run()
        self.labs[1].run()
        self.compare()

    def compare(self) -> None:
        one, other = (look(lab.database) for lab in self.labs)
        assert one == other
        assert {
            key: entry.checksum for key, entry in self.disturbed.entries().items() if entry.state == "finished"
        } == {key: entry.checksum for key, entry in self.labs[1].entries().items() if entry.state == "finished"}

    def teardown(self) -> None:
        try:
            if self.catalogue:
                self.disturbed.run()
                self.compare()
        finally:
            for lab in self.labs:
                type(self).away(lab.database)


COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": [each for each in Phases if each is not Phases.shrink],  # each example is a whole upgrade
}


def test_sqlite() -> None:
    with tempfile.TemporaryDirectory() as directory:

        def fresh() -> Database:
            path = Path(directory, f"{secrets.token_hex(6)}.sqlite")
            path.touch()
            return Database(engine=Engine.SQLITE, path=path)

        def away(database: Database) -> None:
            assert database.path is not None
            database.path.unlink()

        machine = type("OnSqlite", (Machine,), {"fresh": staticmethod(fresh), "away": staticmethod(away)})
        run_state_machine_as_test(
            machine, settings=settings(max_examples=60, stateful_step_count=12, **COMMON)  # type: ignore[arg-type]
        )  # fmt: skip


@pytest.mark.parametrize("engine", [Engine.MARIADB, Engine.POSTGRESQL], ids=str)
def test_servers(engine: Engine, request: pytest.FixtureRequest) -> None:
    server: Database = request.getfixturevalue(f"{engine}_server")

    def fresh() -> Database:
        made = replace(server, database=f"m_{secrets.token_hex(6)}")
        with Connection.open(server) as admin:
            admin.execute(f"CREATE DATABASE {made.database}")
        return made

    def away(database: Database) -> None:
        with Connection.open(server) as admin:
            admin.execute(f"DROP DATABASE {database.database}{' WITH (FORCE)' * (engine is Engine.POSTGRESQL)}")

    machine = type("OnServer", (Machine,), {"engine": engine, "fresh": staticmethod(fresh), "away": staticmethod(away)})
    run_state_machine_as_test(
        machine, settings=settings(max_examples=6, stateful_step_count=8, **COMMON)  # type: ignore[arg-type]
    )  # fmt: skip
