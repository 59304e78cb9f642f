"""Databases for the tests: real servers in temporary directories, one of each kind for each worker, and a fresh empty
database for each test.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from core.sql import Connection, Database, Engine
from migrations.scratch import make_template, scratch, scratch_server

#: What the servers said they are, for the head of the report.
VERSIONS: dict[Engine, str] = {}


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The servers' versions stand in every report."""
    for engine, version in VERSIONS.items():
        terminalreporter.write_line(f"{engine}: {version}")


@pytest.fixture(scope="session")
def mariadb_template() -> Iterator[Path]:
    """An initialised data directory to copy, for tests that need servers of their own."""
    with make_template(Engine.MARIADB) as template:
        yield template


@pytest.fixture(scope="session")
def postgresql_template() -> Iterator[Path]:
    """An initialised data directory to copy, for tests that need servers of their own."""
    with make_template(Engine.POSTGRESQL) as template:
        yield template


@pytest.fixture(scope="session")
def mariadb_server(mariadb_template: Path) -> Iterator[Database]:
    """A MariaDB server, with all rights. Not to be stopped: for that take `scratch_server` and `mariadb_template`."""
    with scratch_server(Engine.MARIADB, template=mariadb_template, options=["--performance-schema=ON"]) as server:
        yield _versioned(server.database)


@pytest.fixture(scope="session")
def postgresql_server(postgresql_template: Path) -> Iterator[Database]:
    """A PostgreSQL server, with all rights. Not to be stopped: for that take `scratch_server` and its template."""
    with scratch_server(Engine.POSTGRESQL, template=postgresql_template) as server:
        yield _versioned(server.database)


@pytest.fixture
def mariadb(mariadb_server: Database) -> Iterator[Database]:
    """A fresh, empty database on MariaDB."""
    with _fresh(mariadb_server) as database:
        yield database


@pytest.fixture
def postgresql(postgresql_server: Database) -> Iterator[Database]:
    """A fresh, empty database on PostgreSQL."""
    with _fresh(postgresql_server) as database:
        yield database


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Database]:
    """A fresh, empty SQLite file."""
    with scratch(Engine.SQLITE, tmp_path) as database:
        yield database


@pytest.fixture(params=[Engine.SQLITE, Engine.MARIADB, Engine.POSTGRESQL], ids=str)
def database(request: pytest.FixtureRequest) -> Database:
    """A fresh, empty database of each engine in turn."""
    found: Database = request.getfixturevalue(str(request.param))
    return found


def _versioned(server: Database) -> Database:
    with Connection.open(server) as connection:
        row = connection.one("SELECT version()")
    assert row is not None
    VERSIONS[server.engine] = str(row[0])
    return server


@contextmanager
def _fresh(server: Database) -> Iterator[Database]:
    """A database made for one test. It goes even when the test left connections with transactions open."""
    name = f"t_{secrets.token_hex(6)}"
    with Connection.open(server) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    try:
        yield replace(server, database=name)
    finally:
        with Connection.open(server) as admin:
            if server.engine is Engine.POSTGRESQL:
                admin.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
            else:
                others = admin.execute("SELECT id FROM information_schema.processlist WHERE db = %s", (name,)).rows
                for (thread,) in others:
                    _kill(admin, int(thread))
                admin.execute(f"DROP DATABASE IF EXISTS {name}")


def _kill(admin: Connection, thread: int) -> None:
    from core.sql import Reason, SqlError

    try:
        admin.execute(f"KILL CONNECTION {thread}")
    except SqlError as error:
        if error.reason is not Reason.OTHER:  # 1094: gone by itself meanwhile
            raise
