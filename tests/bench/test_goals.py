"""What the figures say of the goals."""

from __future__ import annotations

from tests.bench.figures import P50, P999, RATE, Figure
from tests.bench.goals import GOALS, Goal, difference, ratio, tail


def figure(subject: str, *values: float, metric: str = RATE, bench: str = "b") -> Figure:
    return Figure(bench, subject, "tiny", "1 in flight", metric, values)


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    """The machine became half as fast after the first round: within each round ours is twice as fast."""
    found = [figure("ours", 200, 100, 100), figure("peer", 100, 50, 50)]
    assert ratio("b", "ours", "peer", "tiny", "1 in flight", RATE)(found) == 2


def test_a_difference_is_the_median_over_the_rounds() -> None:
    found = [figure("ours", 12.5, 20.1, 11), figure("bare", 12, 20, 9)]
    assert difference("b", "ours", "bare", "tiny", "1 in flight", RATE)(found) == 0.5


def test_what_was_not_measured_or_is_empty_gives_no_figure() -> None:
    compute = ratio("b", "ours", "peer", "tiny", "1 in flight", RATE)
    assert compute([figure("ours", 1)]) is None
    assert compute([figure("ours", 1), figure("peer")]) is None


def test_the_tail_of_the_first_requests() -> None:
    found = [figure("ours", 2, metric=P50, bench="first-hit"), figure("ours", 5, metric=P999, bench="first-hit")]
    assert tail("tiny")(found) == 2.5


def test_a_limit_itself_is_met() -> None:
    at_least, at_most = (Goal(1, "", lambda _: None, sign, 2.0) for sign in ("≥", "≤"))
    assert [at_least.verdict(value) for value in (1.99, 2.0, None)] == ["missed", "met", "not measured"]
    assert [at_most.verdict(value) for value in (2.01, 2.0, None)] == ["missed", "met", "not measured"]


def test_nothing_measured_meets_no_goal() -> None:
    assert {goal.verdict(goal.compute([])) for goal in GOALS} == {"not measured"}
