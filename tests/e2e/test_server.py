"""A really started server with real ONNX models, and the stock client in front of it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from tests.children import ServerChild, started_server
from tests.e2e import models
from tests.server.harness import write_card

pytestmark = pytest.mark.slow


def given(name: str, array: np.ndarray, datatype: str = "FP32") -> triton.InferInput:  # type: ignore[type-arg]
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def pair(value: float, rows: int = 1) -> list[triton.InferInput]:
    a = np.full((rows, 4), value, np.float32)
    return [given("a", a), given("b", np.ones_like(a))]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerChild]:
    root = tmp_path_factory.mktemp("repository")
    models.write(root, "add", models.ADD)
    write_card(root, "add")  # a file that a card vouches for is not first loaded in a child, so reloads are quick
    models.write(root, "text", models.TEXT)
    models.write(root, "half", models.HALF)
    models.write(root, "fixed", models.FIXED)
    flags = ("--model-control-mode", "explicit", "--load-model", "*")
    with started_server(root, *flags) as found:
        found.root = root  # type: ignore[attr-defined]
        yield found


@pytest.fixture(scope="module")
def client(child: ServerChild) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(child.url) as found:
        yield found


def test_all_models_are_served_without_a_config_file(client: triton.InferenceServerClient) -> None:
    assert {m.name for m in client.get_model_repository_index().models if m.state == "READY"} == {
        "add", "text", "half", "fixed",
    }  # fmt: skip
    config = client.get_model_config("add").config
    assert (config.platform, config.max_batch_size) == ("onnxruntime_onnx", 4)
    assert config.HasField("dynamic_batching")
    assert client.get_model_config("fixed").config.max_batch_size == 0


def test_predictions_of_several_datatypes(client: triton.InferenceServerClient) -> None:
    result = client.infer("add", pair(3))
    assert result.as_numpy("sum").tolist() == [[4.0] * 4]
    assert result.as_numpy("difference").tolist() == [[2.0] * 4]
    words = np.array([[b"one", "zwö".encode()]], object)
    assert client.infer("text", [given("a", words, "BYTES")]).as_numpy("y").tolist() == words.tolist()
    half = np.array([[0.5, 1, 2]], np.float16)
    assert client.infer("half", [given("a", half, "FP16")]).as_numpy("y").tolist() == (half * 2).tolist()
    whole = np.arange(6).reshape(2, 3)
    assert client.infer("fixed", [given("a", whole, "INT64")]).as_numpy("y").tolist() == (-whole).tolist()


def test_only_the_output_asked_for_comes_back(client: triton.InferenceServerClient) -> None:
    result = client.infer("add", pair(1), outputs=[triton.InferRequestedOutput("difference")])
    assert [output.name for output in result.get_response().outputs] == ["difference"]


def test_many_in_flight_each_get_their_own_answer_and_share_batches(child: ServerChild) -> None:
    async def main() -> tuple[list[float], int, int]:
        async with triton_aio.InferenceServerClient(child.url) as client:
            before = (await client.get_inference_statistics("add")).model_stats[0]
            calls = [client.infer("add", pair(i, rows=1 + i % 3)) for i in range(300)]
            answers = [float(r.as_numpy("sum")[-1, 0]) for r in await asyncio.gather(*calls)]
            after = (await client.get_inference_statistics("add")).model_stats[0]
            rows = after.inference_count - before.inference_count
            return answers, rows, after.execution_count - before.execution_count

    answers, rows, runs = asyncio.run(main())
    assert answers == [i + 1.0 for i in range(300)]
    assert rows == sum(1 + i % 3 for i in range(300))
    assert runs < 300


def test_reloading_under_load_loses_nothing_and_gives_its_memory_back(child: ServerChild) -> None:
    stop = threading.Event()
    answered = [0]
    trouble: list[object] = []

    def ask() -> None:
        with triton.InferenceServerClient(child.url) as client:
            while not stop.is_set():
                try:
                    if client.infer("add", pair(1)).as_numpy("sum")[0, 0] != 2:
                        trouble.append("wrong")
                except InferenceServerException as error:
                    trouble.append(error)
                answered[0] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    process = psutil.Process(child.process.pid)
    with triton.InferenceServerClient(child.url) as client:
        for _ in range(10):
            client.load_model("add")
        start = process.memory_info().rss
        for _ in range(25):
            client.load_model("add")
        grown = process.memory_info().rss - start
    stop.set()
    for thread in threads:
        thread.join()
    assert not trouble
    assert answered[0] > 20
    assert grown < 32 << 20


def test_load_and_unload_from_the_client(child: ServerChild, client: triton.InferenceServerClient) -> None:
    root: Path = child.root  # type: ignore[attr-defined]
    models.write(root, "new", models.HALF)
    client.load_model("new")
    assert client.is_model_ready("new")
    client.load_model("new", config='{"max_batch_size": 16}')
    assert client.get_model_config("new").config.max_batch_size == 16
    client.unload_model("new")
    assert not client.is_model_ready("new")
    (root / "new" / "1" / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(InferenceServerException, match="load failed for model 'new': version 1 is at UNAVAILABLE"):
        client.load_model("new")
    client.unload_model("new")
    assert client.is_server_ready()


def test_polling_serves_a_published_version(tmp_path: Path) -> None:
    models.write(tmp_path, "add", models.ADD)
    flags = ("--model-control-mode", "poll", "--repository-poll-secs", "1")
    with started_server(tmp_path, *flags) as child, triton.InferenceServerClient(child.url) as client:
        assert list(client.get_model_metadata("add").versions) == ["1"]
        models.write(tmp_path, "add", models.ADD, version=2)
        pause = threading.Event()
        for _ in range(1000):
            if client.is_model_ready("add", "2"):
                break
            pause.wait(0.02)
        assert client.infer("add", pair(1)).get_response().model_version == "2"
