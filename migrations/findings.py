"""What `migrate lint` found, for people, for machines (JSON, SARIF 2.1.0), and as annotations of a pull request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from migrations.lint import Finding, Judged, LintReport
from migrations.rules import RULES, Severity

_SCHEMA: Final = "https://json.schemastore.org/sarif-2.1.0.json"
_GITHUB: Final = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}


def text(report: LintReport, *, width: int = 110) -> Iterator[str]:
    """Lines for a screen: what is wrong first, then every statement with its class."""
    for finding in report.findings:
        rule = RULES[finding.rule]
        yield f"{finding.severity:<8}{_plain(str(finding.place))}   {finding.rule}"
        yield f"        {_plain(finding.message)}"
        yield f"        why    {rule.why}"
        yield f"        mend   {rule.mend}"
        yield ""
    last = None
    for each in report.judged:
        migration = each.migration
        if migration is not last:
            copy = "   online-copy" if migration.strategy == "online-copy" else ""
            yield f"{migration.id}   {migration.phase}   {migration.database}{copy}"
            last = migration
        yield f"    {each.impact:<14}{_cut(_plain(each.sql), width - 18)}"
        yield f"    {'':<14}{_cut(_why(each), width - 18)}"
    for finding, reason in report.ignored:
        yield f"ignored {_plain(str(finding.place))}   {finding.rule}: {_plain(reason)}"
    for name, judge in report.judges.items():
        asked = f", asked {judge.server.split(' on ')[0]}" if judge.server else ""
        known = "" if judge.schema_known else ", schema not known"
        yield f"judged  {name} as {judge.engine} {judge.version}{known}{asked}"
    yield summary(report)


def summary(report: LintReport) -> str:
    """One line."""
    counts = [(report.count(each), each) for each in Severity]
    said = ", ".join(f"{count} {severity}{'s' * (count != 1)}" for count, severity in counts if count)
    return f"{len(report.judged)} statement{'s' * (len(report.judged) != 1)}: {said or 'nothing wrong'}"


def _why(each: Judged) -> str:
    verdict = each.judgement.verdict
    told = f"{verdict.reason}{'' if verdict.certain else ' (worse class: not known)'}"
    if each.answer is None:
        return told
    mark = "server differs from our rules: " if each.differs else "server: "
    return f"{mark}{each.answer.how}" if each.answer.impact else f"{told}; server: {each.answer.how}"


def as_json(report: LintReport) -> dict[str, Any]:
    """JSON-ready: findings, statements, ignored, databases, errors, warnings."""
    return {
        "errors": report.count(Severity.ERROR),
        "warnings": report.count(Severity.WARNING),
        "findings": [_finding(each) for each in report.findings],
        "ignored": [_finding(each) | {"reason": reason} for each, reason in report.ignored],
        "statements": [_statement(each) for each in report.judged],
        "databases": {
            name: {
                "engine": judge.engine.value,
                "version": str(judge.version),
                "schema_known": judge.schema_known,
                "server": judge.server,
            }
            for name, judge in report.judges.items()
        },
    }


def _finding(each: Finding) -> dict[str, Any]:
    rule = RULES[each.rule]
    return {
        "rule": each.rule,
        "severity": each.severity.value,
        "file": each.place.file,
        "line": each.place.line,
        "migration": each.migration,
        "database": each.database,
        "table": each.table,
        "message": each.message,
        "why": rule.why,
        "mend": rule.mend,
    }


def _statement(each: Judged) -> dict[str, Any]:
    verdict = each.judgement.verdict
    return {
        "migration": each.migration.id,
        "phase": each.migration.phase.value,
        "database": each.migration.database,
        "file": each.place.file,
        "line": each.place.line,
        "sql": each.sql,
        "impact": each.impact.value,
        "by_rules": each.judgement.impact.value,
        "table": verdict.table,
        "reason": verdict.reason,
        "copies": verdict.copies,
        "certain": verdict.certain,
        "server": {"impact": each.answer.impact, "how": each.answer.how} if each.answer else None,
    }


def as_sarif(report: LintReport, directory: Path, *, version: str) -> dict[str, Any]:
    """SARIF 2.1.0. Files are named relative to the working directory when the catalogue is in it, as a repository's
    viewers want them.
    """
    used = list(RULES)
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "updater migrate lint",
                        "version": version,
                        "rules": [
                            {
                                "id": rule.id,
                                "shortDescription": {"text": rule.title},
                                "fullDescription": {"text": rule.why},
                                "help": {"text": rule.mend},
                                "defaultConfiguration": {"level": rule.severity.value},
                            }
                            for rule in RULES.values()
                        ],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [
                    *(_result(each, directory, used) for each in report.findings),
                    *(
                        _result(each, directory, used)
                        | {"suppressions": [{"kind": "inSource", "justification": reason}]}
                        for each, reason in report.ignored
                    ),
                ],
            }
        ],
    }


def _result(each: Finding, directory: Path, used: list[str]) -> dict[str, Any]:
    rule = RULES[each.rule]
    return {
        "ruleId": each.rule,
        "ruleIndex": used.index(each.rule),
        "level": each.severity.value,
        "message": {"text": f"{rule.title}: {each.message}. {rule.mend}"},
        "locations": [
            {
                "physicalLocation": {
                    "artifactLocation": {"uri": _uri(directory, each.place.file)},
                    "region": {"startLine": each.place.line},
                }
            }
        ],
        "properties": {"migration": each.migration, "database": each.database, "table": each.table},
    }


def _uri(directory: Path, file: str) -> str:
    from urllib.parse import quote

    return quote(_relative(directory, file))


def _relative(directory: Path, file: str) -> str:
    path = (directory / file).resolve()
    try:
        return path.relative_to(Path.cwd()).as_posix()
    except ValueError:
        return (directory / file).as_posix()


def github(report: LintReport, directory: Path) -> Iterator[str]:
    """Workflow commands: each becomes a remark at its line of the pull request."""
    for each in report.findings:
        rule = RULES[each.rule]
        place = f"file={_escaped(_relative(directory, each.place.file), key=True)},line={each.place.line}"
        title = _escaped(f"{each.rule}: {rule.title}", key=True)
        said = _escaped(f"{each.message}\n{rule.why}\nmend: {rule.mend}")
        yield f"::{_GITHUB[each.severity]} {place},title={title}::{said}"


def _escaped(text: str, *, key: bool = False) -> str:
    text = text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")
    return text.replace(":", "%3A").replace(",", "%2C") if key else text


def _plain(text: str) -> str:
    """Nothing in a statement may steer the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
