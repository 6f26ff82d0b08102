"""The classification extension: the top k of an output as "value:index[:label]" strings.

Triton's rules (server: src/classification.cc): values are spelled as C++ `std::to_string` does, the index runs over
all elements of a row, a label is added where the output's `label_filename` has a line for the index.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from protos.datatypes import BY_NAME, Datatype
from protos.model_config import ConfigError, ModelConfig
from server.errors import InvalidRequest
from server.request import Tensor

Labels = tuple[str, ...]

_INTEGERS = frozenset({"UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"})
_FLOATS = frozenset({"FP32", "FP64"})
_BYTES = BY_NAME["BYTES"]


def check_datatype(datatype: Datatype) -> None:
    """Raises InvalidRequest for a datatype that Triton does not classify (BOOL, FP16, BF16, BYTES)."""
    if datatype.name not in _INTEGERS and datatype.name not in _FLOATS:
        text = f"class result not available for output due to unsupported type '{datatype.name}'"
        raise InvalidRequest(text)


def classify(tensor: Tensor, k: int, labels: Labels, batched: bool) -> Tensor:
    """The BYTES tensor of shape [rows, min(k, n)] ([min(k, n)] where the model does not batch), best first.

    Equal values keep the order of their indices. Raises InvalidRequest as `check_datatype`.
    """
    check_datatype(tensor.datatype)
    array = tensor.array
    count = array.shape[0] if batched else 1
    rows = array.reshape(count, array.size // max(1, count))
    number = min(k, rows.shape[1])
    text = _float_text if tensor.datatype.name in _FLOATS else str
    result: np.ndarray[Any, Any] = np.empty((rows.shape[0], number), dtype=object)
    for i, row in enumerate(rows):
        # Reversed twice, so that the stable sort keeps lower indices first among equals.
        best = (row.size - 1 - np.argsort(row[::-1], kind="stable"))[::-1][:number]
        for j, index in enumerate(best.tolist()):
            label = f":{labels[index]}" if index < len(labels) and labels[index] else ""
            result[i, j] = f"{text(row[index])}:{index}{label}".encode()
    return Tensor(tensor.name, _BYTES, result if batched else result[0])


def _float_text(value: Any) -> str:
    return f"{float(value):f}"


def read_labels(folder: Path, config: ModelConfig) -> Mapping[str, Labels]:
    """The label files of a model's outputs, which stand beside `config.pbtxt` in `folder`. Raises ConfigError."""
    return {
        spec.name: _read(folder, spec.label_filename, f"model '{config.name}', output '{spec.name}'")
        for spec in config.outputs
        if spec.label_filename
    }


def _read(folder: Path, name: str, where: str) -> Labels:
    plain = PurePosixPath(name)
    if plain.is_absolute() or ".." in plain.parts or "\0" in name:
        raise ConfigError(f"{where}: label_filename '{name}' is not a plain path inside the model's folder")
    path = folder / plain
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{where}: label_filename '{name}' leads out of the model's folder")
    try:
        return tuple(path.read_text(encoding="utf-8").splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: label_filename '{name}' cannot be read: {type(error).__name__}") from error
