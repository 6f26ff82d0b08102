"""Ranges of values seen in pieces: arrays in, a (low, high) pair out. Memory does not grow with what is seen.

Three ways to choose the range that an integer type has to cover: all of it (minmax), all but a share of the values
(percentile), or what loses the least information (entropy: Migacz, "8-bit Inference with TensorRT", GTC 2017).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
HALF_BINS = 2048


@dataclass(slots=True)
class MinMax:
    """Smallest and largest value so far."""

    low: float = math.inf
    high: float = -math.inf

    def update(self, values: Array) -> None:
        """Raises ValueError for NaN or infinite values."""
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError("NaN or infinite values")
        self.low, self.high = min(self.low, low), max(self.high, high)

    def range(self) -> tuple[float, float]:
        """(0, 0) where nothing was seen."""
        return (self.low, self.high) if self.low <= self.high else (0.0, 0.0)


@dataclass(slots=True)
class Histogram:
    """Counts in 2 × HALF_BINS equal bins from -limit to +limit.

    `limit` is always a power of two and grows by doubling, when pairs of bins become one. So the bins depend on the
    largest magnitude alone: any order and any split of the same values gives the same counts.
    """

    limit: float = 0.0
    counts: Array = field(default_factory=lambda: np.zeros(2 * HALF_BINS, dtype=np.int64))
    seen: MinMax = field(default_factory=MinMax)

    def update(self, values: Array) -> None:
        """Raises ValueError for NaN or infinite values."""
        self.seen.update(values)
        if values.size == 0:
            return
        largest = max(abs(self.seen.low), abs(self.seen.high))
        if largest and largest >= self.limit:
            self._widen(_power_above(largest))
        # values that are all zero so far have no bins yet; they lie at the lower edge of the upper half
        scaled = values.reshape(-1).astype(np.float64) * (HALF_BINS / self.limit if self.limit else 0.0)
        index = np.floor(scaled).astype(np.int64) + HALF_BINS
        self.counts += np.bincount(index, minlength=2 * HALF_BINS)

    def _widen(self, limit: float) -> None:
        """`limit` / `self.limit` is a power of two; from HALF_BINS on, each half ends up in its innermost bin."""
        if self.limit:
            step = int(min(limit / self.limit, HALF_BINS))
            merged = self.counts.reshape(-1, step).sum(axis=1)
            self.counts = np.zeros_like(self.counts)
            start = HALF_BINS - len(merged) // 2
            self.counts[start : start + len(merged)] = merged
        self.limit = limit

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.limit / HALF_BINS


def _power_above(value: float) -> float:
    """The smallest power of two above a positive value: strictly, so that no value lies on the outer edge."""
    return float(2.0 ** math.frexp(value)[1])


def percentile(histogram: Histogram, share: float) -> tuple[float, float]:
    """The range that holds `share` per cent of the values, as much being cut off on either side.

    Right to one bin. Raises ValueError for a share outside (0, 100].
    """
    if not 0 < share <= 100:
        raise ValueError(f"percentile is {share}, must be above 0 and at most 100")
    low, high = histogram.seen.range()
    total = int(histogram.counts.sum())
    if total == 0 or share == 100:
        return low, high
    tail = (100.0 - share) / 200.0 * total
    cumulative = np.cumsum(histogram.counts)
    first = int(np.searchsorted(cumulative, tail, side="right"))
    last = int(np.searchsorted(cumulative, total - tail, side="left"))
    return (max(low, (first - HALF_BINS) * histogram.width), min(high, (last + 1 - HALF_BINS) * histogram.width))


def entropy(histogram: Histogram, levels: int = 256, candidates: int = 128) -> tuple[float, float]:
    """The range, symmetric but for the ends of the data, whose `levels`-step version is nearest to the data.

    Nearest in Kullback-Leibler divergence, of `candidates` limits tried. onnxruntime's own collector starts with 128
    bins for 128 levels, which leaves one candidate: the whole range.
    """
    low, high = histogram.seen.range()
    used = np.flatnonzero(histogram.counts)
    if used.size == 0 or low == high:
        return low, high
    first, last = int(used[0]), int(used[-1]) + 1
    reach = max(HALF_BINS - first, last - HALF_BINS)
    smallest = min(reach, levels // 2 if low < 0 else levels)
    best = (math.inf, reach)
    for half in sorted({int(i) for i in np.linspace(smallest, reach, candidates)}, reverse=True):
        start, stop = max(first, HALF_BINS - half), min(last, HALF_BINS + half)
        if stop > start:
            best = min(best, (_divergence(histogram.counts, start, stop, levels), half), key=lambda pair: pair[0])
    limit = best[1] * histogram.width
    return max(low, -limit), min(high, limit)


def _divergence(counts: Array, start: int, stop: int, levels: int) -> float:
    """KL(p ‖ q): p the counts in [start, stop), what lies outside added to the ends; q the same in `levels` steps."""
    inside = counts[start:stop].astype(np.float64)
    reference = inside.copy()
    reference[0] += counts[:start].sum()
    reference[-1] += counts[stop:].sum()
    edges = np.unique(np.linspace(0, len(inside), levels, endpoint=False).astype(np.int64))
    filled = reference > 0
    sums = np.add.reduceat(inside, edges)
    members = np.add.reduceat(filled.astype(np.float64), edges)
    mean = np.divide(sums, members, out=np.zeros_like(sums), where=members > 0)
    spread = np.repeat(mean, np.diff([*edges, len(inside)])) * filled
    if spread.sum() == 0:
        return math.inf
    p, q = reference / reference.sum(), spread / spread.sum()
    # a clipped end of which nothing lies inside has q = 0: its share is charged as if one value in 10⁹ lay there
    return float(np.sum(p[filled] * np.log(p[filled] / np.maximum(q[filled], 1e-9))))
