"""Bring an ONNX file as found in the wild into the form that the quantizers handle rightly.

Weights stored as Constant nodes become initialisers, functions are inlined, initialisers that are inputs too (IR < 4)
become plain initialisers, nodes and subgraph values get unique names, and old operator sets are converted. Every step
leaves the function computed as it is.
"""

from __future__ import annotations

import fnmatch
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
import onnx
import onnx.version_converter
import onnx_ir
import onnx_ir.passes.common as ir_passes
from onnxruntime.quantization.quant_utils import add_pre_process_metadata

from compressor.errors import RecipeError, Refused
from compressor.passes import onnx_check, onnx_files, probe

OPSET_MIN = 13
"""DequantizeLinear has a channel axis from 13 on."""
OPSET_TARGET = 17
_QUANTIZER_METADATA = ("onnx.infer", "onnx.quant.pre_process")


def prepare(model: onnx.ModelProto, technique: str) -> tuple[onnx.ModelProto, dict[str, int]]:
    """A model ready to be quantized, and the counts of what had to be done.

    Raises Refused for what would come out wrong or unchanged (already quantized, unknown operators, half floats).
    """
    onnx_check.refuse_quantized(model, technique)
    onnx_check.refuse_unknown(model, technique)
    onnx_check.refuse_half(model, technique)
    done: dict[str, int] = {}
    version = onnx_check.opset(model)
    if version < OPSET_MIN:
        model = _convert(model, version, technique)
        done["converted from opset"] = version
    functions = len(model.functions)
    before = {tensor.name for tensor in model.graph.initializer}
    doubled = sum(1 for value in model.graph.input if value.name in before)
    modern = onnx_ir.from_proto(model)
    if functions:
        ir_passes.InlinePass()(modern)
        done["functions inlined"] = functions
    ir_passes.LiftConstantsToInitializersPass(lift_all_constants=False, size_limit=16)(modern)
    ir_passes.RemoveInitializersFromInputsPass()(modern)
    model = onnx_ir.to_proto(modern)
    # before version 4 stored tensors had to be inputs as well, which they no longer are
    model.ir_version = max(model.ir_version, 8)
    _forget_stored_types(model)
    lifted = sum(1 for tensor in model.graph.initializer if tensor.name not in before)
    if lifted:
        done["constants lifted"] = lifted
    if doubled:
        done["initialisers taken from the inputs"] = doubled
    name_nodes(model)
    # keeps onnxruntime's quantizer from advising its own pre-processing on standard error
    add_pre_process_metadata(model)
    return model, done


def gemm_to_matmul(model: onnx.ModelProto) -> int:
    """Write Gemm with a stored second matrix as MatMul and Add, which the dynamic quantizer knows; how many there were.

    The quantizer's own rewrite transposes the stored matrix in place "assuming it is not used by any other node", so
    that a shared one comes out wrong, and it renames the nodes, so that they are no longer excluded.
    """
    count = 0
    homes = _homes(model)
    for graph in onnx_files.graphs(model.graph):
        made: list[onnx.NodeProto] = []
        for node in graph.node:
            options = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
            options |= {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            plain = options["alpha"] == 1.0 and options["beta"] == 1.0 and not options["transA"]
            if node.op_type != "Gemm" or not plain or node.input[1] not in homes:
                made.append(node)
                continue
            count += 1
            second = _transposed(homes, node.input[1]) if options["transB"] else node.input[1]
            biased = len(node.input) > 2 and bool(node.input[2])
            product = f"{node.output[0]}_product" if biased else node.output[0]
            made.append(onnx.helper.make_node("MatMul", [node.input[0], second], [product], node.name))
            if biased:
                made.append(onnx.helper.make_node("Add", [product, node.input[2]], node.output, f"{node.name}_bias"))
        del graph.node[:]
        graph.node.extend(made)
    return count


def part_tables(model: onnx.ModelProto) -> int:
    """Give lookups (Gather) a copy of their own of a matrix that is a factor of a product too; how many there were.

    The two are quantized differently (one scale, one per column), and the quantizer takes the first way for both.
    """
    homes = _homes(model)
    factors = {node.input[1] for node in onnx_check.nodes(model) if node.op_type in ("MatMul", "Gemm", "Attention")}
    count = 0
    for node in onnx_check.nodes(model):
        if node.op_type == "Gather" and node.input[0] in factors and node.input[0] in homes:
            graph, tensor = homes[node.input[0]]
            name = f"{tensor.name}_table"
            if name not in homes:
                copied = graph.initializer.add()
                copied.CopyFrom(tensor)
                copied.name = name
                homes[name] = (graph, copied)
                count += 1
            node.input[0] = name
    return count


def _homes(model: onnx.ModelProto) -> dict[str, tuple[onnx.GraphProto, onnx.TensorProto]]:
    """Where each stored tensor is kept; names are unique over all subgraphs in a valid model."""
    return {tensor.name: (graph, tensor) for graph in onnx_files.graphs(model.graph) for tensor in graph.initializer}


def _transposed(homes: dict[str, tuple[onnx.GraphProto, onnx.TensorProto]], name: str) -> str:
    graph, tensor = homes[name]
    turned = f"{name}_transposed"
    if turned not in homes:
        array = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor).T)
        graph.initializer.append(onnx.numpy_helper.from_array(array, turned))
        homes[turned] = (graph, graph.initializer[-1])
    return turned


