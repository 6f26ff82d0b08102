"""What to send: the tensors a model declares, filled at random, with zeros, or from a file of real samples.

A sample is one row: arrays without the batch dimension, by input name. Files are `samples.py`'s; the wire is
`client.py`'s.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protos.datatypes import BY_NAME
from tests.load.errors import LoadError

Array = np.ndarray[Any, np.dtype[Any]]
Sample = Mapping[str, Array]

POOL_REQUESTS = 64
POOL_BYTES = 64 * 2**20
"""Requests are prepared once and sent in turn: enough different ones that a batch is no row times N, few enough to
hold."""
MAX_REQUEST_BYTES = 2**31 - 1
"""What a gRPC message may hold (Triton: MAX_GRPC_MESSAGE_SIZE, INT32_MAX)."""
STRING_LENGTH = 128
"""perf_analyzer's default for --string-length."""

RANGES_BY_NAME = {"attention_mask": (1, 1), "input_mask": (1, 1), "token_type_ids": (0, 0), "segment_ids": (0, 0)}
"""Inputs of transformers that have one plausible filling; a random mask would hide most tokens or overflow the
softmax."""
INTEGER_RANGE = (0, 99)
"""Token numbers that every vocabulary has, positions that every model with 100 of them has."""


@dataclass(frozen=True, slots=True)
class ModelInput:
    """An input as the model declares it; `dims` without the batch dimension, -1 where the size varies."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """What the server says about a model."""

    name: str
    platform: str
    inputs: tuple[ModelInput, ...]
    max_batch_size: int
    """0: the model has no batch dimension, and the whole of each array is one row."""


@dataclass(frozen=True, slots=True)
class Filling:
    """How the user wants inputs filled; shapes and ranges by input name."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    zero: bool = False
    string_length: int = STRING_LENGTH
    seed: int = 0


def check_names(model: Model, filling: Filling) -> None:
    """Raises LoadError when a shape or a range names an input that the model does not have."""
    known = {item.name for item in model.inputs}
    for flag, names in (("--shape", filling.shapes), ("--input-range", filling.ranges)):
        for name in names:
            if name not in known:
                raise LoadError(f"{flag} {name}: model {model.name!r} has no such input, it has {_listed(known)}")


def check_batch(model: Model, batch: int) -> None:
    """Raises LoadError when the model cannot take requests of so many rows."""
    if model.max_batch_size == 0 and batch != 1:
        raise LoadError(f"-b {batch}: model {model.name!r} does not batch (max_batch_size 0), only -b 1 is possible")
    if model.max_batch_size and batch > model.max_batch_size:
        raise LoadError(f"-b {batch}: model {model.name!r} takes at most {model.max_batch_size} rows per request")


def shape_of(item: ModelInput, asked: tuple[int, ...] | None, model: str) -> tuple[int, ...]:
    """The sizes to send for one row. Raises LoadError when a dimension varies and none was given, or they disagree."""
    if asked is None:
        if -1 in item.dims:
            raise LoadError(
                f"input {item.name!r} of model {model!r} has the dimensions {_dims(item.dims)}, -1 being variable: "
                f"give --shape {item.name}:{','.join('N' if size == -1 else str(size) for size in item.dims)}"
            )
        return item.dims
    fits = len(asked) == len(item.dims) and all(have in (-1, want) for have, want in zip(item.dims, asked, strict=True))
    if not fits:
        raise LoadError(
            f"--shape {item.name}:{','.join(map(str, asked))} does not fit input {item.name!r} of model {model!r}, "
            f"which has the dimensions {_dims(item.dims)} (without the batch dimension)"
        )
    return asked


