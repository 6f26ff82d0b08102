"""Where the time went, out of what a server counted and a client saw."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import service_pb2

from tests.load import stages
from tests.load.client import counts_of
from tests.load.loops import Sample
from tests.load.result import STAGES
from tests.load.stages import Counts

MS = 1_000_000
NONE = Counts(0, 0, 0, 0, 0, 0)


def answers(number: int, took: float) -> list[Sample]:
    return [Sample(0, 10, 10 + round(took * MS), None)] * number


@given(
    st.lists(st.integers(0, 10**9), min_size=5, max_size=5),
    st.integers(1, 1000),
    st.integers(0, 10**9),
    st.builds(Counts, *([st.integers(0, 10**12)] * 6)),
)
def test_the_parts_are_all_of_what_the_client_saw(parts: list[int], number: int, wire: int, had: Counts) -> None:
    total = sum(parts) * number
    counted = [number, total, *(part * number for part in parts[:4])]
    after = Counts(*(a + b for a, b in zip((had.requests, had.total, *_parts(had)), counted, strict=True)))
    samples = [Sample(-5, 0, sum(parts) + wire, None)] * number
    found, note = stages.between(had, after, samples)
    assert note is None
    assert found is not None
    expected = [*parts, wire]
    assert [getattr(found, name) for name in STAGES] == pytest.approx([part / MS for part in expected], abs=1e-6)
    assert found.total == pytest.approx((sum(parts) + wire) / MS)


def _parts(counts: Counts) -> tuple[int, ...]:
    return counts.queue, counts.compute_input, counts.compute_infer, counts.compute_output


def test_failed_requests_are_in_neither_count() -> None:
    samples = [*answers(2, 3.0), Sample(0, 0, 999 * MS, "UNAVAILABLE: full")]
    found, note = stages.between(NONE, Counts(2, 4 * MS, 0, 0, 4 * MS, 0), samples)
    assert note is None
    assert found is not None
    assert (found.compute, found.wire, found.total) == (2, 1, 3)


@pytest.mark.parametrize(
    ("before", "after", "samples", "note"),
    [
        ("no such method", NONE, answers(1, 1), "no such method"),
        (NONE, "gone", answers(1, 1), "gone"),
        (Counts(9, 9, 0, 0, 0, 0), NONE, answers(1, 1), "loaded again"),
        (NONE, NONE, answers(3, 1), "counted 0 answers and the client 3"),
        (NONE, Counts(3, MS, 0, 0, 0, 0), [], "counted 3 answers and the client 0"),
        (NONE, Counts(2, 9 * MS, 0, 0, 0, 0), answers(1, 1), "others use the model too, and its requests took longer"),
    ],
)
def test_what_is_not_known_is_said_and_not_shown_as_zero(
    before: stages.Told, after: stages.Told, samples: list[Sample], note: str
) -> None:
    found, why = stages.between(before, after, samples)
    assert found is None
    assert why is not None
    assert note in why
    assert "\n" not in why


def test_other_clients_are_told_of() -> None:
    found, note = stages.between(NONE, Counts(6, 6 * MS, 6 * MS, 0, 0, 0), answers(4, 2))
    assert found is not None
    assert (found.queue, found.wire) == (1, 1)
    assert note == "the server counted 6 answers and the client 4: others use the model too"


def test_all_versions_of_a_model_are_summed() -> None:
    told = service_pb2.ModelStatisticsResponse()
    for number in (1, 2):
        one = told.model_stats.add(name="m", version=str(number)).inference_stats
        one.success.count, one.success.ns = number, 100 * number
        for name in ("queue", "compute_input", "compute_infer", "compute_output"):
            getattr(one, name).ns = number
    assert counts_of(told) == Counts(3, 300, 3, 3, 3, 3)
    assert counts_of(service_pb2.ModelStatisticsResponse()) == NONE
