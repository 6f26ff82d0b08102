"""The protocol, spoken through tritonclient: what a server says about a model, and requests sent to it.

Questions go through `tritonclient.grpc.aio.InferenceServerClient`. Predictions go over a channel of our own as bytes
prepared once from tritonclient's generated messages (`tritonclient.grpc.service_pb2`), since `infer()` builds the
message anew for each request. Measured against a server that only answers (2 cores, 8 and 64 in flight, 2 × [1,128]
INT64), in client microseconds of processor time per request: `aio.infer` 233–295, prepared bytes on `grpc.aio`
221–264, `async_infer` of the sync client 212–271, prepared bytes on sync futures 176–236; with one in flight 347,
307, 463 and 322, since the sync client starts a thread whenever it has been idle. So: `grpc.aio` and prepared bytes,
one thread, whose load can be told.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from protos.datatypes import BY_NAME
from tests.load.errors import LoadError
from tests.load.inputs import Array, Model, ModelInput
from tests.load.loops import Call

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
INT32_MAX = 2**31 - 1
ASK_TIMEOUT_S = 10.0
OPTIONS = (
    ("grpc.max_send_message_length", INT32_MAX),
    ("grpc.max_receive_message_length", INT32_MAX),
    # Without a pool of its own, each channel of one process to one address shares one TCP connection.
    ("grpc.use_local_subchannel_pool", 1),
)


@dataclass(frozen=True, slots=True)
class Address:
    """Which model on which server, and what to call it in reports."""

    label: str
    model: str
    version: str
    url: str

    def __str__(self) -> str:
        return f"{self.model}{f':{self.version}' if self.version else ''}@{self.url}"


@dataclass(frozen=True, slots=True)
class Described:
    """What a server said about itself and the model."""

    server: str
    model: Model


async def describe(address: Address) -> Described:
    """Ask the server for what is needed to load it. Raises LoadError when it is absent, or the model unknown or not
    ready."""
    client = InferenceServerClient(address.url, channel_args=list(OPTIONS))
    try:
        return await _describe(client, address)
    finally:
        await client.close()


async def _describe(client: Any, address: Address) -> Described:
    try:
        server = await client.get_server_metadata(client_timeout=ASK_TIMEOUT_S)
    except InferenceServerException as error:
        raise LoadError(f"no server of the protocol answers at {address.url}: {_text(error)}") from None
    try:
        ready = await client.is_model_ready(address.model, address.version, client_timeout=ASK_TIMEOUT_S)
        if not ready:
            raise LoadError(f"model {_named(address)} on {address.url} is unknown or not ready")
        metadata = await client.get_model_metadata(address.model, address.version, client_timeout=ASK_TIMEOUT_S)
    except InferenceServerException as error:
        raise LoadError(f"model {_named(address)} on {address.url}: {_text(error)}") from None
    try:
        answer = await client.get_model_config(address.model, address.version, client_timeout=ASK_TIMEOUT_S)
        config = answer.config
    except InferenceServerException:
        # ModelConfig is Triton's extension; other servers of the protocol lack it.
        config = None
    return Described(f"{server.name} {server.version}".strip(), model_of(metadata, config))


def model_of(metadata: Any, config: model_config_pb2.ModelConfig | None) -> Model:
    """The model from ModelMetadata's answer and its ModelConfig. Without a config, a first dimension of -1 in every
    input is taken for the batch dimension, which then has no known limit."""
    inputs = [(item.name, item.datatype, tuple(item.shape)) for item in metadata.inputs]
    optional = {item.name for item in config.input if item.optional} if config is not None else set()
    if config is not None:
        limit = config.max_batch_size
    else:
        limit = INT32_MAX if inputs and all(shape[:1] == (-1,) for _, _, shape in inputs) else 0
    skipped = 1 if limit else 0
    found = [ModelInput(name, kind, shape[skipped:], name in optional) for name, kind, shape in inputs]
    return Model(metadata.name, metadata.platform, tuple(found), limit)


def encode(address: Address, arrays: Mapping[str, Array], datatypes: Mapping[str, str]) -> bytes:
    """A ModelInferRequest as tritonclient would send it: raw contents, no id, every output wanted."""
    request = service_pb2.ModelInferRequest(model_name=address.model, model_version=address.version)
    for name, array in arrays.items():
        request.inputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        if datatypes[name] == "BYTES":
            packed = serialize_byte_tensor(array)
            request.raw_input_contents.append(packed.item() if packed.size else b"")
        else:
            plain = np.ascontiguousarray(array, BY_NAME[datatypes[name]].numpy)
            request.raw_input_contents.append(plain.tobytes())
    return bytes(request.SerializeToString())


class Connections:
    """`count` connections to one server; requests take them in turn. An asynchronous context."""

    def __init__(self, url: str, count: int) -> None:
        self._channels = [grpc.aio.insecure_channel(url, options=OPTIONS) for _ in range(count)]
        parse = service_pb2.ModelInferResponse.FromString
        self._methods = [channel.unary_unary(MODEL_INFER, response_deserializer=parse) for channel in self._channels]

    async def __aenter__(self) -> Connections:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def call(self, requests: Sequence[bytes], timeout_s: float) -> Call:
        """Sends request number n as `requests[n % len]`; any gRPC status but OK is an error, `STATUS: text`."""
        methods, count, pool = self._methods, len(self._methods), len(requests)

        async def send(number: int) -> str | None:
            try:
                await methods[number % count](requests[number % pool], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                return f"{error.code().name}: {' '.join((error.details() or '').split())}"
            return None

        return send


def _named(address: Address) -> str:
    return f"{address.model!r}" + (f" version {address.version}" if address.version else "")


def _text(error: InferenceServerException) -> str:
    return " ".join((error.message() or "").split()) or str(error.status())
