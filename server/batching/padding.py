"""Requests of unequal lengths in one batch: which may share one, and how their rows are filled up.

What may be padded is the entry's declaration (`protos/padding.py`). Lengths are sorted into buckets of at most a
quarter of an octave: docs/padding.md has the figures behind that, from `python -m tests.bench.mix`. Within a batch rows
are padded to the longest there is, not to the bucket's bound; that is for whoever wants few fixed shapes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

SMALLEST = 4
"""Bound of the first bucket: shorter ones cost nearly the same."""
STEPS = 4
"""Buckets per octave, a power of two."""


class Bucket(tuple[object, ...]):
    """A group whose requests differ in their padded lengths: their shapes with each padded length at its upper bound.

    The queue gathers requests of a bucket from wherever they stand; those of any other group have to be neighbours.
    """

    __slots__ = ()


def bound(length: int, maximum: int | None = None) -> int:
    """The upper bound of the bucket of a length. Length 0 has one of its own: no mask keeps any of it."""
    if length <= SMALLEST:
        rounded = SMALLEST if length else 0
    else:
        step = (1 << (length - 1).bit_length()) // (2 * STEPS)
        rounded = -(-length // step) * step
    return rounded if maximum is None else min(rounded, maximum)


def bounds(longest: int) -> Iterator[int]:
    """The bounds of all buckets of lengths from 1 to `longest`, ascending."""
    length = 0
    while length < longest:
        length = bound(length + 1, longest)
        yield length


def longest_of(arrays: Sequence[Array]) -> tuple[int, ...]:
    """The shape of a row that each of these fits into; all have the same rank."""
    first = arrays[0].shape[1:]
    if len(first) == 1:  # token ids, and all that goes with them
        return (max([array.shape[1] for array in arrays]),)
    return tuple(map(max, zip(*(array.shape[1:] for array in arrays), strict=True)))


def join(arrays: Sequence[Array], value: Array, out: Array) -> None:
    """Write the rows of `arrays` one below the other, each at the front of its row of `out`; all else is `value`."""
    out.fill(value)
    flat = out.ndim == 2
    start = 0
    for array in arrays:
        end = start + len(array)
        if flat:  # the same as below at half the price, 1 µs a request
            out[start:end, : array.shape[1]] = array
        else:
            out[(slice(start, end), *map(slice, array.shape[1:]))] = array
        start = end
