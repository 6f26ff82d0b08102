"""A run as one self-contained HTML page: no script, no network; the template with its style is `page.html`."""

from __future__ import annotations

import shlex
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from tests.load import figures, show
from tests.load.figures import colour
from tests.load.result import REQUEST_RATE, Level, Run


def write(run: Run, path: Path) -> None:
    path.write_text(render(run), encoding="utf-8")


def render(run: Run) -> str:
    names = " against ".join(target.label for target in run.targets)
    template = files("tests.load").joinpath("page.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(f"Load test: {names}"),
        heading=escape(f"Load test: {names}"),
        subheading=escape(_subheading(run)),
        cards="".join(_card(run, index) for index in range(len(run.targets))),
        notes=_notes(run),
        sections=figures.sections(run),
        counting=escape(_counting(run)),
        table=_table(run),
        facts="".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in _facts(run)),
    )


def _subheading(run: Run) -> str:
    loads = sorted({level.load for level in run.levels})
    how = "open loop, requests per second" if run.mode == REQUEST_RATE else "closed loop, requests in flight"
    shown = f"{loads[0]:g} to {loads[-1]:g}" if len(loads) > 1 else "".join(f"{load:g}" for load in loads)
    return f"{run.started.replace('T', ' ')} · {how}: {shown or 'none measured'} · {run.host.get('cpu', '')}"


def _counting(run: Run) -> str:
    if run.mode == REQUEST_RATE:
        return (
            "Latency in milliseconds, counted from the time at which the schedule wanted the request sent: waiting "
            "behind a stalled server is part of it. Lag is how late the client was against that schedule."
        )
    return (
        "Latency in milliseconds from sending to the whole answer, with exactly so many requests in flight all along."
    )


def _card(run: Run, index: int) -> str:
    target = run.targets[index]
    best = max((level for level in target.levels if level.latency), key=lambda level: level.inferences, default=None)
    sent = escape(f"{target.model}{' version ' + target.version if target.version else ''} on {target.url}")
    if best is None or best.latency is None:
        big, sub = "no answer", "every request failed"
    else:
        big = f"{show.rate(best.inferences)} <small>rows/s at best</small>"
        sub = (
            f"at {show.load_name(run.mode, best.load)}: p50 {show.duration(best.latency.p50)} ms, "
            f"p99 {show.duration(best.latency.p99)} ms" + _against_first(run, index, best)
        )
    return (
        f'<div class="card target" style="--c:var(--c{colour(index)})"><div class="name">{escape(target.label)}</div>'
        f'<div class="sub">{sent}</div><div class="big">{big}</div><div class="sub">{escape(sub)}</div></div>'
    )


def _against_first(run: Run, index: int, best: Level) -> str:
    first = max((level.inferences for level in run.targets[0].levels), default=0.0)
    return f"; {best.inferences / first:.2f}× {run.targets[0].label}" if index and first else ""


def _notes(run: Run) -> str:
    found = "".join(f"<li>{escape(note)}</li>" for note in show.notes(run))
    return f'<div class="notes"><ul>{found}</ul></div>' if found else ""


LAG = "lag p99"
COLUMNS = (
    "requests", "requests/s", "rows/s", "min", "mean", "p50", "p90", "p95", "p99", "p99.9", "max", LAG, "failed",
    "client cores", "client share",
)  # fmt: skip


def _table(run: Run) -> str:
    open_loop = run.mode == REQUEST_RATE
    names = ("target", "asked/s" if open_loop else "in flight", *COLUMNS)
    header = "".join(f"<th>{escape(name)}</th>" for name in names if open_loop or name != LAG)
    rows = []
    for index, target in enumerate(run.targets):
        for place, level in enumerate(target.levels):
            first = ' class="first"' if place == 0 and index else ""
            swatch = f'<td style="--c:var(--c{colour(index)})"><i></i>{escape(target.label)}</td>'
            rows.append(f"<tr{first}>{swatch}{_cells(level, open_loop)}</tr>")
    return f"<table><thead><tr>{header}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cells(level: Level, open_loop: bool) -> str:
    times, failed = level.latency, level.requests - level.succeeded
    fields = ("min", "mean", "p50", "p90", "p95", "p99", "p99_9", "max")
    cells = [f"{level.load:g}", f"{level.requests:,}", show.rate(level.throughput), show.rate(level.inferences)]
    cells += [show.duration(None if times is None else getattr(times, name)) for name in fields]
    if open_loop:
        cells.append(show.duration(level.lag.p99 if level.lag else None))
    client = (f"{level.client.cores_used:.2f}", f"{level.client.share:.0%}")
    plain = "".join(f"<td>{cell}</td>" for cell in cells)
    bad = f'<td class="bad">{failed:,}</td>' if failed else "<td>0</td>"
    return plain + bad + "".join(f"<td>{cell}</td>" for cell in client)


def _facts(run: Run) -> list[tuple[str, str]]:
    """Names and HTML."""
    found = [("command", f"<code>python -m tests.load {escape(shlex.join(run.command))}</code>")]
    for target in run.targets:
        sent = ", ".join(f"{name} {what}" for name, what in target.inputs.items())
        server = f"{target.server or 'unknown server'} at {target.url}, {target.platform or 'unknown platform'}"
        found.append((target.label, escape(f"{server}; sent {sent}")))
    durations = [level.duration_s for level in run.levels]
    if durations:
        found.append(("measured", f"{min(durations):.1f} to {max(durations):.1f} s per level"))
    found.append(("client", escape(f"demiglace {run.tool}")))
    return found + [(name, escape(value)) for name, value in run.host.items()]
