"""Dynamic quantization: what becomes int8, what is refused, and that the result is onnxruntime's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

from compressor.errors import RecipeError, Refused
from compressor.passes.onnx_check import census
from compressor.passes.quantize_dynamic import QuantizeDynamic
from compressor.passes.quiet import quiet
from tests.compressor.passes import models as m


def batch(rows: int = 5) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(7).standard_normal((rows, 32)).astype(np.float32)}


def test_weights_become_int8_per_channel_and_the_answers_stay_near(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["weights quantized"] == 2
    assert outcome.effect["integer nodes"] == {"DynamicQuantizeLinear": 2, "MatMulInteger": 2}
    stored = {t.name: t for t in onnx.load(outcome.artifact.path).graph.initializer}
    assert stored["w1_quantized"].data_type == m.INT8
    assert list(stored["w1_scale"].dims) == [48]
    assert m.close(m.answers(artifact.path, batch())[0], m.answers(outcome.artifact.path, batch())[0], 0.02)


def test_the_result_answers_as_that_of_onnxruntimes_own_call(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    with quiet():
        ort_quantize_dynamic(artifact.path, tmp_path / "own.onnx", per_channel=True, weight_type=QuantType.QInt8)
    ours, own = m.answers(outcome.artifact.path, batch())[0], m.answers(tmp_path / "own.onnx", batch())[0]
    np.testing.assert_array_equal(ours, own)


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    first, second = (m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / name)) for name in ("one", "two"))
    assert first.artifact.path.read_bytes() == second.artifact.path.read_bytes()


def test_an_embedding_is_quantized(tmp_path: Path) -> None:
    ids, out = m.tensor("x", "INT64", m.BATCH, m.SEQUENCE), m.tensor("y", "FP32", m.BATCH, m.SEQUENCE, 24)
    nodes = [helper.make_node("Gather", ["table", "x"], ["e"], "look"), helper.make_node("MatMul", ["e", "w"], ["y"])]
    model = m.graph(nodes, {"table": m.weights(50, 32), "w": m.weights(32, 24)}, inputs=(ids,), outputs=(out,))
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (ids,), (out,))
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["weights quantized"] == 2
    assert outcome.effect["weights left in float"] == 0
    feeds = {"x": np.arange(20).reshape(2, 10)}
    assert m.close(m.answers(artifact.path, feeds)[0], m.answers(outcome.artifact.path, feeds)[0], 0.03)


@pytest.mark.parametrize(("host", "bound"), [(m.VNNI, 127), (m.AVX2, 64), (m.ARM, 127)])
def test_weights_have_seven_bits_only_where_the_host_would_saturate(tmp_path: Path, host: m.Host, bound: int) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out", host=host))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(outcome.artifact.path).graph.initializer}
    assert np.abs(stored["w1_quantized"].astype(int)).max() == bound


def test_u8_weights_are_refused_on_x86_unless_the_recipe_insists(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    technique = QuantizeDynamic(weight_type="uint8")
    with pytest.raises(Refused, match="weight_type uint8 is slow on x86"):
        m.run_pass(technique, artifact, m.context(tmp_path / "out"))
    m.run_pass(technique, artifact, m.context(tmp_path / "out", insist=True))
    m.run_pass(technique, artifact, m.context(tmp_path / "arm", host=m.ARM))


def test_convolutions_are_refused_and_left_in_float(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.cnn(), tmp_path / "m.onnx", (m.IMAGE,))
    with pytest.raises(Refused, match="ten times slower"):
        m.run_pass(QuantizeDynamic(op_types=("Conv",)), artifact, m.context(tmp_path / "out"))
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert "ConvInteger" not in outcome.effect["integer nodes"]
    assert outcome.effect["weights left in float"] == 2


def test_layers_too_small_to_pay_stay_in_float_and_are_named(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(smallest=32), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["left in float: too small to pay"] == ["second"]
    assert outcome.effect["weights quantized"] == 1


def test_excluded_nodes_stay_in_float_and_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(exclude=("fir*",)), artifact, m.context(tmp_path / "out"))
    assert m.stored_types(outcome.artifact.path)["w1"] == m.FLOAT
    with pytest.raises(RecipeError, match="no node is called 'third'"):
        m.run_pass(QuantizeDynamic(exclude=("third",)), artifact, m.context(tmp_path / "out"))


def test_a_model_without_weights_to_quantize_is_refused(tmp_path: Path) -> None:
    out = m.tensor("y", "FP32", m.BATCH, 32)
    model = m.graph(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Add", ["a", "b"], ["y"])],
        {"b": m.weights(1, 32)},
        outputs=(out,),
    )
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", outputs=(out,))
    with pytest.raises(Refused, match=r"nothing to quantize: none of the 1 stored weights .* 1 Relu"):
        m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "m.onnx")
    once = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out")).artifact
    with pytest.raises(Refused, match=r"already quantized: 4 nodes \(2 DynamicQuantizeLinear, 2 MatMulInteger\)"):
        m.run_pass(QuantizeDynamic(), once, m.context(tmp_path / "again"))


def test_fused_attention_with_a_bias_stays_in_float_because_its_int8_form_would_drop_it(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", m.BATCH, 8, 32), m.tensor("y", "FP32", m.BATCH, 8, 32)
    bias = np.where(np.tri(8), 0, -1e4).astype(np.float32)[None, None]
    model = m.graph(
        [
            helper.make_node(
                "Attention", ["x", "w", "b", "", "", "mask"], ["a"], "attend", num_heads=4, domain="com.microsoft"
            ),
            helper.make_node("MatMul", ["a", "p"], ["y"]),
        ],
        {"w": m.weights(32, 96), "b": m.weights(96), "mask": bias, "p": m.weights(32, 32)},
        inputs=(x,),
        outputs=(y,),
        domains=[helper.make_opsetid("com.microsoft", 1)],
    )
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (x,), (y,))
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["left in float: attention bias, no int8 form"] == ["attend"]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 8, 32)).astype(np.float32)}
    assert m.close(m.answers(artifact.path, feeds)[0], m.answers(outcome.artifact.path, feeds)[0], 0.02)


def test_the_pass_leaves_its_input_alone(tmp_path: Path) -> None:
    artifact = m.onnx_artifact(m.mlp(), tmp_path / "in" / "m.onnx")
    before = artifact.path.read_bytes()
    m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert artifact.path.read_bytes() == before
    assert [p.name for p in (tmp_path / "in").iterdir()] == ["m.onnx"]
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert census(onnx.load(artifact.path)).int8 == 0
