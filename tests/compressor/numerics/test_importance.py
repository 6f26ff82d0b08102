"""Masks: exactly as many fall as were asked for, and none that stays is smaller than one that falls."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from compressor.numerics import importance

WEIGHTS = npst.arrays(np.float32, npst.array_shapes(max_dims=3, max_side=9), elements=st.floats(-10, 10, width=32))


@given(WEIGHTS, st.floats(0, 0.99))
def test_the_smallest_fall_and_as_many_as_were_asked_for(weights: np.ndarray, sparsity: float) -> None:
    scores = importance.magnitude(weights)
    mask = importance.keep(scores, sparsity)
    assert mask.shape == weights.shape
    assert (~mask).sum() == round(sparsity * weights.size)
    if mask.any() and not mask.all():
        assert scores[~mask].max() <= scores[mask].min()


@given(WEIGHTS, WEIGHTS, st.floats(0, 0.99))
def test_over_several_arrays_it_is_the_same_as_over_one(a: np.ndarray, b: np.ndarray, sparsity: float) -> None:
    masks = importance.keep_globally({"a": np.abs(a), "b": np.abs(b)}, sparsity)
    joined = importance.keep(np.abs(np.concatenate([a.ravel(), b.ravel()])), sparsity)
    np.testing.assert_array_equal(np.concatenate([masks["a"].ravel(), masks["b"].ravel()]), joined)


def test_no_arrays_give_no_masks() -> None:
    assert importance.keep_globally({}, 0.5) == {}


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 2.0])
def test_a_sparsity_outside_its_range_is_an_error(sparsity: float) -> None:
    with pytest.raises(ValueError, match="at least 0 and below 1"):
        importance.keep(np.ones(3), sparsity)
