"""ONNX → ONNX: rewrite a transformer's graph into the operators that onnxruntime runs fastest, proven on random inputs.

What was measured (MiniLM, 128 tokens, onnxruntime 1.31 with VNNI, one thread, milliseconds of CPU per row):

                                       float     int8 (quantize_dynamic afterwards)
    as exported                        33.7      14.5
    attention = "attention"            34.2      19.4   has no int8 form with an additive mask: float
    attention = "mha"                  35.3      14.6   the projections stay MatMul, which quantize
    attention = "mha", norm = "sum"    30.8      11.9   the default

`norm = "sum"`: onnxruntime turns Add + LayerNormalization into SkipLayerNormalization when it loads a model, and that
kernel takes 0.26 ms for 128×384 values on a CPU where the two plain ones take 0.05 ms. Written as `Sum`, the same
addition is left alone. Likewise `gelu = "plain"`: a bias before Gelu is free inside the integer matrix product, and
BiasGelu (0.24 ms) would take it out of there again (Gelu: 0.13 ms).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import onnx
import onnx_ir
import onnx_ir.passes.common as ir_passes
import onnxscript.optimizer
from onnxscript.rewriter.ort_fusions import (
    attention,
    bias_gelu,
    erfgelu,
    gelu,
    mha,
    mha_bias,
    mha_scale,
    sdpa,
    sdpa_via_mha,
    shape_optimization,
    skip_normalization,
)

from compressor.artifact import Artifact, Kind
from compressor.errors import PassError
from compressor.passes import onnx_check, onnx_files, probe
from compressor.passes.base import Context, Outcome
from compressor.passes.quiet import quiet

Fuse = Callable[[onnx_ir.Model], int]
COUNTED = (
    "MultiHeadAttention",
    "Attention",
    "SkipLayerNormalization",
    "LayerNormalization",
    "Gelu",
    "FastGelu",
    "BiasGelu",
    "Sum",
)


@dataclass(frozen=True, slots=True)
class Optimize:
    name: ClassVar[str] = "optimize"
    takes: ClassVar[Kind] = Kind.ONNX
    gives: ClassVar[Kind] = Kind.ONNX
    needs_calibration: ClassVar[bool] = False

    attention: Literal["mha", "attention", "none"] = "mha"
    """`mha` leaves the projections outside, to be quantized; `attention` puts them into one node (float only)."""
    norm: Literal["sum", "skip", "plain"] | None = None
    """How a residual addition before a layer norm is written; None is `skip` for a GPU and `sum` for a CPU."""
    gelu: Literal["plain", "bias"] = "plain"
    tolerance: float = field(default=1e-3, metadata={"minimum": 0.0})
    """Largest difference to the model before, as a share of the largest magnitude of the output."""
    expect: Mapping[str, int] = field(default_factory=dict)
    """At least so many nodes of a type in the result, e.g. `{ MultiHeadAttention = 6 }`; fewer is an error."""

    def requires(self, artifact: Artifact, context: Context) -> None:
        assert artifact.path is not None
        onnx_check.refuse_quantized(onnx_files.read_structure(artifact.path), self.name)

    def apply(self, artifact: Artifact, context: Context) -> Outcome:
        assert artifact.path is not None
        original = onnx_files.read(artifact.path)
        model = onnx_ir.from_proto(original)
        context.progress(0, 2, "fuse")
        with quiet():
            fused = self._fuse(model, "skip" if context.host.gpu else "sum")
        optimized = onnx_ir.to_proto(model)
        path = onnx_files.write(optimized, context.folder / "model.onnx")
        context.progress(1, 2, "check against the model before")
        worst = check_same(artifact, path, self.tolerance, context.seed)
        context.progress(2, 2, "check against the model before")
        return Outcome(
            artifact.became(path=path),
            {
                "fused": fused or "nothing: no pattern of a transformer was found",
                "nodes": f"{len(original.graph.node)} → {len(optimized.graph.node)}",
                "largest difference": worst.max_abs,
            },
        )

    def ensures(self, before: Artifact, after: Artifact, context: Context) -> None:
        assert after.path is not None
        found = Counter(node.op_type for node in onnx_check.nodes(onnx_files.read_structure(after.path)))
        for kind, count in self.expect.items():
            if found[kind] < count:
                have = ", ".join(f"{found[k]} {k}" for k in COUNTED if found[k]) or "none of the fused operators"
                raise PassError(f"optimize: {found[kind]} {kind}, the recipe expects {count} (the result has {have})")

    def _fuse(self, model: onnx_ir.Model, norm: str) -> dict[str, int]:
        """Rewrite in place. The order is that of onnxscript's own `fuse_xformers`, each step by our choice."""
        norm = self.norm or norm
        ir_passes.ShapeInferencePass()(model)
        onnxscript.optimizer.optimize(model)
        shape_optimization.rules.apply_to_model(model)
        onnxscript.optimizer.optimize(model)
        done: dict[str, int] = {"Gelu": erfgelu.fuse_erfgelu(model)}
        if norm == "skip":
            done["SkipLayerNormalization"] = skip_normalization.fuse_skip_layer_normalization(model)
        ir_passes.CommonSubexpressionEliminationPass()(model)
        if self.attention != "none":
            done |= self._fuse_attention(model)
        done["FastGelu"] = gelu.fuse_gelu(model)
        if self.gelu == "bias":
            done["BiasGelu"] = bias_gelu.fuse_bias_gelu(model)
        # scaled dot products that are not part of a whole attention block
        if lone := sdpa_via_mha.replace_sdpa_by_mha(model):
            done["MultiHeadAttention"] = done.get("MultiHeadAttention", 0) + lone
        onnxscript.optimizer.optimize(model)
        if norm == "sum":
            done["Sum before LayerNormalization"] = _sum_before_norm(model)
        ir_passes.ClearMetadataAndDocStringPass()(model)
        ir_passes.RemoveUnusedOpsetsPass()(model)
        return {name: count for name, count in done.items() if count}

    def _fuse_attention(self, model: onnx_ir.Model) -> dict[str, int]:
        sdpa.fuse_sdpa(model, apply_shape_inference=True)
        done = {"MultiHeadAttention": mha.fuse_mha1(model) + mha.fuse_mha2(model)}
        mha_scale.fuse_mha_scale(model)
        if self.attention == "attention" and done["MultiHeadAttention"]:
            mha_bias.fuse_mha_bias(model)
            done["Attention"] = attention.fuse_attention(model)
            done["MultiHeadAttention"] -= done["Attention"]
        return done


