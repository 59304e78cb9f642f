"""What is told of a rehearsal: lines for the screen, JSON, and one HTML page that needs nothing else."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any, Final

from core.errors import ConfigError
from core.files import write_atomic
from zdu.rehearsal import Finding, Grade, Phase, Record

_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1d2733 }}
h1 {{ font-size: 1.5rem }} h2 {{ font-size: 1.1rem; margin-top: 2rem }}
table {{ border-collapse: collapse; width: 100% }} th, td {{ text-align: left; vertical-align: top;
 padding: .3rem .6rem; border-bottom: 1px solid #d8dee6 }} th {{ font-weight: 600 }}
.verdict {{ font-size: 1.15rem; padding: .7rem 1rem; border-radius: .4rem }}
.passed {{ background: #e2f3e6 }} .failed {{ background: #fbe3e1 }} .fails {{ color: #a12016; font-weight: 600 }}
.bar {{ background: #5a86b5; height: .7rem; border-radius: .2rem }} .num {{ text-align: right; white-space: nowrap }}
</style></head><body>
{body}
</body></html>
"""


def verdict(record: Record) -> str:
    """The verdict, in one sentence."""
    way = f"{record.start} → {record.release}" if record.release else record.start
    if record.passed:
        return f"PASSED: {way} on {record.node} went as planned; nothing was seen that would fail on the night."
    return f"FAILED: {way} on {record.node} would fail on the night."


def lines(record: Record, phases: Sequence[Phase], findings: Sequence[Finding]) -> list[str]:
    """For the screen."""
    told = ["", f"{'phase':<16}{'seconds':>8}   afterwards"]
    told += [f"{each.name:<16}{each.seconds:>8.1f}   {each.found or 'it does not answer'}" for each in phases]
    told += [""]
    told += [f"{'✗' if each.grade is Grade.FAILS else '·'} {each.phase}: {each.text}" for each in findings]
    return [*told, verdict(record)]


def as_json(record: Record, phases: Sequence[Phase], findings: Sequence[Finding], plan: object) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "verdict": verdict(record),
        "record": record.as_json(),
        "fingerprint": record.fingerprint.short,
        "phases": [asdict(each) for each in phases],
        "findings": [asdict(each) for each in findings],
        "plan": plan,
    }


def as_data(path: Path) -> Path:
    """Where the same is as JSON, beside the page at `path`."""
    return path.with_suffix(".json")


def write(path: Path, record: Record, phases: Sequence[Phase], findings: Sequence[Finding], plan: object) -> None:
    """The page, and the same as JSON beside it. Raises ConfigError."""
    data = json.dumps(as_json(record, phases, findings, plan), indent=1, default=str)
    try:
        write_atomic(path, as_html(record, phases, findings, plan))
        write_atomic(as_data(path), f"{data}\n")
    except OSError as error:
        raise ConfigError(f"the report {path} cannot be written", what=error.strerror or str(error)) from error


def as_html(record: Record, phases: Sequence[Phase], findings: Sequence[Finding], plan: object) -> str:
    """The page."""
    kind = "passed" if record.passed else "failed"
    facts = [
        ("node", record.node),
        ("rehearsed", f"{record.made}, {record.seconds / 60:.1f} min on {record.machine}"),
        ("faults", ", ".join(record.faults) or "none"),
        ("fingerprint", record.fingerprint.short),
    ]
    body = [
        f"<h1>Rehearsal {_e(record.start)} → {_e(record.release)}</h1>",
        f'<p class="verdict {kind}">{_e(verdict(record))}</p>',
        _table((), facts),
        "<h2>What was seen</h2>",
        _findings(findings),
        "<h2>Phases</h2>",
        _phases(phases),
        "<h2>Steps</h2>",
        _table(
            ("phase", "step", "seconds"),
            [(each.name, step, f"{took:.1f}") for each in phases for step, took in each.steps.items()],
        ),
        *_plan(plan),
    ]
    return _PAGE.format(title=f"Rehearsal of {_e(record.release)} on {_e(record.node)}", body="\n".join(body))


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<p>Nothing but what was planned.</p>"
    items = (f'<li class="{each.grade}">{_e(each.phase)}: {_e(each.text)}</li>' for each in findings)
    return f"<ul>{''.join(items)}</ul>"


def _phases(phases: Sequence[Phase]) -> str:
    longest = max((each.seconds for each in phases), default=1) or 1
    rows = "".join(
        f"<tr><td>{_e(each.name)}</td><td class=num>{each.seconds:.1f} s</td>"
        f'<td style="width:30%"><div class=bar style="width:{100 * each.seconds / longest:.0f}%"></div></td>'
        f"<td>{_e(each.expected)}</td>{_found(each)}</tr>"
        for each in phases
    )
    return f"<table><tr><th>phase</th><th></th><th></th><th>planned</th><th>found</th></tr>{rows}</table>"


def _found(phase: Phase) -> str:
    return f"<td{'' if phase.found == phase.expected else ' class=fails'}>{_e(phase.found)}</td>"


def _plan(plan: object) -> list[str]:
    if not isinstance(plan, dict):
        return []
    rows = [(str(number), str(each["what"])) for number, each in enumerate(plan.get("steps", ()), 1)]
    return [
        "<h2>What the plan said</h2>",
        f"<p>{_e(plan.get('title'))}. Way back: {_e(plan.get('way_back'))}</p>",
        _table((), rows),
    ]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    top = f"<tr>{''.join(f'<th>{_e(each)}</th>' for each in head)}</tr>" if head else ""
    return f"<table>{top}{''.join(f'<tr>{_cells(row)}</tr>' for row in rows)}</table>"


def _cells(row: Sequence[str]) -> str:
    return "".join(f"<td>{_e(each)}</td>" for each in row)


def _e(thing: object) -> str:
    return escape("" if thing is None else str(thing))
