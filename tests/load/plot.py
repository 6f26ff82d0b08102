"""Plots as SVG text, purely: axes, lines, bars, distributions. What a run means is `page.py`'s business.

Colours are CSS variables of the page (`--c0` … by series, `--ink`, `--grid`), so that one drawing serves light and
dark.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 64, 14, 44
LABEL_GAP = 13
NEUTRAL = 9
"""Colour of what is no target: a wish, a limit."""


@dataclass(frozen=True, slots=True)
class Axis:
    """Maps values to pixels; `start` and `end` are the pixels of `low` and `high`."""

    title: str
    low: float
    high: float
    start: float
    end: float
    log: bool = False
    ticks: tuple[float, ...] = ()

    def at(self, value: float) -> float:
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


@dataclass(frozen=True, slots=True)
class Line:
    """Points joined by a line; `note` of a point is shown when the mouse rests on it."""

    label: str
    colour: int
    points: Sequence[tuple[float, float]]
    notes: Sequence[str] = ()
    opacity: float = 1.0
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    colour: int
    value: float
    note: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A distribution: shares of all requests by bin, (lower, upper, share); `marks` are values to point out, with
    names."""

    label: str
    colour: int
    bins: Sequence[tuple[float, float, float]]
    marks: Sequence[tuple[float, str]] = ()


def x_axis(title: str, values: Sequence[float], *, log_from: float) -> Axis:
    """Over the loads: each is a tick while there is room; logarithmic when they span `log_from` times or more."""
    low, high = min(values), max(values)
    if low == high:
        low, high = low * 0.5, high * 1.5
    shown = sorted(set(values))
    while len(shown) > 9:
        shown = shown[::2]
    return Axis(title, low, high, LEFT, WIDTH - RIGHT, log=low > 0 and high / low >= log_from, ticks=tuple(shown))


def y_axis(title: str, values: Sequence[float], *, height: int = HEIGHT, log: bool = False) -> Axis:
    """From zero to a round number above all values; with `log`, between the round numbers around them."""
    top = max([value for value in values if value > 0], default=1.0)
    if log:
        least = min([value for value in values if value > 0], default=0.1)
        ticks = log_ticks(least, top)
        return Axis(title, ticks[0], ticks[-1], height - BOTTOM, TOP, log=True, ticks=ticks)
    ticks = linear_ticks(top)
    return Axis(title, 0.0, ticks[-1], height - BOTTOM, TOP, ticks=ticks)


def linear_ticks(top: float) -> tuple[float, ...]:
    """0 to at least `top` in four to ten steps of 1, 2 or 5 times a power of ten."""
    width = 10 ** math.floor(math.log10(top / 4))
    step = next(width * factor for factor in (1, 2, 5, 10) if top / (width * factor) <= 6)
    return tuple(step * index for index in range(math.ceil(top / step - 1e-9) + 1))


def log_ticks(low: float, high: float) -> tuple[float, ...]:
    """1, 2 and 5 times powers of ten, from at most `low` to at least `high`; powers of ten alone over many decades."""
    first, last = math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    found = [factor * 10.0**power for power in range(first, last + 1) for factor in factors]
    below = [tick for tick in found if tick <= low * (1 + 1e-9)]
    above = [tick for tick in found if tick >= high * (1 - 1e-9) and tick > below[-1]]
    return tuple(tick for tick in found if below[-1] <= tick <= above[0])


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def lines(x: Axis, y: Axis, series: Sequence[Line], *, name: str, end_labels: bool = True) -> str:
    drawn, ends = [], []
    for one in series:
        dots = [(x.at(a), y.at(b)) for a, b in one.points]
        if not dots:
            continue
        style = f'style="--c:var(--c{one.colour})" opacity="{one.opacity:g}"'
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in dots)
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        drawn.append(f'<g {style}><polyline class="line" points="{path}"{dash}/>')
        for (a, b), note in zip(dots, one.notes, strict=False):
            drawn.append(
                f'<circle class="dot" cx="{a:.1f}" cy="{b:.1f}" r="3.5"><title>{escape(note)}</title></circle>'
            )
        drawn.append("</g>")
        ends.append((dots[-1], one))
    if end_labels:
        drawn += _end_labels(ends, y.start)
    return _frame(x, y, "".join(drawn), name)


def _end_labels(ends: list[tuple[tuple[float, float], Line]], bottom: float) -> list[str]:
    """Names beside the last points, moved apart where they would overlap and up where they would leave the frame."""
    ends = sorted(ends, key=lambda end: end[0][1])
    heights = [y for (_, y), _ in ends]
    for index in range(1, len(ends)):
        heights[index] = max(heights[index], heights[index - 1] + LABEL_GAP)
    limit = bottom
    for index in reversed(range(len(ends))):
        heights[index] = min(heights[index], limit)
        limit = heights[index] - LABEL_GAP
    found = []
    for ((x, _), one), height in zip(ends, heights, strict=True):
        style = f'style="--c:var(--c{one.colour})"'
        found.append(f'<text class="end" {style} x="{x + 8:.1f}" y="{height + 4:.1f}">{escape(one.label)}</text>')
    return found


