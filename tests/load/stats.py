"""From samples to figures, purely: percentiles, histogram, throughput, and whether the client was the limit."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tests.load.loops import Window
from tests.load.result import ClientCpu, Level, Spread

FIXED = (50.0, 90.0, 95.0, 99.0, 99.9)
BINS_PER_DECADE = 24
"""Bounds 10 % apart, the same for every level and target, so that distributions can be laid over each other."""
MAX_ERROR_TEXTS = 20


def spread(
    times_ms: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], extra: Iterable[float] = ()
) -> Spread | None:
    """None for no times. A percentile p is the smallest time that at least p % of all times do not exceed: one that
    occurred, where interpolation would invent a p99.9 between the two slowest of a hundred requests."""
    times = np.sort(np.asarray(times_ms, dtype=np.float64))
    if times.size == 0:
        return None
    more = [p for p in extra if p not in FIXED]
    p50, p90, p95, p99, p99_9, *rest = np.percentile(times, [*FIXED, *more], method="inverted_cdf").tolist()
    return Spread(
        min=float(times[0]),
        mean=float(times.mean()),
        stddev=float(times.std()),
        p50=p50,
        p90=p90,
        p95=p95,
        p99=p99,
        p99_9=p99_9,
        max=float(times[-1]),
        extra={f"p{p:g}": value for p, value in zip(more, rest, strict=True)},
    )


def histogram(times_ms: Iterable[float]) -> tuple[tuple[float, int], ...]:
    """(upper bound in ms, count) over the bounds `10 ** (k / BINS_PER_DECADE)`, from first to last filled bin without
    gaps."""
    filled = Counter(math.ceil(BINS_PER_DECADE * math.log10(max(time, 1e-3)) - 1e-9) for time in times_ms)
    if not filled:
        return ()
    return tuple((10 ** (k / BINS_PER_DECADE), filled[k]) for k in range(min(filled), max(filled) + 1))


def errors(texts: Iterable[str]) -> dict[str, int]:
    """Counts by text, most frequent first; beyond MAX_ERROR_TEXTS different ones the rest is summed up under one."""
    ranked = Counter(texts).most_common()
    kept = dict(ranked[:MAX_ERROR_TEXTS])
    rest = ranked[MAX_ERROR_TEXTS:]
    if rest:
        kept[f"({len(rest)} other texts)"] = sum(count for _, count in rest)
    return kept


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor use during one level."""

    client: ClientCpu
    loop_busy: float
    """Share of the time for which the one thread that runs Python was busy, 0 to 1."""
    machine_busy: float | None
    """Share of all processors in use by anyone, 0 to 1; None where it cannot be read."""


def client_limit(usage: Usage, lag: Spread | None, latency: Spread | None) -> str | None:
    """Why the client is likely to be the limit, or None.

    Thresholds: a Python thread that is busy for 90 % of the time has answers waiting in line for it; a machine 95 %
    busy of which the client takes a quarter would serve more without the client; a sender late by a tenth of the
    median latency (and at least 1 ms, the noise of a shared machine) shapes what it claims to measure.
    """
    if usage.loop_busy >= 0.9:
        return f"the client's one Python thread was busy {usage.loop_busy:.0%} of the time"
    if usage.machine_busy is not None and usage.machine_busy >= 0.95 and usage.client.share >= 0.25:
        share = f"{usage.client.share:.0%}"
        return f"all processors were busy, {share} of them with the client itself: run it on another machine"
    if lag is not None and lag.p99 > max(1.0, 0.1 * latency.p50 if latency else 0.0):
        return f"requests left late, p99 {lag.p99:.1f} ms behind the schedule"
    return None


def level(
    window: Window, usage: Usage, *, load: float, open_loop: bool, batch: int, extra: Iterable[float] = ()
) -> Level:
    """One level's figures. Counted are the requests due within the window, with their whole latency even when that
    reaches beyond it; the throughput is what was answered within the window, whenever it was sent."""
    counted = [sample for sample in window.samples if sample.due >= window.begin]
    good = [sample for sample in counted if sample.error is None]
    latencies = [(sample.done - sample.due) / 1e6 for sample in good]
    duration_s = max(window.end - window.begin, 1) / 1e9
    answered = sum(s.error is None and window.begin <= s.done <= window.end for s in window.samples)
    latency = spread(latencies, extra)
    lag = spread([(s.sent - s.due) / 1e6 for s in counted]) if open_loop else None
    return Level(
        load=load,
        concurrency=None if open_loop else int(load),
        request_rate=load if open_loop else None,
        batch=batch,
        requests=len(counted),
        succeeded=len(good),
        errors=errors(sample.error for sample in counted if sample.error is not None),
        duration_s=duration_s,
        throughput=answered / duration_s,
        inferences=answered * batch / duration_s,
        latency=latency,
        histogram=histogram(latencies),
        lag=lag,
        client=usage.client,
        client_limited=client_limit(usage, lag, latency),
    )
