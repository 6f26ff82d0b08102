"""What is particular to onnxruntime: batches on a real model, options, strings, BF16, devices, memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from protos.datatypes import BY_NAME
from protos.model_config import DynamicBatching, ModelConfig, TensorSpec
from server.backends import get, ort_options
from server.backends.base import BackendError, Batch, Device, LoadRequest, Session
from server.batching.collate import Collator
from server.batching.runner import Runner
from server.errors import Internal
from server.model import Model
from server.request import Answers, InferRequest, Response, Tensor
from server.statistics import Statistics
from tests.server.backends.models import save, value
from tests.server.core import FP32, HandClock, Sheet

INT64 = BY_NAME["INT64"]


def load(path: Path, config: ModelConfig | None = None, instances: int = 1, **options: str) -> Session:
    devices = (Device(),) * instances
    request = LoadRequest(path, config or ModelConfig("m"), devices, {"preflight": "off", **options})
    return get("onnxruntime").load(request)


def classifier(folder: Path) -> Path:
    """ids[n, t] -> embedding, mean over t, two layers, softmax over 5: the parts of a small text model."""
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(50, 16)).astype(np.float32),
        "w1": random.normal(size=(16, 32)).astype(np.float32),
        "w2": random.normal(size=(32, 5)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("ReduceMean", ["e"], ["m"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["m", "w1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w2"], ["s"]),
        helper.make_node("Softmax", ["s"], ["p"]),
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [value("ids", ["n", "t"], TensorProto.INT64)]
    return save(folder / "model.onnx", nodes, inputs, [value("p", ["n", 5]), value("h", ["n", 32])], initializers)


CLASSIFIER = ModelConfig(
    "m",
    16,
    (TensorSpec("ids", INT64, (-1,)),),
    (TensorSpec("p", FP32, (5,)), TensorSpec("h", FP32, (32,))),
    backend="onnxruntime",
    dynamic_batching=DynamicBatching(),
)


def ids(rows: list[list[int]], **fields: Any) -> InferRequest:
    return InferRequest("m", (Tensor("ids", INT64, np.array(rows, np.int64)),), **fields)


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Session:
    return load(classifier(tmp_path_factory.mktemp("classifier")))


@given(st.lists(st.lists(st.integers(0, 49), min_size=6, max_size=6), min_size=1, max_size=12))
@settings(deadline=None, max_examples=30)
def test_a_batched_row_equals_the_lone_row(text_model: Session, rows: list[list[int]]) -> None:
    def run(requests: list[InferRequest]) -> list[Response]:
        answers: Answers = []
        statistics = Statistics()
        Runner("m", text_model, Collator("m", CLASSIFIER), HandClock(), statistics).run(0, requests, answers.extend)
        assert statistics.snapshot().execution_count == 1
        return [result for _, result in answers if isinstance(result, Response)]

    together = run([ids([row]) for row in rows])
    for row, response in zip(rows, together, strict=True):
        (alone,) = run([ids([row])])
        for one, other in zip(alone.outputs, response.outputs, strict=True):
            np.testing.assert_allclose(one.array, other.array, rtol=1e-5, atol=1e-6)


def test_a_poisoned_row_fails_alone_on_a_real_model(tmp_path: Path) -> None:
    model = Model("m", 1, CLASSIFIER, load(classifier(tmp_path), instances=2), (Device(),) * 2)
    sheet = Sheet()
    requests = [ids([[99 if i == 5 else i] * 4]) for i in range(16)]
    for request in requests:
        model.submit(request, sheet)
    sheet.wait(16)
    failed = [i for i, request in enumerate(requests) if not isinstance(sheet.results[request], Response)]
    assert failed == [5]
    text = str(sheet.results[requests[5]])
    assert isinstance(sheet.results[requests[5]], Internal)
    assert "indices element out of data bounds, idx=99" in text
    assert "\n" not in text
    assert "onnxruntime_src" not in text
    model.close()


def test_only_the_outputs_asked_for_are_fetched(text_model: Session) -> None:
    arrays = text_model.run(0, Batch({"ids": np.zeros((2, 3), np.int64)}, 2, ("h",)))
    assert set(arrays) == {"h"}
    assert arrays["h"].shape == (2, 32)


def test_bytes_that_are_not_utf8_are_refused_by_name(tmp_path: Path) -> None:
    node = helper.make_node("Identity", ["x"], ["y"])
    string = TensorProto.STRING
    session = load(save(tmp_path / "model.onnx", [node], [value("x", ["n"], string)], [value("y", ["n"], string)]))
    with pytest.raises(BackendError, match="input 'x' holds bytes that are not UTF-8"):
        session.run(0, Batch({"x": np.array([b"\xff"], object)}, 1, ("y",)))


def test_a_run_with_io_binding_gives_what_a_plain_run_gives(tmp_path: Path) -> None:
    from server.backends.ort import Bound, _io, _open, ort

    session = _open(classifier(tmp_path), ort_options.Options(1), Device())
    feeds = {"ids": np.arange(12).reshape(3, 4).T}
    (plain,) = session.run(["p"], {"ids": np.ascontiguousarray(feeds["ids"])})
    (bound,) = Bound(session, Device(), _io(session), ort.RunOptions())(feeds, ("p",))
    assert bound.tolist() == plain.tolist()


def test_weights_in_a_file_beside_the_model_are_found(tmp_path: Path) -> None:
    path = classifier(tmp_path)
    before = load(path).run(0, Batch({"ids": np.ones((1, 3), np.int64)}, 1, ("p",)))["p"]
    model = onnx.load(str(path))
    folder = tmp_path / "external" / "model.onnx"
    folder.mkdir(parents=True)
    onnx.save_model(model, str(folder / "model.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    after = load(folder).run(0, Batch({"ids": np.ones((1, 3), np.int64)}, 1, ("p",)))["p"]
    assert after.tolist() == before.tolist()


def test_a_sequence_output_is_refused_at_load(tmp_path: Path) -> None:
    node = helper.make_node("SequenceConstruct", ["x"], ["y"])
    output = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    path = save(tmp_path / "model.onnx", [node], [value("x", [1])], [output])
    with pytest.raises(BackendError, match=r"output 'y' is a seq\(tensor\(float\)\); the protocol carries tensors of"):
        load(path)


def test_optional_inputs_with_batching_are_refused_as_in_triton(tmp_path: Path) -> None:
    config = ModelConfig("m", 8, (TensorSpec("ids", INT64, (-1,), optional=True),))
    with pytest.raises(BackendError, match="no optional inputs where max_batch_size is not 0"):
        load(classifier(tmp_path), config)


def options(instances: int = 1, level: int | None = None, **parameters: str) -> ort_options.Options:
    config = ModelConfig("m", parameters=parameters, graph_level=level)
    return ort_options.read(config, {"enable_mem_arena": "0"}, (Device(),) * instances)


def test_callers_and_threads_of_a_session_are_together_as_many_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_options, "cores", lambda: 8)
    instances = (1, 2, 3, 8, 16)
    threads = [options(n).intra_op_threads for n in instances]
    assert threads == [8, 7, 6, 1, 1]
    assert [max(n, n + threads - 1) for n, threads in zip(instances, threads, strict=True)] == [8, 8, 8, 8, 16]


def test_a_session_has_one_thread_less_of_its_own_than_it_uses(tmp_path: Path) -> None:
    """The caller of a run is the other one: what the number of threads is reckoned from."""

    def own(threads: int) -> int:
        before = len(list(Path("/proc/self/task").iterdir()))
        session = load(classifier(tmp_path), intra_op_thread_count=str(threads))
        after = len(list(Path("/proc/self/task").iterdir()))
        session.close()
        return after - before

    assert [own(threads) for threads in (1, 2, 4)] == [0, 1, 3]


def test_an_entry_is_tuned_for_throughput_or_latency() -> None:
    backend = get("onnxruntime")
    for config, backend_options, instances, spinning in (
        (ModelConfig("m"), {}, 2, "0"),
        (ModelConfig("m"), {"tune": "latency"}, 1, "1"),
        (ModelConfig("m", parameters={"demiglace.tune": "throughput"}), {"tune": "latency"}, 2, "0"),
        (ModelConfig("m", parameters={"demiglace.tune": "latency"}), {}, 1, "1"),
        (ModelConfig("m", parameters={"session.intra_op.allow_spinning": "1"}), {}, 2, "1"),
        (ModelConfig("m", parameters={"session.intra_op.allow_spinning": "0"}), {"tune": "latency"}, 1, "0"),
    ):
        assert backend.cpu_instances(config, backend_options) == instances
        found = ort_options.read(config, backend_options, (Device(),) * instances)
        assert found.session["session.intra_op.allow_spinning"] == spinning


def test_what_nothing_can_be_tuned_for_is_refused() -> None:
    with pytest.raises(BackendError, match=r"^backend option tune is 'speed', allowed are throughput, latency$"):
        ort_options.tuning(ModelConfig("m"), {"tune": "speed"})
    with pytest.raises(BackendError, match=r"^model 'm': demiglace\.tune is 'both', allowed are throughput, latency$"):
        ort_options.tuning(ModelConfig("m", parameters={"demiglace.tune": "both"}), {})


def test_options_go_by_the_names_of_triton() -> None:
    names = {
        "intra_op_thread_count": "3",
        "inter_op_thread_count": "2",
        "execution_mode": "1",
        "enable_mem_arena": "1",
        "enable_mem_pattern": "0",
        "memory.enable_memory_arena_shrinkage": "cpu:0;gpu:1",
        "session.use_device_allocator_for_initializers": "1",
        "cudnn_conv_algo_search": "0",
        "gpu_mem_limit": "1000",
        "arena_extend_strategy": "1",
        "do_copy_in_default_stream": "0",
        "something_of_mine": "left alone",
    }
    got = options(level=-1, **names)
    assert (got.intra_op_threads, got.inter_op_threads, got.parallel) == (3, 2, True)
    assert (got.mem_arena, got.mem_pattern, got.arena_shrinkage) == (True, False, "cpu:0;gpu:1")
    assert got.session["session.use_device_allocator_for_initializers"] == "1"
    assert got.cuda == {
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "gpu_mem_limit": "1000",
        "arena_extend_strategy": "kSameAsRequested",
        "do_copy_in_default_stream": "0",
    }
    assert got.graph == "basic"


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("intra_op_thread_count", "-1"),
        ("intra_op_thread_count", "٣"),
        ("execution_mode", "2"),
        ("enable_mem_arena", "yes"),
        ("memory.enable_memory_arena_shrinkage", "tpu:0"),
        ("cudnn_conv_algo_search", "FASTEST"),
        ("gpu_mem_limit", "1e9"),
    ],
)
def test_a_value_that_is_not_allowed_is_refused_by_name(name: str, bad: str) -> None:
    with pytest.raises(BackendError, match=rf"^model 'm': {name} is '{bad}', allowed are ".replace("(", r"\(")):
        options(**{name: bad})


def test_an_unknown_graph_level_and_an_unknown_preflight_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"optimization\.graph\.level is 7, allowed are -1, 0, 1, 2"):
        options(level=7)
    with pytest.raises(BackendError, match="backend option preflight is 'maybe', allowed are on, off"):
        load(classifier(tmp_path), preflight="maybe")


@pytest.mark.parametrize("level", [None, -1, 0, 1, 2])
def test_every_graph_level_computes_the_same(tmp_path: Path, level: int | None) -> None:
    batch = Batch({"ids": np.ones((1, 3), np.int64)}, 1, ("p",))
    path = classifier(tmp_path)
    expected = load(path).run(0, batch)["p"]
    got = load(path, ModelConfig("m", graph_level=level)).run(0, batch)["p"]
    np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.slow
def test_all_instances_of_a_device_share_one_session(tmp_path: Path) -> None:
    """Measured in a child, because memory once taken is not given back: 4 instances of 64 MiB of weights."""
    weights = numpy_helper.from_array(np.ones((4096, 4096), np.float32), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    path = save(tmp_path / "model.onnx", [node], [value("x", ["n", 4096])], [value("y", ["n", 4096])], [weights])
    code = (
        "import sys, resource, numpy as np\n"
        "from pathlib import Path\n"
        "from protos.model_config import ModelConfig\n"
        "from server.backends import get\n"
        "from server.backends.base import Batch, Device, LoadRequest\n"
        "n = int(sys.argv[2])\n"
        "request = LoadRequest(Path(sys.argv[1]), ModelConfig('m'), (Device(),) * n, {'preflight': 'off'})\n"
        "session = get('onnxruntime').load(request)\n"
        "for i in range(n): session.run(i, Batch({'x': np.ones((1, 4096), np.float32)}, 1, ('y',)))\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )

    def peak(instances: int) -> int:
        command = [sys.executable, "-c", code, str(path), str(instances)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    assert peak(4) <= 1.3 * peak(1)
