"""ModelInferRequest to InferRequest, Response to ModelInferResponse: the one place that knows how tensors travel.

Error texts are Triton's, since clients match on them: those about parameters and contents from server's
src/grpc/infer_handler.cc, those about sizes (`validate.py` has them) from core's src/infer_request.cc, which puts the
request's id in front.
All arithmetic on sizes is in Python's integers, and memory is asked for only once a size has been compared with the
bytes that are really there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple, NoReturn, TypeVar

import numpy as np
from google.protobuf.message import DecodeError, Message

from protos.datatypes import BY_NAME, Datatype
from protos.model_config import ModelConfig
from protos.wire import service
from server import validate
from server.errors import InvalidRequest, Unsupported
from server.request import InferRequest, Parameter, RequestedOutput, Response, Tensor, prefixed
from server.rpc import tensors
from server.rpc.call import Answer, Buffer
from server.rpc.infer_wire import ID, MAX_BYTES, RAW_OUTPUT, prefix

M = TypeVar("M", bound=Message)
Array = np.ndarray[Any, Any]

MAX_RANK = 64
"""numpy's own limit."""
LARGE = 1 << 16
"""Bytes from which on an answer's tensor is sent as it lies; smaller ones are cheaper to copy than to send apart."""
FINAL_RESPONSE = "triton_enable_empty_final_response"
_CONTENTS = (
    "bool_contents", "int_contents", "int64_contents", "uint_contents", "uint64_contents", "fp32_contents",
    "fp64_contents", "bytes_contents",
)  # fmt: skip
_CONTENTS_TYPE = {
    "bool_contents": "BOOL", "int_contents": "INT32", "int64_contents": "INT64", "uint_contents": "UINT32",
    "uint64_contents": "UINT64", "fp32_contents": "FP32", "fp64_contents": "FP64", "bytes_contents": "BYTES",
}  # fmt: skip


def parse(cls: type[M], body: Buffer) -> M:
    """A message of any RPC. Raises InvalidRequest."""
    try:
        return cls.FromString(body)  # type: ignore[arg-type]  # any buffer will do
    except (DecodeError, UnicodeDecodeError):
        raise InvalidRequest(f"request is not a valid {cls.DESCRIPTOR.full_name} message") from None


class DataError(InvalidRequest):
    """The bytes of an input do not fit what the request itself declares.

    `declared` is the same request with placeholders of the declared types and shapes: Triton looks at names, types and
    shapes first, so its checks have the first word on what is wrong.
    """

    def __init__(self, text: str, declared: InferRequest) -> None:
        super().__init__(text)
        self.declared = declared


def decode(message: service.ModelInferRequest, config: ModelConfig) -> InferRequest:
    """A request for the model of `config`, not yet validated against it. Arrays may be read-only views of the message.

    Raises InvalidRequest (DataError among them) and Unsupported.
    """
    parameters, reserved = _parameters(message.parameters)
    decoder = _Decoder(message, config)
    inputs = tuple(decoder.inputs())
    request = InferRequest(
        model=message.model_name,
        inputs=inputs,
        id=message.id,
        outputs=_outputs(message.outputs),
        parameters=parameters,
        priority=reserved.get("priority", 0),
        timeout_us=reserved.get("timeout", 0),
    )
    if decoder.mismatch:
        raise DataError(prefixed(request, decoder.mismatch), request)
    return request


# --- parameters -----------------------------------------------------------------------------------------------------

_RESERVED = {
    "sequence_id": ("int64_param", "string_param"),
    "sequence_start": ("bool_param",),
    "sequence_end": ("bool_param",),
    "priority": ("int64_param", "uint64_param"),
    "timeout": ("int64_param",),
    FINAL_RESPONSE: ("bool_param",),
}
_FREE = ("int64_param", "bool_param", "string_param", "double_param")


def _parameters(given: Mapping[str, service.InferParameter]) -> tuple[dict[str, Parameter], dict[str, int]]:
    """The client's own parameters, and the values of those that mean something to the scheduler.

    The sequence parameters are checked and then left alone, as Triton does for models that keep no state.
    """
    own: dict[str, Parameter] = {}
    reserved: dict[str, int] = {}
    for key, value in given.items():
        if key.startswith("triton_") and key != FINAL_RESPONSE:
            raise InvalidRequest(
                "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys "
                f"starting with 'triton_' are allowed: {FINAL_RESPONSE}"
            )
        content = _choice(key, value, _RESERVED.get(key, _FREE))
        if key in ("priority", "timeout"):
            if content < 0:
                raise InvalidRequest(f"invalid value for '{key}', expected value >= 0.")
            reserved[key] = content
        elif key not in _RESERVED:
            own[key] = content
    return own, reserved


