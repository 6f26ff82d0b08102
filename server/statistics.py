"""What a model version has done: true counts and nanoseconds, as Triton's ModelStatistics counts them.

One `Statistics` per model version is the owner; instance threads add to it once per batch under its one lock, and
readers get frozen snapshots. What the RPC and the metrics page make of a snapshot is their business.

How Triton counts (core: src/infer_stats.cc): `inference_count` is rows, `execution_count` runs of the model; every
request of a batch is charged the whole batch's compute times, `batches` charges them once per run.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from threading import Lock

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

_BOUNDS_NS = tuple(bound * 1000 for bound in BOUNDS_US)


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
    cache_hit: Duration = Duration()
    cache_miss: Duration = Duration()


@dataclass(frozen=True, slots=True)
class Timing:
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
class _Sum:
    count: int = 0
    ns: int = 0

    def frozen(self) -> Duration:
        return Duration(self.count, self.ns)


@dataclass(slots=True)
class _Buckets:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_NS) + 1))
    ns: int = 0

    def frozen(self) -> Histogram:
        return Histogram(tuple(self.counts), self.ns)


class Statistics:
    """The counters of one model version. All methods may be called from any thread."""

    def __init__(self, wall: Clock = time.time_ns) -> None:
        self._wall = wall
        self._lock = Lock()
        self._inferences = self._executions = self._last_ms = self._retries = 0
        self._success, self._fail, self._queue = _Sum(), _Sum(), _Sum()
        self._compute = (_Sum(), _Sum(), _Sum())
        self._batches: dict[int, tuple[_Sum, _Sum, _Sum]] = {}
        self._failures = dict.fromkeys(REASONS, 0)
        self._request_latency, self._queue_latency = _Buckets(), _Buckets()

    def succeeded(self, requests: Sequence[InferRequest], rows: int, timing: Timing) -> None:
        """One run that answered all of `requests`."""
        queued = [timing.start_ns - request.queued_ns for request in requests]
        total = [timing.end_ns - request.arrived_ns for request in requests]
        number = len(requests)
        parts = (
            timing.input_end_ns - timing.start_ns,
            timing.infer_end_ns - timing.input_end_ns,
            timing.end_ns - timing.infer_end_ns,
        )
        with self._lock:
            self._inferences += rows
            self._executions += 1
            self._last_ms = self._wall() // 1_000_000
            self._success.count += number
            self._success.ns += sum(total)
            self._queue.count += number
            self._queue.ns += sum(queued)
            sums = self._batches.get(rows)
            if sums is None:
                sums = self._batches[rows] = (_Sum(), _Sum(), _Sum())
            for per_request, per_run, ns in zip(self._compute, sums, parts, strict=True):
                per_request.count += number
                per_request.ns += ns * number
                per_run.count += 1
                per_run.ns += ns
            for buckets, values in ((self._request_latency, total), (self._queue_latency, queued)):
                for value in values:
                    buckets.counts[bisect_left(_BOUNDS_NS, value)] += 1
                    buckets.ns += value

    def failed(self, request: InferRequest, error: ServerError, now_ns: int) -> None:
        """One request that ended in an error, whatever the error."""
        with self._lock:
            self._fail.count += 1
            self._fail.ns += max(0, now_ns - request.arrived_ns)
            self._failures[reason_of(error)] += 1

    def retried(self) -> None:
        with self._lock:
            self._retries += 1

    def snapshot(self) -> ModelStatistics:
        with self._lock:
            compute_input, compute_infer, compute_output = (part.frozen() for part in self._compute)
            batches = tuple(
                BatchStatistics(size, *(part.frozen() for part in parts))
                for size, parts in sorted(self._batches.items())
            )
            return ModelStatistics(
                inference_count=self._inferences,
                execution_count=self._executions,
                last_inference_ms=self._last_ms,
                success=self._success.frozen(),
                fail=self._fail.frozen(),
                queue=self._queue.frozen(),
                compute_input=compute_input,
                compute_infer=compute_infer,
                compute_output=compute_output,
                batches=batches,
                failures=dict(self._failures),
                request_latency=self._request_latency.frozen(),
                queue_latency=self._queue_latency.frozen(),
                retries=self._retries,
            )
