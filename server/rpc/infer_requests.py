"""Bodies of ModelInfer into requests for their models, and the cheap way for those whose like has been seen.

A body is read by protobuf, decoded by `codec.py` and checked by the model's validator. Where all that was found depends
on the body's head alone (`infer_wire.py`), it is kept as a template: the next body of the same head is its id and its
tensors' bytes put into the template: 4 µs instead of 11 to 20 for a small one, and large tensors stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from protos.datatypes import Datatype
from protos.wire import service
from server.catalog import Catalog
from server.errors import InvalidRequest
from server.model import Model
from server.request import InferRequest, Parameter, RequestedOutput, Tensor
from server.rpc import codec, infer_wire, tensors
from server.rpc.call import Buffer

TEMPLATES = 1024
"""Kept at most; when one more comes all are dropped, so that a client of ever new heads costs others one miss each. So
many take 0.7 MiB, and 25 MiB when a client fills each head with parameters."""


@dataclass(frozen=True, slots=True)
class _Slot:
    """An input without its bytes."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    plain: np.dtype[Any] | None
    """The dtype, where the bytes are the array as it is; None for BOOL and BYTES."""
    size: int
    """Bytes that such an array has."""


@dataclass(frozen=True, slots=True)
class _Template:
    """What all requests of one head have in common, once `checked` has seen one of them."""

    model: str
    version: str
    slots: tuple[_Slot, ...]
    outputs: tuple[RequestedOutput, ...]
    parameters: Mapping[str, Parameter]
    priority: int
    timeout_us: int
    rows: int
    group: object
    checked: object

    def request(self, body: Buffer, request_id: str, raws: list[tuple[int, int]]) -> InferRequest | None:
        """None where the tensors' bytes do not fit the head."""
        if len(raws) != len(self.slots):
            return None
        inputs: list[Tensor] = []
        for slot, (offset, length) in zip(self.slots, raws, strict=True):
            array: tensors.Array
            if slot.plain is None:
                try:
                    raw = memoryview(body)[offset : offset + length]
                    array = tensors.unpack(slot.name, self.model, raw, slot.datatype, slot.shape)
                except tensors.MismatchError:
                    return None
            elif length != slot.size:
                return None
            else:
                array = np.ndarray(slot.shape, slot.plain, body, offset)
            inputs.append(Tensor(slot.name, slot.datatype, array))
        return InferRequest(
            self.model,
            tuple(inputs),
            request_id,
            self.outputs,
            self.parameters,
            self.priority,
            self.timeout_us,
            rows=self.rows,
            group=self.group,
            checked=self.checked,
        )


class InferRequests:
    """Reads bodies; from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._templates: dict[bytes, _Template] = {}

    def read(self, body: Buffer) -> tuple[InferRequest, Model, str]:
        """The request, its model, and the version as the client wrote it. Arrays may be views of `body`.

        Raises InvalidRequest, NotFound, Unavailable or Unsupported.
        """
        split = infer_wire.split(body)
        if split is None:
            return self._ordinary(body)
        head, request_id, raws = split
        template = self._templates.get(head)
        if template is not None:
            model = self._catalog.model(template.model, template.version)
            if template.checked is model.validator:
                request = template.request(body, request_id, raws)
                if request is not None:
                    return request, model, template.version
        request, model, version = self._ordinary(body)
        # raw tensors for all inputs: typed contents are part of the head, values and all
        if len(raws) == len(request.inputs) and model.validator.cacheable:
            self._learn(head, request, model, version)
        return request, model, version

    def _ordinary(self, body: Buffer) -> tuple[InferRequest, Model, str]:
        message = codec.parse(service.ModelInferRequest, body)
        model = self._catalog.model(message.model_name, message.model_version)
        try:
            return codec.decode(message, model.config), model, message.model_version
        except codec.DataError as error:
            model.validator.check(error.declared)
            raise

    def _learn(self, head: bytes, request: InferRequest, model: Model, version: str) -> None:
        try:
            model.validator.check(request)
        except InvalidRequest:  # `Model.submit` will find the same, count it, and answer
            return
        request.checked = model.validator
        if len(self._templates) >= TEMPLATES:
            self._templates.clear()
        self._templates[head] = _Template(
            request.model,
            version,
            tuple(_slot(tensor) for tensor in request.inputs),
            request.outputs,
            request.parameters,
            request.priority,
            request.timeout_us,
            request.rows,
            request.group,
            request.checked,
        )


def _slot(tensor: Tensor) -> _Slot:
    datatype, shape = tensor.datatype, tensor.array.shape
    plain = None if datatype.name in ("BOOL", "BYTES") else datatype.numpy
    return _Slot(tensor.name, datatype, shape, plain, tensor.array.size * datatype.itemsize)
