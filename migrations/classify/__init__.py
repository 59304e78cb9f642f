"""What a statement does to those who use the table meanwhile, by engine and version. Pure: rules, no server."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from core.sql import Engine
from migrations.changes import Change, Parsed, Verb
from migrations.tables import Schema


class Impact(StrEnum):
    """How much the users of a table notice, the least first."""

    INSTANT = "instant"  # only its description changes: milliseconds, whatever its size
    ONLINE = "online"  # takes time with its size, but everybody reads and writes meanwhile
    BLOCKS_WRITES = "blocks-writes"  # nobody writes until it has ended
    BLOCKS_ALL = "blocks-all"  # nobody reads or writes until it has ended

    @property
    def rank(self) -> int:
        """0 for the mildest."""
        return list(Impact).index(self)

    @property
    def blocks(self) -> bool:
        """Whether it has no place while a release serves."""
        return self.rank >= Impact.BLOCKS_WRITES.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """One change judged. `copies`: all rows are written anew. `certain`: False when the schema would have been needed
    and was not known, so that the worse class was taken. `unused`: no release uses the table yet.
    """

    impact: Impact
    reason: str
    table: str = ""
    copies: bool = False
    certain: bool = True
    unused: bool = False
    change: Change | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """A statement judged: the verdict that weighs most, and all of them."""

    verdict: Verdict
    verdicts: tuple[Verdict, ...]

    @property
    def impact(self) -> Impact:
        """How bad it is."""
        return self.verdict.impact

    @property
    def unused(self) -> bool:
        """Whether it only touches tables that no release uses yet."""
        return all(each.unused for each in self.verdicts)


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Version:
    """A server's version. MySQL is below 10, MariaDB from 10 on."""

    number: tuple[int, ...]

    @property
    def mysql(self) -> bool:
        """MySQL rather than MariaDB."""
        return self.number < (10,)

    def __str__(self) -> str:
        return ".".join(map(str, self.number))


#: Where a catalogue does not say: the oldest that is still in the field.
DEFAULT_VERSION: Final = {Engine.MARIADB: "10.6", Engine.POSTGRESQL: "13", Engine.SQLITE: "3.40"}


def version_of(text: str, engine: Engine) -> Version:
    """The numbers in it: 10.11, 10.11.6-MariaDB, MySQL 8.0.36, PostgreSQL 15.3."""
    found = re.search(r"\d+(\.\d+){0,2}", text) or re.search(r"\d+(\.\d+)*", DEFAULT_VERSION[engine])
    assert found is not None
    return Version(number=tuple(int(part) for part in found[0].split(".")))


def classify(parsed: Parsed, version: Version, schema: Schema | None = None) -> Judgement:
    """Judge a statement. Without `schema`, or for a table that is not in it, a form that depends on what is there
    counts as the worse class.
    """
    import migrations.classify.mariadb as mariadb
    import migrations.classify.postgresql as postgresql
    import migrations.classify.sqlite as sqlite

    judge = {Engine.MARIADB: mariadb.judge, Engine.POSTGRESQL: postgresql.judge, Engine.SQLITE: sqlite.judge}
    known = schema if schema is not None else Schema(parsed.engine)
    verdicts = tuple(
        replace(each, table=each.table or (each.change.table if each.change else ""))
        for each in judge[parsed.engine](parsed, version, known)
    )
    return Judgement(verdict=max(verdicts, key=lambda each: (each.impact.rank, each.copies)), verdicts=verdicts)


def unknown(change: Change) -> Verdict:
    """What is not understood counts as the worst."""
    return Verdict(
        impact=Impact.BLOCKS_ALL, reason="not understood, so it counts as blocking", change=change, certain=False
    )


def on_new_table(change: Change, schema: Schema) -> Verdict | None:
    """Nobody uses a table that the migrations themselves make."""
    table = schema.table(change.table)
    if change.verb in (Verb.INSERT, Verb.UPDATE, Verb.DELETE) and _reads_others(change):
        return None
    if table is not None and table.fresh and change.verb is not Verb.UNKNOWN:
        return Verdict(impact=Impact.INSTANT, reason="no release uses this table yet", unused=True, change=change)
    return None


def on_rows(change: Change, schema: Schema) -> Verdict:
    """INSERT, UPDATE, DELETE, SELECT."""
    if change.verb is Verb.SELECT:
        return Verdict(impact=Impact.ONLINE, reason="only reads", change=change)
    if change.verb is Verb.INSERT:
        if selects(change):
            if schema.engine is Engine.MARIADB:
                return Verdict(
                    impact=Impact.BLOCKS_WRITES,
                    reason="locks the rows that it reads until it ends: use a batch",
                    change=change,
                )
            return Verdict(impact=Impact.ONLINE, reason="adds rows; nobody waits for them", change=change)
        return Verdict(impact=Impact.INSTANT, reason="adds the rows that it names", change=change)
    few = re.fullmatch(r"\s*LIMIT\s+(\d{1,4})\s*", change.definition, re.IGNORECASE)
    if few or _by_key(change, schema):
        return Verdict(impact=Impact.INSTANT, reason="changes the few rows that it names", change=change)
    return Verdict(
        impact=Impact.BLOCKS_WRITES,
        reason="locks every row that it changes until it ends: use a batch",
        change=change,
    )


def selects(change: Change) -> bool:
    """Whether rows of other tables go into it; a string that has the word in it may count, too."""
    return bool(change.words & {"SELECT", "WITH"} or re.search(r"\bSELECT\b", change.definition, re.IGNORECASE))


def _reads_others(change: Change) -> bool:
    """Whether it looks at more than its own table."""
    more = {"USING", "JOIN"} | ({"FROM"} if change.verb is Verb.UPDATE else set())
    several = change.definition.lstrip().upper().startswith((",", "FROM"))  # UPDATE t, u SET …; DELETE t FROM t, u …
    return selects(change) or bool(change.words & more) or several


def _by_key(change: Change, schema: Schema) -> bool:
    """``WHERE key = value`` and nothing else."""
    if _reads_others(change):
        return False
    found = re.search(r"\bWHERE\s+[`\"\[]?(\w+)[`\"\]]?\s*=\s*('[^']*'|-?\d+)\s*$", change.definition, re.IGNORECASE)
    table = schema.table(change.table)
    return bool(found and table and table.unique(found[1]))


def always(change: Change) -> Verdict | None:
    """What is the same for all engines."""
    if change.verb is Verb.UNKNOWN:
        return unknown(change)
    if change.verb is Verb.DROP_TYPE and "SCHEMA" in change.words:
        return Verdict(impact=Impact.BLOCKS_ALL, reason="everything in it goes", change=change)
    told = _ALWAYS.get(change.verb)
    return Verdict(impact=Impact.INSTANT, reason=told, change=change) if told else None


_ALWAYS: Final = {
    Verb.DROP_TABLE: "the table goes; whoever still uses it fails",
    Verb.RENAME_TABLE: "only the name changes; whoever uses the old one fails",
    Verb.TRUNCATE: "empties the table at once",
    Verb.CREATE_VIEW: "only a description",
    Verb.DROP_VIEW: "only a description",
    Verb.CREATE_ROUTINE: "only a description",
    Verb.DROP_ROUTINE: "only a description",
    Verb.CREATE_TYPE: "only a description",
    Verb.DROP_TYPE: "only a description",
    Verb.COMMENT: "only a description",
    Verb.GRANT: "only rights change",
}
