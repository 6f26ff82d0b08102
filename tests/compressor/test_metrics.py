"""The metrics, against values worked out by hand, and the budget that they are held to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compressor import budget
from compressor.budget import Measured, Throughput
from compressor.metrics import METRICS, MetricError, cosines
from protos.card import Latency, Metric

NONE = np.empty(0)
LOGITS = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0], [0.0, 5.0]])
LABELS = np.array([0, 1, 1, 1])


def value(name: str, output: np.ndarray, labels: np.ndarray = NONE, reference: np.ndarray = NONE) -> float:
    return METRICS[name].function(output, labels, reference)


def test_accuracy_counts_rows_whose_largest_logit_is_the_label() -> None:
    assert value("accuracy", LOGITS, LABELS) == 0.75
    assert value("accuracy", np.array([[0.3], [-0.2]]), np.array([1, 1])) == 0.5


def test_f1_is_of_class_1_for_two_classes_and_the_mean_for_more() -> None:
    assert value("f1", LOGITS, LABELS) == pytest.approx(2 * 2 / (2 + 3))
    three = np.eye(3)[[0, 1, 2, 2]]
    assert value("f1", three, np.array([0, 1, 2, 1])) == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)


def test_mse_compares_with_labels_of_the_outputs_size() -> None:
    assert value("mse", np.array([[1.0], [3.0]]), np.array([1.0, 1.0])) == 2.0
    with pytest.raises(MetricError, match=r"labels have shape \(3,\), the output has \(2, 1\)"):
        value("mse", np.array([[1.0], [3.0]]), np.array([1.0, 1.0, 1.0]))


def test_labels_of_another_shape_are_named() -> None:
    with pytest.raises(MetricError, match=r"labels have shape \(2, 2\)"):
        value("accuracy", LOGITS, np.zeros((2, 2)))


def test_retrieval_asks_whether_the_nearest_neighbour_is_the_same() -> None:
    reference = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert value("embedding_retrieval", reference, reference=reference) == 1.0
    moved = np.array([[1.0, 0.0], [0.1, 0.9], [0.0, 1.0]])
    assert value("embedding_retrieval", moved, reference=reference) == pytest.approx(2 / 3)


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=3, min_side=3, max_side=6),
        elements=st.floats(-100, 100, width=32),
    )
)
def test_a_model_compared_with_itself_is_perfect(output: np.ndarray) -> None:
    for name in ("agreement", "embedding_cosine", "embedding_cosine_worst", "embedding_retrieval"):
        assert value(name, output, reference=output) == pytest.approx(1.0)
    assert np.all(np.abs(cosines(output, -output)) <= 1 + 1e-9)


MEASURED = Measured(
    metrics=(Metric("accuracy", 0.90, 0.88, True, "d", 10), Metric("mse", 1.0, 1.5, False, "d", 10)),
    output_error={
        "a": {"max_abs": 0.1, "mean_abs": 0.01, "cosine": 0.99},
        "b": {"max_abs": 0.3, "mean_abs": 0.0, "cosine": 0.95},
    },
    baseline_bytes=1000,
    bytes=300,
    latency=(Latency(1, {}, 10.0, 12.0, 5.0, 7.0), Latency(8, {}, 80.0, 90.0, 100.0, 120.0)),
    throughput=Throughput(16, 1, 50.0, 110.0),
)


@pytest.mark.parametrize(
    ("key", "limit", "found", "kept"),
    [
        ("accuracy_min", 0.85, 0.88, True),
        ("accuracy_drop_max", 0.01, 0.02, False),
        ("mse_max", 2.0, 1.5, True),
        ("mse_drop_max", 0.4, 0.5, False),
        ("size_ratio_max", 0.27, 0.3, False),
        ("bytes_max", 300, 300, True),
        ("output_cosine_min", 0.96, 0.95, False),
        ("output_max_abs_max", 0.5, 0.3, True),
        ("latency_p50_ratio_max", 1.0, 1.25, False),
        ("latency_p99_ms_max", 200, 120, True),
        ("speedup_min", 0.5, 0.8, True),
        ("throughput_ratio_min", 2.0, 2.2, True),
    ],
)
def test_a_limit_is_held_against_the_worst_of_what_was_measured(
    key: str, limit: float, found: float, kept: bool
) -> None:
    (verdict,) = budget.judge({key: limit}, MEASURED)
    assert verdict.value == pytest.approx(found)
    assert verdict.kept is kept


def test_a_broken_limit_says_by_how_much() -> None:
    (verdict,) = budget.judge({"latency_p50_ratio_max": 1.0}, MEASURED)
    assert verdict.text == "latency_p50_ratio_max: 1.25 (batch 8), allowed is at most 1: broken by 0.25"


def test_every_key_that_a_recipe_may_have_is_judged() -> None:
    keys = budget.allowed_keys(("accuracy", "mse"), evaluated=True, latency=True, throughput=True)
    verdicts = budget.judge(dict.fromkeys(keys, 1.0), MEASURED)
    assert {verdict.key for verdict in verdicts} == set(keys)


def test_slower_at_every_batch_size_is_refused_unless_the_recipe_speaks_of_latency() -> None:
    slow = Measured((), {}, 10, 5, (Latency(1, {}, 10.0, 12.0, 12.0, 14.0), Latency(8, {}, 50.0, 60.0, 80.0, 90.0)))
    text = budget.slower_as_served({}, slow)
    assert text is not None
    assert "batch 8: 80.00 ms against 50.00 ms" in text
    assert budget.slower_as_served({"latency_p50_ratio_max": 3.0}, slow) is None
    assert budget.slower_as_served({}, MEASURED) is None
