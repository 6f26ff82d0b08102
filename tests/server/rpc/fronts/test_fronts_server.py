"""The whole server behind fronts, beside one without: the same bytes come back."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from protos.wire import METHODS, service
from server.grpc_settings import GrpcSettings
from server.rpc.fronts.transport import FrontsTransport
from tests.bench.tiny import write_tiny
from tests.server.harness import ROW, Running, running, tensor, write_entry
from tests.server.rpc.transports import OPEN, WAIT

FRONTED = GrpcSettings(port=0, front_processes=2)
HELD = "max_batch_size: 8\ninstance_group [{ count: 1 kind: KIND_CPU }]\n"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("repository")
    write_tiny(found)
    write_entry(found, "double", behaviour={"multiply": 2, "fail_on": 13.0})
    write_entry(found, "text", datatype="BYTES", shape=(-1, 1))
    write_entry(found, "wide", shape=(-1, -1))
    write_entry(found, "held", config=HELD, behaviour={"gate": "closed"})
    return found


@pytest.fixture(scope="module")
def fronted(root: Path) -> Iterator[Running]:
    with running(root, grpc=FRONTED) as found:
        assert isinstance(found.server._grpc, FrontsTransport)
        yield found


@pytest.fixture(scope="module")
def direct(root: Path) -> Iterator[Running]:
    with running(root) as found:
        yield found


def outcome(running: Running, method: str, message: Message) -> Any:
    with grpc.insecure_channel(running.url, OPEN) as channel:
        try:
            return channel.unary_unary(METHODS[method].path)(message.SerializeToString(), timeout=WAIT)
        except grpc.RpcError as error:
            return error.code(), error.details()


def inference(model: str, array: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x", **more: Any) -> Any:
    found = service.ModelInferRequest(model_name=model, **more)
    found.inputs.add(name=name, datatype=datatype, shape=array.shape)
    if datatype == "BYTES":
        raw = b"".join(len(text).to_bytes(4, "little") + text for text in array.ravel())
    else:
        raw = array.tobytes()
    found.raw_input_contents.append(raw)
    return found


RNG = np.random.default_rng(7)
ROWS = RNG.standard_normal((5, 784), np.float32)
REQUESTS = {
    "a perceptron": inference("tiny", ROWS, name="image"),
    "with an id": inference("tiny", ROWS[:1], name="image", id="número 1"),
    "a row": inference("double", ROW),
    "texts": inference("text", np.array([[b""], [b"a\0b"], ["é".encode()]], object), "BYTES"),
    "16 MiB": inference("wide", RNG.standard_normal((4, 1 << 20), np.float32)),
    "no such model": inference("nobody", ROW),
    "no such version": inference("double", ROW, model_version="9"),
    "a shape that is not the model's": inference("double", ROWS),
    "a row that fails": inference("double", np.full((1, 4), 13, np.float32)),
    "fewer bytes than declared": inference("double", ROW),
}
REQUESTS["fewer bytes than declared"].raw_input_contents[0] = b"12"


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_inferences_are_those_of_a_server_without_fronts(fronted: Running, direct: Running, request_: Message) -> None:
    assert outcome(fronted, "ModelInfer", request_) == outcome(direct, "ModelInfer", request_)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("ServerLive", service.ServerLiveRequest()),
        ("ServerReady", service.ServerReadyRequest()),
        ("ServerMetadata", service.ServerMetadataRequest()),
        ("ModelReady", service.ModelReadyRequest(name="tiny")),
        ("ModelMetadata", service.ModelMetadataRequest(name="tiny")),
        ("ModelConfig", service.ModelConfigRequest(name="double")),
        ("ModelConfig", service.ModelConfigRequest(name="nobody")),
        ("RepositoryIndex", service.RepositoryIndexRequest()),
        ("RepositoryModelLoad", service.RepositoryModelLoadRequest(model_name="tiny")),
        ("TraceSetting", service.TraceSettingRequest()),
    ],
)
def test_the_rest_of_the_protocol_is_too(fronted: Running, direct: Running, method: str, message: Message) -> None:
    assert outcome(fronted, method, message) == outcome(direct, method, message)


def test_clients_of_all_fronts_meet_one_model(fronted: Running) -> None:
    clients = [triton.InferenceServerClient(fronted.url) for _ in range(4)]
    before = fronted.server.catalog.model("double").statistics().success.count

    def ask(client: triton.InferenceServerClient) -> None:
        for number in range(50):
            found = client.infer("double", [tensor(ROW + 100 * number)]).as_numpy("y")
            assert np.array_equal(found, (ROW + 100 * number) * 2)

    threads = [threading.Thread(target=ask, args=(client,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fronted.server.catalog.model("double").statistics().success.count == before + 200
    for client in clients:
        client.close()


def test_a_request_that_is_taken_back_leaves_the_queue(fronted: Running) -> None:
    model = fronted.server.catalog.model("held")
    session = fronted.session("held")
    with grpc.insecure_channel(fronted.url) as channel:
        infer = channel.unary_unary(METHODS["ModelInfer"].path)
        body = inference("held", ROW).SerializeToString()
        running_ = infer.future(body, timeout=WAIT)
        assert session.gate.arrived(1)
        waiting = [infer.future(body, timeout=WAIT), infer.future(body, timeout=0.2)]
        assert waiting[1].exception(WAIT).code() is grpc.StatusCode.DEADLINE_EXCEEDED
        waiting[0].cancel()
        while model.waiting():
            threading.Event().wait(0.001)
        session.gate.open()
        assert running_.result()
    assert [ran.rows for ran in session.ran] == [1]


def test_health_is_told_and_watched_through_fronts(root: Path) -> None:
    states = health_pb2.HealthCheckResponse
    with running(root, grpc=FRONTED) as served, grpc.insecure_channel(served.url) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == states.SERVING
        watch = health.Watch(health_pb2.HealthCheckRequest(), timeout=WAIT)
        assert next(watch).status == states.SERVING
        assert served.server._grpc.drain(WAIT)
        assert next(watch).status == states.NOT_SERVING
        assert health.Check(health_pb2.HealthCheckRequest(), timeout=WAIT).status == states.NOT_SERVING
        served.server._grpc.stop(WAIT)
        assert list(watch) == []
        served.server._grpc.drain = lambda timeout: True
        served.server._grpc.stop = lambda grace: None


def test_reflection_is_answered_through_fronts(fronted: Running) -> None:
    with grpc.insecure_channel(fronted.url) as channel:
        found = ProtoReflectionDescriptorDatabase(channel)
        assert "inference.GRPCInferenceService" in found.get_services()
        assert found.FindFileContainingSymbol("inference.ModelInferRequest").package == "inference"
