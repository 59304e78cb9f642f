"""The rules of `migrate lint`: what each is called, how bad it is, why, and how to mend it. Names never change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Severity(StrEnum):
    """Errors refuse the catalogue; the words are those of SARIF."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. `id`: stable, for suppressions and machines."""

    id: str
    severity: Severity
    title: str
    why: str
    mend: str


_E, _W, _N = Severity.ERROR, Severity.WARNING, Severity.NOTE


def _rule(id: str, severity: Severity, title: str, why: str, mend: str) -> tuple[str, Rule]:
    return id, Rule(id=id, severity=severity, title=title, why=why, mend=mend)


RULES: Final[dict[str, Rule]] = dict((
    _rule(
        "blocking-while-serving", _E, "a statement blocks users while the old release serves",
        "non-blocking migrations run at the end of `stage`, under full load",
        "use a form that does not block, strategy = \"online-copy\", a batch, or phase = \"blocking\"",
    ),
    _rule(
        "not-understood", _W, "a statement is not understood",
        "what is not understood counts as blocking, and its effect cannot be looked for after a crash",
        "write it in a plainer form; or give it phase = \"blocking\" and a probe",
    ),
    _rule(
        "destroys-data", _E, "data is destroyed while the old release may come back",
        "after a rollback the old release would miss what is gone",
        "move it to phase = \"cleanup\"",
    ),
    _rule(
        "missing-down", _W, "nothing says how to take it back",
        "`migrate undo` stops at a migration without a way down",
        "add [[down]]; where that is impossible, ignore this rule and say why",
    ),
    _rule(
        "no-probe", _E, "after a crash nobody could tell whether it was done",
        "the engine commits such a statement by itself, and its effect cannot be derived from its text",
        "add probe = \"SELECT …\" that is true when the effect is there",
    ),
    _rule(
        "index-without-name", _E, "an index is built CONCURRENTLY, and has no name",
        "when a try breaks off, the invalid index that it leaves cannot be found, and the next one builds another",
        "CREATE INDEX CONCURRENTLY name ON …",
    ),
    _rule(
        "online-copy-foreign-keys", _E, "foreign keys point at a table that is to be copied",
        "when the copy takes the table's place, they would go on pointing at the old one",
        "strategy = \"native\" in the blocking phase; or drop the keys first, and add them again behind it",
    ),
    _rule(
        "online-copy-no-primary-key", _E, "a table that is to be copied has no primary or unique key",
        "rows that change during the copy cannot be told apart",
        "add a primary key first",
    ),
    _rule(
        "online-copy-several", _E, "an online copy takes exactly one ALTER TABLE",
        "each copies the whole table; and what is no ALTER TABLE cannot be made by copying",
        "one ALTER TABLE with all its clauses; the other statements into migrations of their own",
    ),
    _rule(
        "online-copy-not-needed", _W, "the server can do this online by itself",
        "a copy takes hours and twice the space where the server takes seconds",
        "strategy = \"native\"",
    ),
    _rule(
        "batch-key", _E, "a batch goes along a key that has no index",
        "each piece would read the whole table; and pieces along a key that is not unique can be unequal",
        "use the primary key, or a unique one",
    ),
    _rule(
        "old-release-reads", _E, "the old release still uses a name that goes away",
        "it serves until the flip, and comes back after a rollback",
        "add the new name now, and drop the old one in phase = \"cleanup\" of a later release",
    ),
    _rule(
        "old-release-inserts", _E, "the old release cannot insert rows any more",
        "it does not know the new column, or gives its values by position",
        "give the new column a default, or let it be NULL until a cleanup",
    ),
    _rule(
        "expected-missing", _W, "nothing says how long it takes",
        "a blocking migration that cannot end within the window is not begun; without `expected` that is a guess",
        "measure it on a database of production size and set expected = SECONDS",
    ),
    _rule(
        "several-tables", _W, "one blocking migration changes several tables",
        "the engine commits each by itself: when the second fails, the first is done and the window runs",
        "a migration for each table",
    ),
    _rule(
        "own-way", _W, "a statement says ALGORITHM, LOCK or WAIT itself",
        "the runner says them, by the phase: LOCK=NONE and a short wait while the old release serves",
        "leave them out",
    ),
    _rule(
        "lock-while-serving", _E, "a statement asks for a lock while the old release serves",
        "LOCK=SHARED and LOCK=EXCLUSIVE stop writers even where the server could do without",
        "leave LOCK out",
    ),
    _rule(
        "server-refuses", _E, "the scratch server refuses the statement",
        "on the schema that this catalogue makes it fails, with rows in the table",
        "mend the statement, or the schema in catalogue.toml",
    ),
    _rule(
        "other-version", _N, "the scratch server is of another version than those in the field",
        "it may do online what an older one cannot; so the worse of its answer and our rules counts",
        "run lint where the server's version is installed, or name the right one in catalogue.toml",
    ),
    _rule(
        "schema-unknown", _N, "the old release's schema is not known",
        "what depends on the present definition of a column counts as blocking; tables are taken for plain ones",
        "name a file that makes the schema: databases.NAME.schema in catalogue.toml",
    ),
    _rule(
        "file-unreadable", _W, "the schema or the queries of the old release cannot be read",
        "rules that need them are left out, or take the worse class",
        "export them again, as plain SQL",
    ),
    _rule(
        "ignored-without-reason", _W, "a rule is ignored without a reason",
        "nobody can tell later whether it still holds; the rule is applied",
        "-- lint: ignore RULE why it is right here",
    ),
))  # fmt: skip
