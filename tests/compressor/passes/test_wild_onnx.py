"""ONNX files as found in the wild: compressed rightly, or refused with the reason; never passed through as if done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import RecipeError, Refused
from compressor.passes.base import Outcome, Sample
from compressor.passes.quantize_dynamic import QuantizeDynamic
from compressor.passes.quantize_static import QuantizeStatic
from tests.compressor.passes import models as m


def rows(count: int = 4, width: int = 32) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(3).standard_normal((count, width)).astype(np.float32)}


def dynamic(
    model: onnx.ModelProto,
    folder: Path,
    expected: int,
    *,
    share: float = 0.05,
    feeds: tuple[dict[str, np.ndarray], ...] = (),
    **interface: tuple[m.Tensor, ...],
) -> Outcome:
    """Quantize, and compare the answers; `expected` weights must have become int8."""
    artifact = m.onnx_artifact(model, folder / "m.onnx", **interface)
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(folder / "out"))
    assert outcome.effect["weights quantized"] == expected
    onnx.checker.check_model(outcome.artifact.path)
    for feed in feeds or (rows(),):
        for before, after in zip(m.answers(artifact.path, feed), m.answers(outcome.artifact.path, feed), strict=True):
            assert m.close(before, after, share)
    return outcome


def test_weights_in_constant_nodes_are_lifted_and_quantized(tmp_path: Path) -> None:
    model = m.graph([m.constant("w", m.weights(32, 24)), helper.make_node("MatMul", ["x", "w"], ["y"])], {})
    outcome = dynamic(model, tmp_path, 1)
    assert outcome.effect["constants lifted"] == 1


def branches(
    first: list[onnx.NodeProto],
    second: list[onnx.NodeProto],
    stored: dict[str, np.ndarray],
    inner: dict[str, np.ndarray],
) -> onnx.ModelProto:
    """An If on whether the sum of x is above zero."""

    def body(name: str, nodes: list[onnx.NodeProto], tensors: dict[str, np.ndarray]) -> onnx.GraphProto:
        return helper.make_graph(
            nodes,
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array, key) for key, array in tensors.items()],
        )

    return m.graph(
        [
            helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["c"]),
            helper.make_node(
                "If", ["c"], ["y"], "choice", then_branch=body("a", first, inner), else_branch=body("b", second, {})
            ),
        ],
        {"zero": np.zeros((), np.float32), **stored},
    )


def test_weights_inside_the_branches_of_an_if_are_quantized_in_dynamic_form(tmp_path: Path) -> None:
    model = branches(
        [helper.make_node("MatMul", ["x", "wa"], ["a_y"], "in_a")],
        [m.constant("wb", m.weights(32, 24, seed=9)), helper.make_node("MatMul", ["x", "wb"], ["b_y"], "in_b")],
        {},
        {"wa": m.weights(32, 24)},
    )
    positive = {"x": np.abs(rows()["x"])}
    dynamic(model, tmp_path, 2, feeds=(positive, {"x": -positive["x"]}))


def test_a_weight_of_the_main_graph_used_in_a_branch_is_quantized(tmp_path: Path) -> None:
    model = branches(
        [helper.make_node("MatMul", ["x", "w"], ["a_y"], "in_a")],
        [helper.make_node("MatMul", ["x", "w"], ["b_p"], "in_b"), helper.make_node("Neg", ["b_p"], ["b_y"])],
        {"w": m.weights(32, 24)},
        {},
    )
    positive = {"x": np.abs(rows()["x"])}
    dynamic(model, tmp_path, 1, feeds=(positive, {"x": -positive["x"]}))


def test_weights_inside_branches_are_refused_in_static_form_by_the_nodes_name(tmp_path: Path) -> None:
    model = branches(
        [helper.make_node("MatMul", ["x", "wa"], ["a_y"])],
        [helper.make_node("MatMul", ["x", "w"], ["b_y"])],
        {"w": m.weights(32, 24)},
        {"wa": m.weights(32, 24)},
    )
    with pytest.raises(Refused, match="node 'choice' is If with weights inside"):
        m.run_pass(
            QuantizeStatic(),
            m.onnx_artifact(model, tmp_path / "m.onnx"),
            m.context(tmp_path / "out", calibration=lambda: iter([{"x": rows()["x"][0]}])),
        )


def test_channels_last_with_transposes_is_quantized_in_static_form(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", m.BATCH, 10, 10, 16), m.tensor("y", "FP32", m.BATCH, 10, 10, 32)
    model = m.graph(
        [
            helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
            helper.make_node("Conv", ["a", "k"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Transpose", ["c"], ["y"], perm=[0, 2, 3, 1]),
        ],
        {"k": m.weights(32, 16, 3, 3) / 2},
        inputs=(x,),
        outputs=(y,),
    )
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (x,), (y,))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 10, 10, 16)).astype(np.float32)}

    def stream() -> Iterator[Sample]:
        yield from ({"x": row} for row in feeds["x"])

    outcome = m.run_pass(QuantizeStatic(), artifact, m.context(tmp_path / "out", calibration=stream))
    assert outcome.effect["weights quantized"] == 1
    assert m.close(m.answers(artifact.path, feeds)[0], m.answers(outcome.artifact.path, feeds)[0], 0.03)


def test_a_model_without_a_batch_dimension_is_quantized_in_both_forms(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", 20, 32), m.tensor("y", "FP32", 20, 24)
    dynamic(m.mlp(inputs=(x,), outputs=(y,)), tmp_path, 2, feeds=(rows(20),), inputs=(x,), outputs=(y,))
    artifact = m.onnx_artifact(m.mlp(inputs=(x,), outputs=(y,)), tmp_path / "m.onnx", (x,), (y,))
    where = m.context(tmp_path / "s", calibration=lambda: iter([rows(20)] * 3))
    outcome = m.run_pass(QuantizeStatic(), artifact, where)
    assert m.close(m.answers(artifact.path, rows(20))[0], m.answers(outcome.artifact.path, rows(20))[0], 0.05)


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_old_operator_sets_are_converted(tmp_path: Path, opset: int) -> None:
    outcome = dynamic(m.mlp(opset=opset), tmp_path, 2)
    assert outcome.effect["converted from opset"] == opset


def test_weights_that_are_inputs_too_are_quantized_and_leave_the_interface(tmp_path: Path) -> None:
    model = m.mlp(ir_version=3, opset=8)
    for stored in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(stored.name, TensorProto.FLOAT, list(stored.dims)))
    outcome = dynamic(model, tmp_path, 2)
    assert [value.name for value in onnx.load(outcome.artifact.path).graph.input] == ["x"]


def test_functions_are_inlined(tmp_path: Path) -> None:
    dense = helper.make_function(
        "own",
        "Dense",
        ["i", "w"],
        ["o"],
        [helper.make_node("MatMul", ["i", "w"], ["o"])],
        [helper.make_opsetid("", 17)],
    )
    model = m.graph(
        [helper.make_node("Dense", ["x", "w"], ["y"], domain="own")],
        {"w": m.weights(32, 24)},
        functions=[dense],
        domains=[helper.make_opsetid("own", 1)],
    )
    assert dynamic(model, tmp_path, 1).effect["functions inlined"] == 1


def test_operators_of_another_domain_are_refused_by_name(tmp_path: Path) -> None:
    model = m.graph(
        [helper.make_node("Magic", ["x", "w"], ["y"], "spell", domain="some.vendor")],
        {"w": m.weights(32, 24)},
        domains=[helper.make_opsetid("some.vendor", 1)],
    )
    with pytest.raises(Refused, match=r"node 'spell' is some\.vendor::Magic, an operator that onnxruntime"):
        dynamic(model, tmp_path, 1)


def test_half_float_weights_are_refused(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP16", m.BATCH, 32), m.tensor("y", "FP16", m.BATCH, 24)
    model = m.graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        {"w": m.weights(32, 24).astype(np.float16)},
        inputs=(x,),
        outputs=(y,),
    )
    with pytest.raises(Refused, match="1 of 1 weights are float16"):
        dynamic(model, tmp_path, 1, inputs=(x,), outputs=(y,))


def test_a_weight_shared_by_two_products_is_quantized_once(tmp_path: Path) -> None:
    model = m.graph(
        [
            helper.make_node("Gemm", ["x", "w"], ["a"], "one", transB=1),
            helper.make_node("Gemm", ["a", "w", "b"], ["y"], "two", transB=1),
        ],
        {"w": m.weights(32, 32), "b": m.weights(32, seed=5)},
        outputs=(m.tensor("y", "FP32", m.BATCH, 32),),
    )
    dynamic(model, tmp_path, 1, outputs=(m.tensor("y", "FP32", m.BATCH, 32),))


@pytest.mark.parametrize("first", ["lookup", "product"])
def test_a_table_that_is_looked_up_and_multiplied_by_is_quantized_both_ways(tmp_path: Path, first: str) -> None:
    ids = m.tensor("ids", "INT64", m.BATCH, 5)
    y, z = m.tensor("y", "FP32", m.BATCH, 24), m.tensor("z", "FP32", m.BATCH, 5, 24)
    nodes = [helper.make_node("Gather", ["t", "ids"], ["z"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = m.graph(
        nodes if first == "lookup" else nodes[::-1], {"t": m.weights(32, 24)}, inputs=(m.X, ids), outputs=(y, z)
    )
    feeds = {**rows(), "ids": np.arange(20).reshape(4, 5)}
    dynamic(model, tmp_path, 2, feeds=(feeds,), inputs=(m.X, ids), outputs=(y, z))


def test_stacked_matrices_stay_in_float_and_are_named(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", m.BATCH, 3, 6, 32), m.tensor("y", "FP32", m.BATCH, 3, 6, 24)
    nodes = [helper.make_node("MatMul", ["x", "w3"], ["a"], "stack"), helper.make_node("MatMul", ["a", "w"], ["y"])]
    model = m.graph(nodes, {"w3": m.weights(3, 32, 32), "w": m.weights(32, 24)}, inputs=(x,), outputs=(y,))
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 6, 32)).astype(np.float32)}
    outcome = dynamic(model, tmp_path, 1, feeds=(feeds,), inputs=(x,), outputs=(y,))
    assert outcome.effect["left in float: stacked matrices, no per-channel form"] == ["stack"]


def test_a_product_with_stored_left_side_only_is_nothing_to_quantize(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", 32, 20), m.tensor("y", "FP32", 24, 20)
    node = helper.make_node("MatMul", ["w", "x"], ["y"])
    model = m.graph([node], {"w": m.weights(24, 32)}, inputs=(x,), outputs=(y,))
    with pytest.raises(Refused, match="nothing to quantize"):
        dynamic(model, tmp_path, 1, inputs=(x,), outputs=(y,))


def test_an_lstm_is_quantized(tmp_path: Path) -> None:
    x, y = m.tensor("x", "FP32", 6, m.BATCH, 32), m.tensor("y", "FP32", 6, 1, m.BATCH, 16)
    model = m.graph(
        [helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=16)],
        {"w": m.weights(1, 64, 32) * 0.2, "r": m.weights(1, 64, 16) * 0.2},
        inputs=(x,),
        outputs=(y,),
    )
    feeds = {"x": np.random.default_rng(0).standard_normal((6, 3, 32)).astype(np.float32)}
    dynamic(model, tmp_path, 2, feeds=(feeds,), inputs=(x,), outputs=(y,))


def test_weights_inside_a_loop_are_quantized_in_dynamic_form(tmp_path: Path) -> None:
    y = m.tensor("y", "FP32", m.BATCH, 32)
    info = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("MatMul", ["state", "w"], ["p"]),
            helper.make_node("Tanh", ["p"], ["next"]),
            helper.make_node("Identity", ["on"], ["still"]),
        ],
        "body",
        [info("i", TensorProto.INT64, []), info("on", TensorProto.BOOL, []), info("state", TensorProto.FLOAT, None)],
        [info("still", TensorProto.BOOL, []), info("next", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(m.weights(32, 32), "w")],
    )
    model = m.graph(
        [helper.make_node("Loop", ["n", "", "x"], ["y"], "loop", body=body)], {"n": np.array(3)}, outputs=(y,)
    )
    dynamic(model, tmp_path, 1, outputs=(y,))


def test_a_model_with_text_inputs_is_quantized(tmp_path: Path) -> None:
    text, same = m.tensor("t", "BYTES", m.BATCH), m.tensor("u", "BYTES", m.BATCH)
    model = m.graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node("Identity", ["t"], ["u"])],
        {"w": m.weights(32, 24)},
        inputs=(m.X, text),
        outputs=(m.Y, same),
    )
    artifact = m.onnx_artifact(model, tmp_path / "m.onnx", (m.X, text), (m.Y, same))
    assert m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out")).effect["weights quantized"] == 1


def test_external_weights_are_read_and_the_result_is_one_file(tmp_path: Path) -> None:
    onnx.save_model(m.mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    artifact = m.Artifact(m.Kind.ONNX, (m.X,), (m.Y,), path=tmp_path / "m.onnx")
    outcome = m.run_pass(QuantizeDynamic(), artifact, m.context(tmp_path / "out"))
    assert outcome.effect["weights quantized"] == 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]


def test_a_model_that_onnxruntime_does_not_load_is_an_error_with_its_reason(tmp_path: Path) -> None:
    model = m.graph([helper.make_node("NoSuchOperator", ["x", "w"], ["y"])], {"w": m.weights(32, 24)})
    with pytest.raises((RecipeError, Refused), match=r"NoSuchOperator|nothing to quantize"):
        dynamic(model, tmp_path, 1)