def _choice(key: str, value: service.InferParameter, allowed: tuple[str, ...]) -> Any:
    chosen = value.WhichOneof("parameter_choice")
    if chosen not in allowed:
        names = allowed[0] if len(allowed) == 1 else " or ".join(allowed)
        if len(allowed) > 2:
            names = ", ".join(allowed[:-1]) + f", or {allowed[-1]}"
        raise InvalidRequest(f"invalid value type for '{key}' parameter, expected {names}.")
    return getattr(value, chosen)


def _refuse_shared_memory(name: str, parameters: Mapping[str, service.InferParameter]) -> None:
    if "shared_memory_region" in parameters:
        raise Unsupported(f"shared memory is not supported by this server: send the contents of tensor '{name}' itself")


def _outputs(given: Iterable[service.ModelInferRequest.InferRequestedOutputTensor]) -> tuple[RequestedOutput, ...]:
    outputs: dict[str, RequestedOutput] = {}
    for output in given:
        if output.name in outputs:
            raise InvalidRequest(f"output '{output.name}' already exists in request")
        count = 0
        if output.parameters:
            _refuse_shared_memory(output.name, output.parameters)
            if "classification" in output.parameters:
                chosen = output.parameters["classification"]
                if chosen.WhichOneof("parameter_choice") != "int64_param":
                    raise InvalidRequest("invalid value type for 'classification' parameter, expected int64_param")
                count = chosen.int64_param
                if count < 0:
                    raise InvalidRequest("invalid value for 'classification' parameter, expected >= 0")
        outputs[output.name] = RequestedOutput(output.name, count)
    return tuple(outputs.values())


# --- inputs ---------------------------------------------------------------------------------------------------------


class _Decoder:
    """Walks the inputs of one message; `mismatch` is the first contradiction between bytes and declaration."""

    def __init__(self, message: service.ModelInferRequest, config: ModelConfig) -> None:
        self._message = message
        self._config = config
        self.mismatch = ""

    def inputs(self) -> Iterable[Tensor]:
        message = self._message
        raws: Sequence[bytes] = message.raw_input_contents
        used = 0
        seen: set[str] = set()
        for tensor in message.inputs:
            name = tensor.name
            if name in seen:
                raise InvalidRequest(f"input '{name}' already exists in request")
            seen.add(name)
            if tensor.parameters:
                _refuse_shared_memory(name, tensor.parameters)
            typed = tensor.HasField("contents")
            if typed and raws:
                raise InvalidRequest(
                    "contents field must not be specified when using raw_input_contents for "
                    f"'{name}' for model '{message.model_name}'"
                )
            if not typed and used >= len(raws):
                raise InvalidRequest(
                    f"unable to find data for input tensor '{name}' for model '{message.model_name}' in request."
                )
            datatype = self._datatype(name, tensor.datatype)
            shape = self._shape(name, datatype, tensor.shape)
            try:
                if typed:
                    array = self._typed(tensor, datatype, shape)
                else:
                    array = tensors.unpack(name, self._config.name, raws[used], datatype, shape)
                    used += 1
            except tensors.MismatchError as mismatch:
                self.mismatch = self.mismatch or str(mismatch)
                used += not typed
                # takes no memory, whatever the shape says
                array = np.broadcast_to(np.zeros((), datatype.numpy), shape)
            yield Tensor(name, datatype, array)
        if used < len(raws):
            raise InvalidRequest(
                f"expected {used} raw input contents but got {len(raws)} raw input contents for model "
                f"'{message.model_name}'"
            )

    def _fail(self, text: str) -> NoReturn:
        raise InvalidRequest(prefixed(InferRequest(self._message.model_name, (), self._message.id), text))

    def _datatype(self, name: str, declared: str) -> Datatype:
        datatype = BY_NAME.get(declared)
        if datatype is None:
            spec = self._config.input(name)
            if spec is None:
                self._fail(validate.unknown_input(name, self._config.name))
            self._fail(
                f"inference input '{name}' data-type is '{declared or '<invalid>'}', but model '{self._config.name}' "
                f"expects '{spec.datatype.name}'"
            )
        return datatype

    def _shape(self, name: str, datatype: Datatype, given: Sequence[int]) -> tuple[int, ...]:
        """The shape, if numpy could hold such an array at all."""
        if len(given) > MAX_RANK:
            self._fail(
                f"unexpected shape for input '{name}' for model '{self._config.name}'. Expected at most {MAX_RANK} "
                f"dimensions, got {len(given)}"
            )
        shape = tuple(given)
        if any(d < 0 for d in shape):
            self._fail(validate.unspecified_dim(name, self._config.name, shape))
        # the product without zeros, because numpy refuses (0, 2**62) for its strides
        if math.prod(d or 1 for d in shape) * (datatype.itemsize or 8) >= 1 << 62:
            self._fail(
                f"unexpected shape for input '{name}' for model '{self._config.name}'. Expected less than 2^62 bytes, "
                f"got {validate.dims_text(shape)}"
            )
        return shape

    def _typed(
        self, tensor: service.ModelInferRequest.InferInputTensor, datatype: Datatype, shape: tuple[int, ...]
    ) -> Array:
        filled = [field for field in _CONTENTS if len(getattr(tensor.contents, field))]
        where = f"input tensor '{tensor.name}' for model '{self._message.model_name}'"
        about = f"unexpected explicit tensor data for {where}"
        for number, field in enumerate(filled):
            if number:
                raise InvalidRequest(f"{about}, binary data was already supplied.")
            if field != datatype.contents:
                raise InvalidRequest(f"{about} of type '{_CONTENTS_TYPE[field]}', expected datatype '{datatype.name}'")
        values = getattr(tensor.contents, filled[0]) if filled else ()
        count = math.prod(shape)
        if datatype.name == "BYTES":
            tensors.compare_elements(tensor.name, self._config.name, count, len(values))
            return tensors.object_array(list(values), shape)
        tensors.compare(tensor.name, self._config.name, count * datatype.itemsize, len(values) * datatype.itemsize)
        if not count:
            return np.empty(shape, datatype.numpy)
        # narrow types travel in 32 bits; their low bits count, as in Triton
        wide = np.fromiter(values, _WIDE.get(datatype.name, datatype.numpy), count=count)
        return wide.astype(datatype.numpy, copy=False).reshape(shape)


