"""How a run stands, as lines of text for a terminal of any width: what has happened, what comes next, and whether one
can still go back. Colours say nothing that words do not.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from datetime import UTC, datetime
from typing import Any, Final

from zdu.overview import Overview, SiteRow, minutes
from zdu.records import RunState, Told

#: Servers of a site that are named one by one; of more they are counted.
_NAMED: Final = 8

#: Columns before the servers of a site.
_SERVERS: Final = 49

#: Columns before what an error says.
_DETAILS: Final = 11

#: Seconds after which a count of calls is told to be an old one.
_OLD: Final = 15

#: Stands for a space at which a line is not broken.
_TIGHT: Final = "\u00a0"

_BAR: Final = 40


def text(view: Overview, width: int = 0) -> str:
    """The view as plain lines, no longer than `width`; 0: as long as they are."""
    return "\n".join(rows(view, width))


def rows(view: Overview, width: int = 0) -> list[str]:
    """The lines of the view."""
    return _head(view, width) + [line for row, indent in _rows(view) for line in _folded(row, indent, width)]


def picture(view: Overview, recent: list[Told], said: str, size: tuple[int, int]) -> list[tuple[str, str]]:
    """The live view for a screen of (columns, lines): lines with their styles. Events get what room is left."""
    width, height = size
    stands = rows(view, width)
    head = len(_head(view, width))
    foot = said or "[p]ause or go on   [a]bort   [q]uit the view"
    room = max(0, height - len(stands) - 4)
    made = [(line, "head") for line in stands[:head]]
    made.append((_bar(view)[:width], ""))
    made += [(line, "") for line in stands[head:]]
    made.append(("", ""))
    made += [(_cut(line_of(event), width), "dim") for event in recent[-room:] if room]
    made.append((_cut(foot, width), "bold"))
    return made


def line_of(event: Told) -> str:
    """An event as a line of a log."""
    marks = {"finished": "✓", "failed": "✗", "started": "▸", "alert": "!", "untold": "!", "refused": "!"}
    seconds = f" ({event.data['seconds']:.1f} s)" if "seconds" in event.data else ""
    return f"{clock(event.at)} {marks.get(event.kind, '·')} {event.step or event.kind}  {event.text}{seconds}".rstrip()


def clock(moment: str) -> str:
    """The time of day here."""
    return f"{datetime.fromisoformat(moment).astimezone():%H:%M:%S}" if moment else ""


def _head(view: Overview, width: int) -> list[str]:
    """What it is and how it stands, first; on one line where that fits."""
    run = view.run
    what, where, times = f"ZDU {run.start} → {run.target}", _where(view), f"begun {clock(run.began)}"
    times += f" · {minutes(view.seconds_run)}"
    if not run.ended:
        times += f" · about {minutes(view.seconds_left)} left"
    whole = f"{what}   run {run.id}   {where}   {times}"
    if not width or len(whole) <= width:
        return [whole]
    return [*_folded(f"{what}   {where}", 4, width), *_folded(f"    run {run.id}   {times}", 4, width)]


def _rows(view: Overview) -> list[tuple[str, int]]:
    """The lines below that, and where what does not fit on one of them goes on."""
    run = view.run
    made = [(f"{'':<14}{'calls':>8}  {'state':<24}servers", 0)]
    made += [(_site_line(site), _SERVERS) for site in view.sites]
    names = "   ".join(f"{name} {word}".strip().replace(" ", _TIGHT) for name, word in view.dispatchers.items())
    made.append((f" {'dispatchers':<13}{'':>8}  {'→ ' + ' and '.join(view.sends_to):<24}{names}", _SERVERS))
    made += [(line, 4) for line in _replicas(view)]
    made += [(line, _DETAILS if line.startswith("     ") else 4) for line in _doing(view)]
    if not run.ended:
        made += [(line, 4) for line in _way_back(view)]
    made += [(line, 4) for line in _to_do(view)]
    return made


def _replicas(view: Overview) -> list[str]:
    lines = []
    for site in view.sites:
        if site.lag is not None or site.delta is not None:
            lag = "not replicating" if site.lag is None else f"{site.lag:g} s behind"
            delta = f" · delta {site.delta:,} call records to synchronise" if site.delta else ""
            lines.append(f" replica of {site.name}: {lag}{delta}")
    if view.sampled and not view.run.ended:
        ago = (datetime.now(UTC) - datetime.fromisoformat(view.sampled)).total_seconds()
        if ago > _OLD:
            lines.append(f" calls, lag and delta are those of {clock(view.sampled)}, {minutes(ago)} ago")
    return lines


def _doing(view: Overview) -> list[str]:
    lines = []
    for record in view.under_way:
        again = f", attempt {record.attempts}" if record.attempts > 1 else ""
        lines.append(f" under way: {record.step} since {clock(record.began)}{again}")
    if view.leg.error and view.run.state is RunState.STOPPED:
        lines.append(f" stopped: {view.leg.error['message']}")
        lines += [f"     {label:<6}{line}" for label, line in _details(view.leg.error)]
    elif view.run.text:
        lines.append(f" {view.run.state}: {view.run.text}")
    return lines


def _way_back(view: Overview) -> list[str]:
    lines = []
    if view.way_back:
        first = "; ".join(view.way_back[:2])
        more = f"; and {len(view.way_back) - 2} more" if len(view.way_back) > 2 else ""
        lines.append(f" way back now: {first}{more}; about {minutes(view.way_back_seconds)}")
    if view.no_return:
        lines.append(f" point of no return: {view.no_return}")
    if view.next and view.run.state is not RunState.STOPPED:
        lines.append(f" next: {view.next}")
    return lines


def _to_do(view: Overview) -> list[str]:
    """What somebody has to do, if anything waits for that."""
    if view.stale:
        who = view.holder.who if view.holder and view.holder.who else "the controller"
        return [f" {who} is gone; nothing goes on by itself → updater zdu resume"]
    if view.run.waits_for:
        return [f" → updater zdu approve {view.run.waits_for}"]
    if view.run.state is RunState.PAUSED:
        return [" → updater zdu resume"]
    if view.run.state is RunState.STOPPED and not view.leg.error.get("next"):
        return [" → updater zdu resume    tries again, once it is mended", " → updater zdu abort    goes the way back"]
    return []


def _site_line(site: SiteRow) -> str:
    calls = "–" if site.calls is None else f"{site.calls:,}"
    names = [f"{name} {word}".strip() for name, word in site.nodes.items()]
    if len(site.nodes) > _NAMED:
        counted = Counter(word or "as before" for word in site.nodes.values())
        names = [f"{number} {word}" for word, number in counted.items()]
    nodes = "  ".join(name.replace(" ", _TIGHT) for name in names)
    label = f"site {site.name}{'  main' if site.kind == 'main' else ''}"
    return f" {label:<13}{calls:>8}  {site.state:<24}{nodes}".rstrip()


def _where(view: Overview) -> str:
    if view.run.ended or not view.title:
        return str(view.run.state)
    way = "way back, " if view.leg.runbook.back else ""
    state = "NOBODY WORKS ON IT" if view.stale else str(view.run.state).upper()
    plain = view.run.state in (RunState.RUNNING, RunState.ABORTING) and not view.stale
    return f"{'' if plain else f'{state} in '}{way}phase {view.phase_number} of {view.phases}: {view.title}"


def _details(error: dict[str, Any]) -> list[tuple[str, str]]:
    parts = [("what", line) for line in error.get("what", ())]
    parts += [("state", error["state"])] if error.get("state") else []
    return parts + [("next", line) for line in error.get("next", ())]


def _bar(view: Overview) -> str:
    full = round(_BAR * view.done / view.total) if view.total else _BAR
    return f" {'█' * full}{'░' * (_BAR - full)} {view.done} of {view.total} steps"


def _folded(line: str, indent: int, width: int) -> list[str]:
    """A line as several ones no longer than `width`."""
    pieces = [line]
    if width and len(line) > width:
        beyond = " " * min(indent, width // 2)
        lead = len(line) - len(line.lstrip())
        pieces = textwrap.wrap(
            line.strip(), width, initial_indent=" " * lead, subsequent_indent=beyond, break_on_hyphens=False
        )
        pieces = _in_columns(line, pieces, width, indent)
    return [piece.replace(_TIGHT, " ").rstrip() for piece in pieces]


def _in_columns(line: str, pieces: list[str], width: int, indent: int) -> list[str]:
    """A row of the table keeps its columns, as long as what it says begins on the screen."""
    if indent != _SERVERS or width < _SERVERS + 16:
        return pieces
    rest = textwrap.wrap(line[indent:], width - indent, break_on_hyphens=False)
    return [line[:indent] + (rest[0] if rest else ""), *(" " * indent + piece for piece in rest[1:])]


def _cut(line: str, width: int) -> str:
    return line if len(line) <= width else f"{line[: width - 1]}…"