def drop_unused(model: onnx.ModelProto) -> None:
    """Remove stored tensors of the main graph that nothing uses any more."""
    used = {name for node in onnx_check.nodes(model) for name in node.input}
    used |= {value.name for graph in onnx_files.graphs(model.graph) for value in graph.output}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _forget_stored_types(model: onnx.ModelProto) -> None:
    """Types written beside stored tensors: they only repeat them, and are wrong once a tensor is rewritten."""
    for graph in onnx_files.graphs(model.graph):
        stored = {tensor.name for tensor in graph.initializer}
        kept = [value for value in graph.value_info if value.name not in stored]
        del graph.value_info[:]
        graph.value_info.extend(kept)


def finish(model: onnx.ModelProto) -> onnx.ModelProto:
    """Drop the quantizer's own marks."""
    kept = [entry for entry in model.metadata_props if entry.key not in _QUANTIZER_METADATA]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    return model


def choose(model: onnx.ModelProto, patterns: Sequence[str], what: str) -> list[str]:
    """Names of the nodes that match the patterns (`*`, `?`). Raises RecipeError for a pattern that matches none."""
    names = [node.name for node in onnx_check.nodes(model)]
    chosen: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(names, pattern)
        if not found:
            raise RecipeError(f"{what}: no node is called {pattern!r}; the first names are {', '.join(names[:5])}")
        chosen += found
    return chosen


def stacked(model: onnx.ModelProto) -> list[str]:
    """Names of matrix products with a stored factor of three or more dimensions: onnxruntime's integer product takes
    one scale per column only for a single matrix, and fails when it runs."""
    homes = _homes(model)
    return [
        node.name
        for node in onnx_check.nodes(model)
        if node.op_type == "MatMul" and node.input[1] in homes and len(homes[node.input[1]][1].dims) > 2
    ]


def small(model: onnx.ModelProto, op_types: Iterable[str], minimum: int) -> list[str]:
    """Names of the nodes whose stored weight has fewer than `minimum` inputs or outputs: int8 does not pay there.

    Measured (1 → 16 → 16 channel convolutions of MNIST size): 93 µs in int8 against 67 µs in float.
    """
    stored = {tensor.name: tensor for graph in onnx_files.graphs(model.graph) for tensor in graph.initializer}
    found = []
    for node in onnx_check.nodes(model):
        if node.op_type not in op_types or node.op_type == "Gather" or len(node.input) < 2:
            continue
        weight = stored.get(node.input[1])
        if weight is None or len(weight.dims) < 2:
            continue
        if node.op_type in ("Conv", "ConvTranspose"):
            taps = 1
            for dimension in weight.dims[2:]:
                taps *= dimension
            sides = (weight.dims[0], weight.dims[1] * taps)
        else:
            sides = (weight.dims[-2], weight.dims[-1])
        if min(sides) < minimum:
            found.append(node.name)
    return found


def _convert(model: onnx.ModelProto, version: int, technique: str) -> onnx.ModelProto:
    try:
        return onnx.version_converter.convert_version(model, OPSET_TARGET)
    except Exception as error:  # noqa: BLE001  the converter's C++ errors have no common class
        raise Refused(
            f"{technique}: needs opset {OPSET_MIN} or newer, the file has {version} and does not convert: "
            f"{probe.one_line(error)}"
        ) from None


def name_nodes(model: onnx.ModelProto) -> None:
    """Unique node names: the quantizer finds nodes, and derives the names of what it adds, by them."""
    taken: Counter[str] = Counter()
    for node in onnx_check.nodes(model):
        name = node.name or f"{node.op_type}_{taken.total()}"
        while taken[name]:
            name = f"{name}_{taken.total()}"
        taken[name] += 1
        node.name = name
