"""Foreign ONNX files: what they point at is read without loading them, and refused where it leads astray."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from protos.model_config import ModelConfig
from server.backends import get, onnx_file, preflight
from server.backends.base import BackendError, Device, LoadRequest
from server.backends.onnx_file import ExternalData, check, external_data
from server.backends.ort import PROBE
from tests.server.backends.models import save, value


def external(name: str = "w", **entries: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, text in entries.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, text
    return tensor


def as_initializer(tensor: onnx.TensorProto) -> onnx.ModelProto:
    node = helper.make_node("Add", ["x", tensor.name], ["y"])
    return _model([node], [tensor])


def as_constant(tensor: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor), helper.make_node("Add", ["x", "c"], ["y"])]
    return _model(nodes)


def as_branch(tensor: onnx.TensorProto) -> onnx.ModelProto:
    identity = helper.make_node("Identity", [tensor.name], ["b"])
    inner = helper.make_graph([identity], "b", [], [value("b", [4])], [tensor])
    condition = helper.make_node("Constant", [], ["c"], value=helper.make_tensor("c", TensorProto.BOOL, [], [True]))
    node = helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner)
    return _model([condition, node])


def as_sparse(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = as_initializer(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    sparse = model.graph.sparse_initializer.add()
    sparse.values.CopyFrom(tensor)
    sparse.indices.CopyFrom(numpy_helper.from_array(np.arange(4)))
    sparse.dims.append(4)
    return model


def as_function(tensor: onnx.TensorProto) -> onnx.ModelProto:
    model = as_initializer(numpy_helper.from_array(np.ones(4, np.float32), "w"))
    nodes = [helper.make_node("Constant", [], ["c"], value=tensor)]
    model.functions.append(helper.make_function("local", "f", [], ["c"], nodes, [helper.make_opsetid("", 17)]))
    return model


def _model(nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto] | None = None) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", [value("x", [4])], [value("y", [4])], initializers or [])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


PLACES = [as_initializer, as_constant, as_branch, as_sparse, as_function]


@pytest.mark.parametrize("place", PLACES)
def test_external_data_is_found_wherever_a_tensor_may_stand(
    place: Callable[[onnx.TensorProto], onnx.ModelProto],
) -> None:
    data = place(external(location="w.bin", offset="16", length="32")).SerializeToString()
    assert set(external_data(data, "m")) == {ExternalData("w.bin", 16, 32)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("*/_ORT_MEM_ADDR_/*", "an address in memory"),
        ("/etc/passwd", "is not a plain path beside the model file"),
        ("../w.bin", "is not a plain path beside the model file"),
        ("a/../../w.bin", "is not a plain path beside the model file"),
        ("", "is not a plain path beside the model file"),
        ("missing.bin", "No such file"),
        ("link.bin", "leads through a symbolic link"),
        ("linked/w.bin", "leads through a symbolic link"),
        ("hard.bin", "not a regular file with one name"),
        ("folder", "not a regular file with one name"),
        ("pipe", "not a regular file with one name"),
    ],
)
def test_external_data_that_leads_astray_is_refused(
    tmp_path: Path, place: Callable[[onnx.TensorProto], onnx.ModelProto], location: str, text: str
) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    entry = tmp_path / "1"
    (entry / "folder").mkdir(parents=True)
    (entry / "link.bin").symlink_to(tmp_path / "w.bin")
    (entry / "linked").symlink_to(tmp_path)
    os.link(tmp_path / "w.bin", entry / "hard.bin")
    os.mkfifo(entry / "pipe")
    path = entry / "model.onnx"
    path.write_bytes(place(external(location=location)).SerializeToString())
    with pytest.raises(BackendError) as caught:
        check(path)
    assert str(caught.value).startswith("model.onnx: external data ")
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ({"location": "w.bin", "offset": "8", "length": "16"}, "ends at byte 24, its file has only 16"),
        ({"location": "w.bin", "offset": "-8"}, "which is no number of bytes"),
        ({"location": "w.bin", "length": "9" * 40}, "which is no number of bytes"),
        ({"location": "w.bin", "__class__": "x"}, "with keys ['__class__', 'location']"),
        ({"offset": "0"}, "with keys ['offset']"),
    ],
)
def test_extents_and_keys_are_checked(tmp_path: Path, entries: dict[str, str], text: str) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(16))
    path = tmp_path / "model.onnx"
    path.write_bytes(as_initializer(external(**entries)).SerializeToString())
    with pytest.raises(BackendError) as caught:
        check(path)
    assert text in str(caught.value)


def test_external_data_beside_the_file_is_fine(tmp_path: Path) -> None:
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "w.bin").write_bytes(bytes(16))
    path = tmp_path / "model.onnx"
    path.write_bytes(as_initializer(external(location="weights/w.bin", length="16")).SerializeToString())
    assert check(path) == (ExternalData("weights/w.bin", 0, 16),)


def test_graphs_nested_too_deep_are_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    inner = helper.make_graph([helper.make_node("Identity", ["w"], ["b"])], "b", [], [value("b", [4])], [tensor])
    for _ in range(onnx_file.MAX_GRAPH_DEPTH):
        node = helper.make_node("If", ["c"], ["b"], then_branch=inner, else_branch=inner)
        inner = helper.make_graph([node], "b", [], [value("b", [4])])
    path = tmp_path / "model.onnx"
    path.write_bytes(helper.make_model(inner).SerializeToString())
    with pytest.raises(BackendError, match="graphs are nested deeper than 8"):
        check(path)


SMALL = as_branch(numpy_helper.from_array(np.ones(4, np.float32), "w")).SerializeToString()


@given(st.binary(max_size=200))
@settings(max_examples=200)
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        list(external_data(data, "m"))
    except BackendError as error:
        assert "\n" not in str(error)  # noqa: PT017


@given(st.integers(0, len(SMALL) - 1), st.integers(0, 255))
@settings(max_examples=300)
def test_any_changed_byte_is_read_or_refused(position: int, byte: int) -> None:
    changed = SMALL[:position] + bytes([byte]) + SMALL[position + 1 :]
    try:
        list(external_data(changed, "m"))
    except BackendError as error:
        assert "\n" not in str(error)  # noqa: PT017


def identity(folder: Path) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(folder / "model.onnx", [node], [value("x", [4])], [value("y", [4])])


def test_a_good_file_passes_the_first_load_in_a_child(tmp_path: Path) -> None:
    path = identity(tmp_path)
    preflight.first_load(path, PROBE)


def test_a_bad_file_fails_the_first_load_in_one_line(tmp_path: Path) -> None:
    node = helper.make_node("NoSuchOperator", ["x"], ["y"])
    path = save(tmp_path / "model.onnx", [node], [value("x", [4])], [value("y", [4])])
    request = LoadRequest(path, ModelConfig("m"), (Device(),), {})
    with pytest.raises(BackendError) as caught:
        get("onnxruntime").load(request)
    text = str(caught.value)
    assert text.startswith("model.onnx: onnx runtime error 10: ")
    assert "NoSuchOperator" in text
    assert "\n" not in text
    assert str(tmp_path) not in text


def test_a_first_load_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    path = identity(tmp_path)
    with pytest.raises(BackendError, match=r"model\.onnx: a first load in a child process took longer than 0\.001 s"):
        preflight.first_load(path, PROBE, timeout=0.001)


def test_a_crash_costs_the_child_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = identity(tmp_path)
    monkeypatch.setattr(preflight.sys, "executable", str(_crashing(tmp_path)))
    with pytest.raises(BackendError, match=r"model\.onnx: a first load in a child process died of SIGSEGV"):
        preflight.first_load(path, PROBE)


def _crashing(folder: Path) -> Path:
    script = folder / "python"
    script.write_text("#!/bin/sh\nkill -SEGV $$\n")
    script.chmod(0o755)
    return script


def test_a_verified_file_is_not_loaded_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = identity(tmp_path)
    seen: list[Path] = []
    monkeypatch.setattr(preflight, "first_load", lambda path, loader: seen.append(path))
    backend = get("onnxruntime")
    backend.load(LoadRequest(path, ModelConfig("m"), (Device(),), {}, verified=True))
    backend.load(LoadRequest(path, ModelConfig("m"), (Device(),), {"preflight": "off"}))
    assert not seen
    backend.load(LoadRequest(path, ModelConfig("m"), (Device(),), {}))
    assert seen == [path]
