"""What a job found, for people: a table on the console, a JSON and a Markdown file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from compressor.artifact import Artifact
from compressor.budget import Measured, Verdict
from compressor.job import Job
from compressor.publish import Published

Row = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Report:
    """A finished job."""

    job: str
    recipe: Path
    outcome: str
    """`published`, `not published`, `over budget` or `refused`, and why."""
    trail: tuple[Any, ...]
    measured: Measured
    verdicts: tuple[Verdict, ...]
    published: tuple[Published, ...]


def make(
    job: Job,
    outcome: str,
    result: Artifact,
    measured: Measured,
    verdicts: Sequence[Verdict],
    published: Sequence[Published],
) -> Report:
    return Report(job.name, job.recipe, outcome, result.trail, measured, tuple(verdicts), tuple(published))


def rows(measured: Measured) -> list[Row]:
    """(what, original, result, comparison)."""
    found: list[Row] = [
        (
            "size",
            _bytes(measured.baseline_bytes),
            _bytes(measured.bytes),
            f"{measured.bytes / measured.baseline_bytes:.1%}",
        )
    ]
    for metric in measured.metrics:
        change = metric.result - metric.baseline
        found.append(
            (
                metric.name,
                f"{metric.baseline:.4f}",
                f"{metric.result:.4f}",
                f"{change:+.4f} on {metric.samples} samples",
            )
        )
    for name, error in measured.output_error.items():
        parts = [f"cosine {error['cosine']:.4f}", f"max {error['max_abs']:.3g}", f"mean {error['mean_abs']:.3g}"]
        if "batch_influence" in error:
            parts.append(f"in a batch against alone ≤ {error['batch_influence']:.2g}")
        found.append((f"error of {name}", "", "", ", ".join(parts)))
    return found + _padding(measured) + _served(measured)


def _padding(measured: Measured) -> list[Row]:
    """Whether rows of unequal lengths may share a batch; no row where nobody would expect it."""
    before, after = measured.baseline_padding, measured.padding
    if not any((before.declaration, before.reason, after.declaration, after.reason)):
        return []
    moved = ", ".join(
        f"moves {name} by ≤ {influence:.2g}, allowed is {after.tolerance[name]:.2g}"
        for name, influence in after.influence.items()
    )
    original, result = ("yes" if one.declaration else "no" for one in (before, after))
    return [("may be padded", original, result, after.reason or before.reason or moved)]


def _served(measured: Measured) -> list[Row]:
    found = []
    for row in measured.latency:
        for name, before, after in (("p50", row.baseline_p50, row.p50), ("p99", row.baseline_p99, row.p99)):
            what = f"latency {name}, batch {row.batch}"
            found.append((what, f"{before:.2f} ms", f"{after:.2f} ms", _times(before, after)))
    if (through := measured.throughput) is not None:
        what = f"throughput, {through.concurrency} in flight, batch {through.batch}"
        rates = (f"{through.baseline:.1f} rows/s", f"{through.result:.1f} rows/s")
        found.append((what, *rates, _times(through.result, through.baseline)))
    return found


def table(report: Report) -> Table:
    made = Table("", "original", "result", "", box=box.SIMPLE, title=report.job)
    for row in rows(report.measured):
        made.add_row(*row)
    return made


def write(report: Report, folder: Path) -> tuple[Path, Path]:
    """`<job>.json` and `<job>.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    data, page = folder / f"{report.job}.json", folder / f"{report.job}.md"
    content = {**asdict(report), "verdicts": [{**asdict(v), "kept": v.kept, "text": v.text} for v in report.verdicts]}
    data.write_text(json.dumps(content, indent=1, default=str) + "\n")
    page.write_text(markdown(report))
    return data, page


def markdown(report: Report) -> str:
    lines = [
        f"# {report.job}",
        "",
        f"{report.outcome[:1].upper()}{report.outcome[1:]}.",
        "",
        "| | original | result | |",
        "|---|---|---|---|",
    ]
    lines += [f"| {' | '.join(row)} |" for row in rows(report.measured)]
    if report.verdicts:
        lines += ["", "## Budget", "", *(f"- {verdict.text}" for verdict in report.verdicts)]
    lines += ["", "## Trail", ""]
    for step in report.trail:
        parameters = ", ".join(f"{key} = {value}" for key, value in step.parameters.items())
        effect = ", ".join(f"{key}: {value}" for key, value in step.effect.items())
        lines.append(f"- {step.name}({parameters}), {step.seconds:.1f} s: {effect}")
    if report.published:
        lines += ["", "## Published", "", *(f"- {one.name} version {one.version}" for one in report.published)]
    return "\n".join(lines) + "\n"


def _bytes(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


def _times(before: float, after: float) -> str:
    return f"{before / after:.2f} × as fast" if after > 0 else ""
