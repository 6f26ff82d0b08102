"""Samples: from a function, a `.npz` file, or made up; checked against the model's inputs before anything sees them.

A sample is one row: `{input name: array without the batch dimension}`, and `label`, the right answer, where metrics
need one. A function is called as `function(split=..., count=..., seed=...)`, plus the table's `arguments`, and gives
samples in any iterable; the same arguments must give the same samples, because a stream is read more than once.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from compressor import functions
from compressor.artifact import Artifact, Axis, Tensor
from compressor.errors import RecipeError
from compressor.fields import Where
from compressor.interface import BATCH, axes, batched
from compressor.job import SampleSet
from compressor.metrics import LABEL
from compressor.passes.base import Sample

Array = np.ndarray[Any, Any]
OVERLAP = 0.01
"""Share of held-out samples that may be in the calibration set too, as doubles in real data are."""


@dataclass(frozen=True, slots=True)
class Samples:
    """One table of `[data]`, streamed anew at each call."""

    table: SampleSet
    where: Where
    inputs: tuple[Tensor, ...]
    rows: bool
    """Whether the model has a batch dimension, which samples then lack."""
    seed: int

    def __call__(self) -> Iterator[Sample]:
        """The samples without their labels."""
        for sample, _ in self.labelled():
            yield sample

    def labelled(self) -> Iterator[tuple[Sample, Array | None]]:
        """Each sample, checked, with its label. Raises RecipeError at the first that does not fit."""
        for index, raw in enumerate(self._mappings()):
            known = {tensor.name for tensor in self.inputs} | {LABEL}
            for name in raw:
                if name not in known:
                    self._fault(index, f"has {name!r}", f"the inputs {', '.join(sorted(known - {LABEL}))} and {LABEL}")
            yield {tensor.name: self._checked(index, tensor, raw) for tensor in self.inputs}, _label(raw)

    def digests(self) -> tuple[str, ...]:
        """SHA-256 of each sample as it comes, in order; what is made up counts as one. Needs no model."""
        if self.table.samples == "random":
            return (hashlib.sha256(repr((self.table, self.seed)).encode()).hexdigest(),)
        return tuple(_digest(raw) for raw in self._mappings())

    def check_first(self) -> None:
        """Whether the first sample fits: told before a pass has worked for minutes."""
        next(self(), None)

    def _mappings(self) -> Iterator[Mapping[str, Any]]:
        given = 0
        for index, raw in enumerate(itertools.islice(self._raw(), self.table.count)):
            if not isinstance(raw, Mapping):
                self._fault(index, f"is a {type(raw).__name__}", "a mapping of input name to array")
            yield raw
            given += 1
        if given < self.table.count:
            raise self.where.at("count").fail(
                self.table.count, f"at most {given}, which is all that {self.table.samples} has"
            )

    def _fault(self, index: int, got: str, expected: str) -> Any:
        raise RecipeError(f"{self.where.file}: {self.where.path}: sample {index} {got}, expected {expected}")

    def _raw(self) -> Iterator[Any]:
        spec = self.table.samples
        if spec == "random":
            yield from self._random()
            return
        if spec.endswith(".npz"):
            yield from _npz(Path(spec), self.where.at("samples"))
            return
        place = self.where.at("samples")
        made = functions.call(
            functions.resolve(spec, place),
            spec,
            place,
            split=self.table.split,
            count=self.table.count,
            seed=self.seed,
            **self.table.arguments,
        )
        if not isinstance(made, Iterable):
            raise place.fail(spec, f"a function that gives samples; it gave a {type(made).__name__}")
        stream = iter(made)
        while True:
            try:
                sample = next(stream)
            except StopIteration:
                return
            except RecipeError:
                raise
            except Exception as error:
                raise functions.raised(error, spec, place) from error
            yield sample

    def _random(self) -> Iterator[Sample]:
        """Normal noise for floats; whole numbers below `high` (2 where it is silent)."""
        generator = np.random.default_rng(self.seed)
        free = {name: axis for name, axis in axes(self.inputs).items() if name != BATCH}
        for name in free:
            if name not in self.table.sizes:
                raise self.where.at("sizes").at(name).fault(f"missing; the model's {name} axis has no size of its own")
        while True:
            made = {}
            for tensor in self.inputs:
                shape = [self.table.sizes[d.name] if isinstance(d, Axis) else d for d in self._shape(tensor)]
                made[tensor.name] = (
                    generator.standard_normal(shape)
                    if tensor.datatype.numpy.kind in "fV"
                    else generator.integers(0, self.table.high.get(tensor.name, 2), size=shape)
                ).astype(tensor.datatype.numpy)
            yield made

    def _shape(self, tensor: Tensor) -> tuple[int | Axis, ...]:
        return tensor.shape[1:] if self.rows else tensor.shape

    def _checked(self, index: int, tensor: Tensor, raw: Mapping[str, Any]) -> Array:
        if tensor.name not in raw:
            self._fault(index, f"has no input {tensor.name!r}", f"all of {', '.join(t.name for t in self.inputs)}")
        array = np.asarray(raw[tensor.name])
        expected = self._shape(tensor)
        agrees = len(expected) == array.ndim and all(_fits(d, n) for d, n in zip(expected, array.shape, strict=True))
        if not agrees:
            row = "the batch dimension excluded" if self.rows else "all of its dimensions"
            dims = ", ".join(_words(d) for d in expected)
            self._fault(index, f"has input {tensor.name!r} of shape {list(array.shape)}", f"[{dims}] ({row})")
        return self._cast(index, tensor, array)

    def _cast(self, index: int, tensor: Tensor, array: Array) -> Array:
        """To the input's type where no value is lost but the last digits of a float."""
        wanted = tensor.datatype.numpy
        if array.dtype == wanted:
            return array
        if wanted != np.dtype(object) and array.dtype != np.dtype(object):
            cast = array.astype(wanted)
            if wanted.kind in "fV" and array.dtype.kind in "fiub":
                return cast
            if wanted.kind in "iub" and array.dtype.kind in "iub" and np.array_equal(cast, array):
                return cast
        self._fault(index, f"has input {tensor.name!r} of type {array.dtype}", tensor.datatype.name)
        raise AssertionError


