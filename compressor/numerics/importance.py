"""Which weights matter least: arrays in, masks out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]


def magnitude(weights: Array) -> Array:
    """|w|: the oldest score, and hard to beat without data (Han et al., 2015)."""
    return np.abs(weights)


def keep(scores: Array, sparsity: float) -> Mask:
    """True for what stays: all but the `round(sparsity × size)` lowest scores, of equal ones the first in order go.

    Raises ValueError for a sparsity outside [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity is {sparsity}, must be at least 0 and below 1")
    drop = round(sparsity * scores.size)
    mask = np.ones(scores.size, dtype=np.bool_)
    if drop:
        flat = scores.reshape(-1)
        limit = np.partition(flat, drop - 1)[drop - 1]
        below = flat < limit
        mask[below] = False
        equal = np.flatnonzero(flat == limit)
        mask[equal[: drop - int(below.sum())]] = False
    return mask.reshape(scores.shape)


def keep_globally(scores: Mapping[str, Array], sparsity: float) -> dict[str, Mask]:
    """As `keep`, over all arrays at once: layers with small scores lose more."""
    if not scores:
        return {}
    mask = keep(np.concatenate([array.reshape(-1) for array in scores.values()]), sparsity)
    masks, start = {}, 0
    for name, array in scores.items():
        masks[name] = mask[start : start + array.size].reshape(array.shape)
        start += array.size
    return masks
