"""Static quantization: ranges from a stream, QDQ in the fast form, the rest refused or left in float and told."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType
from onnxruntime.quantization import quantize_static as ort_quantize_static

from compressor.errors import PassError, RecipeError, Refused
from compressor.passes.base import Sample
from compressor.passes.quantize_static import QuantizeStatic
from compressor.passes.quiet import quiet
from tests.compressor.passes import models as m

COUNT = 20


def images(count: int = COUNT) -> Iterator[Sample]:
    generator = np.random.default_rng(11)
    for _ in range(count):
        yield {"x": generator.standard_normal((16, 12, 12)).astype(np.float32)}


def batch(rows: int = 4) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(5).standard_normal((rows, 16, 12, 12)).astype(np.float32)}


@pytest.fixture
def artifact(tmp_path: Path) -> m.Artifact:
    return m.onnx_artifact(m.cnn(), tmp_path / "m.onnx", (m.IMAGE,))


@pytest.mark.parametrize("calibrator", ["minmax", "entropy", "percentile"])
def test_convolutions_and_gemm_become_int8_and_the_answers_stay_near(
    artifact: m.Artifact, tmp_path: Path, calibrator: str
) -> None:
    technique = QuantizeStatic(calibrator=calibrator, percentile=99.9)  # type: ignore[arg-type]
    outcome = m.run_pass(technique, artifact, m.context(tmp_path / "out", calibration=images))
    assert outcome.effect["weights quantized"] == 3
    assert outcome.effect["calibration samples"] == COUNT
    made = onnx.load(outcome.artifact.path)
    assert not any(node.op_type == "BatchNormalization" for node in made.graph.node)
    assert {tuple(t.dims) for t in made.graph.initializer if t.data_type == m.INT8 and len(t.dims) > 1} == {
        (32, 16, 3, 3),
        (32, 32, 3, 3),
        (24, 32),
    }
    assert any(t.data_type == onnx.TensorProto.UINT8 for t in made.graph.initializer)
    assert m.close(m.answers(artifact.path, batch())[0], m.answers(outcome.artifact.path, batch())[0], 0.1)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_axes_that_are_stored_tensors_stay_readable(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "k"], ["a"]),
        helper.make_node("ReduceMean", ["a", "axes"], ["y"], keepdims=0),
    ]
    model = m.graph(nodes, {"k": m.weights(24, 16, 3, 3) / 2, "axes": np.array([2, 3])}, opset=18, inputs=(m.IMAGE,))
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (m.IMAGE,))
    outcome = m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=images))
    assert outcome.effect["weights quantized"] == 1
    assert m.close(m.answers(artifact.path, batch())[0], m.answers(outcome.artifact.path, batch())[0], 0.1)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.rows = images()

    def get_next(self) -> dict[str, np.ndarray] | None:
        row = next(self.rows, None)
        return None if row is None else {"x": np.asarray(row["x"])[None]}


def test_with_minmax_the_result_answers_as_that_of_onnxruntimes_own_call(artifact: m.Artifact, tmp_path: Path) -> None:
    technique = QuantizeStatic(batch=3)
    outcome = m.run_pass(technique, artifact, m.context(tmp_path / "out", calibration=images))
    with quiet():
        from onnxruntime.quantization.shape_inference import quant_pre_process

        quant_pre_process(artifact.path, tmp_path / "pre.onnx")
        ort_quantize_static(
            tmp_path / "pre.onnx",
            tmp_path / "own.onnx",
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            op_types_to_quantize=[*technique.op_types],
            weight_type=QuantType.QInt8,
            activation_type=QuantType.QUInt8,
            calibrate_method=CalibrationMethod.MinMax,
        )
    np.testing.assert_allclose(
        m.answers(outcome.artifact.path, batch())[0], m.answers(tmp_path / "own.onnx", batch())[0], rtol=1e-5, atol=1e-6
    )


def test_samples_are_let_go_batch_by_batch(artifact: m.Artifact, tmp_path: Path) -> None:
    """Counts how many of the arrays that were streamed are alive at once: one batch and the one being made."""
    alive: set[int] = set()
    most = 0

    def stream() -> Iterator[Sample]:
        nonlocal most
        for index in range(64):
            array = np.random.default_rng(index).standard_normal((16, 12, 12)).astype(np.float32)
            alive.add(index)
            weakref.finalize(array, alive.discard, index)
            gc.collect(0)
            most = max(most, len(alive))
            yield {"x": array}

    m.run_pass(QuantizeStatic(batch=4, calibrator="entropy"), artifact, m.context(tmp_path / "out", calibration=stream))
    assert most <= 2 * 4 + 1


def test_layers_too_small_to_pay_stay_in_float_and_are_named(artifact: m.Artifact, tmp_path: Path) -> None:
    where = m.context(tmp_path / "out", calibration=images)
    outcome = m.run_pass(QuantizeStatic(smallest=32), artifact, where)
    assert outcome.effect["left in float: too small to pay"] == ["head"]
    with pytest.raises(Refused, match="nothing to quantize"):
        m.run_pass(QuantizeStatic(smallest=500), artifact, where)


@pytest.mark.parametrize(
    ("technique", "reason"),
    [
        (QuantizeStatic(weight_type="uint8"), "2198 µs against 1513 µs"),
        (QuantizeStatic(format="qoperator", activation_type="int8"), "10109 µs against 1513 µs"),
    ],
)
def test_slow_forms_are_refused_with_the_numbers_unless_the_recipe_insists(
    artifact: m.Artifact, tmp_path: Path, technique: QuantizeStatic, reason: str
) -> None:
    with pytest.raises(Refused, match=reason):
        m.run_pass(technique, artifact, m.context(tmp_path / "out", calibration=images))
    m.run_pass(technique, artifact, m.context(tmp_path / "out", calibration=images, insist=True))


@pytest.mark.parametrize(
    ("sample", "reason"),
    [
        ({"z": np.zeros((16, 12, 12), np.float32)}, "calibration sample 0: has no 'x', only 'z'"),
        ({"x": np.zeros((16, 12, 11), np.float32)}, r"'x' has shape \(16, 12, 11\), expected is \(16, 12, 12\)"),
        ({"x": np.zeros((1, 16, 12, 12), np.float32)}, r"has shape \(1, 16, 12, 12\)"),
        ({"x": np.zeros((16, 12, 12), np.complex64)}, "is complex64, expected is float32"),
    ],
)
def test_data_that_does_not_fit_is_named(artifact: m.Artifact, tmp_path: Path, sample: Sample, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=lambda: iter([sample])))


def test_no_calibration_data_is_an_error(artifact: m.Artifact, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data\.calibration names none"):
        m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out"))
    with pytest.raises(RecipeError, match="no sample"):
        m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=lambda: iter([])))


def test_data_that_is_not_finite_is_named(artifact: m.Artifact, tmp_path: Path) -> None:
    def stream() -> Iterator[Sample]:
        yield {"x": np.full((16, 12, 12), np.nan, np.float32)}

    with pytest.raises(PassError, match="NaN or infinite values in 'x'"):
        m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=stream))


def test_samples_of_many_lengths_are_taken_as_they_come(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", m.BATCH, m.SEQUENCE, 32), m.tensor("y", "FP32", m.BATCH, m.SEQUENCE, 24)
    model = m.mlp(inputs=(x,), outputs=(y,))
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (x,), (y,))

    def stream() -> Iterator[Sample]:
        generator = np.random.default_rng(0)
        for length in (3, 3, 7, 5, 5, 5, 3):
            yield {"x": generator.standard_normal((length, 32)).astype(np.float32)}

    outcome = m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=stream))
    assert outcome.effect["calibration samples"] == 7
    assert outcome.effect["weights quantized"] == 2
