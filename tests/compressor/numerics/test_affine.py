"""Affine quantization: zero is exact, every value of the range is within half a step, and onnxruntime agrees."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnxruntime.quantization.quant_utils import compute_scale_zp

from compressor.numerics import affine

ENDS = st.tuples(st.floats(-1e4, 1e4, width=32), st.floats(-1e4, 1e4, width=32)).map(sorted)
TYPES = st.sampled_from([(0, 255), (-128, 127), (0, 127), (-64, 64), (-127, 127)])


@given(ENDS, TYPES, st.booleans())
def test_zero_is_exact_and_the_range_is_covered(ends: list[float], integers: tuple[int, int], symmetric: bool) -> None:
    scale, zero = affine.parameters(*ends, *integers, symmetric=symmetric)
    assert integers[0] <= zero <= integers[1]
    points = np.concatenate([np.linspace(*ends, 33), [0.0]])
    back = affine.dequantize(affine.quantize(points, scale, zero, *integers), scale, zero)
    assert back[-1] == 0.0
    # the zero point is rounded, so that an end may lie half a step outside; the middle of a symmetric type of an even
    # number of integers likewise
    assert np.abs(back - points).max() <= scale * 1.01 + 1e-30 or scale == 1.0


@given(ENDS, st.sampled_from([(0, 255), (-128, 127)]))
def test_parameters_are_those_of_onnxruntime(ends: list[float], integers: tuple[int, int]) -> None:
    kind = np.uint8 if integers[0] == 0 else np.int8
    zero, scale = compute_scale_zp(
        np.float32(ends[0]), np.float32(ends[1]), np.array(integers[0], kind), np.array(integers[1], kind)
    )
    own_scale, own_zero = affine.parameters(*ends, *integers, symmetric=False)
    assert own_scale == pytest.approx(float(scale), rel=1e-6)
    assert abs(own_zero - int(zero)) <= (0 if own_scale != 1.0 else 255)


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_a_scale_per_channel_uses_all_of_int8_in_every_channel(rows: int, columns: int, axis: int, seed: int) -> None:
    weights = np.random.default_rng(seed).normal(size=(rows, columns))
    scales = affine.channel_scales(weights, axis)
    integers = affine.quantize(weights, scales, 0, -127, 127)
    np.testing.assert_array_equal(np.abs(integers).max(axis=1 - axis), 127)
    assert np.abs(affine.dequantize(integers, scales, 0) - weights).max() <= scales.max() / 2 * (1 + 1e-9)


def test_a_channel_of_zeros_stays_zero() -> None:
    weights = np.array([[0.0, 0.0], [1.0, -2.0]])
    scales = affine.channel_scales(weights, 0)
    assert scales[0, 0] == 1.0
    np.testing.assert_array_equal(affine.quantize(weights, scales, 0, -127, 127)[0], 0)


@pytest.mark.parametrize(
    ("low", "high", "qmin", "qmax"),
    [(1, 0, 0, 255), (float("nan"), 1, 0, 255), (0, 1, 1, 5), (0, float("inf"), 0, 255), (0, 1, 0, 0)],
)
def test_nonsense_is_an_error(low: float, high: float, qmin: int, qmax: int) -> None:
    with pytest.raises(ValueError, match="must"):
        affine.parameters(low, high, qmin, qmax, symmetric=False)
