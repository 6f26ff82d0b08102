"""Real samples from a file: a numpy archive, or the JSON that perf_analyzer reads."""

from __future__ import annotations

import base64
import binascii
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from protos.datatypes import BY_NAME
from tests.load.errors import LoadError
from tests.load.inputs import Array, Model, ModelInput, Sample


def read(path: Path, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Sample]:
    """The samples of an `.npz` (one array per input, the first axis counts the samples) or a `.json` file
    (perf_analyzer's "Real Input Data": `{"data": [{"INPUT0": [...] | {"content": [...], "shape": [...]} | {"b64":
    "..."}}, ...]}`; lists of steps are taken one after the other). `shapes` settles variable dimensions of flat
    content. Raises LoadError."""
    try:
        samples = _read_npz(path, model) if path.suffix == ".npz" else _read_json(path, model, shapes)
    except OSError as error:
        raise LoadError(f"--input-data {path}: {error.strerror or error}") from None
    if not samples:
        raise LoadError(f"--input-data {path}: holds no samples")
    return samples


def _read_npz(path: Path, model: Model) -> list[Sample]:
    try:
        # Opened here, since numpy leaves the file open when the archive is torn.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if isinstance(archive, np.ndarray):
                raise ValueError("it is a single array")
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, zipfile.BadZipFile, EOFError) as error:
        raise LoadError(f"--input-data {path}: no readable .npz of plain arrays: {error}") from None
    _check_inputs(path, model, arrays.keys())
    counts = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if len(set(counts.values())) > 1:
        raise LoadError(f"--input-data {path}: the arrays differ in their number of samples: {counts}")
    converted = {
        item.name: _convert(arrays[item.name], item, f"--input-data {path}")
        for item in model.inputs
        if item.name in arrays
    }
    return [{name: array[row] for name, array in converted.items()} for row in range(next(iter(counts.values()), 0))]


def _read_json(path: Path, model: Model, shapes: Mapping[str, tuple[int, ...]]) -> list[Sample]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise LoadError(f"--input-data {path}: not JSON: {error}") from None
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, list):
        raise LoadError(f"--input-data {path}: expected an object with a list under 'data'")
    steps = [step for entry in data for step in (entry if isinstance(entry, list) else [entry])]
    items = {item.name: item for item in model.inputs}
    samples: list[Sample] = []
    for number, step in enumerate(steps):
        where = f"--input-data {path}: sample {number}"
        if not isinstance(step, dict):
            raise LoadError(f"{where}: expected an object of inputs, found {type(step).__name__}")
        _check_inputs(where, model, step.keys())
        samples.append({name: _tensor(value, items[name], shapes, where) for name, value in step.items()})
    return samples


def _check_inputs(where: object, model: Model, given: Any) -> None:
    label = str(where) if str(where).startswith("--") else f"--input-data {where}"
    known = [item.name for item in model.inputs]
    for name in given:
        if name not in known:
            raise LoadError(f"{label}: {name!r} is no input of model {model.name!r}, which has {', '.join(known)}")
    for item in model.inputs:
        if item.name not in given and not item.optional:
            raise LoadError(f"{label}: input {item.name!r} of model {model.name!r} is missing")


def _tensor(value: Any, item: ModelInput, shapes: Mapping[str, tuple[int, ...]], where: str) -> Array:
    shape: tuple[int, ...] | None = None
    raw: bytes | None = None
    if isinstance(value, dict):
        if "shape" in value:
            shape = _shape(value["shape"], item, where)
        if "b64" in value:
            raw = _decode(value["b64"], item, where)
        value = value.get("content", [])
    array = _from_raw(raw, item, where) if raw is not None else _from_content(value, item, where)
    if shape is None and -1 not in item.dims:
        shape = item.dims
    if shape is None:
        shape = shapes.get(item.name) or (array.shape if array.ndim == len(item.dims) else None)
    if shape is None:
        raise LoadError(
            f"{where}: input {item.name!r} needs a 'shape' or --shape, its dimensions are {list(item.dims)}"
        )
    if math.prod(shape) != array.size:
        raise LoadError(f"{where}: input {item.name!r} has {array.size} elements, its shape {list(shape)} wants others")
    one: Array = _convert(array.reshape(shape)[np.newaxis], item, where)[0]
    return one


def _shape(value: Any, item: ModelInput, where: str) -> tuple[int, ...]:
    if not isinstance(value, list) or not all(type(size) is int and size >= 0 for size in value):
        raise LoadError(f"{where}: input {item.name!r}: 'shape' must be a list of whole numbers, found {value!r}")
    return tuple(value)


def _decode(value: Any, item: ModelInput, where: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, TypeError, ValueError) as error:
        raise LoadError(f"{where}: input {item.name!r}: 'b64' is not base64: {error}") from None


def _from_raw(raw: bytes, item: ModelInput, where: str) -> Array:
    if item.datatype == "BYTES":
        return np.array([raw], dtype=object)
    dtype = BY_NAME[item.datatype].numpy
    if len(raw) % dtype.itemsize:
        raise LoadError(f"{where}: input {item.name!r} has {len(raw)} bytes, no multiple of {dtype.itemsize}")
    return np.frombuffer(raw, dtype)


def _from_content(value: Any, item: ModelInput, where: str) -> Array:
    listed = value if isinstance(value, list) else [value]
    try:
        return np.array(listed, dtype=object if item.datatype == "BYTES" else None)
    except ValueError:
        raise LoadError(f"{where}: input {item.name!r} is ragged") from None


def _convert(array: Array, item: ModelInput, where: str) -> Array:
    """Samples of one input in its datatype; refused where a value or a size would have to change."""
    if len(array.shape) - 1 != len(item.dims) or any(
        have not in (-1, size) for have, size in zip(item.dims, array.shape[1:], strict=True)
    ):
        raise LoadError(
            f"{where}: input {item.name!r} has the shape {list(array.shape[1:])} per sample, expected {list(item.dims)}"
        )
    if item.datatype == "BYTES":
        flat = [str(x).encode() if not isinstance(x, bytes) else bytes(x) for x in array.ravel().tolist()]
        found = np.empty(len(flat), dtype=object)
        found[:] = flat
        return found.reshape(array.shape)
    dtype = BY_NAME[item.datatype].numpy
    if array.dtype == dtype:
        return array
    floats = item.datatype in ("FP16", "FP32", "FP64", "BF16")
    if array.dtype.kind not in ("fiub" if floats else "iub"):
        raise LoadError(f"{where}: input {item.name!r} holds {array.dtype} values, its datatype is {item.datatype}")
    converted = array.astype(dtype)
    if not floats and not np.array_equal(converted.astype(object), array.astype(object)):
        raise LoadError(f"{where}: input {item.name!r} holds values that {item.datatype} cannot")
    return converted
