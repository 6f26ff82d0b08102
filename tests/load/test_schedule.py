"""Ranges and send times."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.load.errors import LoadError
from tests.load.schedule import levels, send_times


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4", (4,)),
        ("1:4", (1, 2, 3, 4)),
        ("1:8:3", (1, 4, 7)),
        ("2:8:3", (2, 5, 8)),
        ("1:32:x2", (1, 2, 4, 8, 16, 32)),
        ("1:4:x1.5", (1, 2, 3)),
        ("5:5:1", (5,)),
    ],
)
def test_a_concurrency_range_steps_from_start_to_end(text: str, expected: tuple[float, ...]) -> None:
    assert levels(text, "--concurrency-range", whole=True) == expected


def test_a_rate_range_may_hold_fractions_and_reaches_its_end() -> None:
    assert levels("0.1:0.3:0.1", "--request-rate-range", whole=False) == pytest.approx((0.1, 0.2, 0.3))


@pytest.mark.parametrize(
    "text",
    [
        *("", "a", "0", "-1", "1.5", "inf", "4:1", "1:2:0", "1:2:-1", "1:2:3:4"),
        *("1:8:x1", "1:8:x", "1:2:xnan", "1:1e9", "1:999999999"),
    ],
)
def test_a_bad_range_is_refused_naming_the_flag_and_the_text(text: str) -> None:
    with pytest.raises(LoadError, match="--concurrency-range") as caught:
        levels(text, "--concurrency-range", whole=True)
    assert repr(text) in str(caught.value)
    assert "\n" not in str(caught.value)


rates = st.floats(0.1, 5000)
distributions = st.sampled_from(["constant", "poisson"])


@given(rates, distributions, st.floats(0.05, 2.0), st.integers(0, 5))
def test_send_times_rise_within_the_duration_at_the_rate_asked_for(
    rate: float, distribution: str, duration: float, seed: int
) -> None:
    times = send_times(rate, distribution, duration_s=duration, seed=seed)
    assert (np.diff(times) >= 0).all()
    assert times[0] >= 0
    assert times[-1] <= duration * 1e9
    assert abs(len(times) - rate * duration) <= 1
    assert (times == send_times(rate, distribution, duration_s=duration, seed=seed)).all()


@given(rates, distributions, st.integers(1, 500))
def test_a_count_gives_exactly_so_many(rate: float, distribution: str, count: int) -> None:
    times = send_times(rate, distribution, count=count)
    assert len(times) == count
    assert times[-1] <= count / rate * 1e9


def test_constant_spaces_evenly() -> None:
    assert send_times(4, "constant", duration_s=1).tolist() == [0, 250_000_000, 500_000_000, 750_000_000]


def test_poisson_gaps_are_exponential() -> None:
    """Their standard deviation equals their mean, and a seventh of them is below 15 % of it: bursts, not a grid."""
    gaps = np.diff(send_times(1000, "poisson", duration_s=20, seed=3)) / 1e6
    assert gaps.mean() == pytest.approx(1.0, rel=0.01)
    assert gaps.std() == pytest.approx(1.0, rel=0.05)
    assert (gaps < 0.15).mean() == pytest.approx(1 - np.exp(-0.15), rel=0.1)


def test_another_seed_gives_other_times() -> None:
    assert (send_times(100, "poisson", count=50, seed=1) != send_times(100, "poisson", count=50, seed=2)).any()


def test_an_absurd_number_of_requests_is_refused_before_memory_is_asked_for() -> None:
    with pytest.raises(LoadError, match="at most"):
        send_times(1e12, "constant", duration_s=60)
