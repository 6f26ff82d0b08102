"""Rows of several requests into one batch of arrays, and the model's arrays back into answers.

Each input is copied once, into the batch's kept memory (not at all where a request is alone); answers are views of the
model's outputs. `dims` is what clients see, `reshape` what the model wants (Triton's config field); the mapping between
the two is done here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from protos import padding
from protos.model_config import ModelConfig, TensorSpec
from protos.padding import Padding
from server.backends.base import Arrays, Batch
from server.batching.buffers import Buffers
from server.batching.padding import join, longest_of
from server.classification import Labels, classify
from server.errors import Internal, ServerError
from server.request import InferRequest, RequestedOutput, Response, Result, Tensor

Array = np.ndarray[Any, Any]


class Output(NamedTuple):
    """One output of a finished run, in the client's shape, all rows together."""

    spec: TensorSpec
    array: Array


def reshaped(dims: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """`dims`, an instance of the pattern `source`, as an instance of `target`; their -1 correspond in order.

    As Triton maps them (core: src/infer_request.cc, Normalize); the configuration has been checked for equal numbers.
    """
    variable = iter([got for got, want in zip(dims, source, strict=True) if want == -1])
    return tuple(next(variable) if want == -1 else want for want in target)


@dataclass(frozen=True, slots=True)
class _Cut:
    """A dimension of an output that is as long as one of an input; both count the batch."""

    axis: int
    input: str
    position: int
    """Of the input, in the model's order."""
    input_axis: int


class Collator:
    """Immutable; all instance threads of a model use one."""

    def __init__(self, model: str, config: ModelConfig, labels: Mapping[str, Labels] | None = None) -> None:
        """Raises ConfigError where the configuration declares a padding that does not fit it."""
        self._model = model
        self._batched = config.max_batch_size > 0
        self._inputs = config.inputs
        self._outputs = {spec.name: spec for spec in config.outputs}
        self._all_outputs = tuple(self._outputs)
        self._everything = tuple(RequestedOutput(name) for name in self._outputs)
        self._labels = labels or {}
        declared = padding.read(config)
        self._pads: dict[str, Array] = {}
        """What each input that can be padded is filled up with."""
        self._cuts: dict[str, list[_Cut]] = {}
        self._counted: tuple[tuple[int, str], ...] = ()
        """One input of each padded axis, with its position."""
        if declared is not None:
            self._declare(declared)

    def _declare(self, declared: Padding) -> None:
        specs = {spec.name: (position, spec) for position, spec in enumerate(self._inputs)}
        for name, value in declared.values.items():
            self._pads[name] = padding.scalar(specs[name][1].datatype, value, name)
        for axis in declared.axes:
            source = axis.inputs[0]
            position = specs[source.tensor][0]
            for place in axis.outputs:
                cut = _Cut(place.dim + 1, source.tensor, position, source.dim + 1)
                self._cuts.setdefault(place.tensor, []).append(cut)
        firsts = dict.fromkeys(axis.inputs[0].tensor for axis in declared.axes)
        self._counted = tuple((specs[name][0], name) for name in firsts)

    @property
    def pads(self) -> bool:
        """Whether requests of unequal lengths may share a batch."""
        return bool(self._pads)

    def collate(self, requests: Sequence[InferRequest], rows: int, buffers: Buffers | None = None) -> Batch:
        """One array per input that the requests (all of one group) have.

        A request alone is run on its own arrays. Several are written into `buffers`, or into fresh memory without one.
        """
        inputs: dict[str, Array] = {}
        for position, spec in enumerate(self._inputs):
            arrays = _column(requests, position, spec.name)
            if not arrays:
                continue
            if len(arrays) == 1 or spec.is_shape_tensor:
                # A view into a received message may start at any byte; kernels may count on alignment.
                array = arrays[0] if arrays[0].flags.aligned else arrays[0].copy()
            else:
                array = self._joined(spec, arrays, rows, buffers or Buffers())
            if spec.reshape is not None:
                array = self._to_model(array, spec)
            inputs[spec.name] = array
        return Batch(inputs, rows, self._wanted(requests))

    def _joined(self, spec: TensorSpec, arrays: Sequence[Array], rows: int, buffers: Buffers) -> Array:
        dims = arrays[0].shape[1:]
        value = self._pads.get(spec.name)
        if value is not None:
            longest = longest_of(arrays)
            if any(array.shape[1:] != longest for array in arrays):
                out = buffers.array(spec.name, (rows, *longest), spec.datatype.numpy)
                join(arrays, value, out)
                return out
            dims = longest
        out = buffers.array(spec.name, (rows, *dims), spec.datatype.numpy)
        return np.concatenate(arrays, 0, out)

    def waste(self, requests: Sequence[InferRequest], batch: Batch) -> tuple[int, int]:
        """Of a batch's inputs that can be padded: the elements that padding added, and all that there are. Inputs that
        share an axis are counted once."""
        sent = computed = 0
        for position, name in self._counted:
            computed += batch.inputs[name].size
            for array in _column(requests, position, name):
                sent += array.size
        return computed - sent, computed

    def gather(self, arrays: Arrays, names: Sequence[str], rows: int) -> dict[str, Output]:
        """What a session returned, checked and in the client's shape. Raises Internal where it is not as declared."""
        outputs: dict[str, Output] = {}
        for name in names:
            spec = self._outputs[name]
            array = arrays.get(name)
            if array is None:
                raise Internal(f"model '{self._model}' returned no output '{name}'")
            if array.dtype != spec.datatype.numpy:
                raise Internal(
                    f"model '{self._model}' returned output '{name}' as {array.dtype}, its configuration says "
                    f"{spec.datatype.name}"
                )
            if self._batched and not spec.is_shape_tensor:
                returned = array.shape[0] if array.ndim else 0
                if returned != rows:
                    raise Internal(
                        f"model '{self._model}' returned {returned} rows of output '{name}' for a batch of {rows}"
                    )
            outputs[name] = Output(spec, self._to_client(array, spec) if spec.reshape is not None else array)
        return outputs

    def answer(self, outputs: dict[str, Output], requests: Sequence[InferRequest]) -> list[Result]:
        """One result per request: its rows of the outputs that it asked for, in the order that it asked for them.

        Raises Internal where an output that is to be cut back is not as long as its input.
        """
        columns = {name: self._tensors(output, requests) for name, output in outputs.items()}
        choosy = [request for request in requests if request.outputs]
        if choosy:
            return [
                self._selected(columns, request.outputs or self._everything, index)
                for index, request in enumerate(requests)
            ]
        return [Response(tensors) for tensors in zip(*columns.values(), strict=True)]

    def _tensors(self, output: Output, requests: Sequence[InferRequest]) -> list[Tensor]:
        """Each request's part of an output."""
        spec, array = output.spec, output.array
        if len(requests) == 1 or not self._batched:
            return [Tensor(spec.name, spec.datatype, array)]
        views: Iterable[Array]
        if len(requests) == len(array):
            views = array[:, None]  # iterating takes half the time of as many slices
        else:
            ends = accumulate([request.rows for request in requests])
            views = [array[end - request.rows : end] for request, end in zip(requests, ends, strict=True)]
        for cut in self._cuts.get(spec.name, ()):
            views = self._shortened(views, cut, output, requests)
        name, datatype = spec.name, spec.datatype
        return [Tensor(name, datatype, view) for view in views]

    def _shortened(
        self, views: Iterable[Array], cut: _Cut, output: Output, requests: Sequence[InferRequest]
    ) -> list[Array]:
        lengths = [array.shape[cut.input_axis] for array in _column(requests, cut.position, cut.input)]
        longest, found = max(lengths), output.array.shape[cut.axis]
        if found != longest:
            raise Internal(
                f"model '{self._model}' returned {found} of output '{output.spec.name}' at dimension {cut.axis} for "
                f"{longest} of input '{cut.input}', which are declared to be equal ({padding.KEY})"
            )
        whole = (slice(None),) * cut.axis
        return [
            view if length == longest else view[(*whole, slice(length))]
            for view, length in zip(views, lengths, strict=True)
        ]

    def _selected(self, columns: Mapping[str, list[Tensor]], wanted: Sequence[RequestedOutput], index: int) -> Result:
        tensors = []
        for output in wanted:
            tensor = columns[output.name][index]
            if output.classification > 0:
                try:
                    tensor = classify(tensor, output.classification, self._labels.get(output.name, ()), self._batched)
                except ServerError as error:
                    return error
            tensors.append(tensor)
        return Response(tuple(tensors))

    def _wanted(self, requests: Sequence[InferRequest]) -> tuple[str, ...]:
        names: set[str] = set()
        for request in requests:
            if not request.outputs:
                return self._all_outputs
            names.update(output.name for output in request.outputs)
        return tuple(name for name in self._all_outputs if name in names)

    def _to_model(self, array: Array, spec: TensorSpec) -> Array:
        assert spec.reshape is not None
        if self._batched and not spec.is_shape_tensor:
            return array.reshape(array.shape[0], *reshaped(array.shape[1:], spec.dims, spec.reshape))
        return array.reshape(reshaped(array.shape, spec.dims, spec.reshape))

    def _to_client(self, array: Array, spec: TensorSpec) -> Array:
        assert spec.reshape is not None
        if not spec.reshape and not self._batched and array.ndim:
            # onnxruntime shows an output of unknown rank as rank 0, and auto-completion believes it
            return array
        lead = 1 if self._batched and not spec.is_shape_tensor else 0
        try:
            return array.reshape(*array.shape[:lead], *reshaped(array.shape[lead:], spec.reshape, spec.dims))
        except ValueError:
            raise Internal(
                f"model '{self._model}' returned output '{spec.name}' with shape {list(array.shape)}, which does not "
                f"fit its reshape {list(spec.reshape)}"
            ) from None


def _column(requests: Sequence[InferRequest], position: int, name: str) -> list[Array]:
    """One input of all requests that have it (all of a group, or none)."""
    column = []
    for request in requests:
        inputs = request.inputs
        # Clients nearly always send inputs in the model's order.
        if position < len(inputs) and inputs[position].name == name:
            column.append(inputs[position].array)
        else:
            column += [tensor.array for tensor in inputs if tensor.name == name]
    return column
