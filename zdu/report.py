"""The report of a run: one HTML file that needs nothing else, for those who were asleep; and the same as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from typing import Any, Final

from zdu.overview import minutes
from zdu.records import Leg, Run, RunState, Said, Sample, StepRecord, StepState, Told
from zdu.report_charts import areas, curves, timeline
from zdu.runbook import Action, Step
from zdu.runs import Runs

#: A step that took this many times what was expected, and this much longer at least, is told as a deviation.
_LONGER: Final = 1.5
_LONGER_SECONDS: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """Everything that is on record of a run."""

    run: Run
    legs: list[Leg]
    steps: list[StepRecord]
    said: list[Said]
    events: list[Told]
    samples: list[Sample]

    def step_of(self, record: StepRecord) -> Step | None:
        """What a record is about."""
        leg = next((leg for leg in self.legs if leg.number == record.leg), None)
        return leg.runbook.by_id.get(record.step) if leg else None


def read(runs: Runs, run: Run) -> Records:
    """All of it."""
    return Records(
        run=run,
        legs=runs.legs(run.id),
        steps=runs.steps(run.id),
        said=runs.said(run.id),
        events=runs.events(run.id),
        samples=runs.samples(run.id),
    )


def outcome(records: Records) -> str:
    """How the run ended, in one sentence."""
    run = records.run
    took = minutes(seconds(run.began, run.ended)) if run.ended else ""
    error = records.legs[-1].error.get("message", "")
    match run.state:
        case RunState.DONE:
            return f"{run.installation} was upgraded from {run.start} to {run.target} in {took}."
        case RunState.ABORTED:
            return (
                f"The upgrade to {run.target} was taken back in {took}; {run.installation} serves on {run.start} again."
            )
        case RunState.STOPPED:
            return f"The upgrade to {run.target} has stopped and waits for a decision: {error}."
        case _:
            return f"The upgrade from {run.start} to {run.target} is {run.state}{': ' + run.text if run.text else ''}."


def deviations(records: Records) -> list[str]:
    """Where the run was not as planned: failures, repetitions, take-overs, waits, steps that took longer, gaps."""
    found: list[str] = []
    for record in records.steps:
        step = records.step_of(record)
        took = seconds(record.began, record.ended) if record.ended else 0.0
        if record.state is StepState.FAILED:
            found.append(f"{record.step} failed: {record.error.get('message', record.text)}")
        elif record.attempts > 1:
            found.append(f"{record.step} was begun {record.attempts} times")
        if step is not None and took > _LONGER * step.seconds and took - step.seconds > _LONGER_SECONDS:
            found.append(f"{record.step} took {minutes(took)}; expected were {minutes(step.seconds)}")
    held = [event for event in records.events if event.kind == "held"]
    found += [f"{_clock(event.at)}: {event.text} (the controller before had ended)" for event in held[1:]]
    kinds = ("alert", "untold", "refused", "paused")
    found += [f"{_clock(event.at)}: {event.text}" for event in records.events if event.kind in kinds]
    unread = {name for sample in records.samples for name, calls in sample.calls.items() if calls is None}
    found += [f"the calls of {name} could not be read at times" for name in sorted(unread)]
    return found


def as_json(records: Records) -> dict[str, Any]:
    """All of it as plain data."""
    return {
        "run": asdict(records.run),
        "outcome": outcome(records),
        "deviations": deviations(records),
        "legs": [
            {"number": leg.number, "began": leg.began, "ended": leg.ended, "outcome": leg.outcome, "error": leg.error}
            | {"way_back": leg.runbook.back, "runbook": leg.runbook.as_json(), "digest": leg.runbook.digest}
            for leg in records.legs
        ],
        "steps": [asdict(record) for record in records.steps],
        "said": [asdict(said) for said in records.said],
        "vip_moves": [{"step": r.step, "at": r.ended, "text": r.text} for r in _vip_moves(records)],
        "samples": [asdict(sample) for sample in records.samples],
        "events": [asdict(event) for event in records.events],
    }


def as_html(records: Records) -> str:
    """The page."""
    run = records.run
    parts = [
        f"<h1>Zero-downtime upgrade {_e(run.start)} → {_e(run.target)}</h1>",
        f'<p class="outcome {_e(run.state)}">{_e(outcome(records))}</p>',
        _facts(records),
        _section("Calls on each site", areas(records.samples), "Live calls, counted by the sites themselves."),
        _section("Servers", timeline(_bars(records)), "Each bar is a step there; the pointer on it tells which."),
        _section(
            "Replication",
            curves(records.samples, "lag", "seconds behind"),
            "Seconds that replicas were behind; a gap: it stood still.",
        ),
        _section(
            "Delta", curves(records.samples, "delta", "call records"), "Call records that only the delta database had."
        ),
        _table(
            "Moves of the virtual IP",
            ("time", "step", "what was seen"),
            [(_clock(record.ended), record.step, record.text) for record in _vip_moves(records)],
        ),
        _table(
            "Who decided what",
            ("time", "who", "what"),
            [
                (_clock(records.run.began), records.run.who, "began the run"),
                *((_clock(one.at), one.who, f"{one.word} {one.what}".strip()) for one in records.said),
            ],
        ),
        _list("Not as planned", deviations(records), "Everything went as planned."),
        _steps(records),
    ]
    return _PAGE.format(title=f"{_e(run.installation)} {_e(run.id)}", body="\n".join(part for part in parts if part))


def _facts(records: Records) -> str:
    run = records.run
    rows = [
        ("installation", run.installation),
        ("run", run.id),
        ("begun", f"{_clock(run.began, date=True)} by {run.who}"),
        ("ended", _clock(run.ended, date=True) if run.ended else "not yet"),
        ("release bundle", run.bundle),
        ("approvals", str(run.approve)),
        ("steps done", f"{sum(r.state is StepState.DONE for r in records.steps)}"),
        ("runbook", ", ".join(leg.runbook.digest for leg in records.legs)),
    ]
    cells = "".join(f"<tr><th>{_e(key)}</th><td>{_e(value)}</td></tr>" for key, value in rows)
    return f'<table class="facts">{cells}</table>'


def _bars(records: Records) -> list[tuple[str, str, str, str, str]]:
    """Row, begin, end, kind, and what it says: bars of the timeline, dispatchers first, then site by site."""
    made = []
    for record in records.steps:
        step = records.step_of(record)
        if step is None or not record.began or step.action is Action.FINISH:
            continue
        where = step.server or (f"site {step.site}" if step.site else "dispatchers")
        kind = "failed" if record.state is StepState.FAILED else str(step.action)
        bar = (where, record.began, record.ended or record.began, kind, f"{record.step}: {record.text}")
        made.append(((step.site, step.server), bar))
    return [bar for _, bar in sorted(made)]


def _vip_moves(records: Records) -> list[StepRecord]:
    steps = [(record, records.step_of(record)) for record in records.steps]
    return [record for record, step in steps if step is not None and step.action is Action.VIP_MOVE and record.ended]


def _steps(records: Records) -> str:
    rows = []
    for leg in records.legs:
        title = (
            "The way back" if leg.runbook.back else f"Steps{f', part {leg.number}' if len(records.legs) > 1 else ''}"
        )
        rows.append(f"<h2>{_e(title)}</h2>")
        for phase in leg.runbook.phases:
            names = {step.id for step in phase.steps}
            done = [record for record in records.steps if record.leg == leg.number and record.step in names]
            if not done:
                continue
            rows.append(f"<h3>{_e(phase.name)} · {_e(phase.title)}</h3>")
            rows += [_step(record, leg.runbook.by_id[record.step]) for record in done]
    return "\n".join(rows)


def _step(record: StepRecord, step: Step) -> str:
    took = f"{seconds(record.began, record.ended):.1f} s" if record.ended else "not ended"
    head = f"<b>{_e(record.step)}</b> <i>{_e(record.state)}</i> {_clock(record.began)} · {took} · {_e(record.text)}"
    lines = [
        (
            _clock(line.get("at", "")),
            line.get("when", ""),
            line.get("gate", ""),
            "" if "open" not in line else "open" if line["open"] else "shut",
            line.get("seen", ""),
        )
        for line in record.evidence
    ]
    seen = "".join(f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in line)}</tr>" for line in lines)
    error = ""
    if record.error:
        told = [record.error.get("message", ""), *record.error.get("what", []), record.error.get("state", "")]
        error = f'<p class="error">{"<br>".join(_e(line) for line in told if line)}</p>'
    return (
        f'<details class="{_e(record.state)}"><summary>{head}</summary><p>{_e(step.what)}</p>{error}'
        f"<table>{seen}</table></details>"
    )


def _section(title: str, drawing: str, note: str) -> str:
    return f'<h2>{_e(title)}</h2><p class="note">{_e(note)}</p>{drawing}' if drawing else ""


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    top = "".join(f"<th>{_e(head)}</th>" for head in heads)
    body = "".join(f"<tr>{''.join(f'<td>{_e(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<h2>{_e(title)}</h2><table><tr>{top}</tr>{body}</table>"


def _list(title: str, items: Sequence[str], none: str) -> str:
    body = f"<ul>{''.join(f'<li>{_e(item)}</li>' for item in items)}</ul>" if items else f"<p>{_e(none)}</p>"
    return f"<h2>{_e(title)}</h2>{body}"


def seconds(began: str, ended: str) -> float:
    """Between two moments of the records."""
    return max(0.0, (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds())


def _clock(moment: str, *, date: bool = False) -> str:
    if not moment:
        return ""
    form = "%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S"
    return f"{datetime.fromisoformat(moment).astimezone():{form}}"


def _e(text: object) -> str:
    """Names and words of others, as text of a page."""
    return escape("".join(letter if letter.isprintable() or letter == "\n" else "·" for letter in str(text)))


_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width"><meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
:root {{ color-scheme: light dark; --ink: #1d2530; --paper: #fff; --box: #f3f4f6; --note: #5a6472; --bad: #c8372d }}
@media (prefers-color-scheme: dark) {{
:root {{ --ink: #dfe5ec; --paper: #14181d; --box: #222931; --note: #a3adba; --bad: #ff7b6e }} }}
@media print {{
:root {{ color-scheme: light; --ink: #000; --paper: #fff; --box: #f3f4f6; --note: #444; --bad: #a61e15 }} }}
body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem }}
body {{ color: var(--ink); background: var(--paper) }}
h1 {{ font-size: 1.6rem }} h2 {{ margin-top: 2.2rem; font-size: 1.2rem }} h3 {{ font-size: 1rem; margin-bottom: .3rem }}
.outcome {{ font-size: 1.2rem; padding: .8rem 1rem; border-left: .4rem solid #888; background: var(--box) }}
.outcome.done {{ border-color: #2a9d5c }} .outcome.aborted {{ border-color: #d9a520 }}
.outcome.stopped {{ border-color: #c8372d }}
.note {{ color: var(--note); margin: .2rem 0 }} .error {{ color: var(--bad) }}
table {{ border-collapse: collapse; font-size: .9rem }} td, th {{ text-align: left; padding: .15rem .8rem .15rem 0 }}
td, th {{ vertical-align: top }} details {{ margin: .15rem 0 }} details.failed summary {{ color: var(--bad) }}
summary {{ cursor: pointer }} svg {{ width: 100%; height: auto; font: 11px system-ui, sans-serif }}
svg text {{ fill: currentColor }}
@media print {{
body {{ margin: 0; max-width: none; font-size: 11px }} h2, h3 {{ break-after: avoid }}
svg, tr, summary, .outcome {{ break-inside: avoid; print-color-adjust: exact; -webkit-print-color-adjust: exact }}
}}
</style></head><body>
{body}
</body></html>
"""
