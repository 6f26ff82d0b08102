"""Affine integer quantization: real ≈ scale × (integer - zero point). Arrays in, arrays out."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


def parameters(low: float, high: float, qmin: int, qmax: int, *, symmetric: bool) -> tuple[float, int]:
    """Scale and zero point that cover [low, high] and zero itself.

    Symmetric: zero point in the middle of [qmin, qmax], the range widened to both sides. A range of nothing but zero
    has scale 1. Raises ValueError for a range or integer type turned round, or not finite.
    """
    if not (np.isfinite(low) and np.isfinite(high)) or low > high:
        raise ValueError(f"range is [{low}, {high}], must be finite and in order")
    if not qmin <= 0 <= qmax or qmin == qmax:
        raise ValueError(f"integers are {qmin} to {qmax}, must hold zero")
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high
    scale = (high - low) / (qmax - qmin)
    if scale < np.finfo(np.float32).tiny:
        return 1.0, 0
    zero = round((qmin + qmax) / 2) if symmetric else round(qmin - low / scale)
    return scale, min(max(zero, qmin), qmax)


def quantize(values: Array, scale: Array | float, zero: int, qmin: int, qmax: int) -> Array:
    """Nearest integers (ties to even), int32, cut to [qmin, qmax]; `scale` broadcasts against `values`."""
    return np.asarray(np.clip(np.rint(values / scale) + zero, qmin, qmax), dtype=np.int32)


def dequantize(integers: Array, scale: Array | float, zero: int) -> Array:
    return np.asarray((integers - zero) * scale)


def channel_scales(weights: Array, axis: int, bits: int = 8) -> Array:
    """One symmetric scale per index of `axis`, shaped to broadcast against `weights`; 1 for a channel of zeros."""
    others = tuple(i for i in range(weights.ndim) if i != axis % weights.ndim)
    largest = np.abs(weights).max(axis=others, keepdims=True).astype(np.float64)
    return np.where(largest > 0, largest / (2 ** (bits - 1) - 1), 1.0)
