"""Bodies of ModelInfer into requests for their models, and the cheap way for those whose like has been seen.

A body is read by protobuf, decoded by `codec.py` and checked by the model's validator. Where all that was found depends
on the body's head alone (`infer_wire.py`), it is kept as a template: the next body of the same head is its id and its
tensors' bytes put into the template: 4 µs instead of 11 to 20 for a small one, and large tensors stay where they are.
Clients mostly send bodies that differ in nothing else, so where id and tensors stand is kept as well: 2 µs.
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
        # by position, which takes a third less
        return InferRequest(
            self.model, tuple(inputs), request_id, self.outputs, self.parameters, self.priority, self.timeout_us,
            None, 0, self.rows, self.group, self.checked,
        )  # fmt: skip


class InferRequests:
    """Reads bodies; from any thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._templates: dict[bytes, _Template] = {}
        self._known: dict[tuple[int, Buffer], tuple[infer_wire.Layout, _Template]] = {}
        """By what `_key` says of a body."""

    def read(self, body: Buffer) -> tuple[InferRequest, Model, str]:
        """The request, its model, and the version as the client wrote it. Arrays may be views of `body`.

        Raises InvalidRequest, NotFound, Unavailable or Unsupported.
        """
        known = self._known.get(_key(body))
        if known is not None:
            layout, template = known
            request_id = layout.request_id(body)
            found = None if request_id is None else self._filled(template, body, request_id, layout.raws)
            if found is not None:
                return found
        split = infer_wire.split(body)
        if split is None:
            return self._ordinary(body)
        head, own_id, raws = split
        if (seen := self._templates.get(head)) is not None:
            found = self._filled(seen, body, own_id, raws)
            if found is not None:
                self._remember(body, split, seen)
                return found
        request, model, version = self._ordinary(body)
        # raw tensors for all inputs: typed contents are part of the head, values and all
        if len(raws) == len(request.inputs) and model.validator.cacheable:
            self._learn(head, request, model, version)
        return request, model, version

    def _filled(
        self, template: _Template, body: Buffer, request_id: str, raws: list[tuple[int, int]]
    ) -> tuple[InferRequest, Model, str] | None:
        model = self._catalog.model(template.model, template.version)
        if template.checked is not model.validator:
            return None
        request = template.request(body, request_id, raws)
        return None if request is None else (request, model, template.version)

    def _remember(self, body: Buffer, split: infer_wire.Split, template: _Template) -> None:
        """The first layout of a key stays: others are split each time, which costs less than taking turns."""
        key = _key(body)
        before = self._known.get(key)
        if before is None or before[1].checked is not template.checked:
            if len(self._known) >= TEMPLATES:
                self._known.clear()
            self._known[key] = infer_wire.layout(body, split), template

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


def _key(body: Buffer) -> tuple[int, Buffer]:
    """Of bodies that are likely laid out alike: their size, and the name of the model, which most clients put first."""
    return len(body), bytes(body[: 2 + body[1]]) if len(body) > 1 else b""


def _slot(tensor: Tensor) -> _Slot:
    datatype, shape = tensor.datatype, tensor.array.shape
    plain = None if datatype.name in ("BOOL", "BYTES") else datatype.numpy
    return _Slot(tensor.name, datatype, shape, plain, tensor.array.size * datatype.itemsize)
