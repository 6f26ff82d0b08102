"""Random inputs that a model accepts, and how far two models' answers to them are apart.

Used to prove an export or a graph rewrite right. Integer inputs are the difficulty: a token id must be below the
number of rows of the embedding that it looks up, a mask is zeros and ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from compressor.artifact import Axis, Tensor
from compressor.errors import PassError, RecipeError

Arrays = Mapping[str, np.ndarray[Any, Any]]
_THROUGH = {"Cast", "Identity", "Unsqueeze", "Squeeze", "Reshape", "Slice", "Flatten", "Expand"}
"""What may lie between an input and the lookup that it is for."""


def session(model: Path | onnx.ModelProto, *, threads: int = 1, optimized: bool = True) -> onnxruntime.InferenceSession:
    """A CPU session without log lines. Raises RecipeError with onnxruntime's reason, in one line."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = os.fspath(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001  onnxruntime raises a class per status code, without a common base
        where = model if isinstance(model, Path) else "the model"
        raise RecipeError(f"{where}: onnxruntime does not load it: {one_line(error)}") from None


def one_line(error: BaseException) -> str:
    """The first telling line of an error's text, without onnxruntime's code prefix."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__)[:300]


def run(
    model: onnxruntime.InferenceSession, names: Sequence[str], feeds: Arrays, what: str
) -> list[np.ndarray[Any, Any]]:
    """The model's answers. Raises PassError with onnxruntime's reason and the shapes that were fed, in one line."""
    try:
        return list(model.run(list(names), dict(feeds)))
    except Exception as error:  # noqa: BLE001  onnxruntime raises a class per status code, without a common base
        shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
        raise PassError(f"{what} does not run on random inputs ({shapes}): {one_line(error)}") from None


def sizes(inputs: Sequence[Tensor], variant: int) -> dict[str, int]:
    """A size for each axis within its limits: two variants differ wherever the limits allow it, and no two axes of a
    variant are alike, so that a size that was mistaken for another one, or fixed, shows."""
    taken: dict[str, int] = {}
    for tensor in inputs:
        for axis in tensor.shape:
            if isinstance(axis, Axis) and axis.name not in taken:
                base = (3 if axis.name == "batch" else 8 + 2 * len(taken)) + (3 * variant)
                size = max(axis.minimum, 2) + base - 2
                taken[axis.name] = (
                    size if axis.maximum is None or size <= axis.maximum else max(axis.minimum, axis.maximum - variant)
                )
    return taken


def rows(model: onnx.ModelProto) -> dict[str, int]:
    """For each input that looks up a stored table (Gather), the smallest number of rows among these tables."""
    stored = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    origin = {value.name: value.name for value in model.graph.input}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type in _THROUGH and node.input and node.input[0] in origin:
            origin[node.output[0]] = origin[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in stored and node.input[1] in origin:
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            name = origin[node.input[1]]
            found[name] = min(found.get(name, 2**31), stored[node.input[0]][axis])
    return found


def random_inputs(
    inputs: Iterable[Tensor], at: Mapping[str, int], bounds: Mapping[str, int], generator: np.random.Generator
) -> dict[str, np.ndarray[Any, Any]]:
    """One batch for a model, axes sized by `at`.

    Floats are standard normal; integers are drawn below `bounds[name]`, below 2 where no bound is known. An input
    with `mask` in its name is ones with a padded end of random length in every row but the first.
    """
    made = {}
    for tensor in inputs:
        shape = tuple(at[axis.name] if isinstance(axis, Axis) else axis for axis in tensor.shape)
        if tensor.datatype.name == "BYTES":
            raise RecipeError(f"input {tensor.name!r}: text cannot be made up, so the pass cannot be checked")
        if "mask" in tensor.name.lower() and len(shape) > 1:
            kept = generator.integers(1, shape[-1] + 1, size=(*shape[:-1], 1))
            kept[0] = shape[-1]
            values: np.ndarray[Any, Any] = np.arange(shape[-1]) < kept
        elif tensor.datatype.name.startswith(("INT", "UINT")):
            values = generator.integers(0, max(1, bounds.get(tensor.name, 2)), size=shape)
        elif tensor.datatype.name == "BOOL":
            values = generator.random(shape) < 0.5
        else:
            values = generator.standard_normal(shape)
        made[tensor.name] = values.astype(tensor.datatype.numpy)
    return made


@dataclass(frozen=True, slots=True)
class Distance:
    """How far an answer is from the expected one."""

    output: str
    max_abs: float
    relative: float
    """`max_abs` over the largest magnitude expected."""


def distance(
    outputs: Sequence[str], expected: Sequence[np.ndarray[Any, Any]], got: Sequence[np.ndarray[Any, Any]]
) -> Distance:
    """The worst output. Raises PassError where shapes differ, or NaN and infinities are not in the same places."""
    worst = Distance(outputs[0] if outputs else "", 0.0, 0.0)
    for name, a, b in zip(outputs, expected, got, strict=True):
        if a.shape != b.shape:
            raise PassError(f"output {name!r} has shape {b.shape}, expected {a.shape}")
        if a.dtype.kind not in "fiub":
            continue
        a, b = a.astype(np.float64), b.astype(np.float64)
        if not np.array_equal(np.isfinite(a), np.isfinite(b)):
            raise PassError(f"output {name!r} is NaN or infinite where the model before is not, or the reverse")
        finite = np.isfinite(a)
        if not finite.any():
            continue
        gap = float(np.abs(a[finite] - b[finite]).max())
        relative = gap / max(float(np.abs(a[finite]).max()), 1e-6)
        if relative > worst.relative:
            worst = Distance(name, gap, relative)
    return worst
