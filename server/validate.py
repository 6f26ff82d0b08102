"""Whether a request fits its model: Triton's checks, in its order, with its texts.

Texts are facts that clients match on (core: src/infer_request.cc, Normalize and ValidateRequestInputs; src/model.cc).
The ones about bytes on the wire stand here too, for `rpc/codec.py`, so that no text is written twice; callers put
`server.request.prefixed` around them. Nothing here touches the data of a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from protos import padding
from protos.datatypes import Datatype
from protos.model_config import ModelConfig, TensorSpec
from protos.padding import Axis, Padding, Place
from server.batching.padding import Bucket, bound
from server.errors import InvalidRequest
from server.request import InferRequest, Tensor, prefixed

_BATCHING_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def dims_text(dims: Iterable[int]) -> str:
    """Triton's spelling of a shape: `[-1,4]`."""
    return "[" + ",".join(map(str, dims)) + "]"


def unknown_input(name: str, model: str) -> str:
    return f"unexpected inference input '{name}' for model '{model}'"


def unknown_output(name: str, model: str) -> str:
    return f"unexpected inference output '{name}' for model '{model}'"


def byte_size_mismatch(name: str, model: str, expected: int, got: int) -> str:
    return f"input byte size mismatch for input '{name}' for model '{model}'. Expected {expected}, got {got}"


def string_count_mismatch(name: str, model: str, expected: int, got: int) -> str:
    """Fewer BYTES elements than the shape says."""
    return f"expected {expected} string elements for inference input '{name}' for model '{model}', got {got}"


def string_count_exceeded(name: str, model: str, expected: int) -> str:
    """More BYTES elements than the shape says."""
    return (
        f"unexpected number of string elements {expected + 1} for inference input '{name}' for model '{model}', "
        f"expecting {expected}"
    )


def string_length_incomplete(name: str, model: str, available: int) -> str:
    return (
        f"incomplete string length indicator for inference input '{name}' for model '{model}', expecting 4 bytes but "
        f"only {available} bytes available. Please make sure the string length indicator is in one buffer."
    )


def string_data_incomplete(name: str, model: str, expected: int, available: int) -> str:
    return (
        f"incomplete string data for inference input '{name}' for model '{model}', expecting string of length "
        f"{expected} bytes but only {available} bytes available. Please make sure the string is in one buffer."
    )


def unequal_lengths(axis: str, model: str, place: object, length: int, other: object, other_length: int) -> str:
    """Two inputs that the entry declares to be of one length."""
    return (
        f"input {place} is {length} long and input {other} {other_length}, but they share the padded axis '{axis}' of "
        f"model '{model}'"
    )


def too_long(axis: str, model: str, place: object, length: int, maximum: int) -> str:
    return f"input {place} is {length} long, but the padded axis '{axis}' of model '{model}' is at most {maximum}"


def unspecified_dim(name: str, model: str, shape: Iterable[int]) -> str:
    """A -1 (or less) in the shape of a request."""
    return f"All input dimensions should be specified for input '{name}' for model '{model}', got {dims_text(shape)}"


