"""One form for every figure: who, on what, under which load, what of it, and each repeat's value.

Benchmarks give lists of these; the tables, the plots, the goals and the JSON file are made of them and nothing else.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.h2load import Measured

RATE, CPU, P50, P99 = "requests/s", "µs CPU/request", "p50 ms", "p99 ms"
P999, ROWS, BANDWIDTH, MEMORY = "p99.9 ms", "rows/s", "MB/s each way", "MiB resident"
OTHERS = "cores used by others"
WIDTH = 168

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Figure:
    bench: str
    subject: str
    """Who was measured: `ours`, a peer, a configuration."""
    case: str
    """What it did: a model, a length, a size."""
    load: str
    """`16 in flight`, `90 % of the best`; empty where there is none."""
    metric: str
    values: tuple[float, ...]
    """One per repeat."""
    note: str = ""
    """What a reader must know of this figure: settings, a limit, or why it is missing (`values` is empty then)."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> str:
        """How far the repeats were from the median at most, in per cent of it."""
        if len(self.values) < 2 or not self.median:
            return ""
        return f" ±{max(abs(value / self.median - 1) for value in self.values):.0%}"


def of_loads(
    bench: str, subject: str, case: str, load: str, runs: Sequence[Measured], metrics: Collection[str] = ()
) -> list[Figure]:
    """What runs of h2load give: all of it, or these metrics and how far others disturbed them."""
    taken: dict[str, Callable[[Measured], float]] = {
        RATE: lambda run: run.rate,
        CPU: lambda run: run.cpu_us,
        P50: lambda run: run.p50_ms,
        P99: lambda run: run.p99_ms,
        OTHERS: lambda run: run.other_cores,
    }
    return [
        Figure(bench, subject, case, load, metric, tuple(map(take, runs)))
        for metric, take in taken.items()
        if not metrics or metric in (*metrics, OTHERS)
    ]


def in_turn(subjects: Mapping[str, Callable[[], T]], repeats: int) -> dict[str, list[T]]:
    """Every subject `repeats` times, one after the other, each round begun by the next: a machine that slows down
    meanwhile hits all alike."""
    found: dict[str, list[T]] = {name: [] for name in subjects}
    names = list(subjects)
    for _ in range(repeats):
        for name in names:
            found[name].append(subjects[name]())
        names = names[1:] + names[:1]
    return found


def pick(figures: Iterable[Figure], **wanted: str) -> Figure | None:
    """The figure whose fields are these; None when there is none, or when it is empty. More than one is a mistake."""
    found = [f for f in figures if all(getattr(f, key) == value for key, value in wanted.items())]
    if len(found) > 1:
        raise ValueError(f"{len(found)} figures fit {wanted}")
    return found[0] if found and found[0].values else None


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def show(console: Console, figures: Sequence[Figure], reference: str) -> None:
    """A row for each subject under each load: how it compares with the reference, the median, and how far the repeats
    were from it."""
    metrics = [m for m in dict.fromkeys(figure.metric for figure in figures) if m != OTHERS]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("what", "load", f"who, to {reference}"):
        table.add_column(heading, no_wrap=heading != "what")
    for metric in metrics:
        table.add_column(metric, justify="right", no_wrap=True)
    last = None
    for case, load, subject in _rows(figures):
        cells = []
        for metric in metrics:
            found = pick(figures, subject=subject, case=case, load=load, metric=metric)
            base = pick(figures, subject=reference, case=case, load=load, metric=metric)
            cells.append("" if found is None else _cell(found, base))
        where = ("", "") if (case, load) == last else (case, load)
        last = (case, load)
        table.add_row(*where, subject, *cells)
    console.print(table)
    for note in dict.fromkeys(f"{figure.subject}: {figure.note}" for figure in figures if figure.note):
        console.print(f"  {note}", markup=False)


def disturbance(figures: Iterable[Figure]) -> str:
    """How much of the machine was used by others while h2load measured."""
    used = [value for figure in figures if figure.metric == OTHERS for value in figure.values]
    if not used:
        return "not measured with h2load"
    return f"others used {statistics.median(used):.2f} cores in the median run, {max(used):.2f} at most"


def _rows(figures: Sequence[Figure]) -> list[tuple[str, str, str]]:
    """(case, load, subject) as they came, but loads of a case together and in order."""
    seen = list(dict.fromkeys((f.case, f.load, f.subject) for f in figures if f.metric != OTHERS))
    cases = list(dict.fromkeys(case for case, _, _ in seen))
    return sorted(seen, key=lambda row: (cases.index(row[0]), _load_order(row[1])))


def _cell(figure: Figure, base: Figure | None) -> str:
    ratio = f"{figure.median / base.median:.2f} × " if base is not None and base is not figure and base.median else ""
    return f"{ratio}{number(figure.median):>8}{figure.spread:>6}"


def _load_order(load: str) -> tuple[bool, int, str]:
    """Closed loops by the number in flight, then what is no closed loop."""
    head = load.split(" ")[0]
    return (not head.isdigit(), int(head) if head.isdigit() else 0, load)


def write(path: Path, about: Mapping[str, Any], figures: Iterable[Figure]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(asdict(figure), ensure_ascii=False) for figure in figures)
    path.write_text(f'{{"about": {json.dumps(about, indent=1)},\n "figures": [\n  {lines}\n ]}}\n', encoding="utf-8")


def read(path: Path) -> tuple[dict[str, Any], list[Figure]]:
    """Raises OSError, ValueError."""
    found = json.loads(path.read_text(encoding="utf-8"))
    try:
        return found["about"], [Figure(**{**one, "values": tuple(one["values"])}) for one in found["figures"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the figures of `make bench`: {error!r}") from None
