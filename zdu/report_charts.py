"""The drawings of a report, as inline SVG: calls of sites as areas, curves, a timeline. Text in, text out."""

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
    "stage-node": "#9db8d9",
    "check-node": "#c9d3df",
    "activate-node": "#e08a2e",
    "confirm-node": "#eab676",
    "rollback-node": "#b6503b",
    "drain-wait": "#8d5fb0",
    "vip-move": "#4c9f70",
    "failed": "#c8372d",
}
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
    return _svg(shapes, height, scale, top, names)


def curves(samples: Sequence[Sample], what: str, height: int = 140) -> str:
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
    return _svg(shapes, height, scale, top, names)


def timeline(bars: Sequence[tuple[str, str, str, str, str]]) -> str:
    """Bars: row, begin, end (moments), kind, what a pointer is told."""
    if not bars:
        return ""
    rows = list(dict.fromkeys(bar[0] for bar in bars))
    scale = _Scale([moment for bar in bars for moment in bar[1:3]])
    height = 20 * len(rows)
    shapes = [
        f'<text x="{_LEFT - 8}" y="{20 * number + 14}" text-anchor="end">{escape(row)}</text>'
        for number, row in enumerate(rows)
    ]
    for row, began, ended, kind, text in bars:
        left, right = scale.x(began), scale.x(ended)
        colour = _KINDS.get(kind, "#7d8896")
        shapes.append(
            f'<rect x="{left:.1f}" y="{20 * rows.index(row) + 3}" width="{max(2.0, right - left):.1f}" height="14" '
            f'fill="{colour}"><title>{escape(text)}</title></rect>'
        )
    return _frame(shapes, height, scale)


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


def _svg(shapes: list[str], height: int, scale: _Scale, top: float, names: Sequence[str]) -> str:
    for part in (0.0, 0.5, 1.0):
        y = _y(part * top, top, height)
        shapes.append(f'<line x1="{_LEFT}" x2="{_WIDTH - 10}" y1="{y:.1f}" y2="{y:.1f}" stroke="#0002"/>')
        shapes.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{part * top:g}</text>')
    for number, name in enumerate(names):
        x = _LEFT + 10 + 90 * number
        colour = _COLOURS[number % len(_COLOURS)]
        shapes.append(f'<rect x="{x}" y="2" width="10" height="10" fill="{colour}"/>')
        shapes.append(f'<text x="{x + 14}" y="11">{escape(name)}</text>')
    return _frame(shapes, height, scale)


def _frame(shapes: list[str], height: int, scale: _Scale) -> str:
    for place, name in scale.marks():
        shapes.append(f'<text x="{place:.1f}" y="{height + 14}" text-anchor="middle">{name}</text>')
    body = "".join(shapes)
    return f'<svg viewBox="0 0 {_WIDTH} {height + 20}" role="img">{body}</svg>'


def _y(value: float, top: float, height: int) -> float:
    return height - value / top * (height - 20)


def _thinned(samples: list[Sample]) -> list[Sample]:
    step = max(1, -(-len(samples) // _POINTS))
    return samples[::step] + (samples[-1:] if step > 1 else [])