@dataclass(frozen=True, slots=True)
class _Input:
    """One declared input, with what is asked of it for every request worked out once."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    variable: bool
    required: bool
    batched: bool
    padded: tuple[tuple[int, Axis], ...] = ()
    """Its dimensions that may be padded, and with whom they share a length."""

    def fits(self, dims: tuple[int, ...]) -> bool:
        if not self.variable:
            return dims == self.dims
        return len(dims) == len(self.dims) and all(want in (-1, got) for want, got in zip(self.dims, dims, strict=True))


class Validator:
    """Checks requests against one model's (completed) configuration. Immutable; any thread may use it."""

    def __init__(self, model: str, config: ModelConfig) -> None:
        """Raises ConfigError where the configuration declares a padding that does not fit it."""
        self._model = model
        self._max_batch_size = config.max_batch_size
        declared = padding.read(config)
        self._pads = declared is not None
        self._inputs = {spec.name: self._input(spec, declared) for spec in config.inputs}
        self._outputs = frozenset(spec.name for spec in config.outputs)
        self._required = sum(entry.required for entry in self._inputs.values())
        # Only what can differ between two valid requests may keep them apart; without batching all are alone anyway.
        self._grouped = tuple(
            entry
            for entry in self._inputs.values()
            if self._max_batch_size > 0 and (entry.variable or not entry.required or not entry.batched)
        )

    def _input(self, spec: TensorSpec, declared: Padding | None) -> _Input:
        batched = self._max_batch_size > 0 and not spec.is_shape_tensor
        axes = declared.axes if declared is not None else ()
        padded = tuple((place.dim, axis) for axis in axes for place in axis.inputs if place.tensor == spec.name)
        return _Input(spec.name, spec.datatype, spec.dims, -1 in spec.dims, not spec.optional, batched, padded)

    @property
    def cacheable(self) -> bool:
        """Whether `rows` and `group` depend on names, types and shapes alone, not on the values of a tensor."""
        return all(entry.batched for entry in self._grouped)

    def check(self, request: InferRequest) -> None:
        """Set `request.rows` and `request.group`, or raise InvalidRequest."""
        if request.outputs:
            self._check_outputs(request)
        tensors = {tensor.name: tensor for tensor in request.inputs}
        if len(tensors) != self._required or len(request.inputs) != len(tensors):
            self._check_count(request, tensors)
        rows = 0
        for name, tensor in tensors.items():
            spec = self._inputs.get(name)
            if spec is None:
                raise self._error(request, unknown_input(name, self._model))
            shape = tensor.array.shape
            if spec.batched:
                if not shape:
                    text = f"input '{name}' has no shape but model requires batch dimension for '{self._model}'"
                    raise self._error(request, text)
                if rows and shape[0] != rows:
                    text = f"input '{name}' batch size does not match other inputs for '{self._model}'"
                    raise self._error(request, text)
                rows = self._rows(request, shape[0])
        for name, tensor in tensors.items():
            self._check_tensor(request, self._inputs[name], tensor)
        if self._required < len(self._inputs) and any(
            entry.required and name not in tensors for name, entry in self._inputs.items()
        ):
            raise self._error(request, self._count_text(tensors))
        request.rows = rows or 1
        if self._grouped:
            parts = self._shapes(request, tensors)
            request.group = Bucket(parts) if self._pads else tuple(parts)

    def _rows(self, request: InferRequest, rows: int) -> int:
        if rows > self._max_batch_size:
            text = f"inference request batch-size must be <= {self._max_batch_size} for '{self._model}'"
            raise self._error(request, text)
        if rows < 1:  # today's Triton lets a request of no rows through; the text is that of its older releases
            raise self._error(request, f"inference request batch-size must be >= 1 for '{self._model}'")
        return rows

    def _check_tensor(self, request: InferRequest, spec: _Input, tensor: Tensor) -> None:
        if tensor.datatype is not spec.datatype and tensor.datatype != spec.datatype:
            raise self._error(request, (
                f"inference input '{spec.name}' data-type is '{tensor.datatype.name}', but model '{self._model}' "
                f"expects '{spec.datatype.name}'"
            ))  # fmt: skip
        shape = tensor.array.shape
        if not spec.fits(shape[1:] if spec.batched else shape):
            expected = (-1, *spec.dims) if spec.batched else spec.dims
            note = f". {_BATCHING_NOTE}" if spec.batched else ""
            raise self._error(request, (
                f"unexpected shape for input '{spec.name}' for model '{self._model}'. Expected {dims_text(expected)}, "
                f"got {dims_text(shape)}{note}"
            ))  # fmt: skip

    def _check_outputs(self, request: InferRequest) -> None:
        seen: set[str] = set()
        for output in request.outputs:
            if output.name not in self._outputs:
                raise self._error(request, unknown_output(output.name, self._model))
            if output.name in seen:
                raise self._error(request, f"output '{output.name}' already exists in request")
            seen.add(output.name)

    def _check_count(self, request: InferRequest, tensors: dict[str, Tensor]) -> None:
        if len(tensors) != len(request.inputs):
            names = [tensor.name for tensor in request.inputs]
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise self._error(request, f"input '{twice}' already exists in request")
        if not self._required <= len(tensors) <= len(self._inputs):
            raise self._error(request, self._count_text(tensors))

    def _count_text(self, tensors: dict[str, Tensor]) -> str:
        names = ",".join(f"'{name}'" for name in tensors)
        missing = ",".join(f"'{n}'" for n, e in self._inputs.items() if e.required and n not in tensors)
        if self._required == len(self._inputs):
            expected = f"expected {len(self._inputs)} inputs"
        else:
            expected = f"expected number of inputs between {self._required} and {len(self._inputs)}"
        tail = f", but missing required input(s) [{missing}]. Please provide all required input(s)." if missing else "."
        return f"{expected} but got {len(tensors)} inputs for model '{self._model}'. Got input(s) [{names}]{tail}"

    def _shapes(self, request: InferRequest, tensors: dict[str, Tensor]) -> list[object]:
        """What keeps requests apart, input by input; padded lengths only by their buckets."""
        parts: list[object] = []
        lengths: dict[str, tuple[int, Place]] = {}
        for entry in self._grouped:
            tensor = tensors.get(entry.name)
            if tensor is None:
                parts.append(None)
            elif not entry.batched:
                # A shape tensor is one for the whole batch: only requests with equal values may share it.
                parts.append((tensor.array.shape, tensor.array.tobytes()))
            elif not entry.padded:
                parts.append(tensor.array.shape[1:])
            else:
                parts.append(self._bucketed(request, entry, tensor.array.shape[1:], lengths))
        return parts

    def _bucketed(
        self, request: InferRequest, entry: _Input, shape: tuple[int, ...], lengths: dict[str, tuple[int, Place]]
    ) -> tuple[int, ...]:
        """`shape` with padded dimensions at their buckets' bounds; `lengths` holds what was found so far by axis."""
        dims = list(shape)
        for dim, axis in entry.padded:
            length, place = shape[dim], Place(entry.name, dim)
            known, first = lengths.setdefault(axis.name, (length, place))
            if known != length:
                text = unequal_lengths(axis.name, self._model, place, length, first, known)
                raise self._error(request, text)
            if axis.maximum is not None and length > axis.maximum:
                raise self._error(request, too_long(axis.name, self._model, place, length, axis.maximum))
            dims[dim] = bound(length, axis.maximum)
        return tuple(dims)

    def _error(self, request: InferRequest, text: str) -> InvalidRequest:
        return InvalidRequest(prefixed(request, text))
