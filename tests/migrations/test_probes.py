"""What MariaDB's schema tells of a statement: before, after, and half-way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sql import Connection, Database
from migrations.catalogue import Statement
from migrations.engines import Effect
from migrations.engines.mariadb import MariadbServer
from migrations.engines.mariadb_effects import COPY
from migrations.engines.sqlite import SqliteServer
from migrations.probes import clauses, joined

SCHEMA = (
    "CREATE TABLE p (id INT PRIMARY KEY, v INT, UNIQUE KEY v1 (v))",
    "CREATE TABLE t (id INT NOT NULL AUTO_INCREMENT PRIMARY KEY, a INT, b VARCHAR(20) DEFAULT 'x', c DECIMAL(10,2), "
    "KEY i_a (a), CONSTRAINT ck CHECK (a < 100))",
    "CREATE TABLE k (id INT PRIMARY KEY, t_id INT, CONSTRAINT fk1 FOREIGN KEY (t_id) REFERENCES t (id))",
    "CREATE TABLE part (id INT, d INT, PRIMARY KEY (id, d)) PARTITION BY RANGE (d) "
    "(PARTITION p0 VALUES LESS THAN (10), PARTITION p1 VALUES LESS THAN (20))",
    "CREATE TABLE words (id INT PRIMARY KEY, x TEXT, FULLTEXT KEY ft (x))",
    "CREATE TABLE old (id INT PRIMARY KEY)",
    "CREATE VIEW seen AS SELECT id FROM t",
    "CREATE TRIGGER trg BEFORE INSERT ON t FOR EACH ROW SET NEW.a = 1",
    "CREATE PROCEDURE proc() SELECT 1",
    "CREATE SEQUENCE seq1",
    "INSERT INTO p VALUES (1, 1)",
    "INSERT INTO t (a, c) VALUES (1, 1), (2, 2)",
    "INSERT INTO old VALUES (1)",
)

#: Statements that are not there in SCHEMA, and are after they ran.
FORMS = [
    "CREATE TABLE new (id INT PRIMARY KEY, n VARCHAR(10) NOT NULL DEFAULT '')",
    "CREATE TABLE IF NOT EXISTS new (id INT PRIMARY KEY, t_id INT, FOREIGN KEY (t_id) REFERENCES t (id))",
    "CREATE TABLE new LIKE t",
    "CREATE TABLE new AS SELECT id, a FROM t",
    "DROP TABLE old",
    "RENAME TABLE old TO older",
    "RENAME TABLE old TO older, p TO old",
    "ALTER TABLE old RENAME TO older",
    "ALTER TABLE old ADD COLUMN z INT, RENAME TO older",
    "TRUNCATE TABLE old",
    "ALTER TABLE t ADD COLUMN d INT NOT NULL DEFAULT 7 AFTER id",
    "ALTER TABLE t ADD COLUMN d INT, ADD COLUMN e VARCHAR(3) FIRST",
    "ALTER TABLE t ADD (d INT, e INT)",
    "ALTER TABLE t ADD COLUMN IF NOT EXISTS d INT",
    "ALTER TABLE t DROP COLUMN c",
    "ALTER TABLE t DROP COLUMN c, ADD COLUMN c DECIMAL(10,2) FIRST",
    "ALTER TABLE t RENAME COLUMN c TO cc",
    "ALTER TABLE t CHANGE c cc DECIMAL(12,2) NULL",
    "ALTER TABLE t MODIFY c DECIMAL(12,2) NOT NULL DEFAULT 0",
    "ALTER TABLE t MODIFY b VARCHAR(200)",
    "ALTER TABLE t ALTER COLUMN b SET DEFAULT 'y'",
    "ALTER TABLE t ALTER COLUMN b DROP DEFAULT",
    "ALTER TABLE t ADD INDEX i_b (b), ALGORITHM=INPLACE, LOCK=NONE",
    "ALTER TABLE t ADD UNIQUE KEY u_b (b, id)",
    "CREATE INDEX i_b ON t (b(5), a DESC)",
    "CREATE UNIQUE INDEX u_b ON t (b, id) LOCK=NONE",
    "ALTER TABLE t DROP INDEX i_a",
    "DROP INDEX i_a ON t",
    "ALTER TABLE t RENAME INDEX i_a TO i_aa",
    "ALTER TABLE t DROP PRIMARY KEY, ADD PRIMARY KEY (id, a)",
    "ALTER TABLE p DROP PRIMARY KEY",
    "ALTER TABLE t ADD CONSTRAINT ck2 CHECK (c > 0)",
    "ALTER TABLE t DROP CONSTRAINT ck",
    "ALTER TABLE k ADD COLUMN p_id INT, ADD CONSTRAINT fk2 FOREIGN KEY (p_id) REFERENCES p (id)",
    "ALTER TABLE t ADD CONSTRAINT fk3 FOREIGN KEY (a) REFERENCES p (v)",
    "ALTER TABLE k DROP FOREIGN KEY fk1",
    "ALTER TABLE k DROP CONSTRAINT fk1",
    "ALTER TABLE t COMMENT = 'accounts'",
    "ALTER TABLE t ROW_FORMAT=COMPRESSED",
    "ALTER TABLE t CONVERT TO CHARACTER SET latin1",
    "ALTER TABLE old ENGINE=Aria",
    "ALTER TABLE part ADD PARTITION (PARTITION p2 VALUES LESS THAN (30))",
    "ALTER TABLE part DROP PARTITION p1",
    "ALTER TABLE part ADD COLUMN e INT",
    "ALTER TABLE words ADD COLUMN e INT",
    "ALTER TABLE words ADD COLUMN y TEXT, ADD FULLTEXT KEY ft2 (y)",
    "ALTER TABLE words DROP INDEX ft",
    "ALTER ONLINE TABLE t WAIT 1 ADD COLUMN d INT",
    "CREATE VIEW v2 AS SELECT 1",
    "DROP VIEW seen",
    "CREATE TRIGGER trg2 AFTER DELETE ON t FOR EACH ROW SET @x = 1",
    "DROP TRIGGER trg",
    "CREATE PROCEDURE proc2() SELECT 2",
    "DROP PROCEDURE proc",
    "CREATE SEQUENCE seq2",
]


@pytest.fixture(scope="module")
def shop(mariadb_server: Database) -> Iterator[tuple[MariadbServer, Connection]]:
    """One database for all forms; it is made anew for each."""
    from dataclasses import replace

    with Connection.open(mariadb_server) as admin:
        admin.execute("SET foreign_key_checks = 0")
        admin.execute("CREATE OR REPLACE DATABASE probes")
        server = MariadbServer(replace(mariadb_server, database="probes"))
        yield server, admin
        server.close()
        admin.execute("DROP DATABASE probes")


@pytest.fixture
def server(shop: tuple[MariadbServer, Connection]) -> MariadbServer:
    made, admin = shop
    for each in ("CREATE OR REPLACE DATABASE probes", "USE probes", *SCHEMA):
        admin.execute(each)
    made.connection.execute("USE probes")
    return made


@pytest.mark.parametrize("sql", FORMS)
def test_absent_then_there(server: MariadbServer, sql: str) -> None:
    statement = Statement(sql=sql)
    before = server.presence(statement)
    assert before.effect is Effect.ABSENT, before
    server.connection.execute(sql)
    if "ENGINE" in sql:
        assert server.presence(statement).effect is Effect.ABSENT  # a rebuild can be repeated
        return
    after = server.presence(statement)
    assert after.effect is Effect.THERE, after
    assert (COPY,) not in server.connection.execute("SHOW TABLES").rows


@pytest.mark.parametrize(
    "sql, by_hand, rest",
    [
        ("ALTER TABLE t ADD COLUMN d INT, ADD COLUMN e INT", "ALTER TABLE t ADD COLUMN d INT",
         "ALTER TABLE t ADD COLUMN e INT"),
        ("ALTER TABLE t ADD (d INT, e INT)", "ALTER TABLE t ADD COLUMN e INT", "ALTER TABLE t ADD COLUMN `d` INT"),
        ("ALTER TABLE t ADD INDEX i_b (b), DROP COLUMN c", "ALTER TABLE t DROP COLUMN c",
         "ALTER TABLE t ADD INDEX i_b (b)"),
        ("ALTER TABLE t ADD INDEX i_b (b), DROP COLUMN c, ADD CONSTRAINT c2 CHECK (a > 0), LOCK=SHARED",
         "CREATE INDEX i_b ON t (b)", "ALTER TABLE t DROP COLUMN c, ADD CONSTRAINT c2 CHECK (a > 0)"),
        ("ALTER TABLE k ADD COLUMN p_id INT, ADD CONSTRAINT fk2 FOREIGN KEY (p_id) REFERENCES p (id)",
         "ALTER TABLE k ADD COLUMN p_id INT",
         "ALTER TABLE k ADD CONSTRAINT fk2 FOREIGN KEY (p_id) REFERENCES p (id)"),
        ("ALTER TABLE t CHANGE c cc DECIMAL(10,2), ADD COLUMN d INT", "ALTER TABLE t RENAME COLUMN c TO cc",
         "ALTER TABLE t ADD COLUMN d INT"),
    ],
)  # fmt: skip
def test_half_there_and_what_would_make_it_whole(server: MariadbServer, sql: str, by_hand: str, rest: str) -> None:
    server.connection.execute(by_hand)
    found = server.presence(Statement(sql=sql))
    assert (found.effect, found.rest) == (Effect.HALF, rest), found
    server.connection.execute(found.rest)
    assert server.presence(Statement(sql=sql)).effect is Effect.THERE


@pytest.mark.parametrize(
    "sql, by_hand",
    [
        ("ALTER TABLE t ADD COLUMN d INT", "ALTER TABLE t ADD COLUMN d BIGINT"),
        ("CREATE INDEX i_b ON t (b)", "CREATE INDEX i_b ON t (b, a)"),
        ("ALTER TABLE t ADD CONSTRAINT c2 CHECK (a > 0)", "ALTER TABLE t ADD CONSTRAINT c2 CHECK (a > -1)"),
        ("CREATE TABLE new (id INT PRIMARY KEY, n INT)", "CREATE TABLE new (id INT PRIMARY KEY, n BIGINT)"),
        ("ALTER TABLE t RENAME COLUMN c TO cc", "ALTER TABLE t DROP COLUMN c"),
        ("ALTER TABLE k ADD CONSTRAINT fk1 FOREIGN KEY (t_id) REFERENCES p (id)", "SELECT 1"),
        ("RENAME TABLE old TO older, p TO pp", "RENAME TABLE old TO older"),
    ],
)
def test_something_else_is_there(server: MariadbServer, sql: str, by_hand: str) -> None:
    server.connection.execute(by_hand)
    found = server.presence(Statement(sql=sql))
    assert (found.effect, found.rest) == (Effect.HALF, ""), found


@pytest.mark.parametrize(
    "sql", ["SET @x = 1", "INSERT INTO t (a) VALUES (3)", "ALTER TABLE part TRUNCATE PARTITION p0",
            "RENAME TABLE p TO tmp, old TO p, tmp TO old"],
)  # fmt: skip
def test_nobody_can_tell(server: MariadbServer, sql: str) -> None:
    assert server.presence(Statement(sql=sql)).effect is Effect.UNKNOWN


@pytest.mark.parametrize(
    "sql", ["CREATE OR REPLACE VIEW seen AS SELECT 1", "GRANT SELECT ON t TO scratch", "ALTER TABLE t FORCE",
            "CREATE OR REPLACE PROCEDURE proc() SELECT 5"],
)  # fmt: skip
def test_some_things_are_simply_done_again(server: MariadbServer, sql: str) -> None:
    assert server.presence(Statement(sql=sql)).effect is Effect.ABSENT


def test_an_explicit_probe_has_the_last_word(server: MariadbServer) -> None:
    for answer, effect in (("SELECT 1", "there"), ("SELECT 0", "absent"), ("SELECT NULL", "absent"),
                           ("SELECT 1 FROM t WHERE a = 77", "absent")):  # fmt: skip
        assert server.presence(Statement(sql="DROP TABLE old", probe=answer)).effect == effect


# -- the text


@given(st.text(max_size=60), st.sampled_from(["ALTER TABLE t ", "CREATE INDEX i ON t ", "DROP INDEX i ON t ", ""]))
def test_any_text_can_be_taken_apart(text: str, head: str) -> None:
    found = clauses(head + text)
    if found:
        joined(*found)


def test_taking_apart_keeps_commas_in_their_brackets() -> None:
    found = clauses(
        "ALTER ONLINE TABLE `a`.`b c` WAIT 5 "
        "ADD x DECIMAL(1,2) DEFAULT ',', ADD INDEX (a, b), LOCK=NONE, ALGORITHM=COPY"
    )
    assert found is not None
    assert found[0] == "`a`.`b c`"
    assert [part.after for part in found[1]] == [" ADD x DECIMAL(1,2) DEFAULT ','", " ADD INDEX (a, b)"]
    assert joined(*found) == "ALTER TABLE `a`.`b c` ADD x DECIMAL(1,2) DEFAULT ',', ADD INDEX (a, b)"


# -- SQLite


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE n (id INTEGER PRIMARY KEY, x TEXT DEFAULT 'a,b')",
        "CREATE TABLE IF NOT EXISTS n (id INTEGER PRIMARY KEY)",
        "CREATE UNIQUE INDEX i ON t (b)",
        "CREATE VIEW v AS SELECT 1",
        "CREATE TRIGGER g AFTER INSERT ON t BEGIN SELECT 1; END",
        "DROP TABLE old",
        "DROP INDEX i_a",
        "ALTER TABLE t ADD COLUMN d INTEGER NOT NULL DEFAULT 3",
        "ALTER TABLE t DROP COLUMN b",
        "ALTER TABLE t RENAME COLUMN b TO c",
        "ALTER TABLE old RENAME TO older",
    ],
)
def test_sqlite_absent_then_there(sqlite: Database, sql: str) -> None:
    server = SqliteServer(sqlite)
    for each in ("CREATE TABLE t (id INTEGER PRIMARY KEY, a INT, b INT)", "CREATE INDEX i_a ON t (a)",
                 "CREATE TABLE old (id INTEGER PRIMARY KEY)"):  # fmt: skip
        server.connection.execute(each)
    assert server.presence(Statement(sql=sql)).effect is Effect.ABSENT
    server.connection.execute(sql)
    assert server.presence(Statement(sql=sql)).effect is Effect.THERE
    server.close()
