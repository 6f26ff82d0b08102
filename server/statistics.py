"""What a model version has done: true counts and nanoseconds, as Triton's ModelStatistics counts them.

One `Statistics` per model version is the owner; whoever runs a batch adds to it once, under its one lock, and readers
get frozen snapshots. What the RPC and the metrics page make of a snapshot is their business. What a request costs here
is two subtractions: latencies are kept as they are, and sorted into their buckets a thousand at a time, or when asked.

How Triton counts (core: src/infer_stats.cc): `inference_count` is rows, `execution_count` runs of the model; every
request of a batch is charged the whole batch's compute times, `batches` charges them once per run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

import numpy as np

from server.errors import Cancelled, DeadlineExceeded, Internal, ServerError, Unavailable
from server.request import InferRequest

Clock = Callable[[], int]
"""Monotonic nanoseconds."""

REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
"""Triton's labels of nv_inference_request_failure."""

BOUNDS_US = (
    100, 250, 500, 1_000, 2_000, 3_000, 5_000, 7_500, 10_000, 15_000, 20_000, 30_000, 50_000, 75_000,
    100_000, 200_000, 500_000, 1_000_000, 2_000_000, 5_000_000, 10_000_000,
)  # fmt: skip
"""Upper bounds of the latency histograms, in microseconds, inclusive; one bucket more holds the rest."""

_BOUNDS_NS = np.array([bound * 1000 for bound in BOUNDS_US])
_UNSORTED = 1024
"""Latencies that are kept before they are sorted into buckets, which then takes some 100 µs."""


@dataclass(frozen=True, slots=True)
class Duration:
    count: int = 0
    ns: int = 0


@dataclass(frozen=True, slots=True)
class BatchStatistics:
    """Runs at one batch size."""

    batch_size: int
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration


@dataclass(frozen=True, slots=True)
class Histogram:
    counts: tuple[int, ...]
    """Per bucket of BOUNDS_US and one for the rest; not cumulative."""
    sum_ns: int

    @property
    def count(self) -> int:
        return sum(self.counts)

    def cumulative(self) -> tuple[int, ...]:
        """As Prometheus wants them: how many were at most each bound, the last entry being all."""
        return tuple(accumulate(self.counts))


@dataclass(frozen=True, slots=True)
class ModelStatistics:
    """A snapshot, consistent in itself."""

    inference_count: int
    execution_count: int
    last_inference_ms: int
    """Milliseconds since 1970; 0: never."""
    success: Duration
    fail: Duration
    queue: Duration
    compute_input: Duration
    compute_infer: Duration
    compute_output: Duration
    batches: tuple[BatchStatistics, ...]
    """Ascending by batch size."""
    failures: Mapping[str, int]
    """Failed requests by REASONS."""
    request_latency: Histogram
    queue_latency: Histogram
    retries: int
    """Extra runs made to find the guilty request of a batch that failed."""
    padding_elements: int = 0
    """Elements that padding added to the inputs that can be padded."""
    padding_computed: int = 0
    """All elements of those inputs that were run, padding included."""
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


class Timing(NamedTuple):
    """The four moments of one run, on the monotonic clock."""

    start_ns: int
    input_end_ns: int
    infer_end_ns: int
    end_ns: int


def reason_of(error: ServerError) -> str:
    """Which of REASONS an error counts as."""
    if isinstance(error, Unavailable):
        return "REJECTED"
    if isinstance(error, (Cancelled, DeadlineExceeded)):
        return "CANCELED"
    return "BACKEND" if isinstance(error, Internal) else "OTHER"


@dataclass(slots=True)
class _Latencies:
    """Durations on their way into a histogram."""

    unsorted: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_NS) + 1))
    ns: int = 0

    def sort(self) -> None:
        if self.unsorted:
            buckets = np.searchsorted(_BOUNDS_NS, self.unsorted)
            for bucket, number in enumerate(np.bincount(buckets, minlength=len(self.counts)).tolist()):
                self.counts[bucket] += number
            self.ns += sum(self.unsorted)
            self.unsorted.clear()

    def frozen(self) -> Histogram:
        self.sort()
        return Histogram(tuple(self.counts), self.ns)


