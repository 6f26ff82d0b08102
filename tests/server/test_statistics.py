"""Counts and nanoseconds as Triton's ModelStatistics has them."""

from __future__ import annotations

import pytest

from server.errors import (
    Cancelled,
    DeadlineExceeded,
    Internal,
    InvalidRequest,
    NotFound,
    ResourceExhausted,
    ServerError,
    Unavailable,
)
from server.statistics import BOUNDS_US, REASONS, Duration, Histogram, Statistics, Timing, reason_of
from tests.server.core import waiting


def test_a_run_is_charged_to_every_request_and_once_to_its_batch_size() -> None:
    statistics = Statistics(wall=lambda: 1_700_000_000_123_456_789)
    requests = [waiting(2, arrived_ns=100, queued_ns=200), waiting(1, arrived_ns=300, queued_ns=400)]
    statistics.succeeded(requests, 3, Timing(1000, 1010, 1030, 1060))
    got = statistics.snapshot()
    assert (got.inference_count, got.execution_count, got.last_inference_ms) == (3, 1, 1_700_000_000_123)
    assert got.success == Duration(2, 960 + 760)
    assert got.queue == Duration(2, 800 + 600)
    assert (got.compute_input, got.compute_infer, got.compute_output) == (
        Duration(2, 20),
        Duration(2, 40),
        Duration(2, 60),
    )
    (batch,) = got.batches
    assert (batch.batch_size, batch.compute_input, batch.compute_infer, batch.compute_output) == (
        3,
        Duration(1, 10),
        Duration(1, 20),
        Duration(1, 30),
    )


def test_batch_sizes_are_ascending() -> None:
    statistics = Statistics()
    for rows in (4, 1, 2):
        statistics.succeeded([waiting(rows)], rows, Timing(0, 0, 0, 0))
    assert [batch.batch_size for batch in statistics.snapshot().batches] == [1, 2, 4]


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (Unavailable(""), "REJECTED"),
        (Cancelled(""), "CANCELED"),
        (DeadlineExceeded(""), "CANCELED"),
        (Internal(""), "BACKEND"),
        (InvalidRequest(""), "OTHER"),
        (NotFound(""), "OTHER"),
        (ResourceExhausted(""), "OTHER"),
    ],
)
def test_failures_are_counted_by_reason(error: ServerError, reason: str) -> None:
    assert reason_of(error) == reason
    statistics = Statistics()
    statistics.failed(waiting(arrived_ns=5), error, 25)
    got = statistics.snapshot()
    assert got.fail == Duration(1, 20)
    assert got.failures == {name: int(name == reason) for name in REASONS}


def test_histogram_buckets_include_their_bound() -> None:
    statistics = Statistics()
    for us in (BOUNDS_US[0], BOUNDS_US[0] + 1, BOUNDS_US[-1] + 1):
        statistics.succeeded([waiting(queued_ns=0, arrived_ns=0)], 1, Timing(0, 0, 0, us * 1000))
    got = statistics.snapshot().request_latency
    assert got.counts[0] == got.counts[1] == got.counts[-1] == 1
    assert got.count == 3
    assert got.sum_ns == (2 * BOUNDS_US[0] + BOUNDS_US[-1] + 2) * 1000


def test_cumulative_counts_end_in_the_total() -> None:
    histogram = Histogram((1, 0, 2), 5)
    assert histogram.cumulative() == (1, 1, 3)
    assert list(BOUNDS_US) == sorted(set(BOUNDS_US))


def test_a_snapshot_does_not_change() -> None:
    statistics = Statistics()
    before = statistics.snapshot()
    statistics.retried()
    statistics.failed(waiting(), Internal(""), 0)
    assert (before.retries, before.failures["BACKEND"]) == (0, 0)
    assert statistics.snapshot().retries == 1
