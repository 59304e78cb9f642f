"""A main database and a replica of it, on two real servers, with GTID replication between them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from core.sql import Connection, Database, Engine
from migrations.scratch import ScratchServer, scratch_server
from zdu.mariadb import MariaReplica


@dataclass
class Pair:
    """The two servers, and the driver of the replica."""

    main: ScratchServer
    here: ScratchServer

    @property
    def driver(self) -> MariaReplica:
        return MariaReplica("B", self.here.database, self.main.database, timeout=5, limit=1)

    def on_main(self, *statements: str) -> None:
        """Run them on the main database."""
        self._run(self.main.database, statements)

    def on_replica(self, *statements: str) -> None:
        """Run them on the replica, by somebody who may write in spite of read_only."""
        self._run(self.here.database, statements)

    def value(self, where: ScratchServer, query: str) -> object:
        """The first value of a query."""
        with Connection.open(where.database) as connection:
            row = connection.one(query)
        return row[0] if row else None

    def follow(self, position: str = "") -> None:
        """Set the replication up, from a position on."""
        self.on_replica("STOP SLAVE", "RESET SLAVE ALL", f"SET GLOBAL gtid_slave_pos = '{position}'")
        point_at(self.here.database, self.main.database)
        self.on_replica("START SLAVE")

    @staticmethod
    def _run(database: Database, statements: tuple[str, ...]) -> None:
        with Connection.open(database) as connection:
            for statement in statements:
                connection.execute(statement)


def point_at(here: Database, main: Database) -> None:
    """Tell a replica whom to follow."""
    with Connection.open(here) as connection:
        connection.execute(
            "CHANGE MASTER TO MASTER_HOST = %s, MASTER_PORT = %s, MASTER_USER = %s, MASTER_PASSWORD = %s, "
            "MASTER_USE_GTID = slave_pos, MASTER_CONNECT_RETRY = 1",
            (main.host, main.port, main.user, main.password()),
        )


def options(number: int) -> list[str]:
    """Of a server that replicates. It is for tests, so it need not wait for the disk."""
    return [
        f"--server-id={number}",
        "--log-bin=bin",
        "--log-slave-updates",
        "--gtid-strict-mode",
        "--sync-binlog=0",
        "--innodb-flush-log-at-trx-commit=0",
        "--slave-net-timeout=5",
    ]


@contextmanager
def pair(template: Path) -> Iterator[Pair]:
    """Both servers, replicating, with the tables `scratch.accounts` and `scratch.xdrs`."""
    with (
        scratch_server(Engine.MARIADB, template=template, tcp=True, options=options(1)) as main,
        scratch_server(Engine.MARIADB, template=template, tcp=True, options=options(2)) as here,
    ):
        both = Pair(main, here)
        for database in (main.database, here.database):  # making the servers' users is nothing to replicate
            Pair._run(database, ("RESET MASTER",))
        both.on_replica("SET GLOBAL read_only = 1")
        both.follow()
        both.on_main(
            "CREATE TABLE scratch.accounts (id INT PRIMARY KEY, balance DECIMAL(12,4) NOT NULL)",
            "CREATE TABLE scratch.xdrs (id INT AUTO_INCREMENT PRIMARY KEY, account INT NOT NULL)",
            "INSERT INTO scratch.accounts VALUES (1, 98.00), (2, 5.00)",
        )
        yield both


def user(database: Database, name: str, password_file: Path) -> Database:
    """The same database for another user."""
    return replace(database, user=name, password_file=password_file)
