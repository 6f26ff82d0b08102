"""Which models may be run where the sockets are read: those whose time no value of an input can change."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from protos.model_config import ModelConfig
from server.backends import get
from server.backends.base import Device, LoadRequest
from server.backends.onnx_steady import is_steady, steady
from tests.server.backends.models import save, value

INT64 = TensorProto.INT64
Node = onnx.NodeProto


def node(op: str, inputs: str, outputs: str, **attributes: object) -> Node:
    return helper.make_node(op, [name.strip("_") for name in inputs.split()], outputs.split(), **attributes)


def model(*nodes: Node, initializers: tuple[onnx.TensorProto, ...] = (), inputs: str = "x n") -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes, "g", [value(name, ["a", "b"]) for name in inputs.split()], [value("y", None)], initializers
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def found(*nodes: Node, **more: object) -> bool:
    return steady(model(*nodes, **more).SerializeToString(), "model.onnx")  # type: ignore[arg-type]


BRANCH = helper.make_graph([node("Identity", "x", "b")], "b", [], [value("b", None)])


@pytest.mark.parametrize(
    "nodes",
    [
        [node("Relu", "x", "y")],
        [node("Shape", "x", "s"), node("ConstantOfShape", "s", "y")],
        [node("Shape", "x", "s"), node("Gather", "s zero", "d"), node("Range", "zero d one", "y")],
        [node("Relu", "x", "r"), node("Reshape", "r minus_one", "y")],
        [node("Resize", "x _ scales", "y")],
        [node("Dropout", "x", "d _"), node("Resize", "d _ scales", "y")],
        [node("NonZero", "weights", "w"), node("Add", "x w", "y")],
        [node("SomethingNew", "x n", "y", domain="com.microsoft")],
    ],
    ids=lambda nodes: "-".join(each.op_type for each in nodes),
)
def test_shapes_computed_from_shapes_and_constants_are_steady(nodes: list[Node]) -> None:
    assert found(*nodes)


@pytest.mark.parametrize(
    "nodes",
    [
        [node("NonZero", "x", "y")],
        [node("Relu", "x", "r"), node("Cast", "r", "c"), node("NonMaxSuppression", "c n", "y")],
        [node("Range", "zero n one", "y")],
        [node("Neg", "n", "m"), node("Tile", "x m", "y")],
        [node("Expand", "x n", "y")],
        [node("Reshape", "x n", "y")],
        [node("Resize", "x _ n", "y")],
        [node("Slice", "x zero n", "y")],
        [node("If", "c", "y", then_branch=BRANCH, else_branch=BRANCH)],
        [node("BeamSearch", "x", "y", domain="com.microsoft", decoder=BRANCH)],
    ],
    ids=lambda nodes: "-".join(each.op_type for each in nodes),
)
def test_what_values_decide_is_not_steady(nodes: list[Node]) -> None:
    assert not found(*nodes)


def test_weights_that_an_old_file_lists_among_its_inputs_are_constants() -> None:
    shape = numpy_helper.from_array(np.array([-1]), "n")
    assert found(node("Reshape", "x n", "y"), initializers=(shape,))


def test_functions_of_the_models_own_are_not_looked_into() -> None:
    one = model(node("f", "x", "y", domain="local"))
    one.functions.append(helper.make_function("local", "f", ["a"], ["b"], [node("Relu", "a", "b")], []))
    assert not steady(one.SerializeToString(), "model.onnx")


def test_a_second_graph_hides_nothing() -> None:
    two = model(node("NonZero", "x", "y")).SerializeToString() + model(node("Relu", "x", "y")).SerializeToString()
    assert not steady(two, "model.onnx")
    assert not steady(b"", "model.onnx")


def load(path: Path) -> bool:
    request = LoadRequest(path, ModelConfig("m"), (Device(),), {"preflight": "off"})
    session = get("onnxruntime").load(request)
    session.close()
    return session.steady


def test_a_session_says_whether_it_is_steady(tmp_path: Path) -> None:
    relu = save(tmp_path / "a" / "model.onnx", [node("Relu", "x", "y")], [value("x", ["n", 4])], [value("y", ["n", 4])])
    assert is_steady(relu)
    assert load(relu)
    shape = [value("x", ["n", 4]), value("s", [2], INT64)]
    assert not load(save(tmp_path / "b" / "model.onnx", [node("Expand", "x s", "y")], shape, [value("y", None)]))


def test_texts_may_be_of_any_length(tmp_path: Path) -> None:
    text = TensorProto.STRING
    path = tmp_path / "model.onnx"
    save(path, [node("Identity", "x", "y")], [value("x", ["n"], text)], [value("y", ["n"], text)])
    assert is_steady(path)
    assert not load(path)
