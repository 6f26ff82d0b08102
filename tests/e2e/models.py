"""Small real ONNX models, written as text, for servers started in tests."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import parser

HEAD = '<ir_version: 8, opset_import: ["" : 17]>\n'
ADD = HEAD + "g (float[N,4] a, float[N,4] b) => (float[N,4] sum, float[N,4] difference) { sum = Add(a, b)\n" \
             "difference = Sub(a, b) }"  # fmt: skip
TEXT = HEAD + "g (string[N,2] a) => (string[N,2] y) { y = Identity(a) }"
HALF = HEAD + "g (float16[N,3] a) => (float16[N,3] y) { y = Add(a, a) }"
FIXED = HEAD + "g (int64[2,3] a) => (int64[2,3] y) { y = Neg(a) }"


def write(root: Path, name: str, text: str, config: str = "", version: int = 1) -> Path:
    """An entry with that model; returns its folder."""
    folder = root / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    model = parser.parse_model(text)
    onnx.checker.check_model(model)
    staged = folder / ".model.onnx"
    onnx.save(model, str(staged))
    staged.rename(folder / "model.onnx")
    if config:
        (root / name / "config.pbtxt").write_text(config)
    return root / name
