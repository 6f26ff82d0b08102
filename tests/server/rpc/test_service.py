"""Every RPC by the stock client over both transports, against a server in this process on the fake backend."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.utils import InferenceServerException

from protos.wire import METHODS
from server.grpc_settings import GrpcSettings
from server.rpc.call import Refused
from server.rpc.service import EXTENSIONS, SHUTTING_DOWN
from tests.server.harness import ROW, Running, running, tensor, write_entry

BATCHING = "max_batch_size: 8\ndynamic_batching { }\ninstance_group [{ count: 1 kind: KIND_CPU }]\n"


@pytest.fixture(scope="module")
def served(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("repository")
    write_entry(root, "m", config=BATCHING, behaviour={"multiply": 2, "fail_on": 13.0})
    write_entry(root, "m", version=3, behaviour={"multiply": 3})
    write_entry(root, "two", config="version_policy: { all { } }\n", constant=1)
    write_entry(root, "two", version=2, constant=2)
    write_entry(root, "text", datatype="BYTES")
    write_entry(root, "flat", shape=(4,))
    write_entry(root, "held", config=BATCHING, behaviour={"gate": "closed"})
    write_entry(root, "counted", config=BATCHING, behaviour={"fail_on": 13.0})
    with running(root, grpc=GrpcSettings(port=0, transport=kind)) as found:
        yield found


@pytest.fixture(scope="module")
def client(served: Running) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(served.url) as found:
        yield found


def refusal(call: Callable[[], Any]) -> tuple[str, str]:
    """Status code and text of a call that must fail."""
    with pytest.raises(InferenceServerException) as caught:
        call()
    return str(caught.value.status()).removeprefix("StatusCode."), str(caught.value.message())


def test_live_ready_and_metadata(client: triton.InferenceServerClient) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata.name == "triton"
    assert tuple(metadata.extensions) == EXTENSIONS


def test_model_ready_means_a_version_that_serves(client: triton.InferenceServerClient) -> None:
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "3")
    assert not client.is_model_ready("m", "1"), "the default policy serves the latest only"
    assert not client.is_model_ready("nobody")


def test_model_metadata_shows_the_batch_dimension(client: triton.InferenceServerClient) -> None:
    metadata = client.get_model_metadata("m", as_json=True)
    assert metadata["versions"] == ["3"]
    assert metadata["inputs"] == [{"name": "x", "datatype": "FP32", "shape": ["-1", "4"]}]
    assert client.get_model_metadata("flat", as_json=True)["inputs"][0]["shape"] == ["4"]
    assert list(client.get_model_metadata("two").versions) == ["1", "2"]


def test_model_config_is_complete(client: triton.InferenceServerClient) -> None:
    config = client.get_model_config("m").config
    assert (config.name, config.backend, config.max_batch_size) == ("m", "fake", 8)
    assert config.input[0].dims == [4]


def test_a_prediction(client: triton.InferenceServerClient) -> None:
    result = client.infer("m", [tensor(ROW)], request_id="a")
    assert np.array_equal(result.as_numpy("y"), ROW * 3)
    response = result.get_response()
    assert (response.model_name, response.model_version, response.id) == ("m", "3", "a")


def test_versions_answer_for_themselves_and_none_means_the_latest(client: triton.InferenceServerClient) -> None:
    answers = {v: client.infer("two", [tensor(ROW)], model_version=v).as_numpy("y")[0, 0] for v in ("1", "2", "")}
    assert answers == {"1": 1, "2": 2, "": 2}


def test_bytes_go_there_and_back(client: triton.InferenceServerClient) -> None:
    sent = np.array([[b"", b"a\0b", "é".encode(), b"x" * 1000]], object)
    assert np.array_equal(client.infer("text", [tensor(sent, datatype="BYTES")]).as_numpy("y"), sent)


def test_classification_gives_value_index_strings(client: triton.InferenceServerClient) -> None:
    output = triton.InferRequestedOutput("y", class_count=2)
    found = client.infer("m", [tensor(ROW)], outputs=[output]).as_numpy("y")
    assert found.tolist() == [[b"9.000000:3", b"6.000000:2"]]


def test_a_large_request_is_decoded_beside_the_loop(client: triton.InferenceServerClient) -> None:
    write = np.full((1, 4), 0.5, np.float32)
    big = np.array([["x" * (1 << 19)] * 4], object)
    assert client.infer("text", [tensor(big, datatype="BYTES")]).as_numpy("y").shape == (1, 4)
    assert np.array_equal(client.infer("m", [tensor(write)]).as_numpy("y"), write * 3)


def test_the_stock_aio_client_works(served: Running) -> None:
    async def main() -> list[float]:
        async with triton_aio.InferenceServerClient(served.url) as client:
            assert await client.is_server_ready()
            calls = [client.infer("m", [tensor(ROW + i)]) for i in range(50)]
            return [float(result.as_numpy("y")[0, 0]) for result in await asyncio.gather(*calls)]

    assert asyncio.run(main()) == [3.0 * i for i in range(50)]


ID = "[request id: <id_unknown>] "
ERRORS: list[tuple[str, Callable[[triton.InferenceServerClient], Any], str, str]] = [
    ("unknown model", lambda c: c.infer("nobody", [tensor(ROW)]), "NOT_FOUND",
     "Request for unknown model: 'nobody' is not found"),
    ("unknown version", lambda c: c.infer("m", [tensor(ROW)], model_version="9"), "NOT_FOUND",
     "Request for unknown model: 'm' version 9 is not found"),
    ("version not a number", lambda c: c.infer("m", [tensor(ROW)], model_version="x"), "INVALID_ARGUMENT",
     "failed to get model version from specified version string 'x' (details: stoll), version should be an integral "
     "value > 0"),
    ("version negative", lambda c: c.infer("m", [tensor(ROW)], model_version="-1"), "INVALID_ARGUMENT",
     "invalid model version specified '-1' , version should be an integral value > 0"),
    ("no input", lambda c: c.infer("m", []), "INVALID_ARGUMENT",
     ID + "expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s) ['x']. "
     "Please provide all required input(s)."),
    ("unknown input", lambda c: c.infer("m", [tensor(ROW, "z")]), "INVALID_ARGUMENT",
     ID + "unexpected inference input 'z' for model 'm'"),
    ("unknown output", lambda c: c.infer("m", [tensor(ROW)], outputs=[triton.InferRequestedOutput("z")]),
     "INVALID_ARGUMENT", ID + "unexpected inference output 'z' for model 'm'"),
    ("batch too big", lambda c: c.infer("m", [tensor(np.zeros((9, 4)))]), "INVALID_ARGUMENT",
     ID + "inference request batch-size must be <= 8 for 'm'"),
    ("wrong type", lambda c: c.infer("m", [tensor(np.zeros((1, 4)), datatype="FP64")]), "INVALID_ARGUMENT",
     ID + "inference input 'x' data-type is 'FP64', but model 'm' expects 'FP32'"),
    ("wrong shape without batching", lambda c: c.infer("flat", [tensor(np.zeros(5))]), "INVALID_ARGUMENT",
     ID + "unexpected shape for input 'x' for model 'flat'. Expected [4], got [5]"),
    ("the model fails", lambda c: c.infer("counted", [tensor(ROW * 0 + 13)]), "INTERNAL", "a row holds 13.0"),
    ("explicit control is off", lambda c: c.load_model("m"), "UNAVAILABLE",
     "explicit model load / unload is not allowed if polling is enabled"),
    ("metadata of nobody", lambda c: c.get_model_metadata("nobody"), "NOT_FOUND",
     "Request for unknown model: 'nobody' is not found"),
    ("statistics of nobody", lambda c: c.get_inference_statistics("nobody"), "NOT_FOUND",
     "Request for unknown model: 'nobody' is not found"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "code", "text"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_an_error_has_triton_s_code_and_text(
    client: triton.InferenceServerClient, call: Callable[[Any], Any], code: str, text: str
) -> None:
    found = refusal(lambda: call(client))
    assert found[0] == code
    assert text in found[1] if code == "INTERNAL" else text == found[1]


def test_what_the_bytes_contradict_comes_after_what_the_model_would_refuse(served: Running) -> None:
    request = triton.service_pb2.ModelInferRequest(model_name="m", raw_input_contents=[b"short"])
    request.inputs.add(name="x", datatype="FP32", shape=[1, 5])
    code, text = raw_call(served, "ModelInfer", request.SerializeToString())
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text.startswith(f"{ID}unexpected shape for input 'x' for model 'm'. Expected [-1,4], got [1,5]")
    request.inputs[0].shape[1] = 4
    text = raw_call(served, "ModelInfer", request.SerializeToString())[1]
    assert text == f"{ID}input byte size mismatch for input 'x' for model 'm'. Expected 16, got 5"


def raw_call(served: Running, method: str, body: bytes, timeout: float | None = 10) -> tuple[grpc.StatusCode, str]:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary(METHODS[method].path)(body, timeout=timeout)
    return caught.value.code(), caught.value.details()


@pytest.mark.parametrize("method", [m for m in METHODS if not METHODS[m].streaming])
def test_bytes_that_are_no_message_are_an_invalid_argument(served: Running, method: str) -> None:
    code, text = raw_call(served, method, b"\xff\xff\xff")
    assert code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED)
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        assert text == f"request is not a valid {METHODS[method].request.DESCRIPTOR.full_name} message"


def test_rpcs_that_are_not_there_are_unimplemented_with_a_clear_text(served: Running) -> None:
    refused = {p.rpartition("/")[2] for p, r in served.server._service.routes().items() if isinstance(r, Refused)}
    assert refused == {
        "ModelStreamInfer", "SystemSharedMemoryStatus", "SystemSharedMemoryRegister", "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus", "CudaSharedMemoryRegister", "CudaSharedMemoryUnregister", "TraceSetting",
        "LogSettings",
    }  # fmt: skip
    for method in refused:
        code, text = raw_call(served, method, b"")
        assert (code, text) == (grpc.StatusCode.UNIMPLEMENTED, f"{method} is not supported by this server")


def test_the_stream_rpc_is_refused_at_once(served: Running) -> None:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        next(channel.stream_stream(METHODS["ModelStreamInfer"].path)(iter(())))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_another_spelling_of_a_path_is_unimplemented(served: Running) -> None:
    with grpc.insecure_channel(served.url) as channel, pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/inference.GRPCInferenceService/modelinfer")(b"", timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_repository_name_is_not_supported(served: Running) -> None:
    request = triton.service_pb2.RepositoryIndexRequest(repository_name="r").SerializeToString()
    code, text = raw_call(served, "RepositoryIndex", request)
    assert (code, text) == (grpc.StatusCode.UNIMPLEMENTED, "'repository_name' specification is not supported")


def test_the_index_lists_versions_with_their_states(client: triton.InferenceServerClient) -> None:
    index = client.get_model_repository_index().models
    assert [(m.name, m.version, m.state) for m in index if m.name == "two"] == [
        ("two", "1", "READY"), ("two", "2", "READY"),
    ]  # fmt: skip


def test_statistics_tell_the_truth(client: triton.InferenceServerClient) -> None:
    before = client.get_inference_statistics("counted").model_stats[0]
    for rows in (1, 1, 3):
        client.infer("counted", [tensor(np.ones((rows, 4)))])
    refusal(lambda: client.infer("counted", [tensor(np.full((1, 4), 13.0))]))
    refusal(lambda: client.infer("counted", [tensor(np.ones((9, 4)))]))
    stats = client.get_inference_statistics("counted").model_stats[0]
    assert stats.inference_count - before.inference_count == 5
    assert stats.execution_count - before.execution_count == 3
    assert stats.inference_stats.success.count - before.inference_stats.success.count == 3
    assert stats.inference_stats.fail.count - before.inference_stats.fail.count == 2
    assert {b.batch_size for b in stats.batch_stats} == {1, 3}
    success = stats.inference_stats
    parts = (success.queue, success.compute_input, success.compute_infer, success.compute_output)
    assert 0 < sum(part.ns for part in parts) <= success.success.ns
    assert stats.last_inference > 0


def test_statistics_without_a_name_are_those_of_all_models(client: triton.InferenceServerClient) -> None:
    stats = client.get_inference_statistics().model_stats
    assert {(s.name, s.version) for s in stats} >= {("m", "3"), ("two", "1"), ("two", "2")}


# --- deadline and cancellation ---


def test_a_deadline_that_passes_in_the_queue_costs_no_compute(served: Running) -> None:
    session = served.session("held")
    with triton.InferenceServerClient(served.url) as client:
        first = client.async_infer("held", [tensor(ROW)], callback=lambda result, error: None)
        assert session.gate.arrived(1)
        code, _ = refusal(lambda: client.infer("held", [tensor(ROW + 7)], client_timeout=0.2))
        assert code == "DEADLINE_EXCEEDED"
        done = threading.Event()
        cancelled = client.async_infer("held", [tensor(ROW + 8)], callback=lambda result, error: done.set())
        wait_for(lambda: served.server.catalog.model("held").waiting() == 1)
        cancelled.cancel()
        assert done.wait(10)
        wait_for(lambda: served.server.catalog.model("held").waiting() == 0)
        session.gate.open()
        assert np.array_equal(client.infer("held", [tensor(ROW + 1)]).as_numpy("y"), ROW + 1)
        del first
    ran = [value for run in session.ran for value in run.first]
    assert 7.0 not in ran
    assert 8.0 not in ran


def wait_for(condition: Callable[[], bool], timeout: float = 10) -> None:
    """For what happens in another process's or thread's own time and gives no event to wait on."""
    pause = threading.Event()
    for _ in range(int(timeout / 0.005)):
        if condition():
            return
        pause.wait(0.005)
    raise AssertionError("it did not happen")


# --- health and reflection ---


def test_health_check_follows_readiness_whatever_the_service_name(served: Running) -> None:
    with grpc.insecure_channel(served.url) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("", "inference.GRPCInferenceService", "anything"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
def test_reflection_gives_our_files_in_both_versions(served: Running, version: str) -> None:
    asked = [
        reflection_pb2.ServerReflectionRequest(list_services=""),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.GRPCInferenceService"),
        reflection_pb2.ServerReflectionRequest(file_by_filename="grpc_health/v1/health.proto"),
        reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.Nothing"),
    ]
    with grpc.insecure_channel(served.url) as channel:
        call = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        services, ours, health, nothing = call(iter(asked), timeout=10)
    names = [service.name for service in services.list_services_response.service]
    assert "inference.GRPCInferenceService" in names
    assert "grpc.health.v1.Health" in names
    files = [FileDescriptorProto.FromString(f) for f in ours.file_descriptor_response.file_descriptor_proto]
    methods = [m.name for file in files for s in file.service for m in s.method]
    assert "ModelInfer" in methods
    assert {m.name for file in files for m in file.message_type} >= {"ModelInferRequest", "ModelConfig"}
    assert health.file_descriptor_response.file_descriptor_proto
    assert nothing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


def test_a_generic_client_can_call_by_reflection_alone(served: Running) -> None:
    with grpc.insecure_channel(served.url) as channel:
        pool = DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
        method = pool.FindServiceByName("inference.GRPCInferenceService").FindMethodByName("ModelReady")
        request = GetMessageClass(method.input_type)(name="m")
        body = channel.unary_unary("/inference.GRPCInferenceService/ModelReady")(request.SerializeToString())
        assert GetMessageClass(method.output_type).FromString(body).ready


def test_reflection_s_own_stub_works(served: Running) -> None:
    with grpc.insecure_channel(served.url) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        assert next(iter(stub.ServerReflectionInfo(iter([request])))).list_services_response.service


# --- shutdown ---


def test_a_stopping_server_finishes_what_it_accepted_and_refuses_the_rest(kind: str, tmp_path: Path) -> None:
    write_entry(tmp_path, config=BATCHING, behaviour={"gate": "closed"})
    grpc_port = GrpcSettings(port=0, transport=kind)
    with running(tmp_path, grpc=grpc_port) as server, triton.InferenceServerClient(server.url) as client:
        results: list[Any] = []
        answered = threading.Event()

        def keep(result: Any, error: Any) -> None:
            results.append(error or result.as_numpy("y")[0, 0])
            if len(results) == 20:
                answered.set()

        watch = grpc.insecure_channel(server.url)
        states = health_pb2_grpc.HealthStub(watch).Watch(health_pb2.HealthCheckRequest())
        assert next(states).status == health_pb2.HealthCheckResponse.SERVING
        for i in range(20):
            client.async_infer("m", [tensor(ROW + i)], callback=keep)
        wait_for(lambda: server.server.catalog.model("m").pending() == 20)
        gate = server.session().gate
        stopping = threading.Thread(target=server.server._grpc.drain, args=(10,))
        stopping.start()
        assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert not client.is_server_ready()
        assert client.is_server_live()
        assert not client.is_model_ready("m")
        assert refusal(lambda: client.infer("m", [tensor(ROW)])) == ("UNAVAILABLE", SHUTTING_DOWN)
        gate.open()
        assert answered.wait(10)
        stopping.join()
        watch.close()
    assert sorted(results) == [float(i) for i in range(20)]
