"""`migrate lint`: every statement of a catalogue judged, and every rule applied. Pure, but for the catalogue's files
(and the scratch server, when it is asked for).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field

from core.sql import Engine
from migrations.catalogue import About, Batch, Catalogue, Migration, Phase, Statement, Strategy
from migrations.changes import Parsed
from migrations.checks import Context, check
from migrations.classify import Impact, Judgement, Version, classify, version_of
from migrations.ddl import parse
from migrations.old_names import OldRelease, read_queries
from migrations.oracle import Answer, Oracle, oracle
from migrations.places import Ignored, Place, Places
from migrations.rules import RULES, Severity
from migrations.tables import Schema, read_schema
from migrations.text import SqlUnreadable

_ORDER = (Phase.NON_BLOCKING, Phase.BLOCKING, Phase.CLEANUP)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule that is broken at a place. `message` says what is wrong just here."""

    rule: str
    severity: Severity
    message: str
    place: Place
    migration: str = ""
    database: str = ""
    table: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """One statement, and how it was judged: by our rules, and by the server if it was asked. `trusted`: the server is
    of the version that is in the field; otherwise the worse of both counts.
    """

    migration: Migration
    place: Place
    sql: str
    judgement: Judgement
    answer: Answer | None = None
    trusted: bool = True

    @property
    def impact(self) -> Impact:
        """The server has the last word; what is copied online blocks nobody, nor what works on a table of our own."""
        own = self.judgement.impact
        if self.answer and self.answer.impact and not self.judgement.unused:
            other = self.answer.impact
            own = other if self.trusted else max(own, other, key=lambda each: each.rank)
        return Impact.ONLINE if self.migration.strategy is Strategy.ONLINE_COPY and own.blocks else own

    @property
    def differs(self) -> bool:
        """Whether the server sees it in another way than our rules."""
        own = self.judgement
        return bool(self.answer and self.answer.impact and self.answer.impact is not own.impact and not own.unused)


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What a database's statements were judged by."""

    engine: Engine
    version: Version
    schema_known: bool
    server: str = ""


@dataclass(slots=True, kw_only=True)
class LintReport:
    """All that came out. `ignored`: findings that a comment took away, with its reason."""

    findings: list[Finding] = field(default_factory=list)
    judged: list[Judged] = field(default_factory=list)
    ignored: list[tuple[Finding, str]] = field(default_factory=list)
    judges: dict[str, Judge] = field(default_factory=dict)

    def count(self, severity: Severity) -> int:
        """How many findings there are of it."""
        return sum(each.severity is severity for each in self.findings)


def lint(catalogue: Catalogue, *, ask: bool = False) -> LintReport:
    """Judge all statements and apply all rules. `ask`: have a scratch server's word on each statement (minutes rather
    than seconds; raises DatabaseFailed or CommandFailed where it cannot be started or the schema does not load).
    """
    report = LintReport()
    places = Places(catalogue.directory)
    for name, about in catalogue.databases.items():
        _lint_database(catalogue, name, about, places, report, ask=ask)
    _settle(catalogue, places, report)
    return report


def _lint_database(
    catalogue: Catalogue, name: str, about: About, places: Places, report: LintReport, *, ask: bool
) -> None:
    if not catalogue.of(database=name):
        return
    schema, old = _known(name, about, report)
    version = version_of(about.version, about.engine)
    asker: Asker | None = None
    with ExitStack() as life:
        server = life.enter_context(oracle(about)) if ask and about.schema is not None else None
        report.judges[name] = Judge(
            engine=about.engine,
            version=version,
            schema_known=about.schema is not None,
            server=server.version if server else "",
        )
        if server is not None:
            asker = Asker(oracle=server, trusted=_same(version_of(server.version, about.engine), version))
            if not asker.trusted:
                said = f"database {name}: {server.version.split(' on ')[0]} was asked, {version} is in the field"
                report.findings.append(_finding("other-version", said, Place(file="catalogue.toml"), database=name))
        for phase in _ORDER:
            if phase is Phase.CLEANUP:  # the new release runs by then: nothing is fresh any more
                for table in schema.tables.values():
                    table.fresh = False
            for migration in catalogue.of(phase, database=name):
                _lint_migration(migration, schema, old, version, places, report, asker)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asker:
    """The scratch server, and whether it is what is in the field."""

    oracle: Oracle
    trusted: bool


