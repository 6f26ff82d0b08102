"""ONNX → ONNX: int8 weights and activations, the activations' ranges fixed by calibration data; the form for CNNs.

Weights S8 per channel, activations U8, written as QuantizeLinear / DequantizeLinear pairs, which onnxruntime fuses when
it loads the model. Three 3×3 convolutions of 64 channels on 28×28 (onnxruntime 1.31, VNNI): float 1513 µs, QDQ U8S8
476 µs, QDQ with U8 weights 2198 µs, S8 activations and weights as QOperator 10109 µs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as ort_quantize_static
from onnxruntime.quantization.calibrate import TensorData, TensorsData
from onnxruntime.quantization.quantize import save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from compressor.artifact import Artifact, Kind
from compressor.errors import RecipeError, Refused
from compressor.numerics import ranges
from compressor.passes import calibrate, onnx_check, onnx_files, onnx_prepare, probe
from compressor.passes.base import Context, Outcome
from compressor.passes.quantize_dynamic import effect, ensure_quantized, is_x86
from compressor.passes.quiet import quiet

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
OpType = Literal[
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "Add",
    "Mul",
    "Relu",
    "Clip",
    "LeakyRelu",
    "Sigmoid",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "Concat",
    "Split",
    "Reshape",
    "Flatten",
    "Squeeze",
    "Unsqueeze",
    "Transpose",
    "Resize",
    "Pad",
    "Slice",
    "Gather",
    "Softmax",
]


@dataclass(frozen=True, slots=True)
class QuantizeStatic:
    name: ClassVar[str] = "quantize_static"
    takes: ClassVar[Kind] = Kind.ONNX
    gives: ClassVar[Kind] = Kind.ONNX
    needs_calibration: ClassVar[bool] = True

    calibrator: calibrate.Method = "minmax"
    percentile: float = field(default=99.99, metadata={"minimum": 50.0, "maximum": 100.0})
    """Per cent of the values that the range holds; for calibrator = "percentile"."""
    batch: int = field(default=8, metadata={"minimum": 1})
    """Calibration samples run at once; memory is one such batch of inner values."""
    per_channel: bool = True
    weight_type: Literal["int8", "uint8"] = "int8"
    activation_type: Literal["uint8", "int8"] = "uint8"
    format: Literal["qdq", "qoperator"] = "qdq"
    reduce_range: bool | None = None
    """Weights of 7 bits, so that the 16-bit sums of x86 without VNNI do not saturate; None decides by the host."""
    op_types: tuple[OpType, ...] = (
        "Conv",
        "ConvTranspose",
        "Gemm",
        "MatMul",
        "Add",
        "Relu",
        "Clip",
        "MaxPool",
        "AveragePool",
        "GlobalAveragePool",
        "Concat",
        "Reshape",
        "Flatten",
        "Squeeze",
        "Unsqueeze",
        "Transpose",
        "Resize",
        "Pad",
    )
    exclude: tuple[str, ...] = ()
    """Names of nodes to leave in float; `*` and `?` match."""
    smallest: int = field(default=16, metadata={"minimum": 1})
    """Layers with fewer inputs or outputs than this stay in float."""

    def requires(self, artifact: Artifact, context: Context) -> None:
        assert artifact.path is not None
        if context.calibration is None:
            raise RecipeError("quantize_static: needs calibration data, the recipe's data.calibration names none")
        if self.activation_type == "int8" and self.weight_type == "uint8":
            raise RecipeError(
                "quantize_static: activation_type int8 with weight_type uint8 has no kernel; use int8 weights"
            )
        if not context.insist and is_x86(context.host):
            if self.weight_type == "uint8":
                raise Refused(
                    "quantize_static: weight_type uint8 is slower than float on x86 (2198 µs against 1513 µs "
                    "in float and 476 µs with int8); use int8, or `insist`"
                )
            if self.format == "qoperator" and self.activation_type == "int8":
                raise Refused(
                    "quantize_static: int8 activations as qoperator are slow on x86 (10109 µs against "
                    "1513 µs in float); use format qdq or activation_type uint8, or `insist`"
                )
        model = onnx_files.read(artifact.path)
        onnx_check.refuse_quantized(model, self.name)
        onnx_check.refuse_unknown(model, self.name)
        onnx_check.refuse_half(model, self.name)
        _refuse_subgraph_weights(model)

    def apply(self, artifact: Artifact, context: Context) -> Outcome:
        assert artifact.path is not None
        assert context.calibration is not None
        original = onnx_files.read(artifact.path)
        prepared, counts = onnx_prepare.prepare(original, self.name)
        model = _infer(prepared, context.folder)
        onnx_prepare.name_nodes(model)
        left = {
            "excluded by the recipe": onnx_prepare.choose(model, self.exclude, "quantize_static: exclude"),
            "too small to pay": onnx_prepare.small(model, [t for t in self.op_types if t in WEIGHTED], self.smallest),
            "both sides vary": _varying(model),
        }
        exclude = {name for names in left.values() for name in names}
        names = _watched(model, self.op_types)
        make = ranges.MinMax if self.calibrator == "minmax" else ranges.Histogram
        feeds = calibrate.batches(context.calibration(), artifact.inputs, self.batch)
        seen = 0

        def told(done: int) -> None:
            nonlocal seen
            seen = done
            context.progress(done, 0, "calibrate")

        collectors = calibrate.collect(model, names, feeds, make, context.folder / "calibration.onnx", told)
        spans = calibrate.spans(collectors, self.calibrator, self.percentile)
        path = context.folder / "model.onnx"
        quantized = self._quantize(model, sorted(exclude), spans, context, path)
        onnx_files.write(onnx_prepare.finish(quantized), path)
        return Outcome(
            artifact.became(path=path),
            {
                **counts,
                **effect(original, quantized, left),
                "calibration samples": seen,
                "ranges": len(spans),
            },
        )

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None:
        ensure_quantized(self.name, before, after, context.seed)

    def _quantize(
        self,
        model: onnx.ModelProto,
        exclude: list[str],
        spans: dict[str, tuple[float, float]],
        context: Context,
        path: Path,
    ) -> onnx.ModelProto:
        reduce_range = is_x86(context.host) and "vnni" not in context.host.flags
        ranges_file = context.folder / "ranges.json"
        data = {
            name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in spans.items()
        }
        # the method named here is only compared with the one asked for below; the ranges are used as they are
        save_tensors_data(TensorsData(CalibrationMethod.MinMax, data), ranges_file)
        types = {"int8": QuantType.QInt8, "uint8": QuantType.QUInt8}
        with quiet():
            try:
                ort_quantize_static(
                    model,
                    path,
                    None,
                    quant_format=QuantFormat.QDQ if self.format == "qdq" else QuantFormat.QOperator,
                    op_types_to_quantize=[*self.op_types],
                    per_channel=self.per_channel,
                    reduce_range=reduce_range if self.reduce_range is None else self.reduce_range,
                    activation_type=types[self.activation_type],
                    weight_type=types[self.weight_type],
                    nodes_to_exclude=exclude,
                    calibrate_method=CalibrationMethod.MinMax,
                    calibration_cache_path=ranges_file,
                    use_external_data_format=onnx_files.weight_bytes(model) > onnx_files.SINGLE_FILE_MAX,
                )
            except Exception as error:  # noqa: BLE001  the library raises bare ValueError, RuntimeError and AssertionError
                raise Refused(f"quantize_static: the model does not quantize: {probe.one_line(error)}") from None
            finally:
                ranges_file.unlink(missing_ok=True)
        return onnx_files.read(path)


def _infer(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Types of all inner values, and what onnxruntime folds at its basic level: a BatchNormalization left behind a
    convolution would cost a requantization, and its scale belongs into that of the weights."""
    source, path = folder / "prepared.onnx", folder / "inferred.onnx"
    big = onnx_files.weight_bytes(model) > onnx_files.SINGLE_FILE_MAX
    onnx_files.write(model, source)
    with quiet():
        try:
            # Symbolic inference is for shapes; only types are needed, which the plain one gives. By path: of a model in
            # memory, the library moves all stored tensors out, and axes or shapes among them are then not found.
            quant_pre_process(
                source, path, skip_symbolic_shape=True, save_as_external_data=big, all_tensors_to_one_file=True
            )
            inferred = onnx_files.read(path)
        except Exception as error:  # noqa: BLE001  as above
            raise RecipeError(f"quantize_static: the model cannot be prepared: {probe.one_line(error)}") from None
    for file in (*folder.glob("prepared.onnx*"), *folder.glob("inferred.onnx*")):
        file.unlink()
    return inferred


