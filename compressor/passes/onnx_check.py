"""What an ONNX model is made of, before a pass works on it, and which models cannot be quantized rightly."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx

from compressor.errors import RecipeError, Refused
from compressor.passes import onnx_files

KNOWN_DOMAINS = {
    "",
    "ai.onnx",
    "ai.onnx.ml",
    "ai.onnx.preview",
    "com.microsoft",
    "com.microsoft.nchwc",
    "com.microsoft.experimental",
}
"""Domains that onnxruntime's CPU package has kernels for; its own loader names the operator it does not know."""

QUANTIZED_OPS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearMatMul",
    "QLinearConv",
    "QLinearAdd",
    "QLinearMul",
    "QLinearConcat",
    "QLinearSoftmax",
    "QLinearSigmoid",
    "QLinearLeakyRelu",
    "QLinearAveragePool",
    "QLinearGlobalAveragePool",
    "QLinearWhere",
    "QGemm",
    "QAttention",
    "DynamicQuantizeMatMul",
    "DynamicQuantizeLSTM",
    "MatMulIntegerToFloat",
    "MatMulNBits",
    "MatMulBnb4",
    "QMoE",
    "GatherBlockQuantized",
    "QEmbedLayerNormalization",
    "QOrderedMatMul",
    "QOrderedAttention",
}
_INT8 = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
_FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True)
class Census:
    """Weights (stored tensors of two or more dimensions) of a model with all its subgraphs."""

    int8: int
    int8_bytes: int
    floats: int
    float_bytes: int


def census(model: onnx.ModelProto) -> Census:
    counts = {"int8": 0, "int8_bytes": 0, "floats": 0, "float_bytes": 0}
    for tensor in weights(model):
        # of LSTM, whose zero points have two dimensions
        if tensor.name.endswith("_zero_point"):
            continue
        size = onnx_files.payload(tensor)
        if tensor.data_type in _INT8:
            counts["int8"] += 1
            counts["int8_bytes"] += size
        elif tensor.data_type in _FLOATS:
            counts["floats"] += 1
            counts["float_bytes"] += size
    return Census(**counts)


def weights(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Stored tensors of two or more dimensions: initialisers and Constant nodes, subgraphs included."""
    for graph in onnx_files.graphs(model.graph):
        yield from (tensor for tensor in graph.initializer if len(tensor.dims) >= 2)
        for node in graph.node:
            if node.op_type == "Constant":
                yield from (a.t for a in node.attribute if a.name == "value" and len(a.t.dims) >= 2)


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, subgraphs and functions included."""
    for graph in onnx_files.graphs(model.graph):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def operators(model: onnx.ModelProto) -> Mapping[str, int]:
    return Counter(node.op_type for node in nodes(model))


def refuse_quantized(model: onnx.ModelProto, technique: str) -> None:
    """Raises Refused for a model with quantized nodes: quantizing twice loses twice and gains nothing."""
    found = Counter(node.op_type for node in nodes(model) if node.op_type in QUANTIZED_OPS)
    if found:
        kinds = ", ".join(f"{count} {name}" for name, count in found.most_common(4))
        raise Refused(f"{technique}: already quantized: {found.total()} nodes ({kinds})")


def refuse_unknown(model: onnx.ModelProto, technique: str) -> None:
    """Raises Refused for operators of a domain that onnxruntime does not have and the file does not define."""
    own = {(function.domain, function.name) for function in model.functions}
    for node in nodes(model):
        if node.domain not in KNOWN_DOMAINS and (node.domain, node.op_type) not in own:
            raise Refused(
                f"{technique}: node {node.name or node.output[0]!r} is {node.domain}::{node.op_type}, "
                "an operator that onnxruntime does not have"
            )


def refuse_half(model: onnx.ModelProto, technique: str) -> None:
    """Raises Refused where the weights are float16 or bfloat16: the integer kernels take and give float32."""
    found = [t for t in weights(model) if t.data_type in (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)]
    if found:
        total = sum(1 for t in weights(model) if t.data_type in _FLOATS)
        kind = onnx.TensorProto.DataType.Name(found[0].data_type).lower()
        raise Refused(
            f"{technique}: {len(found)} of {total} weights are {kind} (first: {found[0].name!r}); the "
            "integer kernels take float32: export the model in float32"
        )


def subgraph_nodes(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """The nodes of the main graph that hold graphs (If, Loop, Scan, …)."""
    return [
        node
        for node in model.graph.node
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute)
    ]


def opset(model: onnx.ModelProto) -> int:
    """Version of the standard operators. Raises RecipeError where the file names none."""
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            return int(entry.version)
    raise RecipeError("the ONNX file names no version of the standard operators (opset_import)")