_WIDE: dict[str, type[np.generic]] = {
    "INT8": np.int32, "INT16": np.int32, "UINT8": np.uint32, "UINT16": np.uint32,
}  # fmt: skip


# --- answers --------------------------------------------------------------------------------------------------------


def encode(name: str, version: int, request_id: str, response: Response) -> Answer:
    """A serialised ModelInferResponse; tensors always raw, as Triton's. Raises InvalidRequest where it is too large.

    With a tensor of LARGE bytes or more it comes in parts, and that one is a view: its array must not change any more.
    """
    outputs = response.outputs
    frame = _frame(name, version, tuple([(o.name, o.datatype.name, o.array.shape) for o in outputs]))
    if frame.small and not response.parameters and len(request_id) < LARGE:
        raw = outputs[0].array.tobytes()
        if not request_id:
            return frame.start + frame.small + raw
        text = request_id.encode()
        return b"".join((frame.start, prefix(ID, len(text)), text, frame.small, raw))
    parts: list[Buffer] = [frame.start]
    if request_id:
        text = request_id.encode()
        parts += (prefix(ID, len(text)), text)
    if response.parameters:
        parts.append(_serialised(response.parameters))
    parts.append(frame.outputs)
    large = False
    for tensor, before in zip(outputs, frame.prefixes, strict=True):
        if before is not None and tensor.array.nbytes >= LARGE:
            large = True
            # as bytes, since not all of numpy's types may be had as a memoryview
            parts += (before, np.ascontiguousarray(tensor.array).reshape(-1).view(np.uint8).data)
        else:
            raw = tensors.pack(tensor)
            parts += (before or prefix(RAW_OUTPUT, len(raw)), raw)
    size = sum(map(len, parts))
    if size > MAX_BYTES:
        raise InvalidRequest(f"Response has byte size {size} which exceeds gRPC's byte size limit {MAX_BYTES}.")
    return parts if large else b"".join(parts)


class _Frame(NamedTuple):
    """What in a ModelInferResponse depends on neither the request's id nor the tensors' bytes."""

    start: bytes
    """All before the id."""
    outputs: bytes
    small: bytes
    """`outputs` and the one prefix, where there is one tensor, and it is small; else nothing."""
    prefixes: tuple[bytes | None, ...]
    """What stands before the bytes of each tensor; None for BYTES, whose length differs from answer to answer."""


@lru_cache(maxsize=1024)
def _frame(name: str, version: int, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> _Frame:
    message = service.ModelInferResponse()
    prefixes: list[bytes | None] = []
    for output, datatype, shape in outputs:
        message.outputs.add(name=output, datatype=datatype, shape=shape)
        itemsize = BY_NAME[datatype].itemsize
        prefixes.append(prefix(RAW_OUTPUT, math.prod(shape) * itemsize) if itemsize else None)
    start = service.ModelInferResponse(model_name=name, model_version=str(version)).SerializeToString()
    described = message.SerializeToString()
    small = b""
    if len(prefixes) == 1 and prefixes[0] is not None and math.prod(outputs[0][2]) * itemsize < LARGE:
        small = described + prefixes[0]
    return _Frame(start, described, small, tuple(prefixes))


def _serialised(parameters: Mapping[str, Parameter]) -> bytes:
    message = service.ModelInferResponse()
    for key, value in parameters.items():
        setattr(message.parameters[key], _FIELDS[type(value)], value)
    return message.SerializeToString()


_FIELDS: dict[type, str] = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
