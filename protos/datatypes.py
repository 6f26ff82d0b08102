"""One table of tensor element types: KServe name = config enum = numpy dtype = item size.

Everything that converts between the wire, `config.pbtxt`, ONNX and numpy looks here; nothing else lists types.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np


@dataclass(frozen=True, slots=True)
class Datatype:
    """An element type of the KServe v2 protocol."""

    name: str
    """Name on the wire, e.g. `FP32`."""
    config: str
    """Name in `config.pbtxt`, e.g. `TYPE_FP32`; the two differ for BYTES, which is `TYPE_STRING` there."""
    numpy: np.dtype[Any]
    """Little-endian numpy dtype; `object` (holding `bytes`) for BYTES."""
    itemsize: int
    """Bytes per element on the wire; 0 for BYTES, whose elements carry a 4-byte length each."""
    contents: str | None
    """Field of InferTensorContents that may carry it typed; None where the protocol has none (FP16, BF16)."""
    onnx: str
    """ONNX Runtime's spelling, the `float` of `tensor(float)`."""
    onnx_code: int
    """Number in onnx.TensorProto.DataType."""


def _row(name: str, config: str, numpy: Any, contents: str | None, onnx: str, onnx_code: int) -> Datatype:
    dtype: np.dtype[Any] = np.dtype(numpy)
    return Datatype(name, config, dtype, 0 if name == "BYTES" else dtype.itemsize, contents, onnx, onnx_code)


DATATYPES: tuple[Datatype, ...] = (
    _row("BOOL", "TYPE_BOOL", np.bool_, "bool_contents", "bool", 9),
    _row("UINT8", "TYPE_UINT8", np.uint8, "uint_contents", "uint8", 2),
    _row("UINT16", "TYPE_UINT16", "<u2", "uint_contents", "uint16", 4),
    _row("UINT32", "TYPE_UINT32", "<u4", "uint_contents", "uint32", 12),
    _row("UINT64", "TYPE_UINT64", "<u8", "uint64_contents", "uint64", 13),
    _row("INT8", "TYPE_INT8", np.int8, "int_contents", "int8", 3),
    _row("INT16", "TYPE_INT16", "<i2", "int_contents", "int16", 5),
    _row("INT32", "TYPE_INT32", "<i4", "int_contents", "int32", 6),
    _row("INT64", "TYPE_INT64", "<i8", "int64_contents", "int64", 7),
    _row("FP16", "TYPE_FP16", "<f2", None, "float16", 10),
    _row("FP32", "TYPE_FP32", "<f4", "fp32_contents", "float", 1),
    _row("FP64", "TYPE_FP64", "<f8", "fp64_contents", "double", 11),
    _row("BF16", "TYPE_BF16", ml_dtypes.bfloat16, None, "bfloat16", 16),
    _row("BYTES", "TYPE_STRING", object, "bytes_contents", "string", 8),
)

BY_NAME = {d.name: d for d in DATATYPES}
BY_CONFIG = {d.config: d for d in DATATYPES}
BY_ONNX = {d.onnx: d for d in DATATYPES}
BY_ONNX_CODE = {d.onnx_code: d for d in DATATYPES}
BY_NUMPY = {d.numpy: d for d in DATATYPES}
