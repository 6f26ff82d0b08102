"""A model so small that the server around it is all the cost: a 784-512-10 perceptron with random weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

CONFIG = """name: "{name}"
platform: "onnxruntime_onnx"
max_batch_size: 64
input {{ name: "image" data_type: TYPE_FP32 dims: 784 }}
output {{ name: "score" data_type: TYPE_FP32 dims: 10 }}
instance_group {{ count: {instances} kind: KIND_CPU }}
dynamic_batching {{ }}
"""


def write_tiny(root: Path, name: str = "tiny", instances: int = 1, threads: int | None = None) -> None:
    """An entry below `root`; `threads` of onnxruntime for a run, or as many as the server thinks right."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (784, 512), "b1": (512,), "w2": (512, 10), "b2": (10,)}
    weights = [numpy_helper.from_array(rng.standard_normal(s, np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Gemm", ["image", "w1", "b1"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "w2", "b2"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["batch", 784])],
        [helper.make_tensor_value_info("score", onnx.TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    version = root / name / "1"
    version.mkdir(parents=True)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), version / "model.onnx"
    )
    config = CONFIG.format(name=name, instances=instances)
    if threads is not None:
        config += f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{threads}" }} }}\n'
    (root / name / "config.pbtxt").write_text(config)
