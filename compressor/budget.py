"""The limits a result must keep: which keys a recipe's `[budget]` may have, and whether a result keeps them.

<metric>_min, <metric>_max      of the result's metric
<metric>_drop_max               of baseline - result (result - baseline where less is better)
output_cosine_min, output_max_abs_max      over all outputs, the result's against the original's
size_ratio_max, bytes_max       of the model's files
latency_p50_ratio_max, latency_p99_ratio_max     result / baseline as served, at every batch size measured
latency_p50_ms_max, latency_p99_ms_max
speedup_min                     baseline p50 / result p50 as served, at every batch size measured
throughput_ratio_min            result / baseline, rows per second as served
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from compressor.metrics import metric_name
from protos.card import Latency, Metric

LATENCY_KEYS = (
    "latency_p50_ratio_max",
    "latency_p99_ratio_max",
    "latency_p50_ms_max",
    "latency_p99_ms_max",
    "speedup_min",
)
THROUGHPUT_KEYS = ("throughput_ratio_min",)
EVALUATION_KEYS = ("output_cosine_min", "output_max_abs_max")
SIZE_KEYS = ("size_ratio_max", "bytes_max")


@dataclass(frozen=True, slots=True)
class Throughput:
    """Rows per second as served, with `concurrency` requests of `batch` rows in flight."""

    concurrency: int
    batch: int
    baseline: float
    result: float


@dataclass(frozen=True, slots=True)
class Padded:
    """Whether rows of unequal lengths may be padded to share a batch."""

    declaration: str = ""
    """For `demiglace.padding`; empty: nothing is padded."""
    influence: Mapping[str, float] = field(default_factory=dict)
    """Per output, the largest difference seen between a row padded in a batch and the same row alone."""
    tolerance: Mapping[str, float] = field(default_factory=dict)
    """Per output, what that difference was held to."""
    reason: str = ""
    """Why nothing is padded; empty too where the model has no mask, so that nobody would expect it."""


@dataclass(frozen=True, slots=True)
class Measured:
    """All that was found out about a result; the report and the card are made from it."""

    metrics: tuple[Metric, ...]
    output_error: Mapping[str, Mapping[str, float]]
    baseline_bytes: int
    bytes: int
    latency: tuple[Latency, ...] = ()
    throughput: Throughput | None = None
    padding: Padded = Padded()
    baseline_padding: Padded = Padded()


@dataclass(frozen=True, slots=True)
class Verdict:
    """One limit, and what was found."""

    key: str
    limit: float
    value: float
    where: str = ""
    """Which batch size, where there are several."""

    @property
    def kept(self) -> bool:
        if math.isnan(self.value):
            return False
        return self.value >= self.limit if self.key.endswith("_min") else self.value <= self.limit

    @property
    def text(self) -> str:
        """One line: which limit, what was found, by how much it is over (or how much is left)."""
        place = f" ({self.where})" if self.where else ""
        word = "at least" if self.key.endswith("_min") else "at most"
        by = abs(self.value - self.limit)
        state = f"kept, {by:.4g} to spare" if self.kept else f"broken by {by:.4g}"
        return f"{self.key}: {self.value:.6g}{place}, allowed is {word} {self.limit:.6g}: {state}"


def allowed_keys(metrics: tuple[str, ...], *, evaluated: bool, latency: bool, throughput: bool) -> tuple[str, ...]:
    """The keys that `[budget]` may have, given what the recipe measures."""
    names = [f"{metric_name(metric)}_{end}" for metric in metrics for end in ("min", "max", "drop_max")]
    return (
        *names,
        *SIZE_KEYS,
        *(EVALUATION_KEYS if evaluated else ()),
        *(LATENCY_KEYS if latency else ()),
        *(THROUGHPUT_KEYS if throughput else ()),
    )


def judge(budget: Mapping[str, float], measured: Measured) -> tuple[Verdict, ...]:
    """One verdict per limit that was measured; the worst batch size stands for all."""
    verdicts = []
    for key, limit in budget.items():
        found = [Verdict(key, limit, value, where) for value, where in _values(key, measured)]
        if not found:
            continue  # not measured in this run
        verdicts.append(min(found, key=lambda v: -abs(v.value - v.limit) if not v.kept else abs(v.value - v.limit)))
    return tuple(verdicts)


def _values(key: str, measured: Measured) -> Iterator[tuple[float, str]]:
    for metric in measured.metrics:
        drop = metric.baseline - metric.result if metric.higher_is_better else metric.result - metric.baseline
        if key == f"{metric.name}_drop_max":
            yield drop, ""
        elif key in (f"{metric.name}_min", f"{metric.name}_max"):
            yield metric.result, ""
    if key == "size_ratio_max":
        yield measured.bytes / measured.baseline_bytes, ""
    elif key == "bytes_max":
        yield float(measured.bytes), ""
    elif key in EVALUATION_KEYS:
        field = key.removeprefix("output_").rpartition("_")[0]
        yield from ((errors[field], output) for output, errors in measured.output_error.items())
    elif key in LATENCY_KEYS:
        yield from ((_latency(key, row), f"batch {row.batch}") for row in measured.latency)
    elif key in THROUGHPUT_KEYS and measured.throughput is not None:
        yield measured.throughput.result / measured.throughput.baseline, ""


def _latency(key: str, row: Latency) -> float:
    return {
        "latency_p50_ratio_max": row.p50 / row.baseline_p50,
        "latency_p99_ratio_max": row.p99 / row.baseline_p99,
        "latency_p50_ms_max": row.p50,
        "latency_p99_ms_max": row.p99,
        "speedup_min": row.baseline_p50 / row.p50,
    }[key]


SLOWER = 1.05
"""A result whose p50 is above this times its baseline's, at every batch size, is slower: below it is noise."""


def slower_as_served(budget: Mapping[str, float], measured: Measured) -> str | None:
    """Why the technique does not pay here: slower at every batch size measured, and no limit of the recipe speaks of
    latency. None where it pays, or where the recipe has its own limits (`judge` decides then)."""
    if not measured.latency or any(key in LATENCY_KEYS + THROUGHPUT_KEYS for key in budget):
        return None
    if not all(row.p50 > SLOWER * row.baseline_p50 for row in measured.latency):
        return None
    found = ", ".join(
        f"batch {row.batch}: {row.p50:.2f} ms against {row.baseline_p50:.2f} ms" for row in measured.latency
    )
    return f"slower than the original as served on this host ({found})"
