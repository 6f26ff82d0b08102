"""ONNX → ONNX: int8 weights, activations quantized as they come (no calibration data); the form for transformers.

Weights S8, per channel. Of K=768 N=3072 at 128 rows, onnxruntime 1.31 with VNNI takes 1654 µs so, 5669 µs in float and
6774 µs with U8 weights; ConvInteger is some ten times slower than a float convolution (onnxruntime #12854).
Embeddings (Gather of a stored table) are quantized too, per table: in small models they are half of the bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import onnx
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

from compressor.artifact import Artifact, Kind
from compressor.errors import JobError, PassError, Refused
from compressor.passes import onnx_check, onnx_files, onnx_prepare, probe
from compressor.passes.base import Context, Host, Outcome
from compressor.passes.quiet import quiet

OpType = Literal["MatMul", "Gemm", "Gather", "Attention", "LSTM", "Conv"]


@dataclass(frozen=True, slots=True)
class QuantizeDynamic:
    name: ClassVar[str] = "quantize_dynamic"
    takes: ClassVar[Kind] = Kind.ONNX
    gives: ClassVar[Kind] = Kind.ONNX
    needs_calibration: ClassVar[bool] = False

    per_channel: bool = True
    weight_type: Literal["int8", "uint8"] = "int8"
    reduce_range: bool | None = None
    """Weights of 7 bits, so that the 16-bit sums of x86 without VNNI do not saturate; None decides by the host."""
    op_types: tuple[OpType, ...] = ("MatMul", "Gemm", "Gather", "Attention", "LSTM")
    exclude: tuple[str, ...] = ()
    """Names of nodes to leave in float; `*` and `?` match."""
    smallest: int = field(default=16, metadata={"minimum": 1})
    """Layers with fewer inputs or outputs than this stay in float."""

    def requires(self, artifact: Artifact, context: Context) -> None:
        assert artifact.path is not None
        if self.weight_type == "uint8" and is_x86(context.host) and not context.insist:
            raise Refused(
                "quantize_dynamic: weight_type uint8 is slow on x86 (6774 µs against 1654 µs with int8 and "
                "5669 µs in float, 768×3072 at 128 rows); use int8, or `insist`"
            )
        if "Conv" in self.op_types and not context.insist:
            raise Refused(
                "quantize_dynamic: dynamic convolutions (ConvInteger) are some ten times slower than float "
                "ones; use quantize_static for Conv, or `insist`"
            )
        model = onnx_files.read_structure(artifact.path)
        onnx_check.refuse_quantized(model, self.name)
        onnx_check.refuse_unknown(model, self.name)
        onnx_check.refuse_half(model, self.name)

    def apply(self, artifact: Artifact, context: Context) -> Outcome:
        assert artifact.path is not None
        context.progress(0, 1, "quantize")
        original = onnx_files.read(artifact.path)
        model, prepared = onnx_prepare.prepare(original, self.name)
        onnx_prepare.gemm_to_matmul(model)
        onnx_prepare.part_tables(model)
        onnx_prepare.drop_unused(model)
        exclude = set(onnx_prepare.choose(model, self.exclude, "quantize_dynamic: exclude"))
        tiny = onnx_prepare.small(model, self.op_types, self.smallest)
        unfit = _unfit_attention(model)
        stacked = onnx_prepare.stacked(model) if self.per_channel else []
        path = context.folder / "model.onnx"
        quantized = self._quantize(model, sorted(exclude | set(tiny) | set(unfit) | set(stacked)), context.host, path)
        onnx_files.write(onnx_prepare.finish(quantized), path)
        context.progress(1, 1, "quantize")
        left = {
            "too small to pay": tiny,
            "attention bias, no int8 form": unfit,
            "stacked matrices, no per-channel form": stacked,
        }
        return Outcome(artifact.became(path=path), {**prepared, **effect(original, quantized, left)})

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None:
        ensure_quantized(self.name, before, after, context.seed)

    def _quantize(self, model: onnx.ModelProto, exclude: list[str], host: Host, path: Path) -> onnx.ModelProto:
        reduce_range = is_x86(host) and "vnni" not in host.flags if self.reduce_range is None else self.reduce_range
        with quiet():
            try:
                ort_quantize_dynamic(
                    model,
                    path,
                    op_types_to_quantize=[*self.op_types],
                    per_channel=self.per_channel,
                    reduce_range=reduce_range,
                    nodes_to_exclude=exclude,
                    use_external_data_format=onnx_files.weight_bytes(model) > onnx_files.SINGLE_FILE_MAX,
                    weight_type=QuantType.QInt8 if self.weight_type == "int8" else QuantType.QUInt8,
                    # types of values after onnxruntime's own operators are not inferred; all floats here are float32
                    extra_options={
                        "EnableSubgraph": bool(onnx_check.subgraph_nodes(model)),
                        "DefaultTensorType": onnx.TensorProto.FLOAT,
                    },
                )
            except Exception as error:  # noqa: BLE001  the library raises bare ValueError, RuntimeError and AssertionError
                inside = [f"{node.op_type} {node.name!r}" for node in onnx_check.subgraph_nodes(model)]
                hint = f" (the model has subgraphs: {', '.join(inside[:3])})" if inside else ""
                raise Refused(f"quantize_dynamic: the model does not quantize: {probe.one_line(error)}{hint}") from None
        return onnx_files.read(path)


def is_x86(host: Host) -> bool:
    return bool(host.flags & {"vnni", "amx", "avx512f", "avx2"})


def _unfit_attention(model: onnx.ModelProto) -> list[str]:
    """Attention nodes with an additive bias: QAttention has no such input, and the quantizer drops it in silence."""
    return [
        node.name
        for node in onnx_check.nodes(model)
        if node.op_type == "Attention" and node.domain == "com.microsoft" and any(node.input[5:])
    ]


def effect(original: onnx.ModelProto, quantized: onnx.ModelProto, left: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The counts that a quantization pass tells: what became int8, what stayed in float and why."""
    before, after = onnx_check.census(original), onnx_check.census(quantized)
    told: dict[str, Any] = {
        "weights quantized": after.int8 - before.int8,
        "weights left in float": after.floats,
        "float bytes": after.float_bytes,
        "int8 bytes": after.int8_bytes,
        "integer nodes": {
            name: count
            for name, count in sorted(onnx_check.operators(quantized).items())
            if name in onnx_check.QUANTIZED_OPS
        },
    }
    told |= {f"left in float: {why}": list(names) for why, names in left.items() if names}
    return told


