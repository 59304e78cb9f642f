"""Statements are understood clause by clause, and what is not understood says so."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.ddl import elements, parse

M, P, S = Engine.MARIADB, Engine.POSTGRESQL, Engine.SQLITE

WORDS = re.findall(
    r"\S+",
    "ALTER TABLE ADD COLUMN DROP INDEX KEY PRIMARY FOREIGN REFERENCES CONSTRAINT UNIQUE CHECK MODIFY CHANGE RENAME "
    "TO AS CREATE OR REPLACE IF NOT EXISTS NULL DEFAULT ON USING CONCURRENTLY ALGORITHM LOCK = INPLACE NONE WAIT 1 ( ) "
    ", . ; t a b `c` \"d\" 'e' VARCHAR 10 INT PARTITION BY SET TYPE VALIDATE WITH SELECT INSERT INTO UPDATE DELETE "
    "FROM WHERE VIEW TRIGGER PROCEDURE BEGIN END GRANT CALL COMMENT $$ -- /* */ /*! # ' \" ` [ ] :: \\ ENGINE CONVERT",
)


def changes(sql: str, engine: Engine) -> list[tuple[str, str, str]]:
    """Verb, table and name of each."""
    return [(str(each.verb), each.table, each.name) for each in parse(sql, engine).changes]


@pytest.mark.parametrize("engine", Engine)
@given(text=st.text() | st.lists(st.sampled_from(WORDS), max_size=20).map(" ".join))
def test_whatever_the_text_it_is_read_or_unknown(engine: Engine, text: str) -> None:
    found = parse(text, engine)
    assert isinstance(found, Parsed)
    assert found.changes
    for change in found.changes:
        assert isinstance(change, Change)
        elements(change, engine)


@pytest.mark.parametrize("engine", Engine)
@given(words=st.lists(st.sampled_from(WORDS), max_size=12))
def test_what_begins_well_may_go_on_badly(engine: Engine, words: list[str]) -> None:
    for begin in ("ALTER TABLE t ADD", "CREATE TABLE t (", "CREATE INDEX i ON t", "DROP TABLE", "ALTER TABLE t"):
        assert parse(" ".join([begin, *words]), engine).changes


def test_all_clauses_of_an_alter() -> None:
    found = parse(
        "ALTER ONLINE TABLE `db`.`t``x` WAIT 1 ADD COLUMN IF NOT EXISTS c VARCHAR(10) NOT NULL DEFAULT 'a''b' AFTER d, "
        "ADD CONSTRAINT fk FOREIGN KEY (a) REFERENCES z (b) ON DELETE CASCADE, MODIFY x DECIMAL(10,2) DEFAULT (a+1), "
        "CHANGE `e` f INT, DROP PRIMARY KEY, ALGORITHM=INPLACE, LOCK=NONE",
        M,
    )
    assert found.options == {
        "ONLINE": "YES", "WAIT": "1", "IF NOT EXISTS": "YES", "ALGORITHM": "INPLACE", "LOCK": "NONE",
    }  # fmt: skip
    add, key, modify, change, drop = found.changes
    assert (add.verb, add.table, add.name) == (Verb.ADD_COLUMN, "db.t`x", "c")
    assert add.definition == "VARCHAR(10) NOT NULL DEFAULT 'a''b' AFTER d"
    assert {"NOT NULL", "DEFAULT", "AFTER", "IF NOT EXISTS"} <= add.words
    assert (key.verb, key.name, key.columns, key.references) == (Verb.ADD_FOREIGN_KEY, "fk", ("a",), "z")
    assert (modify.verb, modify.name, modify.definition) == (Verb.CHANGE_COLUMN, "x", "DECIMAL(10,2) DEFAULT (a+1)")
    assert (change.verb, change.name, change.new_name, change.definition) == (Verb.CHANGE_COLUMN, "e", "f", "INT")
    assert drop.verb is Verb.DROP_PRIMARY_KEY
    assert found.tables == ("db.t`x",)
    assert found.is_ddl


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("RENAME TABLE a TO b, c TO d", [("rename table", "a", ""), ("rename table", "c", "")]),
        (
            "ALTER TABLE t RENAME INDEX i TO j, RENAME COLUMN a TO b",
            [("rename index", "t", "i"), ("rename column", "t", "a")],
        ),
        ("ALTER TABLE t ADD (a int, KEY k (a))", [("add column", "t", "a"), ("add index", "t", "k")]),
        (
            "ALTER TABLE t ENGINE=InnoDB ROW_FORMAT=DYNAMIC",
            [("table option", "t", "engine"), ("table option", "t", "row_format")],
        ),
        ("ALTER TABLE t CONVERT TO CHARACTER SET utf8mb4", [("table option", "t", "convert")]),
        ("ALTER TABLE t ADD lock int", [("add column", "t", "lock")]),
        ("ALTER TABLE t ADD COLUMN `check` int", [("add column", "t", "check")]),
        ("ALTER TABLE t DROP INDEX `PRIMARY`", [("drop primary key", "t", "")]),
        ("ALTER TABLE t ADD PARTITION (PARTITION p VALUES LESS THAN (9))", [("partition", "t", "add")]),
        ("ALTER TABLE t ADD INDEX i (a), FROB x", [("add index", "t", "i"), ("unknown", "t", "")]),
        ("DROP TABLE IF EXISTS a, b WAIT 1", [("drop table", "a", ""), ("drop table", "b", "")]),
        ("TRUNCATE TABLE t", [("truncate", "t", "")]),
        ("CREATE TRIGGER x BEFORE INSERT ON t FOR EACH ROW BEGIN SET NEW.a=1; END", [("create routine", "t", "x")]),
        ("CREATE DEFINER=`a`@`b` PROCEDURE p() BEGIN SELECT 1; END", [("create routine", "", "p")]),
        ("INSERT IGNORE INTO t VALUES (1)", [("insert", "t", "")]),
        ("ALTER TABLE t", [("unknown", "", "")]),
        ("SET NAMES utf8mb4", [("unknown", "", "")]),
        ("OPTIMIZE TABLE t", [("unknown", "", "")]),
        ("SELECT 1; DROP TABLE t", [("unknown", "", "")]),
    ],
)  # fmt: skip
def test_mariadb(sql: str, wanted: list[tuple[str, str, str]]) -> None:
    assert changes(sql, M) == wanted


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        (
            'ALTER TABLE ONLY "My T" ALTER COLUMN d TYPE int USING d::int, ALTER e SET NOT NULL',
            [("change column", "My T", "d"), ("set not null", "My T", "e")],
        ),
        (
            "ALTER TABLE T ADD CONSTRAINT c CHECK (a > 1) NOT VALID, VALIDATE CONSTRAINT d",
            [("add check", "t", "c"), ("validate constraint", "t", "d")],
        ),
        ("CREATE INDEX CONCURRENTLY i ON public.t USING btree (lower(a), b) WHERE c", [("add index", "public.t", "i")]),
        ("DROP INDEX CONCURRENTLY IF EXISTS i", [("drop index", "", "i")]),
        ("ALTER INDEX i RENAME TO j", [("rename index", "", "i")]),
        ("ALTER TABLE t ADD CONSTRAINT pk PRIMARY KEY USING INDEX i", [("add primary key", "t", "pk")]),
        ("TRUNCATE a, b RESTART IDENTITY CASCADE", [("truncate", "a", ""), ("truncate", "b", "")]),
        ("CREATE FUNCTION f() RETURNS int AS $$ SELECT 1; $$ LANGUAGE sql", [("create routine", "", "f")]),
        ("COMMENT ON COLUMN a.b IS 'x'", [("comment", "a", "b")]),
        ("ALTER TABLE t OWNER TO x", [("table option", "t", "owner")]),
        ("WITH x AS (SELECT 1) DELETE FROM t USING x", [("delete", "t", "")]),
        ("WITH x AS (DELETE FROM t RETURNING *) SELECT * FROM x", [("unknown", "", "")]),
        ("VACUUM t", [("unknown", "", "")]),
    ],
)  # fmt: skip
def test_postgresql(sql: str, wanted: list[tuple[str, str, str]]) -> None:
    assert changes(sql, P) == wanted


@pytest.mark.parametrize(
    ("sql", "wanted"),
    [
        ("ALTER TABLE [a b] ADD x", [("add column", "a b", "x")]),
        ("ALTER TABLE t RENAME a TO b", [("rename column", "t", "a")]),
        ("ALTER TABLE t DROP COLUMN a", [("drop column", "t", "a")]),
        ("INSERT OR REPLACE INTO t VALUES (1)", [("insert", "t", "")]),
        ("PRAGMA foreign_keys = off", [("unknown", "", "")]),
    ],
)
def test_sqlite(sql: str, wanted: list[tuple[str, str, str]]) -> None:
    assert changes(sql, S) == wanted


@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE t ADD a int /*! , DROP COLUMN b */",
        "ALTER TABLE t ADD a int /*M!100100 , DROP COLUMN b */",
        "ALTER TABLE t ADD a int DEFAULT 1 --1, DROP COLUMN b",
        "/* /* */ DROP TABLE t; */",
    ],
)
def test_nothing_hides_from_us_in_a_comment(sql: str) -> None:
    """What MariaDB executes and a reader of the standard would take for a comment."""
    parsed = parse(sql, M)
    assert parsed.changes[0].verb is Verb.UNKNOWN or "--1" in parsed.changes[0].definition


def test_how_an_index_is_made_is_no_part_of_it() -> None:
    found = parse("CREATE UNIQUE INDEX i ON t (a(20), b DESC) COMMENT 'x' WAIT 1 ALGORITHM=INPLACE LOCK=NONE", M)
    assert found.options == {"WAIT": "1", "ALGORITHM": "INPLACE", "LOCK": "NONE"}
    assert found.changes[0].definition == "(a(20), b DESC) COMMENT 'x'"
    assert found.changes[0].columns == ("a", "b")
    assert "UNIQUE" in found.changes[0].words


def test_the_elements_of_a_table() -> None:
    change = parse(
        "CREATE TABLE t (id int PRIMARY KEY AUTO_INCREMENT, a varchar(10), `key` int, KEY (a), "
        "CONSTRAINT f FOREIGN KEY (a) REFERENCES z (b)) ENGINE=InnoDB",
        M,
    ).changes[0]
    assert change.columns == ("id", "a", "key")
    found = elements(change, M)
    assert [str(each.verb) for each in found] == ["add column"] * 3 + ["add index", "add foreign key"]
    assert all(each.table == "t" for each in found)
    assert found[4].references == "z"


def test_a_condition_is_one_of_the_statement_itself() -> None:
    whole = parse("DELETE FROM t", M).changes[0]
    some = parse("DELETE FROM t WHERE a = 1", M).changes[0]
    inner = parse("UPDATE t SET a = (SELECT b FROM u WHERE u.id = t.id)", M).changes[0]
    assert "WHERE" not in whole.words and "WHERE" in some.words and "WHERE" not in inner.words