def _same(one: Version, other: Version) -> bool:
    """The same series: 10.11 and 10.11.6; with PostgreSQL, 15 and 15.3."""
    length = 1 if one.number[0] >= 11 and len(other.number) == 1 else 2
    return one.number[:length] == other.number[:length]


def _known(name: str, about: About, report: LintReport) -> tuple[Schema, OldRelease]:
    """The old release's schema and statements, as far as they are there."""
    schema, old = Schema(about.engine), OldRelease()
    place = Place(file="catalogue.toml")
    try:
        if about.schema is not None:
            schema = read_schema(about.schema, about.engine)
        else:
            report.findings.append(_finding("schema-unknown", f"of database {name}", place, database=name))
        if about.queries is not None:
            old = read_queries(about.queries, about.engine)
    except (SqlUnreadable, OSError, UnicodeDecodeError) as error:
        report.findings.append(_finding("file-unreadable", f"of database {name}: {error}", place, database=name))
    return schema, old


def _lint_migration(
    migration: Migration,
    schema: Schema,
    old: OldRelease,
    version: Version,
    places: Places,
    report: LintReport,
    asker: Asker | None,
) -> None:
    judged: list[Judged] = []
    context = Context(migration=migration, schema=schema, old=old, places=places)
    for action in migration.up:
        parsed = parse(_sql(action), schema.engine)
        one = Judged(
            migration=migration,
            place=places.of(migration, action.where),
            sql=" ".join(_sql(action).split()),
            judgement=_judge(action, parsed, version, schema),
            answer=asker.oracle.ask(parsed) if asker is not None and isinstance(action, Statement) else None,
            trusted=asker is None or asker.trusted,
        )
        judged.append(one)
        context.add(action, parsed, one.judgement, one.impact, one.answer)
        if isinstance(action, Statement):
            schema.apply(parsed, fresh=migration.phase is not Phase.CLEANUP)
    report.judged += judged
    for rule, severity, message, place, table in check(context):
        report.findings.append(
            _finding(
                rule,
                message,
                place,
                severity=severity,
                migration=migration.id,
                database=migration.database,
                table=table,
            )
        )


def _sql(action: Statement | Batch) -> str:
    return action.sql if isinstance(action, Statement) else action.statement.replace(":low", "0").replace(":high", "1")


def _judge(action: Statement | Batch, parsed: Parsed, version: Version, schema: Schema) -> Judgement:
    from migrations.classify import Verdict

    if isinstance(action, Statement):
        return classify(parsed, version, schema)
    verdict = Verdict(impact=Impact.ONLINE, reason=f"{action.rows} rows at a time", table=action.table)
    return Judgement(verdict=verdict, verdicts=(verdict,))


def _finding(
    rule: str,
    message: str,
    place: Place,
    *,
    severity: Severity | None = None,
    migration: str = "",
    database: str = "",
    table: str = "",
) -> Finding:
    return Finding(
        rule=rule,
        severity=severity or RULES[rule].severity,
        message=message,
        place=place,
        migration=migration,
        database=database,
        table=table,
    )


# -- comments that take rules away


def _settle(catalogue: Catalogue, places: Places, report: LintReport) -> None:
    """Take away what is ignored with a reason; order the rest by file and line."""
    comments = {migration.id: places.ignored(migration) for migration in catalogue.migrations}
    kept: list[Finding] = []
    for finding in report.findings:
        reason = next(_reasons(finding, comments.get(finding.migration, []), report), "")
        if reason:
            report.ignored.append((finding, reason))
        else:
            kept.append(finding)
    for migration_id, each in comments.items():
        kept += [
            _finding("ignored-without-reason", f"{one.rule}", one.place, migration=migration_id)
            for one in each
            if not one.reason or one.rule not in RULES
        ]
    rank = list(Severity)
    report.findings = sorted(kept, key=lambda f: (rank.index(f.severity), f.place.file, f.place.line, f.rule))


def _reasons(finding: Finding, comments: list[Ignored], report: LintReport) -> Iterator[str]:
    for comment in comments:
        if comment.rule != finding.rule or not comment.reason:
            continue
        if comment.place.file.endswith(".toml"):
            yield comment.reason
        elif comment.place.file == finding.place.file:
            starts = sorted({each.place.line for each in report.judged if each.place.file == comment.place.file})
            begins = next((line for line in starts if line >= comment.place.line), starts[-1] if starts else 0)
            if begins == finding.place.line:
                yield comment.reason
