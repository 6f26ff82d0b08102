"""Ranges of values seen in pieces: whatever the order and the split, the answer is that of the whole data."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from compressor.numerics import ranges

VALUES = npst.arrays(np.float32, st.integers(1, 200), elements=st.floats(-1e6, 1e6, width=32))


def collected(*pieces: np.ndarray) -> ranges.Histogram:
    histogram = ranges.Histogram()
    for piece in pieces:
        histogram.update(piece)
    return histogram


@given(VALUES, st.integers(0, 200))
def test_minmax_in_pieces_is_minmax_of_the_whole(values: np.ndarray, cut: int) -> None:
    collector = ranges.MinMax()
    collector.update(values[:cut])
    collector.update(values[cut:])
    assert collector.range() == (float(values.min()), float(values.max()))


@given(VALUES, st.lists(st.integers(0, 200), max_size=4), st.randoms(use_true_random=False))
def test_a_histogram_does_not_depend_on_order_or_split(values: np.ndarray, cuts: list[int], random: object) -> None:
    whole = collected(values)
    pieces = np.split(values, sorted(min(cut, len(values)) for cut in cuts))
    random.shuffle(pieces)  # type: ignore[attr-defined]
    streamed = collected(*pieces)
    assert streamed.limit == whole.limit
    np.testing.assert_array_equal(streamed.counts, whole.counts)


@given(VALUES)
def test_every_value_is_counted_in_the_bin_that_holds_it(values: np.ndarray) -> None:
    histogram = collected(values)
    assert histogram.counts.sum() == values.size
    edges = (np.arange(2 * ranges.HALF_BINS + 1) - ranges.HALF_BINS) * histogram.width if histogram.limit else None
    if edges is not None:
        np.testing.assert_array_equal(histogram.counts, np.histogram(values.astype(np.float64), bins=edges)[0])


@given(VALUES, st.floats(50, 100))
def test_a_percentile_is_that_of_the_whole_data_to_two_bins(values: np.ndarray, share: float) -> None:
    histogram = collected(*np.array_split(values, 3))
    low, high = ranges.percentile(histogram, share)
    tail = (100 - share) / 200
    exact = values.astype(np.float64)
    assert np.quantile(exact, tail, method="lower") - 2 * histogram.width <= low
    assert low <= np.quantile(exact, tail, method="higher") + 2 * histogram.width
    assert np.quantile(exact, 1 - tail, method="lower") - 2 * histogram.width <= high
    assert high <= np.quantile(exact, 1 - tail, method="higher") + 2 * histogram.width


@settings(max_examples=40)
@given(VALUES)
def test_every_method_stays_within_the_data(values: np.ndarray) -> None:
    histogram = collected(values)
    for low, high in (ranges.percentile(histogram, 99.9), ranges.entropy(histogram, candidates=16)):
        assert histogram.seen.low <= low <= high <= histogram.seen.high


def test_entropy_cuts_off_a_lone_outlier_and_keeps_a_flat_distribution() -> None:
    generator = np.random.default_rng(0)
    normal = generator.normal(size=100_000).astype(np.float32)
    low, high = ranges.entropy(collected(normal, np.array([80.0], np.float32)))
    assert 2.5 < high < 12
    assert low == pytest.approx(normal.min(), abs=0.5)
    flat = generator.uniform(-1, 1, 100_000).astype(np.float32)
    low, high = ranges.entropy(collected(flat))
    assert low < -0.97
    assert high > 0.97


def test_entropy_of_values_above_zero_has_its_lower_end_at_their_smallest() -> None:
    values = np.abs(np.random.default_rng(1).normal(size=50_000)).astype(np.float32)
    low, high = ranges.entropy(collected(values))
    assert low == values.min()
    assert high > 2


def test_nothing_seen_and_only_zeros_give_zero() -> None:
    for method in (lambda h: ranges.percentile(h, 99.0), ranges.entropy):
        assert method(ranges.Histogram()) == (0.0, 0.0)
        assert method(collected(np.zeros(5, np.float32))) == (0.0, 0.0)
    assert ranges.MinMax().range() == (0.0, 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", [ranges.MinMax, ranges.Histogram])
def test_values_that_are_not_finite_are_an_error(kind: type, bad: float) -> None:
    with pytest.raises(ValueError, match="NaN or infinite"):
        kind().update(np.array([1.0, bad], np.float32))


@pytest.mark.parametrize("share", [0.0, -1.0, 100.1])
def test_a_percentile_outside_its_range_is_an_error(share: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 100"):
        ranges.percentile(collected(np.ones(3, np.float32)), share)


def test_a_histogram_keeps_its_size_whatever_it_sees() -> None:
    histogram = ranges.Histogram()
    for exponent in range(-30, 30):
        histogram.update(np.full(10, 2.0**exponent, np.float32))
    assert histogram.counts.shape == (2 * ranges.HALF_BINS,)
    assert histogram.counts.sum() == 600
