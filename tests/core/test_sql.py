"""Connections and their errors. SQLite here; the servers are asked in tests/migrations."""

from __future__ import annotations

import socket
import sqlite3
from pathlib import Path

import pytest

from core.errors import DatabaseFailed
from core.schema import SchemaError, structure
from core.sql import SILENCE, Connection, Database, Engine, Reason, SqlError, notice_silence


@pytest.fixture
def database(tmp_path: Path) -> Database:
    path = tmp_path / "a ?#b.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    db.close()
    return Database(engine=Engine.SQLITE, path=path)


@pytest.mark.parametrize(
    "told, fault",
    [
        ({"engine": "sqlite"}, "path: an SQLite database needs an absolute one"),
        ({"engine": "sqlite", "path": "here.sqlite"}, "path: an SQLite database needs an absolute one"),
        ({"engine": "mariadb", "host": "h"}, "database: missing"),
        ({"engine": "mariadb", "database": "d"}, "host: give either host or socket"),
        ({"engine": "mariadb", "database": "d", "host": "h", "socket": "/s"}, "host: give either host or socket"),
        ({"engine": "postgresql", "database": "d", "host": "h", "port": 65536}, "port: must be from 1 to 65535"),
        ({"engine": "oracle", "database": "d", "host": "h"}, "engine"),
        ({"engine": "mariadb", "database": "d", "host": "h", "password": "secret"}, "password: unknown key"),
    ],
)
def test_what_cannot_be_a_database_is_said(told: dict[str, object], fault: str) -> None:
    with pytest.raises(SchemaError, match=fault):
        structure(told, Database)


def test_a_password_is_read_only_from_a_file_of_ones_own(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    database = Database(engine=Engine.MARIADB, database="d", host="h", password_file=secret)
    with pytest.raises(DatabaseFailed, match="cannot be read"):
        database.password()
    secret.write_text("päss word\n")
    secret.chmod(0o640)
    with pytest.raises(DatabaseFailed, match="can be read by others"):
        database.password()
    secret.chmod(0o600)
    assert database.password() == "päss word"
    assert "päss" not in f"{database} {database!r}"


def test_values_and_per_cent_signs(database: Database) -> None:
    with Connection.open(database) as connection:
        assert connection.execute("INSERT INTO t (name) VALUES (%s), (%s)", ["100 %s", "?"]).changed == 2
        assert connection.execute("SELECT name FROM t WHERE name LIKE '100 %s'").rows == [("100 %s",)]
        assert connection.one("SELECT count(*) FROM t WHERE name LIKE '1%%' AND id = %s", [1]) == (1,)
        assert connection.one("SELECT name FROM t WHERE id = %s", [7]) is None


def test_a_transaction_is_all_or_nothing(database: Database) -> None:
    with Connection.open(database) as connection:
        with pytest.raises(RuntimeError), connection.transaction():
            connection.execute("INSERT INTO t (name) VALUES ('a')")
            raise RuntimeError
        with connection.transaction():
            connection.execute("INSERT INTO t (name) VALUES ('b')")
    with Connection.open(database) as connection:
        assert connection.execute("SELECT name FROM t").rows == [("b",)]


@pytest.mark.parametrize(
    "statement, reason",
    [
        ("SELECT * FROM nowhere", Reason.MISSING),
        ("SELECT other FROM t", Reason.MISSING),
        ("CREATE TABLE t (x)", Reason.EXISTS),
        ("ALTER TABLE t ADD COLUMN name TEXT", Reason.EXISTS),
        ("SELEC 1", Reason.SYNTAX),
    ],
)
def test_why_a_statement_failed(database: Database, statement: str, reason: Reason) -> None:
    with Connection.open(database) as connection, pytest.raises(SqlError) as caught:
        connection.execute(statement)
    assert caught.value.reason is reason
    assert statement in caught.value.what[0]


def test_a_lock_of_somebody_else(database: Database) -> None:
    assert database.path is not None
    other = sqlite3.connect(database.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with Connection.open(database) as connection, pytest.raises(SqlError) as caught:
            connection.execute("INSERT INTO t (name) VALUES ('a')")
        assert caught.value.reason is Reason.LOCKED
    finally:
        other.close()


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(SqlError) as caught:
        Connection.open(Database(engine=Engine.SQLITE, path=tmp_path / "none.sqlite"))
    assert caught.value.reason is Reason.UNREACHABLE
    assert not (tmp_path / "none.sqlite").exists()


@pytest.mark.parametrize("engine", [Engine.MARIADB, Engine.POSTGRESQL])
def test_a_server_that_is_not_there(engine: Engine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(SqlError) as caught:
        Connection.open(Database(engine=engine, database="d", host="127.0.0.1", port=port, user="u"))
    assert caught.value.reason is Reason.UNREACHABLE


def test_a_peer_that_is_cut_off_is_noticed_by_the_kernel() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as peer:
        notice_silence(peer)
        assert peer.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        idle, every, count = (
            peer.getsockopt(socket.IPPROTO_TCP, option)
            for option in (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        )
        assert idle + every * count <= SILENCE
        assert peer.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == SILENCE * 1000
