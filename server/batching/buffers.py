"""Memory that batches are written into: kept between batches, one set per instance.

A fresh array of some hundred KiB costs page faults each time; a kept one does not. Only the rows in use are ever given
out, and whoever asks for an array overwrites every element of it, so that nothing of one batch is seen in another.
"""

from __future__ import annotations

from collections.abc import Callable
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
        self._arrays: dict[tuple[str, tuple[int, ...]], Array] = {}
        self._bytes = 0

    def array(self, name: str, rows: int, dims: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """An array of `rows` rows of `dims`, valid until the next call for the same; contents undefined."""
        found = self._arrays.get((name, dims))
        if found is None or len(found) < rows:
            found = self._grown(name, rows, dims, dtype, found)
        return found[:rows]

    def _grown(self, name: str, rows: int, dims: tuple[int, ...], dtype: np.dtype[Any], smaller: Array | None) -> Array:
        size = 1 << (rows - 1).bit_length()
        array = self._allocate((size, *dims), dtype)
        if dtype.hasobject:  # would keep the elements of past batches alive
            return array
        kept = self._bytes + array.nbytes - (0 if smaller is None else smaller.nbytes)
        if kept <= KEPT_BYTES:
            self._arrays[name, dims] = array
            self._bytes = kept
        return array