def bars(title: str, groups: Sequence[tuple[str, Sequence[Bar]]], *, name: str) -> str:
    """Groups of upright bars with their values on top."""
    y = y_axis(title, [bar.value for _, group in groups for bar in group])
    span = (WIDTH - LEFT - 12) / max(1, len(groups))
    drawn = []
    for index, (label, group) in enumerate(groups):
        wide = min(64.0, span * 0.8 / max(1, len(group)))
        middle = LEFT + span * (index + 0.5)
        first = middle - wide * len(group) / 2
        for place, bar in enumerate(group):
            left, top = first + wide * place, y.at(bar.value)
            box = f'x="{left + 1.5:.1f}" y="{top:.1f}" width="{wide - 3:.1f}" height="{max(0.0, y.start - top):.1f}"'
            drawn.append(
                f'<g style="--c:var(--c{bar.colour})"><rect class="bar" {box} rx="2">'
                f"<title>{escape(bar.note)}</title></rect>"
                f'<text class="value" x="{left + wide / 2:.1f}" y="{top - 4:.1f}">{number(bar.value)}</text></g>'
            )
        drawn.append(
            f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{y.start + 18:.1f}">{escape(label)}</text>'
        )
    return _frame(None, y, "".join(drawn), name, right=12, height=HEIGHT - 20)


def stacked(title: str, columns: Sequence[tuple[str, str, Sequence[Bar]]], *, name: str) -> str:
    """Upright columns of bars on top of each other: what is below a column, what is above it, and its bars from the
    bottom."""
    y = y_axis(title, [sum(bar.value for bar in column) for _, _, column in columns])
    span = (WIDTH - LEFT - 12) / max(1, len(columns))
    wide = min(64.0, span * 0.8)
    drawn = []
    for index, (below, above, column) in enumerate(columns):
        middle, height = LEFT + span * (index + 0.5), 0.0
        for bar in column:
            bottom, top = y.at(height), y.at(height + bar.value)
            box = f'x="{middle - wide / 2:.1f}" y="{top:.1f}" width="{wide:.1f}" height="{bottom - top:.1f}"'
            drawn.append(f'<rect class="bar" style="--c:var(--c{bar.colour})" {box}>')
            drawn.append(f"<title>{escape(bar.note)}</title></rect>")
            height += bar.value
        for at, text in ((y.start + 18, below), (y.at(height) - 4, above)):
            label = f'<text class="tick" text-anchor="middle" x="{middle:.1f}" y="{at:.1f}">{escape(text)}</text>'
            drawn.append(label)
    return _frame(None, y, "".join(drawn), name, right=12)


def distribution(x: Axis, curves: Sequence[Curve], *, name: str, height: int) -> str:
    """Filled steps over a shared axis, with marks on the base line; the height is relative to the highest bin."""
    peak = max([share for curve in curves for _, _, share in curve.bins], default=1.0)
    base = height - BOTTOM + 2.0
    drawn = []
    for curve in curves:
        if not curve.bins:
            continue
        points = [(x.at(curve.bins[0][0]), base)]
        for low, high, share in curve.bins:
            level = base - (base - TOP) * share / peak
            points += [(x.at(low), level), (x.at(high), level)]
        points.append((x.at(curve.bins[-1][1]), base))
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        drawn.append(f'<g style="--c:var(--c{curve.colour})"><polygon class="area" points="{path}"/>')
        for value, mark in curve.marks:
            at = x.at(value)
            drawn.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{base:.1f}" y2="{TOP}">')
            drawn.append(f"<title>{escape(f'{curve.label}: {mark} {number(value)} ms')}</title></line>")
        drawn.append("</g>")
    return _svg(_x_ticks(x, base) + "".join(drawn), name, height)


def _frame(x: Axis | None, y: Axis, content: str, name: str, *, right: int = RIGHT, height: int = HEIGHT) -> str:
    grid = []
    for tick in y.ticks:
        at = y.at(tick)
        grid.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - right}" y1="{at:.1f}" y2="{at:.1f}"/>')
        grid.append(f'<text class="tick" text-anchor="end" x="{LEFT - 8}" y="{at + 4:.1f}">{number(tick)}</text>')
    middle = (y.start + y.end) / 2
    grid.append(f'<text class="axis" transform="translate(13 {middle:.1f}) rotate(-90)">{escape(y.title)}</text>')
    return _svg("".join(grid) + (_x_ticks(x, y.start) if x is not None else "") + content, name, height)


def _x_ticks(x: Axis, base: float) -> str:
    found = [f'<line class="base" x1="{x.start}" x2="{x.end}" y1="{base}" y2="{base}"/>']
    for tick in x.ticks:
        text = f'<text class="tick" text-anchor="middle" x="{x.at(tick):.1f}" y="{base + 18:.1f}">{number(tick)}</text>'
        found.append(text)
    middle = (x.start + x.end) / 2
    found.append(f'<text class="axis" x="{middle:.1f}" y="{base + 36:.1f}">{escape(x.title)}</text>')
    return "".join(found)


def _svg(content: str, name: str, height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(name, quote=True)}">{content}</svg>'