def ensure_quantized(technique: str, before: Artifact, after: Artifact, seed: int) -> None:
    """Raises Refused where no weight became int8; PassError where the weights are larger, or the model does not run."""
    assert before.path is not None
    assert after.path is not None
    old, new = onnx_files.read(before.path), onnx_files.read(after.path)
    counted, result = onnx_check.census(old), onnx_check.census(new)
    if result.int8 <= counted.int8:
        found = onnx_check.operators(old)
        shown = ", ".join(f"{count} {name}" for name, count in sorted(found.items(), key=lambda item: -item[1])[:6])
        raise Refused(
            f"{technique}: nothing to quantize: none of the {counted.floats} stored weights feeds a node "
            f"that is quantized (the model has {shown})"
        )
    if result.int8_bytes + result.float_bytes >= counted.int8_bytes + counted.float_bytes:
        raise PassError(
            f"{technique}: {result.int8_bytes + result.float_bytes} bytes of weights after, "
            f"{counted.int8_bytes + counted.float_bytes} before"
        )
    _ensure_runs(technique, before, after, probe.rows(old), seed)


def _ensure_runs(technique: str, before: Artifact, after: Artifact, bounds: Mapping[str, int], seed: int) -> None:
    """Where the model before takes random inputs, the result must take them too, and give finite answers of its shapes.

    How near they are is for the evaluation to say, on real data.
    """
    assert before.path is not None
    assert after.path is not None
    result = probe.session(after.path)
    names = [tensor.name for tensor in after.outputs]
    try:
        feeds = probe.random_inputs(after.inputs, probe.sizes(after.inputs, 0), bounds, np.random.default_rng(seed))
        expected = probe.run(probe.session(before.path), names, feeds, "the model before")
    except JobError:
        return
    probe.distance(names, expected, probe.run(result, names, feeds, f"{technique}: the result"))