def _fits(dim: int | Axis, size: int) -> bool:
    if isinstance(dim, int):
        return dim == size
    return size >= dim.minimum and (dim.maximum is None or size <= dim.maximum)


def _words(dim: int | Axis) -> str:
    if isinstance(dim, int):
        return str(dim)
    return dim.name if dim.maximum is None else f"{dim.name} up to {dim.maximum}"


def _label(raw: Mapping[str, Any]) -> Array | None:
    return np.asarray(raw[LABEL]) if LABEL in raw else None


def _digest(raw: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name, value in sorted(raw.items()):
        array = np.asarray(value)
        content = repr(array.tolist()).encode() if array.dtype == np.dtype(object) else array.tobytes()
        digest.update(f"{name} {array.dtype} {array.shape}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def digest(digests: tuple[str, ...]) -> str:
    """SHA-256 of a whole stream."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _npz(path: Path, where: Where) -> Iterator[Sample]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError) as error:
        raise where.fail(str(path), f"a .npz file of plain arrays: {functions.one_line(error)}") from error
    lengths = {name: len(array) if array.ndim else 0 for name, array in arrays.items()}
    if not lengths or min(lengths.values()) == 0 or len(set(lengths.values())) > 1:
        found = ", ".join(f"{name}: {length}" for name, length in lengths.items()) or "no arrays"
        raise where.fail(str(path), f"a .npz file of arrays with equally many rows; it has {found}")
    for row in range(next(iter(lengths.values()))):
        yield {name: array[row] for name, array in arrays.items()}


def digests(table: SampleSet | None, which: str, recipe: Path, seed: int) -> tuple[str, ...]:
    """The digest of each sample of `[data]`'s table `which`; none where the recipe has no such table."""
    if table is None:
        return ()
    return Samples(
        table, Where(recipe, f"data.{which}"), (), True, seed if table.seed is None else table.seed
    ).digests()


def samples(table: SampleSet | None, which: str, recipe: Path, artifact: Artifact, seed: int) -> Samples | None:
    """The stream of `[data]`'s table `which`, for this model."""
    if table is None:
        return None
    where = Where(recipe, f"data.{which}")
    for key in (*table.pad, *table.high):
        if key not in {tensor.name for tensor in artifact.inputs}:
            raise where.fault(f"pad and high are by input name; the model has no input {key!r}")
    chosen = seed if table.seed is None else table.seed
    return Samples(table, where, artifact.inputs, batched(artifact), chosen)


def check_disjoint(calibration: tuple[str, ...], evaluation: tuple[str, ...], where: Where) -> None:
    """Raises RecipeError where held-out samples were calibrated on."""
    seen = set(calibration)
    shared = sum(digest in seen for digest in evaluation)
    if shared > OVERLAP * len(evaluation):
        raise where.fault(
            f"{shared} of {len(evaluation)} samples are in data.calibration too; held-out samples must not be"
        )


def batches(stream: Iterable[Sample], rows: int, pad: Mapping[str, float]) -> Iterator[dict[str, Array]]:
    """Batches of up to `rows` samples, in order. Rows of unequal shape share one only where all that differ are padded,
    at the end of each dimension; else the batch ends there."""
    waiting: list[Sample] = []
    for sample in stream:
        if waiting and (len(waiting) == rows or not _may_share(waiting[0], sample, pad)):
            yield _stack(waiting, pad)
            waiting = []
        waiting.append(sample)
    if waiting:
        yield _stack(waiting, pad)


def _may_share(a: Sample, b: Sample, pad: Mapping[str, float]) -> bool:
    return all(
        array.shape == b[name].shape or (name in pad and array.ndim == b[name].ndim) for name, array in a.items()
    )


def _stack(samples: list[Sample], pad: Mapping[str, float]) -> dict[str, Array]:
    stacked = {}
    for name, first in samples[0].items():
        shape = tuple(max(sizes) for sizes in zip(*(sample[name].shape for sample in samples), strict=True))
        batch = np.full((len(samples), *shape), pad.get(name, 0), dtype=first.dtype)
        for row, sample in enumerate(samples):
            place: Any = (row, *(slice(size) for size in sample[name].shape))
            batch[place] = sample[name]
        stacked[name] = batch
    return stacked