def generate(model: Model, filling: Filling, batch: int) -> list[Sample]:
    """Samples for POOL_REQUESTS requests, fewer where they would pass POOL_BYTES. Optional inputs are left out unless
    given a shape. The same seed gives the same samples. Raises LoadError."""
    check_names(model, filling)
    wanted = [item for item in model.inputs if not item.optional or item.name in filling.shapes]
    shapes = {item.name: shape_of(item, filling.shapes.get(item.name), model.name) for item in wanted}
    row_bytes = 0
    for item in wanted:
        known = BY_NAME.get(item.datatype)
        if known is None:
            raise LoadError(f"input {item.name!r} of model {model.name!r} has the unknown datatype {item.datatype!r}")
        row_bytes += math.prod(shapes[item.name]) * (known.itemsize or 4 + filling.string_length)
    if row_bytes * batch > MAX_REQUEST_BYTES:
        raise LoadError(f"one request would hold {row_bytes * batch} bytes, gRPC carries at most {MAX_REQUEST_BYTES}")
    requests = max(1, min(POOL_REQUESTS, POOL_BYTES // max(1, row_bytes * batch)))
    random = np.random.default_rng(filling.seed)
    fill = _zeros if filling.zero else _random
    return [
        {item.name: fill(item, shapes[item.name], filling, random) for item in wanted} for _ in range(requests * batch)
    ]


def _zeros(item: ModelInput, shape: tuple[int, ...], filling: Filling, random: np.random.Generator) -> Array:
    if item.datatype == "BYTES":
        return np.full(shape, b"0", dtype=object)
    return np.zeros(shape, BY_NAME[item.datatype].numpy)


def _random(item: ModelInput, shape: tuple[int, ...], filling: Filling, random: np.random.Generator) -> Array:
    asked = filling.ranges.get(item.name)
    if item.datatype == "BYTES":
        if asked is not None:
            raise LoadError(f"--input-range {item.name}: BYTES has no range, use --string-length")
        return _strings(shape, filling.string_length, random)
    dtype = BY_NAME[item.datatype].numpy
    if item.datatype in ("FP16", "FP32", "FP64", "BF16"):
        low, high = asked or (0.0, 1.0)
        return random.uniform(low, high, shape).astype(dtype)
    bounds = (0, 1) if item.datatype == "BOOL" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
    low, high = asked or RANGES_BY_NAME.get(item.name.lower()) or _default_range(item.datatype)
    if low < bounds[0] or high > bounds[1] or low != int(low) or high != int(high):
        whole = f"whole numbers from {bounds[0]} to {bounds[1]}"
        raise LoadError(f"--input-range {item.name}:{low:g}:{high:g}: {item.datatype} holds {whole}")
    # Drawn as 64 bits of the right sign: numpy refuses bounds beyond the dtype that it draws.
    wide = np.uint64 if item.datatype == "UINT64" else np.int64
    return random.integers(int(low), int(high), shape, dtype=wide, endpoint=True).astype(dtype)


def _default_range(datatype: str) -> tuple[int, int]:
    # UINT8 is nearly always an image, for which the whole range is valid.
    return {"BOOL": (0, 1), "UINT8": (0, 255)}.get(datatype, INTEGER_RANGE)


def _strings(shape: tuple[int, ...], length: int, random: np.random.Generator) -> Array:
    letters = random.integers(ord("a"), ord("z"), (math.prod(shape), length), dtype=np.uint8, endpoint=True)
    found = np.empty(math.prod(shape), dtype=object)
    for index, row in enumerate(letters):
        found[index] = row.tobytes()
    return found.reshape(shape)


def batches(samples: Sequence[Sample], batch: int, batched: bool) -> list[dict[str, Array]]:
    """The arrays of each request: `batch` samples in turn, wrapping round, stacked on a new first axis when `batched`.

    As many requests as are needed to send every sample at least once. Raises LoadError when samples of one batch
    differ in shape or in which inputs they have.
    """
    count = math.ceil(len(samples) / batch)
    found = []
    for number in range(count):
        rows = [samples[(number * batch + row) % len(samples)] for row in range(batch)]
        if not batched:
            found.append(dict(rows[0]))
            continue
        _check_alike(rows)
        found.append({name: np.stack([row[name] for row in rows]) for name in rows[0]})
    return found


def _check_alike(rows: Sequence[Sample]) -> None:
    shape: Callable[[Sample], dict[str, tuple[int, ...]]] = lambda row: {name: row[name].shape for name in row}  # noqa: E731
    for row in rows[1:]:
        if shape(row) != shape(rows[0]):
            raise LoadError(
                f"samples of one batch differ: {shape(rows[0])} and {shape(row)}; use -b 1 or equal samples"
            )


def _dims(dims: Sequence[int]) -> str:
    return "[" + ",".join(map(str, dims)) + "]"


def _listed(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"
