"""A server of any kind, opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from core.sql import Database, Engine, SqlError
from migrations.engines import Server
from migrations.session import explain


def open_server(database: Database, replicas: Sequence[Database] = ()) -> Server:
    """Connect to the database for migrations. `replicas`: of a MariaDB server, whose lag counts.

    Raises SqlError, DatabaseFailed.
    """
    try:
        return _open(database, replicas)
    except SqlError as error:
        raise explain(error) from error


def _open(database: Database, replicas: Sequence[Database]) -> Server:
    match database.engine:
        case Engine.MARIADB:
            from migrations.engines.mariadb import MariadbServer

            return MariadbServer(database, replicas)
        case Engine.POSTGRESQL:
            from migrations.engines.postgresql import PostgreSQLServer

            return PostgreSQLServer(database)
        case Engine.SQLITE:
            from migrations.engines.sqlite import SqliteServer

            return SqliteServer(database)


@contextmanager
def opened(database: Database, replicas: Sequence[Database] = ()) -> Iterator[Server]:
    """The same, closed at the end."""
    server = open_server(database, replicas)
    try:
        yield server
    finally:
        server.close()
