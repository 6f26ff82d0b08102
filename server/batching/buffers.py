"""Memory that batches are written into: kept between batches, one set per instance.

A fresh array of some hundred KiB costs page faults each time; a kept one does not. Only the elements in use are ever
given out, and whoever asks for an array overwrites every one of them, so that nothing of one batch is seen in another.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Allocate = Callable[[tuple[int, ...], np.dtype[Any]], Array]
"""Uninitialised memory of a shape and type; a backend may have a better place for it than the heap (pinned memory)."""

KEPT_BYTES = 64 << 20
"""Per instance. Larger batches get memory of their own, which is given back."""


class Buffers:
    """Belongs to one instance and is used by one thread at a time."""

    def __init__(self, allocate: Allocate = np.empty) -> None:
        self._allocate = allocate
        self._kept: dict[str, Array] = {}
        """Flat, one per name: however many shapes clients send, no input has more than its largest batch needs."""
        self._bytes = 0

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array for input `name`, whose dtype is always the same; valid until the next call with the same name.
        Its contents are undefined."""
        size = prod(shape)
        flat = self._kept.get(name)
        if flat is None or flat.size < size:
            flat = self._grown(name, size, dtype, flat)
        return flat[:size].reshape(shape)

    def _grown(self, name: str, size: int, dtype: np.dtype[Any], smaller: Array | None) -> Array:
        if dtype.hasobject:  # kept, it would keep the elements of past batches alive
            return self._allocate((size,), dtype)
        larger = 1 << (size - 1).bit_length() if size else 0
        others = self._bytes - (0 if smaller is None else smaller.nbytes)
        if others + larger * dtype.itemsize > KEPT_BYTES:
            return self._allocate((size,), dtype)
        array = self._kept[name] = self._allocate((larger,), dtype)
        self._bytes = others + array.nbytes
        return array
