"""The scratch server's word: on the schema as it is by then, and when it contradicts our rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import DatabaseFailed
from core.sql import Connection, Database, Engine
from migrations.catalogue import About, load
from migrations.classify import Impact
from migrations.ddl import parse
from migrations.findings import text
from migrations.lint import lint
from migrations.oracle import ROWS, Oracle, fill, oracle
from migrations.reading.way import takes_a_way, with_way

M = Engine.MARIADB


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("ALTER TABLE t ADD a INT", "ALTER TABLE t WAIT 1 ALGORITHM=INPLACE, LOCK=NONE, ADD a INT"),
        (
            "ALTER TABLE `a`.t WAIT 9 ALGORITHM=COPY, ADD a INT, LOCK=SHARED",
            "ALTER TABLE `a`.t WAIT 1 ALGORITHM=INPLACE, LOCK=NONE, ADD a INT",
        ),
        (
            "CREATE INDEX i ON t (a) ALGORITHM=COPY LOCK=SHARED",
            "CREATE INDEX i ON t (a) WAIT 1 ALGORITHM=INPLACE LOCK=NONE",
        ),
        ("DROP INDEX i ON t", "ALTER TABLE t WAIT 1 ALGORITHM=INPLACE, LOCK=NONE, DROP INDEX i"),
        (
            "ALTER TABLE t PARTITION BY HASH (a)",
            "ALTER TABLE t WAIT 1 ALGORITHM=INPLACE, LOCK=NONE PARTITION BY HASH (a)",
        ),
        ("RENAME TABLE a TO b", "RENAME TABLE a TO b"),
        ("ALTER TABLE a RENAME TO b", "ALTER TABLE a RENAME TO b"),
        ("ALTER TABLE t DROP PARTITION p", "ALTER TABLE t DROP PARTITION p"),
    ],
)
def test_the_way_is_put_into_a_statement(sql: str, wanted: str) -> None:
    parsed = parse(sql, M)
    assert with_way(parsed, algorithm="INPLACE", lock="NONE", wait=1) == wanted
    assert takes_a_way(parsed) == (sql != wanted)


def test_rows_are_made_up(database: Database) -> None:
    kinds = {
        Engine.MARIADB: "i INT, v VARCHAR(1), d DATE, t TIMESTAMP NULL, j JSON, e ENUM('x'), b BLOB, y YEAR",
        Engine.POSTGRESQL: "i int, v varchar(1), d date, t timestamptz, j jsonb, u uuid, b bytea, a int[]",
        Engine.SQLITE: "i INT, v TEXT, d, b BLOB",
    }
    with Connection.open(database) as connection:
        connection.execute(f"CREATE TABLE t (id INTEGER NOT NULL PRIMARY KEY, {kinds[database.engine]})")
        fill(connection, "t")
        row = connection.one("SELECT count(*) FROM t")
        assert row is not None and row[0] >= ROWS


def test_an_empty_table_is_filled_first(mariadb: Database) -> None:
    """On an empty table MariaDB accepts what it refuses on a full one."""
    with Connection.open(mariadb) as connection:
        connection.execute("CREATE TABLE t (id INT NOT NULL PRIMARY KEY, a INT) ENGINE=InnoDB")
        answer = Oracle(connection).ask(parse("ALTER TABLE t MODIFY a BIGINT", M))
        assert answer.impact is Impact.BLOCKS_WRITES
        assert connection.one("SELECT count(*) FROM t") == (ROWS,)


def test_what_the_server_refuses_is_told(mariadb: Database) -> None:
    with Connection.open(mariadb) as connection:
        answer = Oracle(connection).ask(parse("ALTER TABLE missing ADD a INT", M))
    assert answer.failed
    assert answer.impact is None
    assert "missing" in answer.how


def test_a_schema_that_does_not_load_names_its_line(tmp_path: Path) -> None:
    (tmp_path / "schema.sql").write_text("CREATE TABLE t (a INT);\n\nCREATE TABLE t (a INT);\n")
    about = About(engine=Engine.SQLITE, schema=tmp_path / "schema.sql")
    with pytest.raises(DatabaseFailed, match="line 3"), oracle(about):
        pass


def test_lint_asks_and_the_server_wins(tmp_path: Path) -> None:
    (tmp_path / "catalogue.toml").write_text('[databases.b]\nengine = "mariadb"\nversion = "10.11"\nschema = "s.sql"\n')
    (tmp_path / "s.sql").write_text("CREATE TABLE t (id INT NOT NULL PRIMARY KEY, a INT) ENGINE=InnoDB;\n")
    (tmp_path / "0001-m.toml").write_text(
        'database = "b"\nphase = "non-blocking"\n'
        '[[up]]\nsql = "ALTER TABLE t ADD r DOUBLE DEFAULT (RAND())"\n'
        '[[up]]\nsql = "ALTER TABLE t ADD INDEX i (r)"\n'
        '[[up]]\nsql = "CREATE TABLE n (id INT PRIMARY KEY)"\n'
        '[[up]]\nsql = "ALTER TABLE n MODIFY id BIGINT"\n'
        '[[down]]\nsql = "ALTER TABLE t DROP COLUMN r"\n'
    )
    asked = lint(load(tmp_path), ask=True)
    server = asked.judges["b"].server
    if not server.startswith("10.11."):
        pytest.skip(f"the rules meant here are those of 10.11, not {server}")
    first, second, _, fourth = asked.judged
    assert first.judgement.impact is Impact.BLOCKS_WRITES and first.impact is Impact.INSTANT and first.differs
    assert second.impact is Impact.ONLINE and not second.differs
    assert fourth.impact is Impact.INSTANT, "no release uses the table yet"
    assert asked.findings == []
    assert any("server differs from our rules" in line for line in text(asked))


def test_a_newer_server_is_not_believed(tmp_path: Path) -> None:
    """The field's 10.6 may not do what the scratch server does: the worse counts."""
    (tmp_path / "catalogue.toml").write_text('[databases.b]\nengine = "mariadb"\nversion = "10.2"\nschema = "s.sql"\n')
    (tmp_path / "s.sql").write_text("CREATE TABLE t (id INT NOT NULL PRIMARY KEY, a VARCHAR(20)) ENGINE=InnoDB;\n")
    (tmp_path / "0001-m.toml").write_text(
        'database = "b"\nphase = "non-blocking"\n[[up]]\nsql = "ALTER TABLE t MODIFY a VARCHAR(500)"\n'
        '[[down]]\nsql = "SELECT 1"\n'
    )
    asked = lint(load(tmp_path), ask=True)
    assert asked.judged[0].impact is Impact.BLOCKS_WRITES
    assert {each.rule for each in asked.findings} == {"other-version", "blocking-while-serving"}
