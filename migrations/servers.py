"""A server of any kind, opened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from core.sql import Database, Engine
from migrations.engines import Server


def open_server(database: Database) -> Server:
    """Connect to the database for migrations. Raises SqlError, DatabaseFailed."""
    match database.engine:
        case Engine.MARIADB:
            from migrations.engines.mariadb import MariadbServer

            return MariadbServer(database)
        case Engine.POSTGRESQL:
            from migrations.engines.postgresql import PostgreSQLServer

            return PostgreSQLServer(database)
        case Engine.SQLITE:
            from migrations.engines.sqlite import SqliteServer

            return SqliteServer(database)


@contextmanager
def opened(database: Database) -> Iterator[Server]:
    """The same, closed at the end."""
    server = open_server(database)
    try:
        yield server
    finally:
        server.close()
