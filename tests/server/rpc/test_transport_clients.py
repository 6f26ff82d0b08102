"""The clients that people use, against the whole service over both transports: tritonclient's two, and h2load."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tritonclient.utils import InferenceServerException

from server.backends.fake import FakeSession
from server.catalog import Catalog
from server.rpc.limits import MIB, Limits
from server.rpc.service import SHUTTING_DOWN, Service
from tests.server.harness import ROW, catalog_of, eventually, tensor, write_entry
from tests.server.rpc.raw import framed
from tests.server.rpc.transports import WAIT, Served, serving

BATCHING = "max_batch_size: 8\ndynamic_batching { }\ninstance_group [{ count: 1 kind: KIND_CPU }]\n"
H2LOAD = shutil.which("h2load")


@dataclass
class Whole:
    """A transport with the real service behind it."""

    served: Served
    catalog: Catalog

    @property
    def url(self) -> str:
        return self.served.url

    def session(self, name: str) -> FakeSession:
        found = self.catalog.model(name)._session
        assert isinstance(found, FakeSession)
        return found


@pytest.fixture(scope="module")
def whole(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Whole]:
    root = tmp_path_factory.mktemp("repository")
    write_entry(root, "m", config=BATCHING, behaviour={"multiply": 2})
    write_entry(root, "text", datatype="BYTES")
    write_entry(root, "held", config=BATCHING, behaviour={"gate": "closed"})
    write_entry(root, "wide", shape=(-1, -1))
    with catalog_of(root) as catalog:
        service = Service(catalog, "triton", time.monotonic_ns)
        with serving(kind, service, Limits(compression=True)) as served:
            yield Whole(served, catalog)


@pytest.fixture(scope="module")
def client(whole: Whole) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(whole.url) as found:
        yield found


# --- tritonclient ---


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_predictions(client: triton.InferenceServerClient, algorithm: str | None) -> None:
    for i in range(20):
        found = client.infer("m", [tensor(ROW + i)], request_id=str(i), compression_algorithm=algorithm)
        assert np.array_equal(found.as_numpy("y"), (ROW + i) * 2)
        assert found.get_response().id == str(i)


@pytest.mark.parametrize("rows", [1, 1000, 1_000_000])
def test_tensors_of_every_size(client: triton.InferenceServerClient, rows: int) -> None:
    sent = np.arange(rows * 4, dtype=np.float32).reshape(1, -1)
    assert np.array_equal(client.infer("wide", [tensor(sent)]).as_numpy("y"), sent)


def test_texts(client: triton.InferenceServerClient) -> None:
    sent = np.array([[b"", b"a\0b", "é".encode(), b"x" * MIB]], object)
    assert np.array_equal(client.infer("text", [tensor(sent, datatype="BYTES")]).as_numpy("y"), sent)


def test_everything_else_that_a_client_asks(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.get_server_metadata().name == "triton"
    assert client.get_model_metadata("m").inputs[0].name == "x"
    assert client.get_model_config("m").config.max_batch_size == 8
    assert {model.name for model in client.get_model_repository_index().models} == {"m", "text", "held", "wide"}
    assert client.get_inference_statistics("m").model_stats[0].name == "m"


def test_errors(client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException, match="Request for unknown model: 'nobody' is not found") as caught:
        client.infer("nobody", [tensor(ROW)])
    assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException) as caught:
        client.infer("m", [tensor(np.zeros((9, 4)))])
    assert caught.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_many_at_once_with_callbacks(client: triton.InferenceServerClient) -> None:
    results: SimpleQueue[Any] = SimpleQueue()
    for i in range(200):
        client.async_infer("m", [tensor(ROW + i)], callback=lambda result, error: results.put(error or result))
    got = [results.get(timeout=WAIT) for _ in range(200)]
    assert sorted(float(result.as_numpy("y")[0, 0]) for result in got) == [2.0 * i for i in range(200)]


def test_the_aio_client(whole: Whole) -> None:
    async def main() -> list[float]:
        async with triton_aio.InferenceServerClient(whole.url) as found:
            assert await found.is_server_ready()
            calls = [found.infer("m", [tensor(ROW + i)]) for i in range(200)]
            return [float(result.as_numpy("y")[0, 0]) for result in await asyncio.gather(*calls)]

    assert asyncio.run(main()) == [2.0 * i for i in range(200)]


def test_a_deadline_and_a_cancellation_take_requests_out_of_the_queue(
    whole: Whole, client: triton.InferenceServerClient
) -> None:
    model, session = whole.catalog.model("held"), whole.session("held")
    nothing = threading.Event()  # tells when a request is queued
    first = client.async_infer("held", [tensor(ROW)], callback=lambda result, error: None)
    assert session.gate.arrived(1)
    with pytest.raises(InferenceServerException) as caught:
        client.infer("held", [tensor(ROW + 7)], client_timeout=0.2)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    ended: SimpleQueue[Any] = SimpleQueue()
    cancelled = client.async_infer("held", [tensor(ROW + 8)], callback=lambda result, error: ended.put(error))
    eventually(lambda: model.waiting() == 1, nothing)
    cancelled.cancel()
    assert ended.get(timeout=WAIT) is not None
    eventually(lambda: model.waiting() == 0, nothing)
    session.gate.open()
    assert np.array_equal(client.infer("held", [tensor(ROW + 1)]).as_numpy("y"), ROW + 1)
    assert not {7.0, 8.0} & {value for run in session.ran for value in run.first}
    del first


def test_health_is_watched_until_the_server_ends(kind: str, tmp_path: Path) -> None:
    write_entry(tmp_path)
    with catalog_of(tmp_path) as catalog:
        service = Service(catalog, "triton", time.monotonic_ns)
        with serving(kind, service) as served, served.channel() as channel:
            states = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=WAIT)
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            with triton.InferenceServerClient(served.url) as found:
                assert served.transport.drain(WAIT)
                assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
                with pytest.raises(InferenceServerException, match=SHUTTING_DOWN):
                    found.infer("m", [tensor(ROW)])
                assert not found.is_server_ready()
            served.transport.stop(WAIT)
            assert list(states) == []
            assert states.code() is grpc.StatusCode.OK
            served.transport.stop = lambda grace: None


# --- h2load ---


@pytest.mark.skipif(H2LOAD is None, reason="needs h2load of nghttp2-client")
@pytest.mark.parametrize(("connections", "streams"), [(1, 1), (4, 32), (50, 10)])
def test_h2load_has_every_request_answered(whole: Whole, tmp_path: Path, connections: int, streams: int) -> None:
    sent = triton.service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[ROW.tobytes()])
    sent.inputs.add(name="x", datatype="FP32", shape=[1, 4])
    body = tmp_path / "body"
    body.write_bytes(framed(sent.SerializeToString()))
    requests = 1000
    command = [
        H2LOAD or "", f"-n{requests}", f"-c{connections}", f"-m{streams}", "-d", str(body),
        "-H", "content-type: application/grpc", "-H", "te: trailers",
        f"http://{whole.url}/inference.GRPCInferenceService/ModelInfer",
    ]  # fmt: skip
    before = whole.catalog.model("m").statistics().success.count
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert re.search(rf"{requests} total.* {requests} succeeded, 0 failed, 0 errored, 0 timeout", done.stdout), (
        done.stdout
    )
    assert f"status codes: {requests} 2xx" in done.stdout
    assert whole.catalog.model("m").statistics().success.count == before + requests
