"""Which models get no threads beside the caller's own where nobody says how many."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from time import sleep

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from protos.datatypes import BY_NAME
from protos.model_config import ModelConfig, ModelIO, TensorInfo
from server.backends import get, ort_options, ort_threads
from server.backends.base import Device, LoadRequest

FP32, BYTES = BY_NAME["FP32"], BY_NAME["BYTES"]


def matrices(folder: Path, width: int, times: int) -> Path:
    """`times` products with one square matrix, in one small file."""
    weight = np.eye(width, dtype=np.float32)
    names = ["x", *(f"h{i}" for i in range(1, times)), "y"]
    nodes = [helper.make_node("MatMul", [a, "w"], [b]) for a, b in pairwise(names)]
    graph = helper.make_graph(
        nodes, "m",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    path = folder / f"{width}x{times}.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def threads(path: Path, **parameters: str) -> int:
    config = ModelConfig("m", max_batch_size=4, parameters=parameters)
    session = get("onnxruntime").load(LoadRequest(path, config, (Device(),), {"preflight": "off"}))
    try:
        return session.threads
    finally:
        session.close()


def test_short_models_have_one_thread_and_long_ones_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort_options, "cores", lambda: 2)
    assert threads(matrices(tmp_path, 8, 1)) == 1
    long = matrices(tmp_path, 512, 300)
    assert threads(long) == 2
    assert threads(matrices(tmp_path, 8, 1), intra_op_thread_count="2") == 2, "whoever names a number gets it"


def io(*shapes: tuple[int, ...]) -> ModelIO:
    return ModelIO(tuple(TensorInfo(f"x{i}", FP32, shape) for i, shape in enumerate(shapes)), ())


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (io((-1, 4)), True),
        (io((-1, 4), (-1, 2, 2)), True),
        (io((3, 4)), True),
        (io((-1,)), False),
        (io((-1, -1)), False),
        (ModelIO((TensorInfo("text", BYTES, (-1, 1)),), ()), False),
    ],
)
def test_only_rows_that_can_be_made_up_are_tried(tmp_path: Path, found: ModelIO, expected: bool) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(b"0")
    assert ort_threads.worth_a_trial(file, found) is expected


def test_large_files_are_not_tried(tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    with file.open("wb") as out:
        out.truncate(ort_threads.TRIAL_BYTES + 1)
    assert not ort_threads.worth_a_trial(file, io((-1, 4)))


def test_a_model_that_refuses_zeros_or_sleeps_is_not_short() -> None:
    def refuses(feeds: object) -> None:
        raise RuntimeError("no zeros, please")

    ran = 0

    def sleeps(feeds: object) -> None:
        nonlocal ran
        ran += 1
        sleep(0.006)

    assert not ort_threads.is_short(refuses, io((-1, 4)))
    assert not ort_threads.is_short(sleeps, io((-1, 4)))
    assert ran == 1, "a long one is run no more than once"
    assert not ort_threads.is_short(lambda feeds: None, io((-1, 1 << 30))), "nor is memory taken for a huge row"
    assert ort_threads.is_short(lambda feeds: None, io((-1, 4)))
