"""Recorded statements of a release against the schema of another."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from core.errors import CatalogueInvalid, MigrationFailed
from core.sql import Connection, Database, Engine
from migrations.catalogue import Catalogue, load
from migrations.prove import Proof, prove
from migrations.recorded import Recorded, read_recorded
from migrations.scratch import scratch_server

SCHEMA = """
CREATE TABLE account (id INT PRIMARY KEY, name VARCHAR(20), balance DECIMAL(10,2));
CREATE TABLE cdr (id INT PRIMARY KEY, account INT NOT NULL REFERENCES account (id), note VARCHAR(40));
INSERT INTO account VALUES (1, 'one', 98);
"""

MIGRATIONS = {
    "0960-price": ("non-blocking", "ALTER TABLE cdr ADD COLUMN price DECIMAL(10,5)"),
    "0961-index": ("non-blocking", "CREATE INDEX cdr_account ON cdr (account)"),
    "0962-rename": ("blocking", "ALTER TABLE account RENAME COLUMN name TO label"),
    "0963-drop": ("cleanup", "DROP TABLE cdr"),
}

GOOD = "SELECT balance FROM account WHERE id = 1"
BAD = "SELECT id,\n  name FROM account WHERE id = 1"


Make = Callable[..., Catalogue]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A catalogue for an engine."""

    def made(engine: Engine, migrations: dict[str, tuple[str, str]] = MIGRATIONS, schema: str = SCHEMA) -> Catalogue:
        home = tmp_path / "catalogue"
        home.mkdir(exist_ok=True)
        (home / "schema.sql").write_text(schema)
        (home / "catalogue.toml").write_text(f'[databases.billing]\nengine = "{engine}"\nschema = "schema.sql"\n')
        for name, (phase, sql) in migrations.items():
            ups = "".join(f"[[up]]\nsql = '''{each}'''\n" for each in sql.split(";"))
            (home / f"{name}.toml").write_text(f'database = "billing"\nphase = "{phase}"\n{ups}')
        return load(home)

    return made


def proven(make: Make, database: Database, tmp_path: Path, text: str, **more: object) -> Proof:
    file = tmp_path / "old.sql"
    file.write_text(text)
    return prove(make(database.engine), "billing", file, server=database, **more)  # type: ignore[arg-type]


def test_it_holds(make: Make, database: Database, tmp_path: Path) -> None:
    text = f"{GOOD};\nUPDATE account SET balance = balance - 1 WHERE id = 1;\nINSERT INTO account VALUES (2, 'x', 0);"
    proof = proven(make, database, tmp_path, text)
    assert proof.holds and proof.replayed == 3 and proof.failures == () and proof.unjudged == ()
    assert proof.migrations == ("0960-price", "0961-index", "0962-rename")
    proof.require()


def test_the_first_failure_its_place_and_whose_fault_it_is(make: Make, database: Database, tmp_path: Path) -> None:
    text = f"{GOOD};\n-- the web\n{BAD};\nDELETE FROM account WHERE name = 'x';\nSELECT count(*) FROM cdr;"
    proof = proven(make, database, tmp_path, text)
    assert not proof.holds and proof.replayed == 4
    first, second = proof.failures
    assert (first.where, first.sql) == ("old.sql:3", BAD)
    assert (first.blame, first.statement) == ("0962-rename", "0962-rename.toml: up[0]")
    assert "name" in first.says and first.code
    assert second.where == "old.sql:5"
    with pytest.raises(CatalogueInvalid, match=r"does not work on the migrated data: old\.sql:3") as caught:
        proof.require()
    told = "\n".join(caught.value.what)
    assert "SELECT id, name FROM account" in told and "0962-rename" in told and "1 other statement fails too" in told
    assert proof.as_json()["failures"][0]["blame"] == "0962-rename"


def test_a_new_column_that_old_inserts_do_not_know(make: Make, database: Database, tmp_path: Path) -> None:
    migrations = {"0960-x": ("blocking", "ALTER TABLE cdr ADD COLUMN x INT; ALTER TABLE cdr ADD COLUMN y INT")}
    file = tmp_path / "old.sql"
    file.write_text("INSERT INTO account VALUES (5, 'a', 1); INSERT INTO cdr VALUES (1, 1, 'x');")
    proof = prove(make(database.engine, migrations), "billing", file, server=database)
    if database.engine is Engine.POSTGRESQL:  # it fills up with defaults
        assert proof.holds
        return
    (failure,) = proof.failures
    assert failure.sql.startswith("INSERT INTO cdr") and failure.statement == "0960-x.toml: up[0]"


