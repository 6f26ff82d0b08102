"""The figures of the page: throughput, latency and distributions of a run, drawn by `plot.py`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from html import escape

from tests.load import plot, show
from tests.load.plot import Bar, Curve, Line
from tests.load.result import REQUEST_RATE, STAGES, Level, Run, Stages, Target
from tests.load.stats import BINS_PER_DECADE

COLOURS = 6
PERCENTILES = (
    ("p50", "p50", 1.0),
    ("p90", "p90", 0.55),
    ("p95", "p95", 0.7),
    ("p99", "p99", 0.85),
    ("p99_9", "p99.9", 0.4),
)
BARS = (("p50", "p50"), ("p90", "p90"), ("p95", "p95"), ("p99", "p99"), ("p99_9", "p99.9"), ("max", "max"))
MAX_DISTRIBUTIONS = 8
DISTRIBUTION_HEIGHT = 180
MAX_COLUMNS = 10
STAGE_COLOURS = {"queue": 1, "collate": 3, "compute": 0, "split": 5, "other": 4, "wire": plot.NEUTRAL}


def colour(index: int) -> int:
    """Number of the CSS variable for the target of that number."""
    return index % COLOURS


def sections(run: Run) -> str:
    """HTML of all figures; nothing for a run that measured nothing."""
    if not run.levels:
        return ""
    if len(_loads(run)) == 1:
        return _one_load(run) + _stages(run) + _distributions(run)
    return _throughput(run) + _latency(run) + _stages(run) + _distributions(run)


def _legend(run: Run) -> str:
    if len(run.targets) < 2:
        return ""
    return _named_colours((target.label, colour(index)) for index, target in enumerate(run.targets))


def _named_colours(names: Iterable[tuple[str, int]]) -> str:
    spans = "".join(f'<span style="--c:var(--c{number})">{escape(name)}</span>' for name, number in names)
    return f'<div class="legend">{spans}</div>'


def _section(title: str, text: str, *charts: str, above: str = "") -> str:
    return f'<h2>{escape(title)}</h2><p>{escape(text)}</p>{above}<div class="grid2">{"".join(charts)}</div>'


def _chart(title: str, drawing: str) -> str:
    return f'<div class="card">{f"<h3>{escape(title)}</h3>" if title else ""}{drawing}</div>'


def _loads(run: Run) -> list[float]:
    return sorted({level.load for level in run.levels})


def _load_axis(run: Run) -> plot.Axis:
    # Requests in flight are mostly doubled from level to level, rates mostly raised by equal steps.
    if run.mode == REQUEST_RATE:
        return plot.x_axis("requests per second asked for", _loads(run), log_from=50)
    return plot.x_axis("requests in flight", _loads(run), log_from=8)


def _series(target: Target, colour: int, what: Callable[[Level], float | None], label: str, unit: str) -> Line:
    found = [(level.load, what(level)) for level in sorted(target.levels, key=lambda level: level.load)]
    points = [(load, value) for load, value in found if value is not None]
    notes = [f"{target.label}, load {load:g}: {label} {plot.number(value)} {unit}" for load, value in points]
    return Line(label, colour, points, notes)


def _one_load(run: Run) -> str:
    """Bars: a line through one point says nothing."""
    load = show.load_name(run.mode, _loads(run)[0])
    rates = [
        (target.label, [Bar(target.label, colour(index), level.inferences, f"{level.inferences:.1f} rows/s")])
        for index, target in enumerate(run.targets)
        for level in target.levels[:1]
    ]
    throughput = _chart(f"Throughput at {load}", plot.bars("rows/s", rates, name="throughput"))
    latency = _chart(f"Latency at {load}", _legend(run) + _percentile_bars(run))
    text = "Rows answered per second, and what share of requests took no longer than how many milliseconds."
    return _section("Throughput and latency", text, throughput, latency)


def _throughput(run: Run) -> str:
    loads = _loads(run)
    series = [
        _series(target, colour(index), lambda level: level.inferences, target.label, "rows/s")
        for index, target in enumerate(run.targets)
    ]
    if run.mode == REQUEST_RATE:
        batch = run.levels[0].batch
        series.append(Line("asked", plot.NEUTRAL, [(load, load * batch) for load in loads], dashed=True))
    values = [value for line in series for _, value in line.points]
    x, y = _load_axis(run), plot.y_axis("rows/s", values)
    drawing = plot.lines(x, y, series, name="throughput against load", end_labels=False)
    text = "Rows answered per second against load. Where the line goes flat, more load only makes requests wait longer."
    asked = " The dashed line is what was asked for." if run.mode == REQUEST_RATE else ""
    chart = _chart("Throughput against load", _legend(run) + drawing)
    return _section("Throughput", text + asked, chart, _trade_off(run))


def _percentile_bars(run: Run) -> str:
    groups = []
    for field, label in BARS:
        group = [
            Bar(target.label, colour(index), value, f"{target.label}: {label} {value:.2f} ms")
            for index, target in enumerate(run.targets)
            for level in target.levels[:1]
            if (value := _time(level, field)) is not None
        ]
        groups.append((label, group))
    return plot.bars("ms", groups, name="latency percentiles")


def _time(level: Level, name: str) -> float | None:
    return None if level.latency is None else float(getattr(level.latency, name))


def _field(name: str) -> Callable[[Level], float | None]:
    return lambda level: _time(level, name)


def _latency(run: Run) -> str:
    """One panel per target over shared axes."""
    panels: list[tuple[str, list[Line]]] = []
    for index, target in enumerate(run.targets):
        lines = [
            replace(_series(target, colour(index), _field(name), label, "ms"), opacity=opacity)
            for name, label, opacity in PERCENTILES
        ]
        panels.append((target.label, lines))
    values = [value for _, lines in panels for line in lines for _, value in line.points]
    log = bool(values) and max(values) > 20 * min(values)
    x, y = _load_axis(run), plot.y_axis("ms", values, log=log)
    scale = "one logarithmic scale" if log else "one scale"
    text = f"Percentiles against load, on {scale} for all targets: p99 is what one request in a hundred exceeds."
    charts = (
        _chart(label, plot.lines(x, y, lines, name=f"latency of {label} against load")) for label, lines in panels
    )
    return _section("Latency", text, *charts)


def _trade_off(run: Run) -> str:
    """p99 against throughput, one path per target through its levels."""
    series = []
    for index, target in enumerate(run.targets):
        answered = [(level, level.latency) for level in target.levels if level.latency]
        points = [(level.inferences, latency.p99) for level, latency in answered]
        notes = [show.line(target, level, run.mode) for level, _ in answered]
        series.append(Line(target.label, colour(index), points, notes))
    rows = [rate for line in series for rate, _ in line.points]
    times = [time for line in series for _, time in line.points]
    if not rows:
        return ""
    ticks = plot.linear_ticks(max(rows))
    x = plot.Axis("rows/s", 0.0, ticks[-1], plot.LEFT, plot.WIDTH - plot.RIGHT, ticks=ticks)
    y = plot.y_axis("p99, ms", times, log=max(times) > 20 * min(times))
    drawing = plot.lines(x, y, series, name="p99 against throughput", end_labels=False)
    return _chart("p99 against throughput (lower and further right is better)", _legend(run) + drawing)


def _stages(run: Run) -> str:
    """Per target the shares by load, in columns; nothing where no server told its statistics."""
    charts = []
    for target in run.targets:
        told = [(level, level.stages) for level in target.levels if level.stages]
        while len(told) > MAX_COLUMNS:
            told = [*told[:-1:2], told[-1]]
        if told:
            columns = [(f"{level.load:g}", show.moment(spent.total), _shares(spent)) for level, spent in told]
            charts.append(_chart(target.label, plot.stacked("% of the time", columns, name="where the time went")))
    if not charts:
        return ""
    load = "requests per second asked for" if run.mode == REQUEST_RATE else "requests in flight"
    text = (
        f"Shares of an average request's time, from sending to the whole answer, against {load}; on top, all of it. By "
        "the server's own statistics; wire is the rest of what the client saw."
    )
    legend = _named_colours((name, STAGE_COLOURS[name]) for name in STAGES)
    return _section("Where the time went", text, *charts, above=legend)


def _shares(spent: Stages) -> list[Bar]:
    parts = [(name, getattr(spent, name)) for name in STAGES]
    return [
        Bar(name, STAGE_COLOURS[name], 100 * part / spent.total, f"{name}: {show.moment(part)}") for name, part in parts
    ]


def _distributions(run: Run) -> str:
    """One panel per load, all targets over each other, on one axis for all panels."""
    loads = _loads(run)
    while len(loads) > MAX_DISTRIBUTIONS:
        loads = [*loads[:-1:2], loads[-1]]
    bounds = [upper for level in run.levels if level.load in loads for upper, _ in level.histogram]
    if not bounds:
        return ""
    step = 10 ** (1 / BINS_PER_DECADE)
    low, high = min(bounds) / step**2, max(bounds) * step
    ticks = tuple(tick for tick in plot.log_ticks(low, high) if low <= tick <= high)
    x = plot.Axis("latency, ms", low, high, 16.0, plot.WIDTH - 16.0, log=True, ticks=ticks)
    charts = []
    for load in loads:
        curves = [
            Curve(target.label, colour(index), _bins(level, step), _marks(level))
            for index, target in enumerate(run.targets)
            for level in target.levels
            if level.load == load
        ]
        name = show.load_name(run.mode, load)
        drawing = plot.distribution(x, curves, name=f"latency distribution, {name}", height=DISTRIBUTION_HEIGHT)
        charts.append(_chart(name, drawing))
    text = (
        "Share of requests by latency, on a logarithmic scale. Dotted: p50 and p99. Two humps are two kinds of request."
    )
    return _section("Latency distribution", text, *charts, above=_legend(run))


def _bins(level: Level, step: float) -> list[tuple[float, float, float]]:
    total = max(1, sum(count for _, count in level.histogram))
    return [(upper / step, upper, count / total) for upper, count in level.histogram]


def _marks(level: Level) -> list[tuple[float, str]]:
    return [] if level.latency is None else [(level.latency.p50, "p50"), (level.latency.p99, "p99")]
