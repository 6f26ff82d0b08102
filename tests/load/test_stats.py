"""Samples to figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load import stats
from tests.load.loops import Sample, Window
from tests.load.result import ClientCpu, Spread
from tests.load.stats import Usage

QUIET = Usage(ClientCpu(0.1, 0.05), 0.1, 0.5)
MS = 1_000_000
times = st.lists(st.floats(0.001, 1e5), min_size=1, max_size=300)


@given(times)
def test_a_percentile_is_the_smallest_time_that_so_many_do_not_exceed(values: list[float]) -> None:
    found = stats.spread(values, [75.0, 100.0])
    assert found is not None
    named = {50: found.p50, 90: found.p90, 95: found.p95, 99: found.p99, 75: found.extra["p75"]}
    for percent, value in named.items():
        assert value in values
        # Whole numbers: 0.9 * 10 is above 9 in floating point.
        assert sum(v <= value for v in values) * 100 >= percent * len(values)
        assert sum(v < value for v in values) * 100 < percent * len(values)
    assert found.extra["p100"] == found.max == max(values)
    assert found.min == min(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.stddev == pytest.approx(np.std(values), abs=1e-6)


@given(times)
def test_percentiles_lie_beside_those_numpy_interpolates(values: list[float]) -> None:
    found = stats.spread(values)
    assert found is not None
    for percent, value in ((50, found.p50), (90, found.p90), (99, found.p99), (99.9, found.p99_9)):
        interpolated = np.percentile(values, percent)
        assert max([v for v in values if v < value], default=value) <= interpolated * (1 + 1e-9)
        assert interpolated <= min([v for v in values if v > value], default=value) * (1 + 1e-9)


def test_nothing_measured_is_none_and_not_zero() -> None:
    assert stats.spread([]) is None
    assert stats.histogram([]) == ()


@given(times)
def test_each_time_lies_in_one_bin_of_the_histogram(values: list[float]) -> None:
    bins = stats.histogram(values)
    assert sum(count for _, count in bins) == len(values)
    assert bins[0][1] > 0
    assert bins[-1][1] > 0
    uppers = np.array([upper for upper, _ in bins])
    assert uppers[1:] / uppers[:-1] == pytest.approx(10 ** (1 / stats.BINS_PER_DECADE))
    counted = np.cumsum([count for _, count in bins])
    for upper, below in zip(uppers, counted, strict=True):
        assert sum(v <= upper * (1 + 1e-6) for v in values) >= below


def test_errors_are_counted_by_text_and_the_many_are_summed_up() -> None:
    assert stats.errors(["a", "b", "a"]) == {"a": 2, "b": 1}
    many = stats.errors([*"xx", *(f"error {n}" for n in range(50))])
    assert many["x"] == 2
    assert sum(many.values()) == 52
    assert len(many) == stats.MAX_ERROR_TEXTS + 1


def sample(due: float, sent: float, done: float, error: str | None = None) -> Sample:
    return Sample(round(due * MS), round(sent * MS), round(done * MS), error)


def test_latency_counts_from_the_time_due_and_lag_is_told() -> None:
    window = Window((sample(0, 0, 10), sample(10, 30, 40)), 0, 100 * MS)
    level = stats.level(window, QUIET, load=100, open_loop=True, batch=2)
    assert level.latency is not None
    assert (level.latency.min, level.latency.max) == (10, 30)
    assert level.lag is not None
    assert level.lag.max == 20
    assert (level.requests, level.succeeded, level.request_rate, level.concurrency) == (2, 2, 100, None)
    assert (level.throughput, level.inferences) == (20, 40)


def test_warm_up_counts_for_no_latency_and_late_answers_for_no_throughput() -> None:
    window = Window((sample(-5, -5, 5), sample(5, 5, 50), sample(90, 90, 190)), 0, 100 * MS)
    level = stats.level(window, QUIET, load=1, open_loop=False, batch=1)
    assert level.latency is not None
    assert (level.requests, level.latency.min, level.latency.max) == (2, 45, 100)
    assert level.throughput == 20
    assert (level.lag, level.concurrency) == (None, 1)


def test_failed_requests_are_counted_but_their_times_are_not_latency() -> None:
    window = Window(
        (sample(0, 0, 50), sample(1, 1, 2, "UNAVAILABLE: full"), sample(2, 2, 3, "UNAVAILABLE: full")), 0, 100 * MS
    )
    level = stats.level(window, QUIET, load=3, open_loop=False, batch=1)
    assert level.errors == {"UNAVAILABLE: full": 2}
    assert (level.requests, level.succeeded, level.throughput) == (3, 1, 10)
    assert level.latency is not None
    assert level.latency.min == 50
    nothing = stats.level(Window(window.samples[1:], 0, 100 * MS), QUIET, load=3, open_loop=False, batch=1)
    assert (nothing.latency, nothing.throughput, nothing.histogram) == (None, 0, ())


def even(ms: float) -> Spread:
    return Spread(ms, ms, 0, ms, ms, ms, ms, ms, ms)


@pytest.mark.parametrize(
    ("usage", "lag", "latency", "reason"),
    [
        (QUIET, None, even(10), None),
        (Usage(ClientCpu(0.9, 0.45), 0.9, 0.5), None, even(10), "thread was busy 90%"),
        (Usage(ClientCpu(0.6, 0.3), 0.5, 0.99), None, even(10), "run it on another machine"),
        (Usage(ClientCpu(0.2, 0.1), 0.2, 0.99), None, even(10), None),
        (Usage(ClientCpu(0.6, 0.3), 0.5, None), None, even(10), None),
        (QUIET, even(0.9), even(1), None),
        (QUIET, even(3), even(10), "left late"),
        (QUIET, even(3), even(100), None),
        (QUIET, even(3), None, "left late"),
    ],
)
def test_the_client_is_named_as_the_limit_when_it_is_one(
    usage: Usage, lag: Spread | None, latency: Spread | None, reason: str | None
) -> None:
    found = stats.client_limit(usage, lag, latency)
    assert found is None if reason is None else found is not None and reason in found
