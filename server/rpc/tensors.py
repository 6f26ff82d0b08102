"""A tensor's raw contents into an array and back: row-major, little-endian, BYTES elements as a length and their bytes.

Error texts are Triton's (`validate.py` has them), without the request's id.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np

from protos.datatypes import Datatype
from server import validate
from server.request import Tensor

Array = np.ndarray[Any, Any]

_LENGTH = struct.Struct("<I")


def pack(tensor: Tensor) -> bytes:
    """A tensor's raw contents, row-major and little-endian."""
    if tensor.datatype.name != "BYTES":
        return tensor.array.tobytes()
    parts: list[bytes] = []
    for element in tensor.array.ravel():
        data = element if isinstance(element, bytes) else str(element).encode()
        parts += (_LENGTH.pack(len(data)), data)
    return b"".join(parts)


class MismatchError(Exception):
    """The bytes of a tensor contradict its datatype and shape; `decode` makes it the DataError."""


def unpack(name: str, model: str, raw: bytes | memoryview, datatype: Datatype, shape: tuple[int, ...]) -> Array:
    """A tensor out of its raw contents; the inverse of `pack`. Raises MismatchError, naming input and model."""
    count = math.prod(shape)
    if datatype.name == "BYTES":
        return object_array(_elements(name, model, bytes(raw), count), shape)
    compare(name, model, count * datatype.itemsize, len(raw))
    if not count:
        return np.empty(shape, datatype.numpy)
    if datatype.name == "BOOL":
        # a bool that is neither 0 nor 1 would be undefined behaviour in compiled code further on
        return np.not_equal(np.frombuffer(raw, np.uint8), 0).reshape(shape)
    flat: Array = np.frombuffer(raw, datatype.numpy)
    return flat.reshape(shape)


def compare(name: str, model: str, expected: int, got: int) -> None:
    if expected != got:
        raise MismatchError(validate.byte_size_mismatch(name, model, expected, got))


def compare_elements(name: str, model: str, expected: int, got: int) -> None:
    if got > expected:
        raise MismatchError(validate.string_count_exceeded(name, model, expected))
    if got < expected:
        raise MismatchError(validate.string_count_mismatch(name, model, expected, got))


def _elements(name: str, model: str, raw: bytes, count: int) -> list[bytes]:
    """Elements of a BYTES tensor, each a length (4 bytes, little-endian) and its bytes; one pass."""
    elements: list[bytes] = []
    at, end = 0, len(raw)
    unpack_from = _LENGTH.unpack_from
    while at < end:
        if len(elements) >= count:
            compare_elements(name, model, count, len(elements) + 1)
        if end - at < 4:
            raise MismatchError(validate.string_length_incomplete(name, model, end - at))
        length = unpack_from(raw, at)[0]
        at += 4
        if length > end - at:
            raise MismatchError(validate.string_data_incomplete(name, model, length, end - at))
        elements.append(raw[at : at + length])
        at += length
    compare_elements(name, model, count, len(elements))
    return elements


def object_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), object)
    array[:] = elements
    return array.reshape(shape)
