"""The page holds everything, needs nothing from elsewhere, and survives what a run may hold."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET

import pytest

from tests.load import page, plot, stats
from tests.load.result import CONCURRENCY, REQUEST_RATE, STAGES, ClientCpu, Level, Run, Stages, Target


def level(load: float, mode: str, times: list[float], errors: dict[str, int] | None = None) -> Level:
    failed = sum((errors or {}).values())
    whole = None if mode == REQUEST_RATE else int(load)
    lag = stats.spread([0.5]) if mode == REQUEST_RATE else None
    return Level(
        load, whole, load if mode == REQUEST_RATE else None, 2, len(times) + failed, len(times), errors or {}, 2.0,
        len(times) / 2, float(len(times)), stats.spread(times), stats.histogram(times), lag, ClientCpu(0.4, 0.2), None,
        Stages(0.5, 0.25, 1.5, 0.125, 0.0, 2.0),
    )  # fmt: skip


def run(targets: int, loads: list[float], mode: str = CONCURRENCY, times: list[float] | None = None) -> Run:
    spread = [1.0, 2.0, 3.5, 40.0] if times is None else times
    levels = tuple(level(load, mode, [time * (1 + load / 10) for time in spread]) for load in loads)
    found = tuple(
        Target(f"target {n}", f"host:{n}", f"model{n}", "", "onnx", "server 1", {"x": "FP32 [1, 3]"}, levels)
        for n in range(targets)
    )
    return Run("0.1", "2026-01-01T00:00:00", ("-m", "a b"), mode, False, {"cpu": "C", "cores": "2"}, found)


@pytest.mark.parametrize("mode", [CONCURRENCY, REQUEST_RATE])
@pytest.mark.parametrize("loads", [[4], [1, 2, 4], [float(n) for n in range(1, 40)]])
@pytest.mark.parametrize("targets", [1, 2, 8])
def test_every_shape_of_run_is_drawn(targets: int, loads: list[float], mode: str) -> None:
    html = page.render(run(targets, loads, mode))
    drawings = re.findall(r"<svg.*?</svg>", html, re.DOTALL)
    assert len(drawings) >= targets + (3 if len(loads) == 1 else 3 + min(len(loads), 8) // 2)
    for drawing in drawings:
        for element in ET.fromstring(drawing).iter():
            for name in ("x", "y", "x1", "x2", "y1", "y2", "cx", "cy", "width", "height"):
                value = element.get(name)
                assert value is None or -1 <= float(value) <= 2 * plot.WIDTH
    assert html.count("<tr") == 1 + targets * len(loads)
    for number in range(targets):
        assert f"target {number}" in html
    assert "-m &#x27;a b&#x27;" in html
    assert "nan" not in html.lower()


def test_the_columns_of_where_the_time_went_are_whole() -> None:
    html = page.render(run(1, [1, 2]))
    drawing = next(d for d in re.findall(r"<svg.*?</svg>", html, re.DOTALL) if "where the time went" in d)
    bars = [element for element in ET.fromstring(drawing).iter() if element.get("class") == "bar"]
    columns = {place: [bar for bar in bars if bar.get("x") == place] for place in {bar.get("x") for bar in bars}}
    assert len(columns) == 2
    for column in columns.values():
        assert len(column) == len(STAGES)
        lows = [float(bar.get("y", "")) + float(bar.get("height", "")) for bar in column]
        for above, low in zip(column, lows[1:], strict=False):
            assert float(above.get("y", "")) == pytest.approx(low, abs=0.11)
    assert "1.50 ms" in drawing


def test_without_statistics_there_is_no_figure_of_them_but_a_note() -> None:
    told = level(1, CONCURRENCY, [1.0])
    untold = dataclasses.replace(told, stages=None, stages_note="the server tells no statistics: no such method")
    html = page.render(Run("0", "now", (), CONCURRENCY, False, {}, (Target("t", "u", "m", "", "", "", {}, (untold,)),)))
    assert "Where the time went" not in html
    assert "where the time went is unknown: the server tells no statistics: no such method" in html


def test_the_page_loads_nothing_and_runs_nothing() -> None:
    html = page.render(run(2, [1, 2]))
    assert "<script" not in html
    assert "<link" not in html
    assert "http" not in html
    assert "$" not in html
    assert "prefers-color-scheme: dark" in html


def test_names_from_outside_cannot_become_markup() -> None:
    evil = '<script>alert("1")</script>'
    failing = level(1, CONCURRENCY, [1.0], {evil: 3})
    target = Target(evil, evil, evil, evil, evil, evil, {evil: evil}, (failing,))
    html = page.render(Run(evil, evil, (evil,), CONCURRENCY, True, {evil: evil}, (target,)))
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    for drawing in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        ET.fromstring(drawing)


def test_a_run_without_an_answer_has_a_page_too() -> None:
    failed = level(1, CONCURRENCY, [], {"UNAVAILABLE: gone": 7})
    target = Target("t", "u", "m", "", "", "", {}, (failed,))
    html = page.render(Run("0", "now", (), CONCURRENCY, False, {}, (target,)))
    assert "every request failed" in html
    assert "UNAVAILABLE: gone" in html
    page.render(Run("0", "now", (), CONCURRENCY, True, {}, (Target("t", "u", "m", "", "", "", {}, ()),)))


@pytest.mark.parametrize("top", [0.003, 1, 7, 99.9, 100, 12345])
def test_ticks_are_round_few_and_reach_the_top(top: float) -> None:
    ticks = plot.linear_ticks(top)
    assert ticks[0] == 0
    assert ticks[-2] < top <= ticks[-1] * (1 + 1e-9)
    assert 3 <= len(ticks) <= 8
    logarithmic = plot.log_ticks(top / 30, top)
    assert logarithmic[0] <= top / 30 * (1 + 1e-9)
    assert logarithmic[-1] >= top * (1 - 1e-9)


def test_labels_at_the_ends_of_lines_do_not_overlap() -> None:
    x, y = plot.x_axis("x", [1, 2], log_from=8), plot.y_axis("y", [1.0])
    series = [plot.Line(f"p{n}", 0, [(1, 0.0), (2, 0.001 * n)]) for n in range(5)]
    drawing = ET.fromstring(plot.lines(x, y, series, name="n"))
    heights = sorted(float(text.get("y", "")) for text in drawing.iter("text") if text.get("class") == "end")
    assert len(heights) == 5
    assert min(b - a for a, b in itertools.pairwise(heights)) >= plot.LABEL_GAP - 0.11
    assert heights[-1] <= y.start + 5
