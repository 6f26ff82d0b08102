"""The protocol, spoken through tritonclient: what a server says about a model, and requests sent to it by grpcio.

Questions go through `tritonclient.grpc.aio.InferenceServerClient`. Predictions go over a channel of our own as bytes
prepared once from tritonclient's generated messages (`tritonclient.grpc.service_pb2`), since `infer()` builds the
message anew for each request. Measured against a server that only answers (2 cores, 8 and 64 in flight, 2 × [1,128]
INT64), in client microseconds of processor time per request: `aio.infer` 233–295, prepared bytes on `grpc.aio`
221–264, `async_infer` of the sync client 212–271, prepared bytes on sync futures 176–236; with one in flight 347,
307, 463 and 322, since the sync client starts a thread whenever it has been idle. So: `grpc.aio` and prepared bytes,
one thread, whose load can be told; or the same bytes over `http2.py`, which costs a fraction of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import numpy as np
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, serialize_byte_tensor

from protos.datatypes import BY_NAME
from tests.load.errors import LoadError
from tests.load.inputs import Array, Model, ModelInput
from tests.load.loops import Call
from tests.load.stages import Counts, Told

MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
INT32_MAX = 2**31 - 1
ASK_TIMEOUT_S = 10.0
SETTLE_S = 1.0
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


class Server:
    """A server, asked about itself and one of its models. An asynchronous context."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._client = InferenceServerClient(address.url, channel_args=list(OPTIONS))

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def describe(self) -> Described:
        """What is needed to load it. Raises LoadError when it is absent, or the model unknown or not ready."""
        client, address = self._client, self._address
        which = (address.model, address.version)
        try:
            server = await client.get_server_metadata(client_timeout=ASK_TIMEOUT_S)
        except InferenceServerException as error:
            raise LoadError(f"no server of the protocol answers at {address.url}: {_text(error)}") from None
        try:
            ready = await client.is_model_ready(*which, client_timeout=ASK_TIMEOUT_S)
            if not ready:
                raise LoadError(f"model {_named(address)} on {address.url} is unknown or not ready")
            metadata = await client.get_model_metadata(*which, client_timeout=ASK_TIMEOUT_S)
        except InferenceServerException as error:
            raise LoadError(f"model {_named(address)} on {address.url}: {_text(error)}") from None
        try:
            answer = await client.get_model_config(*which, client_timeout=ASK_TIMEOUT_S)
            config = answer.config
        except InferenceServerException:
            # ModelConfig is Triton's extension; other servers of the protocol lack it.
            config = None
        return Described(f"{server.name} {server.version}".strip(), model_of(metadata, config))

    async def counts(self, at_least: int = 0) -> Told:
        """What it has counted of the model, all its versions together when the server chooses. A real Triton counts a
        request a moment after its answer: it is asked again until it has `at_least` so many, or SETTLE_S are over."""
        loop = asyncio.get_running_loop()
        until = loop.time() + SETTLE_S
        while True:
            try:
                told = await self._client.get_inference_statistics(
                    self._address.model, self._address.version, client_timeout=ASK_TIMEOUT_S
                )
            except InferenceServerException as error:
                return f"the server tells no statistics: {_text(error)}"
            found = counts_of(told)
            if found.requests >= at_least or loop.time() >= until:
                return found
            await asyncio.sleep(SETTLE_S / 20)


def counts_of(told: Any) -> Counts:
    """The sums of a ModelStatisticsResponse."""
    all_versions = [statistics.inference_stats for statistics in told.model_stats]
    return Counts(
        sum(one.success.count for one in all_versions),
        *(
            sum(getattr(one, name).ns for one in all_versions)
            for name in ("success", "queue", "compute_input", "compute_infer", "compute_output")
        ),
    )


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


def endpoint(url: str) -> tuple[str, int] | str:
    """Host and port of HOST:PORT, or the path of unix:PATH. Raises LoadError; grpcio takes more forms than these."""
    if url.startswith("unix:"):
        # unix:///path is gRPC's other way to write unix:/path
        return url.removeprefix("unix:").removeprefix("//")
    host, _, port = url.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535 or "/" in host or host.count(":") == 1:
        raise LoadError(f"url {url!r} is not HOST:PORT, [IPV6]:PORT or unix:/PATH")
    return host.removeprefix("[").removesuffix("]"), int(port)


class Connections(Protocol):
    """`count` connections to one server; requests take them in turn. An asynchronous context."""

    def __init__(self, url: str, count: int, timeout_s: float) -> None: ...
    async def __aenter__(self) -> Connections: ...
    async def __aexit__(self, *_: object) -> None: ...

    def call(self, requests: Sequence[bytes]) -> Call:
        """Sends request number n as `requests[n % len]`; any gRPC status but OK is an error, `STATUS: text`."""


class GrpcioConnections:
    def __init__(self, url: str, count: int, timeout_s: float) -> None:
        self._channels = [grpc.aio.insecure_channel(url, options=OPTIONS) for _ in range(count)]
        parse = service_pb2.ModelInferResponse.FromString
        self._methods = [channel.unary_unary(MODEL_INFER, response_deserializer=parse) for channel in self._channels]
        self._timeout_s = timeout_s

    async def __aenter__(self) -> GrpcioConnections:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    def call(self, requests: Sequence[bytes]) -> Call:
        methods, count, pool, timeout_s = self._methods, len(self._methods), len(requests), self._timeout_s

        async def send(number: int) -> str | None:
            try:
                await methods[number % count](requests[number % pool], timeout=timeout_s)
            except grpc.aio.AioRpcError as error:
                return failure(error.code().name, error.details() or "")
            return None

        return send


def failure(status: str, text: str) -> str:
    """An error as it is counted: in one line."""
    return f"{status}: {' '.join(text.split())}"


def _named(address: Address) -> str:
    return f"{address.model!r}" + (f" version {address.version}" if address.version else "")


def _text(error: InferenceServerException) -> str:
    return " ".join((error.message() or "").split()) or str(error.status())
