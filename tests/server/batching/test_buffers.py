"""Kept memory: the same again, never more than asked for, never more kept than allowed."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np

from server.batching.buffers import KEPT_BYTES, Buffers

FP32, INT64 = np.dtype(np.float32), np.dtype(np.int64)


class Counted:
    """np.empty that remembers what it gave."""

    def __init__(self) -> None:
        self.given: list[np.ndarray[Any, Any]] = []

    def __call__(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
        self.given.append(np.empty(shape, dtype))
        return self.given[-1]


def test_an_array_has_the_shape_and_type_asked_for() -> None:
    found = Buffers().array("x", (3, 5), INT64)
    assert found.shape == (3, 5)
    assert found.dtype == INT64
    assert found.flags.c_contiguous
    assert found.flags.aligned


def test_memory_is_kept_whatever_the_shapes() -> None:
    allocate = Counted()
    buffers = Buffers(allocate)
    largest = buffers.array("x", (8, 100), FP32)
    for shape in ((1, 3), (8, 100), (100, 8), (2, 2, 2), (0, 4)):
        assert buffers.array("x", shape, FP32).shape == shape
    assert np.shares_memory(buffers.array("x", (8, 100), FP32), largest)
    assert len(allocate.given) == 1


def test_inputs_do_not_share_memory() -> None:
    buffers = Buffers()
    assert not np.shares_memory(buffers.array("x", (4,), FP32), buffers.array("y", (4,), FP32))


def test_growing_takes_few_steps() -> None:
    allocate = Counted()
    buffers = Buffers(allocate)
    for rows in range(1, 65):
        buffers.array("x", (rows, 16), FP32)
    assert len(allocate.given) <= 7


def test_what_is_too_large_to_keep_is_given_and_forgotten() -> None:
    buffers = Buffers()
    kept = buffers.array("x", (4,), FP32)
    large = weakref.ref(buffers.array("y", (KEPT_BYTES + 1,), np.dtype(np.uint8)).base)
    gc.collect()
    assert large() is None
    assert np.shares_memory(buffers.array("x", (4,), FP32), kept)


def test_what_is_kept_stays_within_its_bound_over_all_inputs() -> None:
    allocate = Counted()
    buffers = Buffers(allocate)
    half = KEPT_BYTES // 2
    for name in "abcd":
        buffers.array(name, (half,), np.dtype(np.uint8))
    given = list(map(weakref.ref, allocate.given))
    allocate.given.clear()
    gc.collect()
    kept = [array.nbytes for array in (reference() for reference in given) if array is not None]
    assert sum(kept) == KEPT_BYTES


def test_objects_are_not_kept_alive() -> None:
    class Element:
        pass

    buffers = Buffers()
    array = buffers.array("x", (1,), np.dtype(object))
    array[0] = element = Element()
    gone = weakref.ref(element)
    del element, array
    gc.collect()
    assert gone() is None