def test_what_failed_before_proves_nothing(make: Make, database: Database, tmp_path: Path) -> None:
    text = f"{GOOD}; SELECT nothing FROM nowhere; INSERT INTO account VALUES (1, 'twice', 0); COMMIT;"
    proof = proven(make, database, tmp_path, text)
    assert proof.holds and proof.replayed == 1 and proof.skipped == 1
    assert [each.where for each in proof.unjudged] == ["old.sql:1", "old.sql:1"]


def test_statements_with_placeholders_are_prepared(make: Make, database: Database, tmp_path: Path) -> None:
    mark = "$1" if database.engine is Engine.POSTGRESQL else "?"
    text = f"SELECT balance FROM account WHERE id = {mark}; SELECT name FROM account WHERE id = {mark};"
    proof = proven(make, database, tmp_path, text)
    (failure,) = proof.failures
    assert "name" in failure.sql and failure.blame == "0962-rename"


def test_the_new_release_on_the_old_schema(make: Make, database: Database, tmp_path: Path) -> None:
    text = "SELECT label FROM account; SELECT balance FROM account; INSERT INTO account VALUES (1, 'twice', 0);"
    proof = proven(make, database, tmp_path, text, phases=())
    assert [each.sql for each in proof.failures] == ["SELECT label FROM account"]
    assert proof.migrations == () and len(proof.unjudged) == 1


def test_nothing_is_left_behind(make: Make, database: Database, tmp_path: Path) -> None:
    proven(make, database, tmp_path, f"INSERT INTO account VALUES (7, 'seven', 7);{BAD};")
    with Connection.open(database) as connection:
        if database.engine is Engine.MARIADB:
            assert connection.execute("SHOW DATABASES LIKE 'updater%'").rows == []
        elif database.engine is Engine.POSTGRESQL:
            assert connection.execute("SELECT 1 FROM pg_database WHERE datname LIKE 'updater%'").rows == []


def test_a_migration_that_does_not_run(make: Make, sqlite: Database, tmp_path: Path) -> None:
    file = tmp_path / "old.sql"
    file.write_text(GOOD)
    catalogue = make(Engine.SQLITE, {"0960-x": ("blocking", "ALTER TABLE nowhere ADD COLUMN x INT")})
    with pytest.raises(MigrationFailed, match="0960-x does not run on the schema of the old release") as caught:
        prove(catalogue, "billing", file, server=sqlite)
    assert "0960-x.toml: up[0]" in caught.value.what[0]


def test_a_scratch_server_of_its_own(make: Make, tmp_path: Path) -> None:
    file = tmp_path / "old.sql"
    file.write_text(f"{GOOD};{BAD};")
    assert [each.blame for each in prove(make(Engine.SQLITE), "billing", file).failures] == ["0962-rename"]


def test_batches_are_applied(make: Make, database: Database, tmp_path: Path) -> None:
    catalogue_dir = make(database.engine, {}).directory
    assert catalogue_dir is not None
    (catalogue_dir / "0960-fill.toml").write_text(
        'database = "billing"\nphase = "non-blocking"\n'
        "[[up]]\nbatch = { table = 'account', key = 'id',"
        " statement = 'UPDATE account SET balance = 0 WHERE id > :low AND id <= :high' }\n"
    )
    file = tmp_path / "old.sql"
    file.write_text(GOOD)
    assert prove(load(catalogue_dir), "billing", file, server=database).holds


# -- the files


def test_plain_sql(tmp_path: Path) -> None:
    file = tmp_path / "q.sql"
    file.write_text("SELECT 1;\n\n-- two\nSELECT ';',\n 2;\nSELECT 1;\nBEGIN;")
    found = read_recorded(file, Engine.SQLITE)
    assert [(each.sql, each.where, each.times) for each in found] == [
        ("SELECT 1", "q.sql:1", 2),
        ("SELECT ';',\n 2", "q.sql:4", 1),
        ("BEGIN", "q.sql:7", 1),
    ]
    assert [each.replayable for each in found] == [True, True, False]


