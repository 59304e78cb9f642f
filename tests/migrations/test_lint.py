"""Every rule of `migrate lint` on a catalogue that breaks it, and what is written of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from core.errors import CatalogueInvalid
from core.sql import Engine
from migrations.catalogue import load
from migrations.classify import Impact, classify, version_of
from migrations.ddl import parse
from migrations.findings import as_json, as_sarif, github, text
from migrations.lint import LintReport, lint
from migrations.rules import RULES, Severity
from migrations.tables import Schema
from updater.cli import migrate_lint

ABOUT = """
[databases.billing]
engine = "mariadb"
version = "10.11"
schema = "schema.sql"
queries = "queries.sql"
"""

SCHEMA = """
CREATE TABLE account (
    id INT NOT NULL PRIMARY KEY, name VARCHAR(40), note VARCHAR(20), owner INT,
    balance DECIMAL(10,2) NOT NULL DEFAULT 0, KEY (owner)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
CREATE TABLE xdr (
    id BIGINT NOT NULL PRIMARY KEY, account_id INT, at DATETIME, FOREIGN KEY (account_id) REFERENCES account (id)
) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4;
CREATE TABLE loose (a INT) ENGINE=InnoDB;
"""

QUERIES = """
SELECT name FROM account WHERE id = 1;
INSERT INTO loose VALUES (1);
"""

DOWN = '\n[[down]]\nsql = "SELECT 1"\n'


def catalogue(tmp_path: Path, *migrations: str, about: str = ABOUT, **files: str) -> Path:
    """A catalogue in a directory: one text per migration, numbered from 1; `files` without their ending .sql."""
    made = {"schema": SCHEMA, "queries": QUERIES} | files
    for name, content in made.items():
        (tmp_path / f"{name}.sql").write_text(content)
    (tmp_path / "catalogue.toml").write_text(about)
    for number, migration in enumerate(migrations, 1):
        (tmp_path / f"{number:04}-m.toml").write_text(migration)
    return tmp_path


def migration(*sql: str, phase: str = "non-blocking", more: str = "expected = 5", down: str = DOWN) -> str:
    """A migration of these statements."""
    up = "".join(f"\n[[up]]\nsql = '''{each}'''\n" for each in sql)
    return f'database = "billing"\nphase = "{phase}"\n{more}\n{up}{down}'


def found(directory: Path) -> dict[str, Severity]:
    """The rules that are broken."""
    return {each.rule: each.severity for each in lint(load(directory)).findings}


ERROR, WARNING, NOTE = Severity


@pytest.mark.parametrize(
    ("text", "rule", "severity"),
    [
        (migration("ALTER TABLE account MODIFY name VARCHAR(100)"), "blocking-while-serving", ERROR),
        (migration("UPDATE account SET note = ''"), "blocking-while-serving", ERROR),
        (migration("ANALYZE TABLE account"), "not-understood", ERROR),
        (migration("ANALYZE TABLE account", phase="blocking"), "not-understood", WARNING),
        (migration("ALTER TABLE account DROP COLUMN note"), "destroys-data", ERROR),
        (migration("DROP TABLE xdr", phase="blocking"), "destroys-data", ERROR),
        (migration("TRUNCATE xdr", phase="blocking"), "destroys-data", ERROR),
        (migration("DELETE FROM xdr", phase="blocking"), "destroys-data", ERROR),
        (migration("ALTER TABLE xdr MODIFY id INT NOT NULL", phase="blocking"), "destroys-data", ERROR),
        (migration("ALTER TABLE account MODIFY note VARCHAR(10)", phase="blocking"), "destroys-data", ERROR),
        (migration("CREATE OR REPLACE TABLE xdr (id INT PRIMARY KEY)", phase="blocking"), "destroys-data", ERROR),
        (migration("DROP SCHEMA other", phase="blocking"), "destroys-data", ERROR),
        (migration("INSERT INTO xdr (id) (SELECT id FROM account)"), "blocking-while-serving", ERROR),
        (migration("CREATE TABLE n AS (SELECT id FROM account)"), "blocking-while-serving", ERROR),
        (
            migration("CREATE TABLE n (id INT PRIMARY KEY)", "INSERT INTO n SELECT id FROM account"),
            "blocking-while-serving",
            ERROR,
        ),
        (migration("DELETE FROM xdr WHERE account_id = 1 LIMIT 10"), "blocking-while-serving", ERROR),
        (migration("DELETE xdr FROM xdr, account WHERE id = 7"), "blocking-while-serving", ERROR),
        (migration("ALTER TABLE account ADD n INT", down=""), "missing-down", WARNING),
        (migration("ALTER TABLE account ADD n INT", down="", phase="blocking"), "missing-down", ERROR),
        (migration("OPTIMIZE TABLE xdr", phase="blocking"), "no-probe", ERROR),
        (
            migration("ALTER TABLE account MODIFY owner BIGINT", more='strategy = "online-copy"'),
            "online-copy-foreign-keys",
            ERROR,
        ),
        (
            migration("ALTER TABLE loose MODIFY a BIGINT", more='strategy = "online-copy"'),
            "online-copy-no-primary-key",
            ERROR,
        ),
        (
            migration("ALTER TABLE xdr MODIFY at DATE", "ALTER TABLE xdr ADD n INT", more='strategy = "online-copy"'),
            "online-copy-several",
            ERROR,
        ),
        (migration("ALTER TABLE xdr ADD n INT", more='strategy = "online-copy"'), "online-copy-not-needed", WARNING),
        (migration("ALTER TABLE account RENAME COLUMN name TO title"), "old-release-reads", ERROR),
        (migration("ALTER TABLE account CHANGE name title VARCHAR(40)"), "old-release-reads", ERROR),
        (migration("RENAME TABLE account TO accounts"), "old-release-reads", ERROR),
        (migration("ALTER TABLE account ADD n INT NOT NULL"), "old-release-inserts", ERROR),
        (migration("ALTER TABLE loose ADD n INT"), "old-release-inserts", ERROR),
        (migration("ALTER TABLE account ADD n INT", phase="blocking", more=""), "expected-missing", WARNING),
        (
            migration("ALTER TABLE account ADD n INT", "ALTER TABLE xdr ADD n INT", phase="blocking"),
            "several-tables",
            WARNING,
        ),
        (migration("ALTER TABLE account ADD n INT, ALGORITHM=INSTANT"), "own-way", WARNING),
        (migration("ALTER TABLE account ADD n INT, LOCK=SHARED"), "lock-while-serving", ERROR),
    ],
)
def test_a_rule_is_broken(tmp_path: Path, text: str, rule: str, severity: Severity) -> None:
    assert found(catalogue(tmp_path, text)).get(rule) is severity


@pytest.mark.parametrize(
    "text",
    [
        migration("ALTER TABLE account ADD n INT NOT NULL DEFAULT 5"),
        migration("ALTER TABLE account MODIFY note VARCHAR(30)"),
        migration("CREATE TABLE n (id INT PRIMARY KEY)", "ALTER TABLE n ADD s INT AS (id + 1) STORED", "DELETE FROM n"),
        migration("ALTER TABLE account DROP COLUMN name", phase="cleanup", down=""),
        migration("ALTER TABLE account MODIFY name VARCHAR(100)", phase="blocking"),
        migration("INSERT INTO account (id) VALUES (7)"),
        migration("DELETE FROM account WHERE id = 7"),
        migration("ALTER TABLE xdr MODIFY at DATE", more='strategy = "online-copy"'),
    ],
)
def test_nothing_is_wrong(tmp_path: Path, text: str) -> None:
    assert found(catalogue(tmp_path, text)) == {}


@pytest.mark.parametrize(
    ("sql", "down", "wrong"),
    [
        ("CREATE INDEX CONCURRENTLY ON loose (a)", "", True),
        ("DROP INDEX CONCURRENTLY i", "CREATE INDEX CONCURRENTLY ON loose (a)", True),
        ("CREATE INDEX CONCURRENTLY i ON loose (a)", "DROP INDEX CONCURRENTLY i", False),
        ("CREATE INDEX ON loose (a)", "", False),
    ],
)
def test_an_index_without_a_name(tmp_path: Path, sql: str, down: str, wrong: bool) -> None:
    way_back = f'\n[[down]]\nsql = "{down}"\n' if down else ""
    about = '[databases.billing]\nengine = "postgresql"\n'
    assert ("index-without-name" in found(catalogue(tmp_path, migration(sql, down=way_back), about=about))) is wrong


@pytest.mark.parametrize(
    ("check", "impact"),
    [
        ("CHECK (id IS NOT NULL)", Impact.INSTANT),
        ('CONSTRAINT c CHECK ("id" IS NOT NULL)', Impact.INSTANT),
        ("CHECK ((id IS NOT NULL))", Impact.INSTANT),
        ("CHECK ((id IS NOT NULL) OR (id IS NOT NULL))", Impact.BLOCKS_ALL),
        ("CHECK (id IS NOT NULL) NOT VALID", Impact.BLOCKS_ALL),
        ("CHECK (old_id IS NOT NULL)", Impact.BLOCKS_ALL),
        ("CHECK (id IS NOT NULL OR b IS NOT NULL)", Impact.BLOCKS_ALL),
        ("CHECK (b = 'id IS NOT NULL')", Impact.BLOCKS_ALL),
    ],
)
def test_what_proves_that_a_column_is_never_null(check: str, impact: Impact) -> None:
    schema = Schema(Engine.POSTGRESQL)
    for sql in ("CREATE TABLE t (id int, old_id int, b text)", f"ALTER TABLE t ADD {check}"):
        schema.apply(parse(sql, Engine.POSTGRESQL))
    parsed = parse("ALTER TABLE t ALTER COLUMN id SET NOT NULL", Engine.POSTGRESQL)
    assert classify(parsed, version_of("15", Engine.POSTGRESQL), schema).impact is impact


def test_the_recommended_way_to_not_null_is_instant() -> None:
    """A check that holds for new rows, then for all, then the column's own."""
    schema, impacts = Schema(Engine.POSTGRESQL), []
    for sql in (
        "CREATE TABLE t (id int)",
        "ALTER TABLE t ADD CONSTRAINT c CHECK (id IS NOT NULL) NOT VALID",
        "ALTER TABLE t VALIDATE CONSTRAINT c",
        "ALTER TABLE t ALTER COLUMN id SET NOT NULL",
    ):
        parsed = parse(sql, Engine.POSTGRESQL)
        impacts.append(classify(parsed, version_of("15", Engine.POSTGRESQL), schema).impact)
        schema.apply(parsed)
    assert impacts[1:] == [Impact.INSTANT, Impact.ONLINE, Impact.INSTANT]


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_seconds_are_numbers(tmp_path: Path, value: str) -> None:
    batch = f'[[up]]\nbatch = {{ table = "account", key = "id", pause = {value}, statement = ":low :high" }}\n'
    directory = catalogue(
        tmp_path,
        migration("SELECT 1", more=f"expected = {value}"),
        f'database = "billing"\nphase = "non-blocking"\n{batch}{DOWN}',
    )
    with pytest.raises(CatalogueInvalid) as caught:
        load(directory)
    faults = caught.value.what
    assert len(faults) == 2 and "expected: must be a number" in faults[0] and "pause: must be a number" in faults[1]


@pytest.mark.parametrize(("key", "severity"), [("id", None), ("owner", Severity.WARNING), ("note", Severity.ERROR)])
def test_a_batch_needs_a_key(tmp_path: Path, key: str, severity: Severity | None) -> None:
    up = (
        f'[[up]]\nbatch = {{ table = "account", key = "{key}", statement = "UPDATE account SET note = 1 '
        f'WHERE {key} > :low AND {key} <= :high" }}\n'
    )
    directory = catalogue(tmp_path, f'database = "billing"\nphase = "non-blocking"\n{up}{DOWN}')
    assert found(directory).get("batch-key") is severity


def test_the_schema_goes_with_the_migrations(tmp_path: Path) -> None:
    """The second is judged on what the first has left; blocking ones come behind all others."""
    directory = catalogue(
        tmp_path,
        migration("ALTER TABLE account MODIFY note VARCHAR(100)", phase="blocking"),
        migration("ALTER TABLE account MODIFY note VARCHAR(31)"),
        migration("ALTER TABLE account MODIFY note VARCHAR(60)"),
    )
    report = lint(load(directory))
    assert [(each.migration.number, each.impact) for each in report.judged] == [
        (2, Impact.INSTANT),
        (3, Impact.INSTANT),
        (1, Impact.BLOCKS_WRITES),
    ]


def test_without_a_schema_the_worse_class_counts(tmp_path: Path) -> None:
    about = '[databases.billing]\nengine = "mariadb"\n'
    report = lint(load(catalogue(tmp_path, migration("ALTER TABLE account MODIFY note VARCHAR(30)"), about=about)))
    assert report.judged[0].impact is Impact.BLOCKS_WRITES
    assert not report.judged[0].judgement.verdict.certain
    assert {each.rule for each in report.findings} == {"schema-unknown", "blocking-while-serving"}


def test_a_schema_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    directory = catalogue(tmp_path, migration("ALTER TABLE account ADD n INT"), schema="CREATE TABLE 'broken")
    assert found(directory)["file-unreadable"] is Severity.WARNING


def test_rules_are_ignored_with_a_reason(tmp_path: Path) -> None:
    sql = """
    ALTER TABLE account DROP COLUMN note;
    -- lint: ignore destroys-data never filled, ticket 4711
    ALTER TABLE account DROP COLUMN owner;
    """
    body = f'# lint: ignore missing-down\ndatabase = "billing"\nphase = "non-blocking"\n[[up]]\nfile = "x.sql"\n{DOWN}'
    report = lint(load(catalogue(tmp_path, body, x=sql)))
    assert [(each.rule, str(each.place)) for each in report.findings] == [
        ("destroys-data", "x.sql:2"),
        ("ignored-without-reason", "0001-m.toml:1"),
    ]
    assert [(finding.place.line, reason) for finding, reason in report.ignored] == [(4, "never filled, ticket 4711")]


def test_a_whole_migration_ignores_a_rule(tmp_path: Path) -> None:
    body = "# lint: ignore missing-down cannot be taken back\n" + migration("ALTER TABLE account ADD n INT", down="")
    report = lint(load(catalogue(tmp_path, body)))
    assert report.findings == []
    assert len(report.ignored) == 1


@pytest.mark.parametrize(
    ("version", "sql", "impact"),
    [
        ("10.3", "ALTER TABLE account ADD n INT FIRST", Impact.ONLINE),
        ("10.11", "ALTER TABLE account ADD n INT FIRST", Impact.INSTANT),
        ("MySQL 5.7", "ALTER TABLE account ADD n INT", Impact.ONLINE),
        ("8.0.20", "ALTER TABLE account ADD n INT FIRST", Impact.ONLINE),
        ("8.0.30", "ALTER TABLE account ADD n INT FIRST", Impact.INSTANT),
        ("8.0.30", "ALTER TABLE account MODIFY note VARCHAR(500)", Impact.BLOCKS_WRITES),
        ("11.4", "ALTER TABLE account MODIFY owner BIGINT", Impact.ONLINE),
        ("11.1", "ALTER TABLE account MODIFY owner BIGINT", Impact.BLOCKS_WRITES),
        ("11.4", "ALTER TABLE unknown MODIFY owner BIGINT", Impact.BLOCKS_WRITES),
        ("10.11", "FROBNICATE", Impact.BLOCKS_ALL),
    ],
)
def test_versions_differ(version: str, sql: str, impact: Impact) -> None:
    schema = Schema(Engine.MARIADB, complete=True)
    for each in SCHEMA.split(";"):
        schema.apply(parse(each, Engine.MARIADB))
    assert classify(parse(sql, Engine.MARIADB), version_of(version, Engine.MARIADB), schema).impact is impact


@pytest.fixture
def report(tmp_path: Path) -> LintReport:
    """A report with one error, of a statement that would steer a terminal."""
    evil = "ALTER TABLE account DROP /* % \x1b[31m, : */ COLUMN note;"
    return lint(
        load(catalogue(tmp_path, f'database = "billing"\nphase = "blocking"\nexpected = 1\n{FILE}{DOWN}', x=evil))
    )


FILE = '[[up]]\nfile = "x.sql"\n'


def test_people_read_it(report: LintReport) -> None:
    lines = list(text(report))
    assert lines[0] == "error   x.sql:1   destroys-data"
    assert lines[-1] == "1 statement: 1 error"
    assert not any("\x1b" in line for line in lines)
    assert all(len(line) <= 120 for line in lines)


def test_json(report: LintReport) -> None:
    data = json.loads(json.dumps(as_json(report)))
    assert data["errors"] == 1
    assert data["findings"][0]["rule"] == "destroys-data"
    assert data["statements"][0]["impact"] == "instant"


def test_sarif_has_what_its_schema_wants(report: LintReport, tmp_path: Path) -> None:
    data = json.loads(json.dumps(as_sarif(report, tmp_path, version="1.0")))
    assert data["version"] == "2.1.0"
    (run,) = data["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == list(RULES)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["message"]["text"]
        assert result["level"] in ("error", "warning", "note", "none")
        (location,) = result["locations"]
        assert location["physicalLocation"]["region"]["startLine"] >= 1
        assert "\\" not in location["physicalLocation"]["artifactLocation"]["uri"]


def test_a_pull_request_gets_remarks(report: LintReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = github(report, tmp_path)
    assert line.startswith("::error file=x.sql,line=1,title=destroys-data%3A ")
    assert "\n" not in line


def test_the_command(tmp_path: Path) -> None:
    app = typer.Typer()
    migrate_lint.register(app)
    app.callback()(lambda: None)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.mkdir()
    bad.mkdir()
    catalogue(good, migration("ALTER TABLE account ADD n INT"))
    catalogue(bad, migration("ALTER TABLE account DROP COLUMN note"))
    fine = CliRunner().invoke(app, ["lint", str(good)])
    assert fine.exit_code == 0
    assert "1 statement: nothing wrong" in fine.output
    refused = CliRunner().invoke(app, ["lint", str(bad), "--format", "sarif"])
    assert isinstance(refused.exception, CatalogueInvalid)
    assert refused.exception.exit_code == 27
    assert json.loads(refused.stdout)["version"] == "2.1.0"


def test_the_page_has_every_rule() -> None:
    page = Path(__file__).parents[2] / "docs" / "migrations-lint.md"
    for rule in RULES.values():
        assert f"| `{rule.id}` | {rule.severity} |" in page.read_text(encoding="utf-8")
