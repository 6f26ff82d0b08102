"""The goals of the front end and the core, and what a run of the benchmarks says of each: met, missed, or not measured.

A goal is a row: what, how its figure is made of the benchmarks' figures, and the limit.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import sub, truediv
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from tests.bench.figures import BANDWIDTH, CPU, P50, P999, RATE, ROWS, Figure, number, pick
from tests.bench.suite.identity import LARGE

Compute = Callable[[Sequence[Figure]], float | None]


@dataclass(frozen=True, slots=True)
class Goal:
    point: int
    """Of the list that the goals come from."""
    text: str
    compute: Compute
    sign: Literal["≥", "≤"]
    limit: float
    unit: str = "×"

    def verdict(self, figure: float | None) -> str:
        if figure is None:
            return "not measured"
        return "met" if (figure >= self.limit if self.sign == "≥" else figure <= self.limit) else "missed"


def ratio(bench: str, over: str, under: str, case: str, load: str, metric: str) -> Compute:
    return _of_rounds(truediv, bench, over, under, case, load, metric)


def difference(bench: str, more: str, less: str, case: str, load: str, metric: str) -> Compute:
    return _of_rounds(sub, bench, more, less, case, load, metric)


def _of_rounds(
    combine: Callable[[float, float], float], bench: str, one: str, other: str, case: str, load: str, metric: str
) -> Compute:
    """The median over the rounds in which both were measured right after each other: what changes from round to round
    is the machine."""

    def compute(figures: Sequence[Figure]) -> float | None:
        pair = [pick(figures, bench=bench, subject=who, case=case, load=load, metric=metric) for who in (one, other)]
        if pair[0] is None or pair[1] is None:
            return None
        return statistics.median(map(combine, pair[0].values, pair[1].values))

    return compute


def tail(case: str) -> Compute:
    def compute(figures: Sequence[Figure]) -> float | None:
        pair = [pick(figures, bench="first-hit", subject="ours", case=case, metric=metric) for metric in (P999, P50)]
        if pair[0] is None or pair[1] is None:
            return None
        return statistics.median(map(truediv, pair[0].values, pair[1].values))

    return compute


def _front() -> list[Goal]:
    rows = []
    for load, factor in ((1, 2.0), (16, 2.5), (64, 2.5)):
        where = f"{load} in flight"
        triton = ("peers", "ours", "Triton", "tiny", where)
        rows.append(
            Goal(1, f"MLP, {where}: requests/s against Triton's python backend", ratio(*triton, RATE), "≥", factor)
        )
        rows.append(Goal(1, f"MLP, {where}: processor time against it", ratio(*triton, CPU), "≤", 0.5))
        for peer in ("MLServer", "LitServe"):
            against = ratio("peers", "ours", peer, "tiny", where, RATE)
            rows.append(Goal(1, f"MLP, {where}: requests/s against {peer}", against, "≥", 10.0))
    return rows


def _served() -> list[Goal]:
    rows = []
    for model in ("minilm", "minilm-int8"):
        case = f"{model}, 128 tokens"
        pair = ("served", "ours", "bare onnxruntime", case)
        rows.append(
            Goal(2, f"{case}, 32 in flight: rows/s of the bare loop's", ratio(*pair, "32 in flight", ROWS), "≥", 0.95)
        )
        over = difference(*pair, "1 in flight", P50)
        rows.append(Goal(2, f"{case}, 1 in flight: p50 above a bare run", over, "≤", 0.5, "ms"))
    return rows


def _bandwidth() -> list[Goal]:
    return [
        Goal(
            4,
            f"16 MiB, {client}: bandwidth against a bare grpcio echo, {kind}",
            ratio("identity", "ours", f"grpcio echo, {kind}", LARGE, f"2 in flight, {client}", BANDWIDTH),
            "≥",
            1.0,
        )
        for client in ("grpcio client", "h2load")
        for kind in ("threaded", "aio")
    ]


GOALS = (
    *_front(),
    *_served(),
    *_bandwidth(),
    *(
        Goal(5, f"first 1,000 requests, {case}: p99.9 to p50", tail(case), "≤", 3.0)
        for case in ("tiny", "minilm-int8, 32 tokens")
    ),
    Goal(
        6,
        "100 models loaded: p50 of one against a server with that one",
        ratio("models-100", "100 models", "1 model", "tiny", "1 in flight", P50),
        "≤",
        1.1,
    ),
)


def show(console: Console, figures: Sequence[Figure]) -> None:
    """Those that anything was measured for."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("goal", "figure", "wanted", ""):
        table.add_column(heading, justify="left" if heading in ("goal", "") else "right")
    for goal in GOALS:
        figure = goal.compute(figures)
        if figure is not None:
            verdict = goal.verdict(figure)
            cells = (f"{number(figure)} {goal.unit}", f"{goal.sign} {goal.limit:g} {goal.unit}", verdict)
            table.add_row(f"{goal.point}. {goal.text}", *cells, style="red" if verdict == "missed" else "")
    console.print(table)
    left = sum(goal.compute(figures) is None for goal in GOALS)
    if left:
        console.print(f"  {left} of {len(GOALS)} goals not measured in this run")
    console.print("  goal 3, a mix of lengths, has a benchmark of its own: python -m tests.bench.mix")
