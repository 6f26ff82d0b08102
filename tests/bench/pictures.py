"""The page's plots, drawn by the load test's `plot.py`: SVG files that carry their colours with them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

from tests.bench.figures import Figure, number, pick
from tests.bench.stages import STAGES
from tests.load import plot
from tests.load.plot import Bar

COLOURS = (
    "#2563c9",
    "#c2590c",
    "#16794f",
    "#7c4dd8",
    "#b92c52",
    "#0b7c93",
    "#8a6d00",
    "#5d6878",
    "#c77dbb",
    "#8a95a5",
    "#444",
)
LEGEND = 22
STYLE = """<style>
svg { font-family: system-ui, "DejaVu Sans", sans-serif; background: #fff; %s }
.grid { stroke: #e3e7ec } .base { stroke: #5d6878; stroke-opacity: .5 }
text { fill: #5d6878; font-size: 12px } .axis { text-anchor: middle }
.value { fill: var(--c); font-weight: 600; text-anchor: middle; font-size: 8px } .bar { fill: var(--c) }
</style>"""


def bars_by_load(
    path: Path, found: Sequence[Figure], metric: str, subjects: Sequence[str], loads: Sequence[str]
) -> None:
    groups = []
    for load in loads:
        group = []
        for colour, subject in enumerate(subjects):
            figure = pick(found, bench="peers", subject=subject, case="tiny", load=load, metric=metric)
            if figure is not None:
                group.append(
                    Bar(subject, colour, figure.median, f"{subject}, {load}: {number(figure.median)} {metric}")
                )
        if group:
            groups.append((load, group))
    if groups:
        _write(path, plot.bars(metric, groups, name=f"{metric} by server and load"), subjects)


def stages_by_level(path: Path, profiles: Sequence[Path]) -> None:
    """A column for each level of each profile."""
    groups = []
    for profile in profiles:
        name = profile.stem.removeprefix("profile-")
        for level, one in json.loads(profile.read_text())["levels"].items():
            bars = [
                Bar(stage, colour, one["stages"][stage]["us"], f"{stage}: {one['stages'][stage]['us']:.0f} µs")
                for colour, stage in enumerate(STAGES)
                if stage in one["stages"]
            ]
            groups.append((f"{name}, {level}", f"{one['cpu_us']:.0f} µs", bars))
    if groups:
        _write(path, plot.stacked("µs CPU per request", groups, name="processor time by stage"), STAGES)


def _write(path: Path, svg: str, legend: Sequence[str]) -> None:
    """With a legend below the drawing, as a file of its own."""
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', svg)
    assert box is not None
    width, height = int(box[1]), int(box[2])
    items, left, top = [], 12.0, height + 14
    for colour, name in enumerate(legend):
        wide = 26 + 6.6 * len(name)
        if left + wide > width:
            left, top = 12.0, top + LEGEND
        items.append(f'<rect x="{left:.0f}" y="{top - 9}" width="10" height="10" rx="2" fill="{COLOURS[colour]}"/>')
        items.append(f'<text x="{left + 14:.0f}" y="{top}">{escape(name)}</text>')
        left += wide
    colours = " ".join(f"--c{number}: {colour};" for number, colour in enumerate(COLOURS))
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top + 12}"'
    svg = svg.replace(f"<svg {box[0]}", opening).replace(">", f">{STYLE % colours}", 1)
    path.write_text(svg.replace("</svg>", f"{''.join(items)}</svg>") + "\n", encoding="utf-8")