GENERAL = """/usr/sbin/mariadbd, Version: 10.11.6-MariaDB (Debian 12). started with:
Tcp port: 3306  Unix socket: /run/mysqld/mysqld.sock
Time\t\t    Id Command\tArgument
261121  3:27:07\t     5 Connect\tbilling@localhost on billing using Socket
\t\t     5 Query\tSET autocommit=0
\t\t     5 Query\tSELECT a,
   b
FROM t
261121  3:27:08\t     6 Query\tUPDATE t SET a = 'x\t     5 Query\ty'
\t\t     5 Prepare\tSELECT ? FROM t
\t\t     5 Execute\tSELECT 3 FROM t
\t\t     5 Quit\t
"""


def test_the_general_log(tmp_path: Path) -> None:
    file = tmp_path / "general.log"
    file.write_text(GENERAL)
    found = read_recorded(file, Engine.MARIADB)
    assert [(each.sql, each.where) for each in found] == [
        ("SET autocommit=0", "general.log:5"),
        ("SELECT a,\n   b\nFROM t", "general.log:6"),
        ("UPDATE t SET a = 'x\t     5 Query\ty'", "general.log:9"),
        ("SELECT 3 FROM t", "general.log:11"),
    ]


def test_a_general_log_by_a_real_server(mariadb_server: Database, mariadb: Database, tmp_path: Path) -> None:
    with Connection.open(mariadb) as connection:
        row = connection.one("SELECT @@datadir")
        log = Path(str(row[0] if row else "")) / "proof.log"
        connection.execute("SET GLOBAL general_log_file = %s", (str(log),))
        connection.execute("SET GLOBAL general_log = 1")
        connection.execute("SELECT 1 AS recorded")
        connection.execute("SELECT 2,\n  'b' AS recorded")
        connection.execute("SET GLOBAL general_log = 0")
    found = {each.sql: each.where for each in read_recorded(log, Engine.MARIADB)}
    assert "SELECT 1 AS recorded" in found and "SELECT 2,\n  'b' AS recorded" in found


def test_a_csv_log_by_a_real_server(postgresql_template: Path) -> None:
    settings = [
        "logging_collector=on", "log_destination=csvlog", "log_directory=log", "log_filename=proof.log",
        "log_statement=all",
    ]  # fmt: skip
    with scratch_server(Engine.POSTGRESQL, template=postgresql_template, options=settings) as server:
        with Connection.open(server.database) as connection:
            connection.execute("CREATE TABLE t (a INT)")
            connection.execute("SELECT a,\n  'x' FROM t")
            connection.execute("SELECT a FROM t WHERE a = %s", (5,))
        server.stop()
        file = next((server.data / "log").glob("*.csv"))
        found = {each.sql: each for each in read_recorded(file, Engine.POSTGRESQL)}
        place = found["SELECT a,\n  'x' FROM t"].where
        lines = file.read_text().splitlines()
        assert "SELECT a" in lines[int(place.rpartition(":")[2]) - 1]
        assert found["SELECT a FROM t WHERE a = $1"].is_open(Engine.POSTGRESQL)


@pytest.mark.parametrize(
    ("engine", "sql", "is_open"),
    [
        (Engine.MARIADB, "SELECT ?", True),
        (Engine.MARIADB, "SELECT '?', \"?\", `?` -- ?", False),
        (Engine.MARIADB, "SELECT 'it\\'s ?'", False),
        (Engine.POSTGRESQL, "SELECT $1", True),
        (Engine.POSTGRESQL, "SELECT a ? 'b', '$1', $$ $1 $$, \"$1\"", False),
        (Engine.SQLITE, "SELECT :a, ?2", True),
        (Engine.SQLITE, "SELECT ':a'", False),
    ],
)
def test_placeholders(engine: Engine, sql: str, is_open: bool) -> None:
    assert Recorded(sql=sql, where="").is_open(engine) is is_open


def test_a_file_that_is_missing_or_no_sql(tmp_path: Path) -> None:
    with pytest.raises(CatalogueInvalid, match="cannot be read"):
        read_recorded(tmp_path / "none", Engine.SQLITE)
    (tmp_path / "odd").write_text("SELECT 'no end")
    with pytest.raises(CatalogueInvalid, match="cannot be read"):
        read_recorded(tmp_path / "odd", Engine.SQLITE)


def test_comments_before_a_statement() -> None:
    assert Recorded(sql="/* web */ -- x\n (SELECT 1)", where="").replayable
    assert not Recorded(sql="/* SELECT */ DROP TABLE t", where="").replayable
