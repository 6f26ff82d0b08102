"""A small text model, made on the spot: BERT-Tiny (Turc et al., arXiv 1908.08962: 2 layers, 128 wide) with random
weights, which take as long as trained ones, through the compressor like any other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.children import ROOT

NAME = "bert-tiny"
RECIPE = """name = "{name}"

[source]
huggingface = "{source}"
wrapper = "sentence_embedding"

[[pass]]
name = "export_onnx"

[publish]
repository = "{repository}"
max_batch_size = 16
instance_group = {{ count = 2, kind = "KIND_CPU" }}
dynamic_batching = {{}}
"""
CODE = """import sys
import torch
from transformers import BertConfig, BertModel
torch.manual_seed(0)
shape = dict(hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512)
BertModel(BertConfig(vocab_size=30522, **shape)).save_pretrained(sys.argv[1])
"""


def publish(folder: Path) -> Path:
    """The repository below `folder` that holds it."""
    source, repository = folder / "source", folder / "repository"
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(name=NAME, source=source, repository=repository))
    for command in (["-c", CODE, str(source)], ["-m", "compressor", str(recipe)]):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return repository