def check_same(artifact: Artifact, path: Path, tolerance: float, seed: int) -> probe.Distance:
    """The largest difference between `artifact.path` and `path` on random inputs of three sizes, padded masks included.

    Raises PassError where it is above `tolerance` (a share of the output's largest magnitude).
    """
    assert artifact.path is not None
    before, after = probe.session(artifact.path), probe.session(path)
    bounds = probe.rows(onnx_files.read_structure(artifact.path))
    names = [tensor.name for tensor in artifact.outputs]
    worst = probe.Distance("", 0.0, 0.0)
    for variant in (0, 1, 2):
        at = probe.sizes(artifact.inputs, variant)
        feeds = probe.random_inputs(artifact.inputs, at, bounds, np.random.default_rng([seed, variant]))
        expected = probe.run(before, names, feeds, "optimize: the model before")
        found = probe.distance(names, expected, probe.run(after, names, feeds, "optimize: the result"))
        if found.relative > tolerance:
            raise PassError(
                f"optimize: output {found.output!r} differs from the model before by {found.relative:.2g} "
                f"of its largest magnitude at sizes {at}, allowed is {tolerance:g}"
            )
        worst = max(worst, found, key=lambda d: d.relative)
    return worst


def _sum_before_norm(model: onnx_ir.Model) -> int:
    """Write float32 additions that feed a layer norm as Sum, which means the same."""
    count = 0
    for node in model.graph:
        if node.op_type != "LayerNormalization" or node.inputs[0] is None:
            continue
        add = node.inputs[0].producer()
        if add is not None and (add.domain, add.op_type) == ("", "Add") and _is_float32(*node.inputs[:2]):
            add.op_type = "Sum"
            count += 1
    return count


def _is_float32(*values: onnx_ir.Value | None) -> bool:
    """By the first value whose type is known; of a layer norm's input and its scale, which have one type."""
    known = [value.dtype for value in values if value is not None and value.dtype is not None]
    return bool(known) and known[0] == onnx_ir.DataType(onnx.TensorProto.FLOAT)
