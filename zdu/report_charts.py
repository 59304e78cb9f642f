"""The drawings of a report, as inline SVG: calls of sites as areas, curves, a timeline. Text in, text out. Colours of
text and lines are those of the page, so that they can be read on paper, and on a dark screen.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from typing import Final

from zdu.records import Sample

_WIDTH: Final = 960
_LEFT: Final = 110
_COLOURS: Final = ("#3b6fb6", "#e08a2e", "#4c9f70", "#8d5fb0", "#b6503b", "#5b8c8c")
_KINDS: Final = {
    "check-node": ("#b4c0ce", "checked"),
    "stage-node": ("#7f9fc9", "staged"),
    "activate-node": ("#e08a2e", "boots the release"),
    "confirm-node": ("#eab676", "confirmed"),
    "rollback-node": ("#b6503b", "boots the old slot"),
    "drain-wait": ("#8d5fb0", "calls end"),
    "vip-move": ("#4c9f70", "virtual IP moves"),
    "failed": ("#c8372d", "failed"),
}
_OTHER: Final = ("#7d8896", "anything else")
#: Points of a curve at most: more cannot be seen.
_POINTS: Final = 600


def areas(samples: Sequence[Sample], height: int = 220) -> str:
    """Live calls of each site over time, the areas on top of each other: what one loses, the other one gains."""
    taken = _thinned([sample for sample in samples if any(n is not None for n in sample.calls.values())])
    names = sorted({name for sample in taken for name in sample.calls})
    if len(taken) < 2:
        return ""
    scale = _Scale([sample.at for sample in taken])
    top = max(1, *(sum(n or 0 for n in sample.calls.values()) for sample in taken))
    below = [0.0] * len(taken)
    shapes = []
    for number, name in enumerate(names):
        above = [low + (sample.calls.get(name) or 0) for low, sample in zip(below, taken, strict=True)]
        there = [f"{scale.x(s.at):.1f},{_y(v, top, height):.1f}" for s, v in zip(taken, above, strict=True)]
        back = [f"{scale.x(s.at):.1f},{_y(v, top, height):.1f}" for s, v in zip(taken, below, strict=True)][::-1]
        colour = _COLOURS[number % len(_COLOURS)]
        shapes.append(f'<polygon points="{" ".join(there + back)}" fill="{colour}" fill-opacity="0.75"/>')
        below = above
    return _svg(shapes, height, scale, top, names, "calls")


def curves(samples: Sequence[Sample], what: str, unit: str, height: int = 140) -> str:
    """The lag or the delta of each site over time; where it could not be read, the curve is broken."""
    taken = _thinned([sample for sample in samples if getattr(sample, what)])
    names = sorted({name for sample in taken for name in getattr(sample, what)})
    if len(taken) < 2:
        return ""
    scale = _Scale([samples[0].at, samples[-1].at])
    top = max(1.0, *(value or 0 for sample in taken for value in getattr(sample, what).values()))
    shapes = []
    for number, name in enumerate(names):
        pieces: list[list[str]] = [[]]
        for sample in taken:
            value = getattr(sample, what).get(name)
            if value is None:
                pieces.append([])
            else:
                pieces[-1].append(f"{scale.x(sample.at):.1f},{_y(value, top, height):.1f}")
        colour = _COLOURS[number % len(_COLOURS)]
        shapes += [
            f'<polyline points="{" ".join(piece)}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
            for piece in pieces
            if piece
        ]
    return _svg(shapes, height, scale, top, names, unit)


def timeline(bars: Sequence[tuple[str, str, str, str, str]]) -> str:
    """Bars: row, begin, end (moments), kind, what a pointer is told."""
    if not bars:
        return ""
    rows = list(dict.fromkeys(bar[0] for bar in bars))
    scale = _Scale([moment for bar in bars for moment in bar[1:3]])
    height = 20 * len(rows)
    kinds = dict.fromkeys(_KINDS.get(bar[3], _OTHER) for bar in bars)
    shapes = [
        f'<text x="{_LEFT - 8}" y="{20 * number + 14}" text-anchor="end">{escape(row)}</text>'
        for number, row in enumerate(rows)
    ]
    for row, began, ended, kind, text in bars:
        left, right = scale.x(began), scale.x(ended)
        colour, _ = _KINDS.get(kind, _OTHER)
        shapes.append(
            f'<rect x="{left:.1f}" y="{20 * rows.index(row) + 3}" width="{max(2.0, right - left):.1f}" height="14" '
            f'fill="{colour}"><title>{escape(text)}</title></rect>'
        )
    known = [each for each in (*_KINDS.values(), _OTHER) if each in kinds]
    for number, (colour, name) in enumerate(known):
        x, y = _LEFT + 165 * (number % 5), height + 28 + 16 * (number // 5)
        shapes.append(f'<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 14}" y="{y + 9}">{escape(name)}</text>')
    return _frame(shapes, height, scale, "Steps on each server and site over time", below=24 + 16 * (len(known) // 6))


class _Scale:
    """Moments → places on the page."""

    def __init__(self, moments: Sequence[str]) -> None:
        times = [datetime.fromisoformat(moment).timestamp() for moment in moments]
        self.start, self.end = min(times), max(*times, min(times) + 1)

    def x(self, moment: str) -> float:
        """Where a moment is."""
        part = (datetime.fromisoformat(moment).timestamp() - self.start) / (self.end - self.start)
        return _LEFT + part * (_WIDTH - _LEFT - 10)

    def marks(self) -> list[tuple[float, str]]:
        """Places and names of some moments."""
        found = []
        for number in range(6):
            at = self.start + (self.end - self.start) * number / 5
            place = _LEFT + (_WIDTH - _LEFT - 10) * number / 5
            found.append((place, f"{datetime.fromtimestamp(at).astimezone():%H:%M:%S}"))
        return found


def _svg(shapes: list[str], height: int, scale: _Scale, top: float, names: Sequence[str], unit: str) -> str:
    for part in (0.0, 0.5, 1.0):
        y = _y(part * top, top, height)
        shapes.append(
            f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="currentColor" '
            'stroke-opacity="0.25"/>'
        )
        told = f"{part * top:,.{0 if top >= 10 else 1}f}"
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{told}</text>')
    middle = (height + 20) / 2
    turned = f'text-anchor="middle" transform="rotate(-90 30 {middle:.1f})"'
    shapes.append(f'<text x="30" y="{middle:.1f}" {turned}>{escape(unit)}</text>')
    for number, name in enumerate(names):
        x = _LEFT + 10 + 90 * number
        colour = _COLOURS[number % len(_COLOURS)]
        shapes.append(f'<rect x="{x}" y="2" width="10" height="10" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 14}" y="11">{escape(name)}</text>')
    return _frame(shapes, height, scale, f"{unit} over time: {', '.join(names)}")


def _frame(shapes: list[str], height: int, scale: _Scale, title: str, below: int = 0) -> str:
    marks = scale.marks()
    for number, (place, name) in enumerate(marks):
        anchor = "start" if not number else "end" if number == len(marks) - 1 else "middle"
        shapes.append(
            f'<line x1="{place:.1f}" x2="{place:.1f}" y1="{height}" y2="{height + 4}" stroke="currentColor"/>'
            f'<text x="{place:.1f}" y="{height + 16}" text-anchor="{anchor}">{name}</text>'
        )
    body = "".join(shapes)
    return f'<svg viewBox="0 0 {_WIDTH} {height + 20 + below}" role="img"><title>{escape(title)}</title>{body}</svg>'


def _y(value: float, top: float, height: int) -> float:
    return height - value / top * (height - 20)


def _thinned(samples: list[Sample]) -> list[Sample]:
    step = max(1, -(-len(samples) // _POINTS))
    return samples[::step] + (samples[-1:] if step > 1 else [])
