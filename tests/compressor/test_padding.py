"""Padding is declared where a mask makes it harmless, and only there: real models, run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compressor import interface, padding
from compressor.__main__ import main
from compressor.artifact import Artifact
from compressor.passes.quantize_dynamic import QuantizeDynamic
from protos import card, repository
from protos.padding import KEY, parse
from tests.compressor import tiny
from tests.compressor.passes import models
from tests.compressor.test_run import tiny_bert

IDS = "int64[n, t] input_ids"
MASK = "int64[n, t] attention_mask"
HEAD = """
    e = Gather (table, input_ids)
    s = Elu (e)
    h = MatMul (s, weight)
    axes = Constant <value_ints = [1]> ()
    last = Constant <value_ints = [2]> ()
"""
MEAN = """
    kept = Cast <to = 1> (attention_mask)
    column = Unsqueeze (kept, last)
    only = Mul (h, column)
    sums = ReduceSum <keepdims = 0> (only, axes)
    count = ReduceSum <keepdims = 1> (kept, axes)
    pooled = Div (sums, count)
"""


def model(folder: Path, inputs: str, outputs: str, body: str) -> Artifact:
    """A small model of texts: an embedding, a layer, and what `body` makes of it."""
    text = f'<ir_version: 8, opset_import: ["" : 17]> g ({inputs}) => ({outputs}) {{ {HEAD} {body} }}'
    made = onnx.parser.parse_model(text)
    scales = np.geomspace(0.1, 10, 50, dtype=np.float32)[:, None]  # so that a batch-mate matters to an INT8 scale
    made.graph.initializer.append(numpy_helper.from_array(models.weights(50, 64) * scales, "table"))
    made.graph.initializer.append(numpy_helper.from_array(models.weights(64, 16), "weight"))
    onnx.save(made, folder / "model.onnx")
    return interface.proven(folder / "model.onnx")


def prove(artifact: Artifact) -> padding.Padded:
    return padding.prove(artifact, {}, None, 0)


def test_a_masked_model_may_be_padded(tmp_path: Path) -> None:
    outputs = "float[n, 16] pooled, float[n, t, 16] h"
    found = prove(model(tmp_path, f"{IDS}, {MASK}", outputs, MEAN))
    assert found.declaration == "t: input_ids[0]=0, attention_mask[0]=0 -> h[0]"
    assert not found.reason
    assert set(found.influence) == set(found.tolerance) == {"pooled", "h"}
    assert all(0 <= found.influence[name] <= found.tolerance[name] for name in found.influence)


def test_a_model_that_does_not_heed_its_mask_may_not(tmp_path: Path) -> None:
    found = prove(model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] y", "y = ReduceMean <axes = [1], keepdims = 0> (h)"))
    assert not found.declaration
    assert found.reason.startswith("padded in a batch, y is up to ")
    assert "away from what it is alone, allowed is " in found.reason


def test_a_model_without_a_mask_is_passed_over_in_silence(tmp_path: Path) -> None:
    found = prove(model(tmp_path, IDS, "float[n, 16] y", "y = ReduceMean <axes = [1], keepdims = 0> (h)"))
    assert found == padding.Padded()


def test_an_input_that_nobody_knows_how_to_fill_up_is_named(tmp_path: Path) -> None:
    inputs = f"{IDS}, {MASK}, float[n, t] boost"
    found = prove(
        model(tmp_path, inputs, "float[n, 16] pooled, float[n, t] louder", f"{MEAN} louder = Mul (kept, boost)")
    )
    assert found == padding.Padded(reason="what boost would have to be filled up with is not known")


def test_an_output_of_a_length_of_its_own_is_named(tmp_path: Path) -> None:
    body = f"{MEAN} twice = Concat <axis = 1> (h, h)"
    found = prove(model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] pooled, float[n, u, 16] twice", body))
    assert found == padding.Padded(reason="the length of twice's dimension 1 follows no input")


def test_what_the_source_pads_with_is_what_is_declared(tmp_path: Path) -> None:
    artifact = model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] pooled", MEAN)
    assert padding.prove(artifact, {"input_ids": 7}, None, 0).declaration == "t: input_ids[0]=7, attention_mask[0]=0"


def test_a_model_that_fails_on_padded_rows_may_not(tmp_path: Path) -> None:
    found = padding.prove(
        model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] pooled", MEAN), {"input_ids": 50}, None, 0
    )  # fmt: skip
    assert not found.declaration
    assert found.reason.startswith("the model fails on padded rows: ")


def test_dynamic_quantization_is_held_to_what_batch_mates_do(tmp_path: Path) -> None:
    artifact = model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] pooled", MEAN)
    quantized = models.run_pass(QuantizeDynamic(), artifact, models.context(tmp_path / "int8", insist=True)).artifact
    found = prove(quantized)
    assert found.declaration
    assert found.influence["pooled"] > prove(artifact).influence["pooled"]
    assert found.tolerance["pooled"] > prove(artifact).tolerance["pooled"]


RECIPE = """
name = "bert"
[source]
huggingface = "bert"
wrapper = "token_embeddings"
[data]
evaluation = {{ samples = "random", count = 12, sizes = {{ sequence = 16 }}, high = {{ input_ids = 100 }} }}
[[pass]]
name = "export_onnx"
[publish]
repository = "{repository}"
{extra}
"""


def compress(folder: Path, extra: str = "") -> int:
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(repository=folder / "repository", extra=extra))
    return main(tiny.arguments(folder, path))


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_bert_is_published_with_its_padding_and_the_proof(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_bert(tmp_path)
    assert compress(tmp_path) == 0
    entry = repository.read(tmp_path / "repository", "bert")
    declared = parse(entry.config.parameters[KEY])
    assert entry.config.parameters[KEY] == (
        "sequence<=64: input_ids[0]=0, attention_mask[0]=0 -> token_embeddings[0]"
    )  # fmt: skip
    assert declared.axes[0].maximum == 64
    proof = card.read(entry.version_path(1))
    assert proof is not None
    error = proof.output_error["token_embeddings"]
    assert 0 <= error["padding_influence"] <= error["padding_tolerance"]
    assert "may be padded" in capsys.readouterr().out

    assert compress(tmp_path, f'parameters = {{ "{KEY}" = "none" }}') == 0
    entry = repository.read(tmp_path / "repository", "bert")
    assert entry.config.parameters[KEY] == "none"
    assert compress(tmp_path, f'parameters = {{ "{KEY}" = "sequence: ids[0]=0" }}') == 2
    assert "input ids is not there; there are input_ids, attention_mask" in capsys.readouterr().err


def test_the_rows_of_the_proof_are_of_many_lengths(tmp_path: Path) -> None:
    artifact = model(tmp_path, f"{IDS}, {MASK}", "float[n, 16] pooled", MEAN)
    found = padding.candidate(artifact, padding.FILLED)
    assert not isinstance(found, str)
    lengths = [len(row["attention_mask"]) for row in padding._rows(artifact, found, None, 0)]
    assert len(lengths) == padding.SIDE**2
    assert lengths == sorted(lengths)
    assert len(set(lengths)) == padding.SIDE
    assert all(np.all(row["attention_mask"] == 1) for row in padding._rows(artifact, found, None, 0))
