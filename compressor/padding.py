"""Which inputs of a model may be padded: found by what they are called, proven by running it. docs/padding.md.

A model of texts in the form of Hugging Face has an `attention_mask`: what stands under zeros of it counts for nothing.
That is tried on rows cut to eight lengths, eight rows of each: in batches of mixed lengths, padded, every answer has to
be the lone one, but for rounding, or for twice what batch-mates of the same length do to it (dynamic quantization has
one activation scale for the whole batch, padded rows or not).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np

from compressor import data, host, interface
from compressor.artifact import Artifact, Axis
from compressor.budget import Padded
from compressor.passes import onnx_files, probe
from compressor.passes.base import Sample
from protos import padding
from protos.model_config import ConfigError
from protos.padding import Padding, Place

Array = np.ndarray[Any, Any]
Row = Mapping[str, Array]
MASK = "attention_mask"
FILLED = {"input_ids": 0, MASK: 0, "token_type_ids": 0}
"""Inputs that a mask goes with, and what they are filled up with where the model names no padding token."""
SIDE = 8
"""Lengths, and rows of each."""
SHORTEST = 4
RELATIVE = 1e-3
"""Of an output's largest magnitude: what may be called rounding, as in the checks of export and optimization."""
RANDOM_LENGTH = 64


def prove(artifact: Artifact, filled: Mapping[str, int], samples: data.Samples | None, seed: int) -> Padded:
    """What may be padded, with how far that moves an answer; or why nothing is, "" where the model has no mask."""
    found = candidate(artifact, {**FILLED, **filled})
    if not isinstance(found, Padding):
        return Padded(reason=found)
    rows = _rows(artifact, found, samples, seed)
    try:
        moved, allowed = _influence(artifact, found, rows)
    except Exception as error:  # noqa: BLE001  onnxruntime raises a class per status code, without a common base
        return Padded(reason=f"the model fails on padded rows: {probe.one_line(error)}")
    for name, gap in moved.items():
        if not gap <= allowed[name]:
            return Padded(
                reason=f"padded in a batch, {name} is up to {gap:.2g} away from what it is alone, allowed is "
                f"{allowed[name]:.2g}"
            )
    return Padded(padding.dump(found), moved, allowed)


def candidate(artifact: Artifact, filled: Mapping[str, int]) -> Padding | str:
    """The declaration that the names of inputs and axes suggest, or why there is none."""
    mask = next((tensor for tensor in artifact.inputs if tensor.name == MASK), None)
    if mask is None or not interface.batched(artifact) or len(mask.shape) != 2 or not isinstance(mask.shape[1], Axis):
        return ""
    axis = mask.shape[1]
    places = [
        Place(tensor.name, i - 1)
        for tensor in artifact.inputs
        for i, dim in enumerate(tensor.shape)
        if isinstance(dim, Axis) and dim.name == axis.name
    ]
    if unknown := [place.tensor for place in places if place.tensor not in filled]:
        return f"what {unknown[0]} would have to be filled up with is not known"
    cuts = []
    for tensor in artifact.outputs:
        for i, dim in enumerate(tensor.shape[1:]):
            if isinstance(dim, Axis) and dim.name == axis.name:
                cuts.append(Place(tensor.name, i))
            elif isinstance(dim, Axis):
                return f"the length of {tensor.name}'s dimension {i + 1} follows no input"
    one = padding.Axis(axis.name, tuple(places), tuple(cuts), axis.maximum)
    found = Padding((one,), {place.tensor: filled[place.tensor] for place in places})
    try:
        padding.parse(padding.dump(found))
    except ConfigError as error:  # names that the grammar has no form for
        return str(error)
    return found


