"""Small catalogues, runners over them, and what a database looks like afterwards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from core.report import Event, Report
from core.sql import Connection, Database, Engine
from migrations.catalogue import Action, Batch, Migration, Phase, Statement
from migrations.engines import Server
from migrations.guards import Clock, Limits
from migrations.ledger import Entry, Key
from migrations.runner import Runner
from migrations.servers import open_server

ALL = (Phase.NON_BLOCKING, Phase.BLOCKING)


def migration(
    number: int,
    up: Sequence[str | Action],
    down: Sequence[str | Action] = (),
    *,
    phase: Phase = Phase.NON_BLOCKING,
    **said: Any,
) -> Migration:
    """A migration of the database `main`; strings are statements."""

    def made(actions: Sequence[str | Action], side: str) -> tuple[Action, ...]:
        return tuple(
            Statement(sql=each, where=f"{number:04}.toml: {side}[{index}]") if isinstance(each, str) else each
            for index, each in enumerate(actions)
        )

    return Migration(
        number=number,
        name=f"m{number}",
        database="main",
        phase=phase,
        up=made(up, "up"),
        down=made(down, "down"),
        **said,
    )


class Lab:
    """A database with a runner at hand. `events` is what the runs reported."""

    def __init__(self, database: Database, *migrations: Migration, release: str = "MR96-1") -> None:
        self.database = database
        self.migrations = list(migrations)
        self.release = release
        self.events: list[Event] = []

    def runner(
        self, *, limits: Limits | None = None, clock: Clock | None = None, run_id: str = "run", **said: Any
    ) -> Runner:
        server: Server = said.pop("server", None) or open_server(self.database)
        return Runner(
            server,
            said.pop("migrations", self.migrations),
            release=said.pop("release", self.release),
            run_id=run_id,
            limits=limits or Limits(deadline=60),
            report=Report(self.events.append),
            clock=clock,
            **said,
        )

    def run(self, phases: Sequence[Phase] = ALL, **said: Any) -> list[str]:
        return self.runner(**said).run(phases).done

    def undo(self, *migrations: Migration, **said: Any) -> list[str]:
        return self.runner(**said).undo(migrations or self.migrations).done

    def entries(self) -> dict[Key, Entry]:
        return self.runner().entries()

    def states(self) -> dict[tuple[int, str, int], str]:
        return {(n, str(d), s): entry.state.value for (n, d, s), entry in self.entries().items()}

    def texts(self) -> str:
        return "\n".join(f"{event.kind} {event.step} {event.text}" for event in self.events)

    def sql(self, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements over a connection of its own; the rows of the last."""
        rows: list[tuple[Any, ...]] = []
        with Connection.open(self.database) as connection:
            for each in statements:
                rows = connection.execute(each).rows
        return rows

    def look(self) -> dict[str, Any]:
        """The whole database, schema and rows, without the ledger."""
        return look(self.database)


def look(database: Database) -> dict[str, Any]:
    """Tables by name: how they are made, and their rows in order."""
    with Connection.open(database) as connection:
        found: dict[str, Any] = {}
        for name, form in _forms(connection):
            if name.startswith("updater_"):
                continue
            mark = "`" if database.engine is Engine.MARIADB else '"'
            rows = connection.execute(f"SELECT * FROM {mark}{name}{mark}").rows if form else []
            found[name] = (form, sorted(map(repr, rows)))
        return found


def _forms(connection: Connection) -> list[tuple[str, str]]:
    if connection.engine is Engine.SQLITE:
        rows = connection.execute("SELECT name, tbl_name, sql, type FROM sqlite_master ORDER BY name").rows
        tables = {name for name, _, _, kind in rows if kind == "table"}
        return [
            (name, "\n".join(sorted(" ".join((sql or "").split()) for _, on, sql, _ in rows if on == name)))
            for name in sorted(tables)
        ]
    if connection.engine is Engine.MARIADB:
        names = [row[0] for row in connection.execute("SHOW TABLES").rows]
        forms = [(name, str(connection.execute(f"SHOW CREATE TABLE `{name}`").rows[0][1])) for name in sorted(names)]
        return [(name, re.sub(r" AUTO_INCREMENT=\d+", "", form)) for name, form in forms]
    columns = connection.execute(
        "SELECT table_name, string_agg(column_name || ' ' || data_type || ' ' || is_nullable || ' ' || "
        "coalesce(column_default, '-'), ', ' ORDER BY ordinal_position) FROM information_schema.columns "
        "WHERE table_schema = 'public' GROUP BY table_name ORDER BY table_name"
    ).rows
    indexes = connection.execute(
        "SELECT tablename, string_agg(indexdef, '; ' ORDER BY indexdef) FROM pg_indexes WHERE schemaname = 'public' "
        "GROUP BY tablename"
    ).rows
    return [(name, f"{form} | {dict(indexes).get(name, '')}") for name, form in columns]


class Hands(Clock):
    """A clock that is set by hand: sleeping takes no time."""

    def __init__(self) -> None:
        self.seconds = 1000.0
        self.day = datetime(2026, 11, 21, 2, 0, tzinfo=UTC)
        self.slept: list[float] = []

    def steady(self) -> float:
        return self.seconds

    def now(self) -> datetime:
        return self.day + timedelta(seconds=self.seconds - 1000)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.seconds += seconds


def batch(table: str, statement: str, *, rows: int = 10, **said: Any) -> Batch:
    return Batch(table=table, key="id", statement=statement, rows=rows, pause=said.pop("pause", 0.0), **said)
