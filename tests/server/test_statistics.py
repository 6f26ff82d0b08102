"""Counts and nanoseconds as Triton's ModelStatistics has them."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


RUNS = st.lists(st.tuples(st.integers(1, 40), st.lists(st.integers(0, 11_000_000_000), min_size=4, max_size=4)))


@given(RUNS)
@settings(deadline=None, max_examples=60)
def test_sums_and_histograms_are_those_of_every_single_request(runs: list[tuple[int, list[int]]]) -> None:
    """However many have been sorted into buckets already, and however often somebody looked meanwhile."""
    statistics = Statistics()
    totals: list[int] = []
    queues: list[int] = []
    parts = [0, 0, 0]
    for number, moments in runs * 40:  # beyond the number that is kept unsorted
        start, collated, ran, end = sorted(moments)
        requests = [waiting(arrived_ns=start // (i + 2), queued_ns=start // (i + 1)) for i in range(number)]
        statistics.succeeded(requests, number, Timing(start, collated, ran, end))
        totals += [end - request.arrived_ns for request in requests]
        queues += [start - request.queued_ns for request in requests]
        for i, ns in enumerate((collated - start, ran - collated, end - ran)):
            parts[i] += ns * number
        if len(totals) % 7 == 0:
            statistics.snapshot()
    got = statistics.snapshot()
    for duration, histogram, values in (
        (got.success, got.request_latency, totals), (got.queue, got.queue_latency, queues),
    ):  # fmt: skip
        assert duration == Duration(len(values), sum(values))
        assert histogram.sum_ns == sum(values)
        expected = [0] * (len(BOUNDS_US) + 1)
        for value in values:
            expected[bisect_left(BOUNDS_US, value / 1000)] += 1
        assert list(histogram.counts) == expected
    assert [d.ns for d in (got.compute_input, got.compute_infer, got.compute_output)] == parts
    assert got.execution_count == len(runs) * 40 == sum(batch.compute_infer.count for batch in got.batches)
    assert got.inference_count == len(totals)


def test_the_stages_of_requests_that_arrive_at_the_queue_add_up_to_their_latency() -> None:
    statistics = Statistics()
    requests = [waiting(arrived_ns=at, queued_ns=at) for at in (3, 14, 15)]
    statistics.succeeded(requests, 3, Timing(100, 200, 400, 450))
    got = statistics.snapshot()
    stages = (got.queue, got.compute_input, got.compute_infer, got.compute_output)
    assert sum(stage.ns for stage in stages) == got.success.ns
    assert {stage.count for stage in stages} == {got.success.count}


def test_padding_is_summed_up() -> None:
    statistics = Statistics()
    statistics.padded(3, 10)
    statistics.padded(0, 7)
    assert (statistics.snapshot().padding_elements, statistics.snapshot().padding_computed) == (3, 17)


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