def _watched(model: onnx.ModelProto, op_types: Sequence[str]) -> list[str]:
    """Float values that go into or come out of a node to be quantized, in the order of the graph."""
    values = {v.name: v for v in (*model.graph.value_info, *model.graph.output, *model.graph.input)}
    stored = {tensor.name for tensor in model.graph.initializer}
    names: dict[str, None] = {}
    for node in model.graph.node:
        if node.op_type in op_types:
            for name in (*node.input, *node.output):
                if (
                    name in values
                    and name not in stored
                    and (values[name].type.tensor_type.elem_type == onnx.TensorProto.FLOAT)
                ):
                    names[name] = None
    return list(names)


def _varying(model: onnx.ModelProto) -> list[str]:
    """Matrix products of two activations (attention scores): eight bits on both sides cost accuracy and gain little."""
    stored = {tensor.name for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "MatMul" and not any(name in stored for name in node.input)
    ]


def _refuse_subgraph_weights(model: onnx.ModelProto) -> None:
    for node in onnx_check.subgraph_nodes(model):
        for attribute in node.attribute:
            for branch in (*([attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []), *attribute.graphs):
                inner = onnx.ModelProto(graph=branch)
                if any(True for _ in onnx_check.weights(inner)):
                    raise Refused(
                        f"quantize_static: node {node.name or node.output[0]!r} is {node.op_type} with "
                        "weights inside, whose values cannot be calibrated; quantize_dynamic reaches them"
                    )