@dataclass(slots=True)
class _Runs:
    """Sums over the runs of one batch size: the parts of each run, and the same once for each of its requests."""

    runs: int = 0
    requests: int = 0
    input_ns: int = 0
    infer_ns: int = 0
    output_ns: int = 0
    requests_input_ns: int = 0
    requests_infer_ns: int = 0
    requests_output_ns: int = 0

    def add(self, requests: int, input_ns: int, infer_ns: int, output_ns: int) -> None:
        self.runs += 1
        self.requests += requests
        self.input_ns += input_ns
        self.infer_ns += infer_ns
        self.output_ns += output_ns
        self.requests_input_ns += input_ns * requests
        self.requests_infer_ns += infer_ns * requests
        self.requests_output_ns += output_ns * requests

    def frozen(self, batch_size: int) -> BatchStatistics:
        parts = (Duration(self.runs, ns) for ns in (self.input_ns, self.infer_ns, self.output_ns))
        return BatchStatistics(batch_size, *parts)


class Statistics:
    """The counters of one model version. All methods may be called from any thread."""

    def __init__(self, wall: Clock = time.time_ns) -> None:
        self._wall = wall
        self._lock = Lock()
        self._last_ms = self._retries = self._failed_ns = self._padding = self._computed = 0
        self._runs: dict[int, _Runs] = {}
        self._failures = dict.fromkeys(REASONS, 0)
        self._total, self._queued = _Latencies(), _Latencies()

    def succeeded(self, requests: Sequence[InferRequest], rows: int, timing: Timing) -> None:
        """One run that answered all of `requests`."""
        start, end = timing.start_ns, timing.end_ns
        queued = [start - request.queued_ns for request in requests]
        total = [end - request.arrived_ns for request in requests]
        collated, ran = timing.input_end_ns, timing.infer_end_ns
        with self._lock:
            self._last_ms = self._wall() // 1_000_000
            runs = self._runs.get(rows)
            if runs is None:
                runs = self._runs[rows] = _Runs()
            runs.add(len(requests), collated - start, ran - collated, end - ran)
            self._queued.unsorted += queued
            self._total.unsorted += total
            if len(self._total.unsorted) >= _UNSORTED:
                self._queued.sort()
                self._total.sort()

    def failed(self, request: InferRequest, error: ServerError, now_ns: int) -> None:
        """One request that ended in an error, whatever the error."""
        with self._lock:
            self._failed_ns += max(0, now_ns - request.arrived_ns)
            self._failures[reason_of(error)] += 1

    def padded(self, padding: int, computed: int) -> None:
        """One batch whose inputs that can be padded had `computed` elements, `padding` of them added."""
        with self._lock:
            self._padding += padding
            self._computed += computed

    def retried(self) -> None:
        with self._lock:
            self._retries += 1

    def snapshot(self) -> ModelStatistics:
        with self._lock:
            sizes = sorted(self._runs.items())
            runs = [runs for _, runs in sizes]
            total, queued = self._total.frozen(), self._queued.frozen()
            requests = sum(r.requests for r in runs)
            return ModelStatistics(
                inference_count=sum(size * r.runs for size, r in sizes),
                execution_count=sum(r.runs for r in runs),
                last_inference_ms=self._last_ms,
                success=Duration(requests, total.sum_ns),
                fail=Duration(sum(self._failures.values()), self._failed_ns),
                queue=Duration(requests, queued.sum_ns),
                compute_input=Duration(requests, sum(r.requests_input_ns for r in runs)),
                compute_infer=Duration(requests, sum(r.requests_infer_ns for r in runs)),
                compute_output=Duration(requests, sum(r.requests_output_ns for r in runs)),
                batches=tuple(r.frozen(size) for size, r in sizes),
                failures=dict(self._failures),
                request_latency=total,
                queue_latency=queued,
                retries=self._retries,
                padding_elements=self._padding,
                padding_computed=self._computed,
            )
