"""The catalogue of passes: a recipe's `[[pass]]` names one of these."""

from __future__ import annotations

from compressor.passes.base import Pass
from compressor.passes.export_onnx import ExportOnnx
from compressor.passes.optimize import Optimize
from compressor.passes.prune_magnitude import PruneMagnitude
from compressor.passes.quantize_dynamic import QuantizeDynamic
from compressor.passes.quantize_static import QuantizeStatic

REGISTRY: dict[str, type[Pass]] = {
    each.name: each for each in (ExportOnnx, Optimize, PruneMagnitude, QuantizeDynamic, QuantizeStatic)
}
