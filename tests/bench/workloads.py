"""What is asked for: the models, their inputs, and the repositories that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from tests.bench.tiny import write_tiny
from tests.children import ROOT
from tests.peers.peer import Question

REPOSITORY = ROOT / "model_repo"
RECIPE = ROOT / "compressor" / "recipes" / "minilm-dynamic.toml"
FP32, INT8 = "minilm", "minilm-int8"
IDENTITY_CONFIG = """name: "identity"
platform: "onnxruntime_onnx"
max_batch_size: 0
input { name: "data" data_type: TYPE_FP32 dims: -1 }
output { name: "same" data_type: TYPE_FP32 dims: -1 }
instance_group { count: 1 kind: KIND_CPU }
"""


def tiny(rows: int = 1, model: str = "tiny") -> Question:
    image = np.random.default_rng(0).standard_normal((rows, 784)).astype(np.float32)
    return Question(model, {"image": image}, {"image": "FP32"})


def minilm(model: str, length: int, rows: int = 1) -> Question:
    ids = np.random.default_rng(length).integers(1000, 20000, (rows, length))
    arrays = {"input_ids": ids, "attention_mask": np.ones((rows, length), np.int64)}
    return Question(model, arrays, dict.fromkeys(arrays, "INT64"))


def identity(elements: int) -> Question:
    data = np.random.default_rng(0).standard_normal(elements).astype(np.float32)
    return Question("identity", {"data": data}, {"data": "FP32"})


def write_identity(root: Path) -> None:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["data"], ["same"])],
        "identity",
        [helper.make_tensor_value_info("data", onnx.TensorProto.FLOAT, ["n"])],
        [helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, ["n"])],
    )
    version = root / "identity" / "1"
    version.mkdir(parents=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, version / "model.onnx")
    (root / "identity" / "config.pbtxt").write_text(IDENTITY_CONFIG)


def write_tinies(root: Path, count: int, instances: int = 1) -> Path:
    """`tiny` and `count` − 1 more of the same under other names; returns `root`."""
    write_tiny(root, instances=instances)
    for number in range(1, count):
        write_tiny(root, f"tiny-{number}")
    return root