def _rows(artifact: Artifact, found: Padding, samples: data.Samples | None, seed: int) -> list[Sample]:
    """SIDE rows of each length, all of one length together, and no position of them masked."""
    source = samples() if samples is not None else _random(artifact, found, seed)
    given = []
    for sample in islice(source, SIDE * SIDE):
        row = _cut(sample, found, max(1, int(sample[MASK].sum())))
        given.append({**row, MASK: np.ones_like(row[MASK])})
    longest = max(len(sample[MASK]) for sample in given)
    lengths = np.geomspace(min(SHORTEST, longest), longest, SIDE).round().astype(int).tolist()
    return [
        _cut(given[(i * SIDE + j) % len(given)], found, length) for i, length in enumerate(lengths) for j in range(SIDE)
    ]


def _random(artifact: Artifact, found: Padding, seed: int) -> Iterator[Sample]:
    assert artifact.path is not None
    axis = found.axes[0]
    sizes = {**probe.sizes(artifact.inputs, 0), interface.BATCH: 1}
    sizes[axis.name] = min(RANDOM_LENGTH, axis.maximum or RANDOM_LENGTH)
    bounds = probe.rows(onnx_files.read_structure(artifact.path))
    generator = np.random.default_rng(seed)
    for _ in range(SIDE * SIDE):
        made = probe.random_inputs(artifact.inputs, sizes, bounds, generator)
        yield {name: array[0] for name, array in made.items()}


def _cut(row: Sample, found: Padding, length: int) -> Sample:
    """The first `length` of all that lies along the padded axis."""
    dims = {place.tensor: place.dim for place in found.axes[0].inputs}
    return {
        name: array.take(range(min(length, array.shape[dims[name]])), dims[name]) if name in dims else array
        for name, array in row.items()
    }


def _influence(artifact: Artifact, found: Padding, rows: Sequence[Sample]) -> tuple[dict[str, float], dict[str, float]]:
    """Per output, how far it is from the lone answer at most when padded, and how far it may be."""
    assert artifact.path is not None
    live = probe.session(artifact.path, threads=host.cores())
    names = [tensor.name for tensor in artifact.outputs]
    fed = {value.name for value in live.get_inputs()}
    filled = {name: float(value) for name, value in found.values.items()}

    def run(given: Sequence[Sample], size: int) -> list[Row]:
        answers: list[Row] = []
        for batch in data.batches(given, size, filled):
            outputs = live.run(names, {name: array for name, array in batch.items() if name in fed})
            count = len(batch[MASK])
            answers += [dict(zip(names, (o[row] for o in outputs), strict=True)) for row in range(count)]
        return [_answer(answer, found, len(row[MASK])) for answer, row in zip(answers, given, strict=True)]

    mixed = [i * SIDE + j for j in range(SIDE) for i in range(SIDE)]
    alone, equal = run(rows, 1), run(rows, SIDE)
    padded = run([rows[i] for i in mixed], SIDE)
    moved, allowed = {}, {}
    for name in names:
        magnitude = max(_largest(answer[name]) for answer in alone)
        mates = max(_gap(a[name], b[name]) for a, b in zip(alone, equal, strict=True))
        moved[name] = max(_gap(alone[i][name], b[name]) for i, b in zip(mixed, padded, strict=True))
        allowed[name] = max(RELATIVE * magnitude, 2 * mates)
    return moved, allowed


def _answer(answer: Row, found: Padding, length: int) -> Row:
    """Cut back to the row's own length."""
    kept = dict(answer)
    for place in found.axes[0].outputs:
        kept[place.tensor] = kept[place.tensor].take(range(length), place.dim)
    return kept


def _largest(array: Array) -> float:
    if array.dtype.kind not in "fV":
        return 0.0
    return float(np.abs(array.astype(np.float64)).max(initial=0.0, where=np.isfinite(array.astype(np.float64))))


def _gap(a: Array, b: Array) -> float:
    """The largest difference; infinite where shapes, whole numbers or places without a number differ."""
    if a.shape != b.shape:
        return math.inf
    if a.dtype.kind not in "fV":
        return 0.0 if np.array_equal(a, b) else math.inf
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    if not np.array_equal(finite, np.isfinite(y)):
        return math.inf
    return float(np.abs(x[finite] - y[finite]).max(initial=0.0))
