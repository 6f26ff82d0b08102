"""Rows of several requests into one batch of arrays, and the model's arrays back into answers.

Each input is copied once, into the batch's array (not at all where a request is alone); answers are views of the
model's outputs. `dims` is what clients see, `reshape` what the model wants (Triton's config field); the mapping between
the two is done here and nowhere else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protos.model_config import ModelConfig, TensorSpec
from server.backends.base import Arrays, Batch
from server.classification import Labels, classify
from server.errors import Internal, ServerError
from server.request import InferRequest, RequestedOutput, Response, Result, Tensor

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Output:
    """One output of a finished run, in the client's shape, all rows together."""

    spec: TensorSpec
    array: Array


def reshaped(dims: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...]) -> tuple[int, ...]:
    """`dims`, an instance of the pattern `source`, as an instance of `target`; their -1 correspond in order.

    As Triton maps them (core: src/infer_request.cc, Normalize); the configuration has been checked for equal numbers.
    """
    variable = iter([got for got, want in zip(dims, source, strict=True) if want == -1])
    return tuple(next(variable) if want == -1 else want for want in target)


class Collator:
    """Immutable; all instance threads of a model use one."""

    def __init__(self, model: str, config: ModelConfig, labels: Mapping[str, Labels] | None = None) -> None:
        self._model = model
        self._batched = config.max_batch_size > 0
        self._inputs = config.inputs
        self._outputs = {spec.name: spec for spec in config.outputs}
        self._all_outputs = tuple(self._outputs)
        self._labels = labels or {}

    def collate(self, requests: Sequence[InferRequest], rows: int) -> Batch:
        """One array per input that the requests (all of one group) have."""
        inputs: dict[str, Array] = {}
        for position, spec in enumerate(self._inputs):
            arrays = [_find(request, position, spec.name) for request in requests]
            present = [array for array in arrays if array is not None]
            if not present:
                continue
            if len(present) == 1 or spec.is_shape_tensor:
                # A view into a received message may start at any byte; kernels may count on alignment.
                array = present[0] if present[0].flags.aligned else present[0].copy()
            else:
                array = np.concatenate(present)
            if spec.reshape is not None:
                array = self._to_model(array, spec)
            inputs[spec.name] = array
        return Batch(inputs, rows, self._wanted(requests))

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
        """One result per request: its rows of the outputs that it asked for, in the order that it asked for them."""
        results: list[Result] = []
        start = 0
        alone = len(requests) == 1 or not self._batched
        for request in requests:
            rows = None if alone else slice(start, start + request.rows)
            start += request.rows
            if request.outputs:
                results.append(self._selected(outputs, request.outputs, rows))
            else:
                results.append(Response(tuple(
                    _tensor(outputs[name], rows) for name in self._all_outputs
                )))  # fmt: skip
        return results

    def _selected(self, outputs: dict[str, Output], wanted: Sequence[RequestedOutput], rows: slice | None) -> Result:
        tensors = []
        for output in wanted:
            tensor = _tensor(outputs[output.name], rows)
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


def _find(request: InferRequest, position: int, name: str) -> Array | None:
    inputs = request.inputs
    # Clients nearly always send inputs in the model's order.
    if position < len(inputs) and inputs[position].name == name:
        return inputs[position].array
    return next((tensor.array for tensor in inputs if tensor.name == name), None)


def _tensor(output: Output, rows: slice | None) -> Tensor:
    spec = output.spec
    return Tensor(spec.name, spec.datatype, output.array if rows is None else output.array[rows])
