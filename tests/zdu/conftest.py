"""Databases for the tests of the ledger: a real MariaDB for each worker, and two fresh databases for each test."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from core import faults
from core.sql import Connection, Database, Engine
from migrations.scratch import make_template, scratch_server
from tests.zdu.ledgerlab import World

#: How fast an example runs says something of the machine only: it is shared with servers, calls and other tests.
settings.register_profile("zdu", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("zdu")


@pytest.fixture(scope="session")
def mariadb_template() -> Iterator[Path]:
    """An initialised data directory to copy, for tests that need servers of their own."""
    with make_template(Engine.MARIADB) as template:
        yield template


@pytest.fixture(scope="session")
def mariadb_server(mariadb_template: Path) -> Iterator[Database]:
    """A MariaDB server, with all rights. Clients are killed here, the server is not: it need not wait for the disk."""
    options = ["--innodb-flush-log-at-trx-commit=0", "--skip-innodb-doublewrite"]
    with scratch_server(Engine.MARIADB, template=mariadb_template, options=options) as server:
        yield server.database


@pytest.fixture
def fresh_mariadb(mariadb_server: Database) -> Iterator[Callable[[], Database]]:
    """Makes empty databases on the server; they go after the test."""
    made: list[str] = []

    def make() -> Database:
        made.append(f"t_{secrets.token_hex(6)}")
        with Connection.open(mariadb_server) as admin:
            admin.execute(f"CREATE DATABASE {made[-1]}")
        return replace(mariadb_server, database=made[-1])

    yield make
    with Connection.open(mariadb_server) as admin:
        for name in made:
            admin.execute(f"DROP DATABASE {name}")


@pytest.fixture
def disarmed() -> Iterator[None]:
    """No crash point stays armed after the test."""
    yield
    faults.arm(None)


@pytest.fixture(params=["sqlite", "mariadb", "mariadb-sqlite", "sqlite-mariadb"])
def world(request: pytest.FixtureRequest, tmp_path: Path, disarmed: None) -> Iterator[World]:
    """A main and a delta ledger, with the tables made; in all pairs of engines (main-delta)."""
    main, _, delta = str(request.param).partition("-")
    with ExitStack() as stack:
        yield stack.enter_context(_world(request, tmp_path, main, delta or main))


@pytest.fixture
def mariadb_world(request: pytest.FixtureRequest, tmp_path: Path, disarmed: None) -> Iterator[World]:
    """As `world`, both on MariaDB."""
    with _world(request, tmp_path, "mariadb", "mariadb") as made:
        yield made


def _world(request: pytest.FixtureRequest, folder: Path, main: str, delta: str) -> World:
    def database(engine: str, name: str) -> Database:
        if engine == "mariadb":
            made: Database = request.getfixturevalue("fresh_mariadb")()
            return made
        path = folder / f"{name}.sqlite"
        path.touch()
        return Database(engine=Engine.SQLITE, path=path)

    main_database = database(main, "main")
    base = main_database if main == "mariadb" else database("sqlite", "replica")
    return World(main=main_database, delta=database(delta, "delta"), base=base).installed()
