"""What counts as quick, and how measurements change it."""

from __future__ import annotations

from math import inf

from server.batching.pace import BASE_NS, MAX_KINDS, PER_REQUEST_NS, Pace, allowance

US = 1000


def measure(pace: Pace, group: object, rows: int, us: int) -> None:
    for _ in range(2):
        pace.measured(group, rows, us * US)


def test_what_was_never_measured_is_never_quick() -> None:
    pace = Pace(steady=True)
    assert pace.expected(((4,),), 1) == inf
    assert not pace.has_quick


def test_the_first_run_of_a_kind_tells_nothing() -> None:
    pace = Pace(steady=True)
    pace.measured(None, 1, 1)
    assert pace.expected(None, 1) == inf
    pace.measured(None, 1, 10 * US)
    assert pace.expected(None, 1) == 10 * US


def test_kinds_are_groups_and_powers_of_two_of_rows() -> None:
    pace = Pace(steady=True)
    measure(pace, "short", 8, 50)
    assert [pace.expected("short", rows) for rows in (4, 5, 8, 9)] == [inf, 50 * US, 50 * US, inf]
    assert pace.expected("long", 8) == inf


def test_a_slower_run_counts_at_once_and_a_faster_one_by_degrees() -> None:
    pace = Pace(steady=True)
    measure(pace, None, 1, 10)
    pace.measured(None, 1, 10_000 * US)
    assert pace.expected(None, 1) == 10_000 * US
    assert not pace.has_quick
    pace.measured(None, 1, 10 * US)
    assert 10 * US < pace.expected(None, 1) < 10_000 * US
    for _ in range(100):
        pace.measured(None, 1, 10 * US)
    assert pace.expected(None, 1) <= 11 * US
    assert pace.has_quick


def test_the_table_is_bounded_whatever_shapes_clients_send() -> None:
    pace = Pace(steady=True)
    for length in range(3 * MAX_KINDS):
        measure(pace, ((length,),), 1, 1)
        assert len(pace._expected) <= MAX_KINDS
        assert pace._quick <= set(pace._expected)
    assert pace.has_quick


def test_the_allowance_grows_with_the_requests() -> None:
    assert allowance(0) == BASE_NS
    assert allowance(64) == BASE_NS + 64 * PER_REQUEST_NS


def test_a_run_that_the_clock_finds_slow_is_measured_again_before_it_is_believed() -> None:
    pace = Pace(steady=True)
    assert pace.in_doubt, "nothing is known yet"
    measure(pace, "g", 1, 50)
    assert not pace.in_doubt
    pace.measured("g", 1, 10 * allowance(1), exact=False)
    assert pace.in_doubt
    assert pace.expected("g", 1) == 50 * US, "a busy host is no slow model"
    pace.measured("g", 1, 60 * US)
    assert not pace.in_doubt
    assert pace.has_quick
    pace.measured("g", 1, 10 * allowance(1))
    assert pace.in_doubt
    assert not pace.has_quick, "a slow model is"


def test_a_run_that_the_clock_finds_quick_counts() -> None:
    pace = Pace(steady=True)
    measure(pace, "g", 1, 50)
    pace.measured("g", 1, 70 * US, exact=False)
    assert pace.expected("g", 1) == 70 * US
