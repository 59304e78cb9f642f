"""Which locks a statement needs in PostgreSQL, said without a server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.sql import Engine
from migrations.ddl import parse
from migrations.engines.postgresql_locks import EXCLUSIVE, SHARE, SHARE_ROW, Needs, needs


def of(sql: str) -> Needs:
    return needs(parse(sql, Engine.POSTGRESQL))


@pytest.mark.parametrize(
    ("sql", "locks"),
    [
        ("ALTER TABLE t ADD COLUMN a int", ((EXCLUSIVE, ("t",)),)),
        ("ALTER TABLE app.t DROP COLUMN a, ADD b int", ((EXCLUSIVE, ("app.t",)),)),
        ("CREATE INDEX i ON t (a)", ((SHARE, ("t",)),)),
        ("ALTER TABLE t ADD CONSTRAINT u UNIQUE (a)", ((EXCLUSIVE, ("t",)),)),
        ("ALTER TABLE t ADD CONSTRAINT f FOREIGN KEY (a) REFERENCES u (a)", ((SHARE_ROW, ("t", "u")),)),
        ("CREATE TABLE t (a int REFERENCES u (a), b int REFERENCES t (a))", ((SHARE_ROW, ("u",)),)),
        ("DROP INDEX i", ((EXCLUSIVE, ("i",)),)),
        ("DROP TABLE a, b", ((EXCLUSIVE, ("a", "b")),)),
        ("ALTER TABLE whole ATTACH PARTITION part FOR VALUES IN (1)", ((EXCLUSIVE, ("part",)),)),
        ("CREATE TRIGGER x AFTER INSERT ON t FOR EACH ROW EXECUTE FUNCTION f()", ((SHARE_ROW, ("t",)),)),
        ("UPDATE t SET a = 1", ()),
        ("DO $$ BEGIN END $$", ()),
    ],
)
def test_statements_that_keep_writers_waiting(sql: str, locks: tuple[tuple[str, tuple[str, ...]], ...]) -> None:
    found = of(sql)
    assert found.stalls and not found.alone
    assert found.locks == locks


@pytest.mark.parametrize(
    "sql",
    [
        "CREATE TABLE t (a int)", "ALTER TABLE t VALIDATE CONSTRAINT c", "ANALYZE t", "COMMENT ON TABLE t IS 'x'",
        "ALTER TABLE t SET (fillfactor = 70)", "INSERT INTO t SELECT 1", "CREATE VIEW v AS SELECT 1",
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "GRANT SELECT ON t TO PUBLIC",
    ],
)  # fmt: skip
def test_statements_that_do_not(sql: str) -> None:
    assert of(sql) == Needs()


@given(st.text(max_size=80))
def test_whatever_the_text_it_is_judged(text: str) -> None:
    found = of(text)
    assert found.alone or found.stalls or not found.locks
