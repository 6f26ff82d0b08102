"""Small models made on the spot, and how the tests run passes on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from compressor.artifact import Artifact, Axis, Kind, Tensor
from compressor.passes.base import Context, Host, Outcome, Pass, Sample
from compressor.passes.probe import session
from protos.datatypes import BY_NAME

BATCH = Axis("batch")
SEQUENCE = Axis("sequence", 1, 64)
VNNI = Host("x86 with VNNI", 2, frozenset({"vnni", "avx512f", "avx2"}))
AVX2 = Host("x86 without VNNI", 2, frozenset({"avx2"}))
ARM = Host("arm64", 2, frozenset())


def tensor(name: str, datatype: str, *shape: int | Axis) -> Tensor:
    return Tensor(name, BY_NAME[datatype], shape)


X, Y = tensor("x", "FP32", BATCH, 32), tensor("y", "FP32", BATCH, 24)


def context(
    folder: Path, *, host: Host = VNNI, insist: bool = False, calibration: Callable[[], Iterator[Sample]] | None = None
) -> Context:
    folder.mkdir(parents=True, exist_ok=True)
    return Context(folder, host, calibration, insist, 0, lambda done, total, what: None)


def run_pass(technique: Pass, artifact: Artifact, where: Context) -> Outcome:
    """As the runner does it."""
    technique.requires(artifact, where)
    outcome = technique.apply(artifact, where)
    technique.ensures(artifact, outcome.artifact, where)
    return outcome


def onnx_artifact(
    model: onnx.ModelProto, path: Path, inputs: Sequence[Tensor] = (X,), outputs: Sequence[Tensor] = (Y,)
) -> Artifact:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return Artifact(Kind.ONNX, tuple(inputs), tuple(outputs), path=path)


def torch_artifact(module: torch.nn.Module, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> Artifact:
    return Artifact(Kind.TORCH, tuple(inputs), tuple(outputs), module=module)


def weights(*shape: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return (np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)


def graph(
    nodes: Sequence[onnx.NodeProto],
    stored: dict[str, np.ndarray[Any, Any]],
    *,
    opset: int = 17,
    inputs: Sequence[Tensor] = (X,),
    outputs: Sequence[Tensor] = (Y,),
    **extra: Any,
) -> onnx.ModelProto:
    def info(each: Tensor) -> onnx.ValueInfoProto:
        shape = [axis.name if isinstance(axis, Axis) else axis for axis in each.shape]
        return helper.make_tensor_value_info(each.name, each.datatype.onnx_code, shape)

    made = helper.make_graph(
        list(nodes),
        "g",
        [info(t) for t in inputs],
        [info(t) for t in outputs],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(
        made, opset_imports=[helper.make_opsetid("", opset), *extra.pop("domains", [])], **{"ir_version": 8, **extra}
    )


def mlp(opset: int = 17, **extra: Any) -> onnx.ModelProto:
    """x [batch, 32] → MatMul 32×48 + bias → Relu → MatMul 48×24 → y."""
    return graph(
        [
            helper.make_node("MatMul", ["x", "w1"], ["a"], "first"),
            helper.make_node("Add", ["a", "b1"], ["b"]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("MatMul", ["c", "w2"], ["y"], "second"),
        ],
        {"w1": weights(32, 48), "b1": weights(48, seed=3), "w2": weights(48, 24, seed=1)},
        opset=opset,
        **extra,
    )


def constant(name: str, array: np.ndarray[Any, Any]) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], f"constant_{name}", value=numpy_helper.from_array(array, name))


def cnn() -> onnx.ModelProto:
    """NCHW, 16 channels in, Conv + BatchNormalization + Relu + MaxPool + Conv + GlobalAveragePool + Gemm."""
    ones, zeros = np.ones(32, np.float32), np.zeros(32, np.float32)
    return graph(
        [
            helper.make_node("Conv", ["x", "k1"], ["a"], "conv1", pads=[1, 1, 1, 1]),
            helper.make_node("BatchNormalization", ["a", "scale", "shift", "mean", "var"], ["b"], "norm"),
            helper.make_node("Relu", ["b"], ["c"], "relu"),
            helper.make_node("MaxPool", ["c"], ["d"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Conv", ["d", "k2", "b2"], ["e"], "conv2", pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["e"], ["f"], "mean_pool"),
            helper.make_node("Flatten", ["f"], ["g"]),
            helper.make_node("Gemm", ["g", "w", "bias"], ["y"], "head", transB=1),
        ],
        {
            "k1": weights(32, 16, 3, 3) / 2,
            "scale": ones * 1.5,
            "shift": zeros + 0.1,
            "mean": zeros,
            "var": ones,
            "k2": weights(32, 32, 3, 3, seed=1) / 2,
            "b2": zeros + 0.2,
            "w": weights(24, 32, seed=2),
            "bias": weights(24, seed=4),
        },
        inputs=(IMAGE,),
    )


IMAGE = tensor("x", "FP32", BATCH, 16, 12, 12)


def answers(path: Path, feeds: dict[str, np.ndarray[Any, Any]]) -> list[np.ndarray[Any, Any]]:
    return list(session(path).run(None, feeds))


def close(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], share: float) -> bool:
    """Root mean square of the difference within a share of that of the values."""
    return bool(np.sqrt(np.mean((a - b) ** 2)) <= share * np.sqrt(np.mean(a**2)))


def stored_types(path: Path) -> dict[str, int]:
    return {each.name: each.data_type for each in onnx.load(path).graph.initializer}


INT8, FLOAT = TensorProto.INT8, TensorProto.FLOAT
