"""Export and optimize: the file computes what the torch model computes, at sizes that it was not traced with."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import transformers

from compressor.artifact import Artifact, Axis
from compressor.errors import PassError, RecipeError
from compressor.passes.base import Outcome
from compressor.passes.export_onnx import ExportOnnx
from compressor.passes.optimize import Optimize
from compressor.passes.quantize_dynamic import QuantizeDynamic
from tests.compressor.passes import models as m

IDS = m.tensor("input_ids", "INT64", m.BATCH, m.SEQUENCE)
MASK = m.tensor("attention_mask", "INT64", m.BATCH, m.SEQUENCE)
HIDDEN = m.tensor("hidden", "FP32", m.BATCH, m.SEQUENCE, 64)
POOLED = m.tensor("pooled", "FP32", m.BATCH, 64)


class Encoder(torch.nn.Module):
    """A BERT of two layers with random weights, and the mean over the tokens that the mask keeps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.bert = transformers.BertModel(
            transformers.BertConfig(
                vocab_size=300,
                hidden_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=128,
                max_position_embeddings=64,
                attn_implementation="sdpa",
            ),
            add_pooling_layer=False,
        )

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.bert(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask[..., None].to(hidden.dtype)
        return {"hidden": hidden, "pooled": (hidden * kept).sum(1) / kept.sum(1)}


class Awkward(torch.nn.Module):
    """Gives an input back, one value twice, a weight, and has inner values with the names of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(32, 24)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        relu = torch.relu(self.linear(x))
        add = relu + 1
        return add * 2, add, add, x, self.linear.bias


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Outcome]:
    artifact = m.torch_artifact(Encoder().train(), (IDS, MASK), (HIDDEN, POOLED))
    return artifact, m.run_pass(ExportOnnx(), artifact, m.context(tmp_path_factory.mktemp("export")))


@pytest.fixture(scope="module")
def awkward(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Outcome]:
    names = ("relu", "add", "again", "same", "bias")
    outputs = [m.tensor(name, "FP32", m.BATCH, 32 if name == "same" else 24) for name in names[:-1]]
    outputs.append(m.tensor("bias", "FP32", 24))
    artifact = m.torch_artifact(Awkward(), (m.X,), outputs)
    return artifact, m.run_pass(ExportOnnx(), artifact, m.context(tmp_path_factory.mktemp("awkward")))


def tokens(rows: int, length: int) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(rows)
    mask = np.ones((rows, length), np.int64)
    mask[1:, length // 2 :] = 0
    return {"input_ids": generator.integers(0, 300, (rows, length)), "attention_mask": mask}


@pytest.mark.slow
def test_the_file_answers_as_the_torch_model_at_any_size(encoder: tuple[Artifact, Outcome]) -> None:
    artifact, outcome = encoder
    for rows, length in ((1, 1), (1, 64), (7, 13)):
        feeds = tokens(rows, length)
        with torch.no_grad():
            expected = artifact.module.eval()(**{name: torch.from_numpy(value) for name, value in feeds.items()})
        for name, got in zip(("hidden", "pooled"), m.answers(outcome.artifact.path, feeds), strict=True):
            np.testing.assert_allclose(got, expected[name].numpy(), atol=1e-5)


@pytest.mark.slow
def test_the_file_is_one_names_its_axes_and_carries_no_metadata(encoder: tuple[Artifact, Outcome]) -> None:
    _, outcome = encoder
    assert [path.name for path in outcome.artifact.path.parent.iterdir()] == ["model.onnx"]
    made = onnx.load(outcome.artifact.path)
    named = [d.dim_param for value in (*made.graph.input, *made.graph.output) for d in value.type.tensor_type.shape.dim]
    assert set(filter(None, named)) == {"batch", "sequence"}
    assert not made.metadata_props
    assert not any(node.metadata_props or node.doc_string for node in made.graph.node)
    assert outcome.effect["largest difference to torch"] < 1e-5


@pytest.mark.slow
def test_the_module_is_left_as_it_was(awkward: tuple[Artifact, Outcome]) -> None:
    assert awkward[0].module.training
    assert awkward[1].artifact.module is None


@pytest.mark.slow
def test_outputs_are_really_the_outputs_whatever_inner_values_are_called(awkward: tuple[Artifact, Outcome]) -> None:
    artifact, outcome = awkward
    feeds = {"x": np.random.default_rng(0).standard_normal((4, 32)).astype(np.float32)}
    with torch.no_grad():
        expected = artifact.module(torch.from_numpy(feeds["x"]))
    for got, wanted in zip(m.answers(outcome.artifact.path, feeds), expected, strict=True):
        np.testing.assert_allclose(got, wanted.detach().numpy(), atol=1e-6)
    made = onnx.load(outcome.artifact.path)
    onnx.checker.check_model(made, full_check=True)
    assert [value.name for value in made.graph.output] == ["relu", "add", "again", "same", "bias"]


@pytest.mark.slow
def test_a_model_that_does_not_export_is_one_line_with_the_reason(tmp_path: Path) -> None:
    class Branching(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    out = m.tensor("y", "FP32", m.BATCH, 32)
    with pytest.raises(RecipeError, match="export_onnx: the model does not export: ") as caught:
        m.run_pass(ExportOnnx(), m.torch_artifact(Branching(), (m.X,), (out,)), m.context(tmp_path))
    assert "\n" not in str(caught.value)
    assert "data-dependent" in str(caught.value)


def test_outputs_that_do_not_match_the_recipe_are_named(tmp_path: Path) -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"a": x, "b": x + 1}

    for outputs, reason in (
        ((m.Y,), "gives 2 outputs of types Tensor, Tensor; expected are 1"),
        (
            (m.tensor("b", "FP32", m.BATCH, 32), m.tensor("a", "FP32", m.BATCH, 32)),
            "gives its outputs as a, b, the recipe names them as b, a",
        ),
    ):
        with pytest.raises(RecipeError, match=reason):
            m.run_pass(ExportOnnx(), m.torch_artifact(Two(), (m.X,), outputs), m.context(tmp_path))


def test_a_model_that_fails_is_one_line_with_the_shapes(tmp_path: Path) -> None:
    artifact = m.torch_artifact(torch.nn.Linear(31, 24), (m.X,), (m.Y,))
    with pytest.raises(RecipeError, match=r"fails on random inputs \(x \(3, 32\)\): RuntimeError: mat1") as caught:
        m.run_pass(ExportOnnx(), artifact, m.context(tmp_path))
    assert "\n" not in str(caught.value)


def test_an_axis_must_have_a_name_that_the_exporter_takes(tmp_path: Path) -> None:
    odd = m.tensor("x", "FP32", Axis("two words"), 32)
    with pytest.raises(RecipeError, match="axis 'two words' of 'x' must be an identifier"):
        m.run_pass(ExportOnnx(), m.torch_artifact(torch.nn.ReLU(), (odd,), (odd,)), m.context(tmp_path))


def operators(path: Path) -> Counter[str]:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("technique", "expected"),
    [
        (Optimize(expect={"MultiHeadAttention": 2, "Sum": 5}), {"MultiHeadAttention": 2, "Sum": 5}),
        (
            Optimize(attention="attention", norm="skip", gelu="bias"),
            {"Attention": 2, "SkipLayerNormalization": 4, "BiasGelu": 2},
        ),
        (Optimize(attention="none", norm="plain"), {"MultiHeadAttention": 0, "LayerNormalization": 5, "Sum": 0}),
    ],
    ids=["default", "everything", "nothing"],
)
def test_what_is_fused_is_the_recipes_choice_and_is_counted(
    encoder: tuple[Artifact, Outcome], tmp_path: Path, technique: Optimize, expected: dict[str, int]
) -> None:
    outcome = m.run_pass(technique, encoder[1].artifact, m.context(tmp_path))
    found = operators(outcome.artifact.path)
    assert {name: found[name] for name in expected} == expected
    assert outcome.effect["largest difference"] < 1e-5
    feeds = tokens(5, 11)
    for before, after in zip(
        m.answers(encoder[1].artifact.path, feeds), m.answers(outcome.artifact.path, feeds), strict=True
    ):
        np.testing.assert_allclose(after, before, atol=1e-5)


@pytest.mark.slow
def test_the_optimized_model_is_quantized_as_far_as_the_plain_one(
    encoder: tuple[Artifact, Outcome], tmp_path: Path
) -> None:
    plain = m.run_pass(QuantizeDynamic(), encoder[1].artifact, m.context(tmp_path / "plain"))
    fused = m.run_pass(Optimize(), encoder[1].artifact, m.context(tmp_path / "fused")).artifact
    both = m.run_pass(QuantizeDynamic(), fused, m.context(tmp_path / "both"))
    assert both.effect["weights quantized"] == plain.effect["weights quantized"] == 15
    assert both.effect["weights left in float"] == 0
    feeds = tokens(5, 11)
    assert m.close(m.answers(encoder[1].artifact.path, feeds)[1], m.answers(both.artifact.path, feeds)[1], 0.05)


def test_where_nothing_fuses_it_is_said_and_only_an_expectation_makes_it_an_error(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(Optimize(), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["fused"] == "nothing: no pattern of a transformer was found"
    with pytest.raises(PassError, match="0 MultiHeadAttention, the recipe expects 6"):
        m.run_pass(Optimize(expect={"MultiHeadAttention": 6}), artifact, m.context(tmp_path / "out"))
