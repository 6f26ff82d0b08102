"""Run calibration samples through an ONNX model in small batches and hand every inner value to a collector.

Only one batch of inner values exists at a time. onnxruntime's own calibrators keep all of them before they look at
any (its issue #10503: 123 GB for 32 samples of a BERT).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import onnx

from compressor.artifact import Axis, Tensor
from compressor.errors import PassError, RecipeError
from compressor.numerics import ranges
from compressor.passes import onnx_files, probe
from compressor.passes.base import Sample

Method = Literal["minmax", "entropy", "percentile"]
Feeds = dict[str, np.ndarray[Any, Any]]


class Collector(Protocol):
    def update(self, values: np.ndarray[Any, Any]) -> None: ...


def batches(samples: Iterator[Sample], inputs: Sequence[Tensor], rows: int) -> Iterator[Feeds]:
    """Up to `rows` neighbouring samples of equal shapes at a time; one by one where the model has no batch axis.

    Raises RecipeError naming the sample, input and shape for a sample that the model cannot take.
    """
    batched = all(t.shape and isinstance(t.shape[0], Axis) and t.shape[0].name == "batch" for t in inputs)
    waiting: list[Feeds] = []
    for index, sample in enumerate(samples):
        row = {tensor.name: _row(sample, tensor, index, batched) for tensor in inputs}
        if waiting and ({n: v.shape for n, v in row.items()} != {n: v.shape for n, v in waiting[0].items()}):
            yield _stack(waiting, batched)
            waiting = []
        waiting.append(row)
        if len(waiting) == (rows if batched else 1):
            yield _stack(waiting, batched)
            waiting = []
    if waiting:
        yield _stack(waiting, batched)


def collect(
    model: onnx.ModelProto,
    names: Sequence[str],
    feeds: Iterator[Feeds],
    make: Callable[[], Collector],
    scratch: Path,
    told: Callable[[int], None],
) -> dict[str, Collector]:
    """One collector per name of an inner value, fed with what the value was for every batch.

    `scratch` is a file to write the model with further outputs to; it is removed. `told(n)` is called after n samples.
    Raises PassError naming a value that is NaN or infinite, RecipeError where there is no sample.
    """
    collectors = {name: make() for name in names}
    own = [value.name for value in model.graph.input]
    inner = [name for name in names if name not in own]
    augmented = _with_outputs(model, inner, scratch)
    try:
        run = probe.session(augmented)
    finally:
        for file in scratch.parent.glob(f"{scratch.name}*"):
            file.unlink()
    done = 0
    for feed in feeds:
        try:
            values = dict(zip(inner, run.run(inner, feed), strict=True)) if inner else {}
        except Exception as error:  # noqa: BLE001  onnxruntime raises a class per status code
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feed.items())
            raise RecipeError(f"calibration: the model fails on {shapes}: {probe.one_line(error)}") from None
        for name, collector in collectors.items():
            try:
                collector.update(feed[name] if name in feed else values[name])
            except ValueError as error:
                raise PassError(f"calibration: {error} in {name!r}") from None
        done += next(iter(feed.values())).shape[0] if feed else 0
        told(done)
    if done == 0:
        raise RecipeError("calibration: the data has no sample")
    return collectors


def spans(collectors: Mapping[str, Collector], method: Method, share: float) -> dict[str, tuple[float, float]]:
    """The range chosen for each value."""
    found = {}
    for name, collector in collectors.items():
        if isinstance(collector, ranges.Histogram):
            found[name] = ranges.percentile(collector, share) if method == "percentile" else ranges.entropy(collector)
        else:
            assert isinstance(collector, ranges.MinMax)
            found[name] = collector.range()
    return found


def _row(sample: Sample, tensor: Tensor, index: int, batched: bool) -> np.ndarray[Any, Any]:
    if tensor.name not in sample:
        raise RecipeError(f"calibration sample {index}: has no {tensor.name!r}, only {', '.join(map(repr, sample))}")
    value = np.asarray(sample[tensor.name])
    wanted = tensor.shape[1:] if batched or len(value.shape) == len(tensor.shape) - 1 else tensor.shape
    fits = len(value.shape) == len(wanted) and all(
        isinstance(axis, Axis) or axis == size for axis, size in zip(wanted, value.shape, strict=True)
    )
    if not fits:
        shape = ", ".join(axis.name if isinstance(axis, Axis) else str(axis) for axis in wanted)
        raise RecipeError(f"calibration sample {index}: {tensor.name!r} has shape {value.shape}, expected is ({shape})")
    if not np.can_cast(value.dtype, tensor.datatype.numpy, "same_kind"):
        raise RecipeError(
            f"calibration sample {index}: {tensor.name!r} is {value.dtype}, expected is {tensor.datatype.numpy}"
        )
    if not batched and len(wanted) < len(tensor.shape):
        # a fixed first dimension that is a batch: the sample fills all of it
        value = np.broadcast_to(value, (tensor.shape[0], *value.shape))  # type: ignore[arg-type]
    return np.ascontiguousarray(value, dtype=tensor.datatype.numpy)


def _stack(rows: Sequence[Feeds], batched: bool) -> Feeds:
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]} if batched else rows[0]


def _with_outputs(model: onnx.ModelProto, names: Sequence[str], scratch: Path) -> Path:
    augmented = onnx.ModelProto()
    augmented.CopyFrom(model)
    have = {value.name for value in augmented.graph.output}
    augmented.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in have)
    return onnx_files.write(augmented, scratch)
