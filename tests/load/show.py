"""What the terminal shows: progress while measuring, the table at the end."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TextIO

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.load.loops import Tally
from tests.load.result import CONCURRENCY, REQUEST_RATE, STAGES, Level, Run, Spread, Target
from tests.load.stats import FIXED

LOADS = {CONCURRENCY: "in flight", REQUEST_RATE: "requests/s asked"}
PLAIN_WIDTH = 160
"""Of a file or a pipe, which has no width of its own."""


def duration(ms: float | None) -> str:
    """Milliseconds to three significant digits, `–` for none."""
    if ms is None:
        return "–"
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def moment(ms: float) -> str:
    """As `duration`, with its unit, and finer below a millisecond."""
    return f"{duration(ms)} ms" if ms >= 1 else f"{duration(ms * 1e3)} µs"


def rate(per_second: float) -> str:
    return f"{per_second:,.0f}" if per_second >= 1000 else f"{per_second:.1f}"


def load_name(mode: str, load: float) -> str:
    return f"{load:g} requests/s" if mode == REQUEST_RATE else f"{load:g} in flight"


def line(target: Target, level: Level, mode: str) -> str:
    """One level in one line, for logs."""
    p50, p99 = (level.latency.p50, level.latency.p99) if level.latency else (None, None)
    failed = level.requests - level.succeeded
    text = f"{target.label}, {load_name(mode, level.load)}: {rate(level.inferences)} rows/s, "
    return text + f"p50 {duration(p50)} ms, p99 {duration(p99)} ms" + (f", {failed} failed" if failed else "")


class Plain:
    """A line per level; for pipes, files and --no-progress."""

    def __init__(self, mode: str, write: Callable[[str], object]) -> None:
        self._mode, self._write = mode, write

    def begin(self, target: Target, load: float, tally: Tally) -> None:
        """Nothing to show yet."""

    def end(self, target: Target, level: Level) -> None:
        self._write(line(target, level, self._mode))

    def tick(self) -> None:
        """A log needs no live figures."""

    def close(self) -> None:
        """Nothing is held open."""


class Live:
    """A line per level measured, and below them a bar for the one that runs; refreshed by `tick` alone, since a
    thread of its own would compete with the one that measures."""

    def __init__(self, mode: str, console: Console) -> None:
        self._mode = mode
        self._tally = Tally()
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeElapsedColumn(),
        )
        self._progress = Progress(*columns, console=console, auto_refresh=False, transient=True)
        self._task = self._progress.add_task("asking the servers", total=1.0, counts="")
        self._progress.start()

    def begin(self, target: Target, load: float, tally: Tally) -> None:
        self._tally = tally
        self._progress.reset(self._task, description=f"{target.label}, {load_name(self._mode, load)}", counts="warm-up")

    def tick(self) -> None:
        tally = self._tally
        failed = f", {tally.failed} failed" if tally.failed else ""
        counts = f"{tally.answered} answered{failed}" if tally.answered else "warm-up"
        self._progress.update(self._task, completed=tally.fraction, counts=counts)
        self._progress.refresh()

    def end(self, target: Target, level: Level) -> None:
        self._progress.console.print(line(target, level, self._mode), style="dim", highlight=False, markup=False)

    def close(self) -> None:
        self._progress.stop()


def display(mode: str, wanted: bool, stream: TextIO = sys.stderr) -> Plain | Live:
    console = Console(file=stream)
    if wanted and console.is_terminal:
        return Live(mode, console)
    return Plain(mode, (lambda text: print(text, file=stream, flush=True)) if wanted else lambda text: None)


def table(run: Run, percentile: float | None) -> Table:
    """All levels of all targets."""
    open_loop = run.mode == REQUEST_RATE
    several = len(run.targets) > 1
    extra = [] if percentile is None or percentile in FIXED else [f"p{percentile:g}"]
    fields = ["mean", "p50", "p90", "p95", "p99", "p99_9", *extra, "max"]
    found = Table(box=box.SIMPLE, title="latency in ms", title_style="dim", title_justify="right")
    if several:
        found.add_column("target", no_wrap=True)
    names = [LOADS[run.mode], "requests/s", "rows/s"]
    names += ["p99.9" if name == "p99_9" else name for name in fields]
    names += [*(["lag p99"] if open_loop else []), "failed", "client cores"]
    for name in names:
        found.add_column(name, justify="right")
    for target in run.targets:
        for level in target.levels:
            shown = [f"{level.load:g}", rate(level.throughput), rate(level.inferences)]
            shown += [duration(_value(level.latency, name)) for name in fields]
            if open_loop:
                shown.append(duration(_value(level.lag, "p99")))
            failed = level.requests - level.succeeded
            shown += [f"[red]{failed}[/red]" if failed else "0", f"{level.client.cores_used:.2f}"]
            found.add_row(*([target.label] if several else []), *shown)
        found.add_section()
    return found


def _value(times: Spread | None, name: str) -> float | None:
    if times is None:
        return None
    return times.extra[name] if name in times.extra else float(getattr(times, name))


def stages_table(run: Run) -> Table:
    """Where the time went, of the levels for which the server told it."""
    several = len(run.targets) > 1
    title = "where the time of an average request went, by the server's own statistics"
    found = Table(box=box.SIMPLE, title=title, title_style="dim", title_justify="right")
    if several:
        found.add_column("target", no_wrap=True)
    for name in (LOADS[run.mode], *STAGES, "all"):
        found.add_column(name, justify="right", no_wrap=True)
    for target in run.targets:
        for level in target.levels:
            if level.stages is None:
                continue
            whole = level.stages.total
            parts = [getattr(level.stages, name) for name in STAGES]
            shown = [f"{moment(part)} {part / whole:>4.0%}" for part in parts]
            found.add_row(*([target.label] if several else []), f"{level.load:g}", *shown, moment(whole))
        found.add_section()
    return found


def notes(run: Run) -> list[str]:
    """What the figures alone do not say: errors by text, levels that the client limited."""
    found = []
    for target in run.targets:
        for level in target.levels:
            where = f"{target.label}, {load_name(run.mode, level.load)}"
            found += [f"{where}: {count} × {text}" for text, count in level.errors.items()]
            if level.client_limited:
                found.append(f"{where}: the client, not the server, is likely the limit: {level.client_limited}")
        found += _stages_notes(run, target)
    if run.interrupted:
        found.append("interrupted: the last level is incomplete")
    return found


def _stages_notes(run: Run, target: Target) -> list[str]:
    """What is to be said of where the time went; once where it is the same for all levels."""
    said = {
        level.load: f"where the time went is {'unknown' if level.stages is None else 'uncertain'}: {level.stages_note}"
        for level in target.levels
        if level.stages_note
    }
    if len(said) == len(target.levels) > 1 and len(set(said.values())) == 1:
        return [f"{target.label}: {text}" for text in set(said.values())]
    return [f"{target.label}, {load_name(run.mode, load)}: {text}" for load, text in said.items()]


def report(run: Run, percentile: float | None, stream: TextIO = sys.stdout) -> None:
    console = Console(file=stream)
    if not console.is_terminal:
        console = Console(file=stream, width=PLAIN_WIDTH)
    for target in run.targets:
        sent = ", ".join(f"{name} {what}" for name, what in target.inputs.items())
        version = f" version {target.version}" if target.version else ""
        name = f"{target.label}: " if target.label != target.model else ""
        about = f"{name}{target.model}{version} on {target.url} ({target.server}), sending {sent}"
        console.print(about, style="dim", highlight=False, markup=False)
    console.print(table(run, percentile))
    if any(level.stages for level in run.levels):
        console.print(stages_table(run))
    for note in notes(run):
        console.print(note, style="yellow", highlight=False, markup=False, soft_wrap=True)
