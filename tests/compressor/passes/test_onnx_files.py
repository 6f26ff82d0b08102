"""Foreign ONNX files: what is read beside a model, and what is refused before it is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from compressor.errors import JobError, RecipeError
from compressor.passes import onnx_files
from tests.compressor.passes import models as m


def external(folder: Path, *, name: str = "w.data", **entries: str | None) -> Path:
    """A model whose weight w1 lies in `w.data`; `entries` replaces what it says about where."""
    folder.mkdir(parents=True, exist_ok=True)
    model = m.mlp()
    array = numpy_helper.to_array(model.graph.initializer[0])
    (folder / name).write_bytes(array.tobytes())
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    told = {"location": name, "offset": "0", "length": str(array.nbytes), **entries}
    for key, value in told.items():
        if value is not None:
            tensor.external_data.add(key=key, value=value)
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_external_weights_are_read_whole(tmp_path: Path) -> None:
    read = onnx_files.read(external(tmp_path))
    np.testing.assert_array_equal(numpy_helper.to_array(read.graph.initializer[0]), m.weights(32, 48))
    assert onnx_files.size(tmp_path / "m.onnx") == sum(p.stat().st_size for p in tmp_path.iterdir())


def test_offset_and_length_may_be_left_out(tmp_path: Path) -> None:
    read = onnx_files.read(external(tmp_path, offset=None, length=None))
    np.testing.assert_array_equal(numpy_helper.to_array(read.graph.initializer[0]), m.weights(32, 48))


@pytest.mark.parametrize(
    ("entries", "reason"),
    [
        ({"location": "../w.data"}, "must be a plain file name"),
        ({"location": "/etc/passwd"}, "must be a plain file name"),
        ({"location": "sub/w.data"}, "must be a plain file name"),
        ({"location": "sub\\w.data"}, "must be a plain file name"),
        ({"location": "w.data\0x"}, "must be a plain file name"),
        ({"location": ".."}, "must be a plain file name"),
        ({"location": ""}, "must be a plain file name"),
        ({"location": "*/_ORT_MEM_ADDR_/*"}, "is a memory address"),
        ({"location": "missing.data"}, "cannot be read"),
        ({"offset": "4096"}, "lie outside w.data"),
        ({"offset": "-1"}, "must be a whole number"),
        ({"offset": "1e3"}, "must be a whole number"),
        ({"offset": "9" * 30}, "must be a whole number"),
        ({"offset": "9" * 18}, "lie outside w.data"),
        ({"length": "-5"}, "must be a whole number"),
        ({"length": "100"}, "its shape and type need 6144"),
        ({"__class__": "x"}, "unknown key '__class__'"),
    ],
)
def test_external_data_that_is_not_a_range_of_a_file_beside_is_refused(
    tmp_path: Path, entries: dict[str, str], reason: str
) -> None:
    with pytest.raises(RecipeError, match=reason):
        onnx_files.read_structure(external(tmp_path, **entries))


def test_a_location_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = external(tmp_path, location="w.dat?")
    path.write_bytes(path.read_bytes().replace(b"w.dat?", b"w.dat\xff"))
    with pytest.raises(RecipeError, match="must be text"):
        onnx_files.read_structure(path)


def test_links_are_refused(tmp_path: Path) -> None:
    path = external(tmp_path / "m")
    data = tmp_path / "m" / "w.data"
    other = tmp_path / "secret"
    data.rename(other)
    data.symlink_to(other)
    with pytest.raises(RecipeError, match="must be a regular file, not a link"):
        onnx_files.read_structure(path)
    data.unlink()
    os.link(other, data)
    with pytest.raises(RecipeError, match="must be a regular file, not a link"):
        onnx_files.read_structure(path)


def hide_in_attribute(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["hidden"], value=tensor))


def hide_in_branch(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    inner = helper.make_graph([], "inner", [], [], [tensor])
    model.graph.node.append(helper.make_node("If", ["x"], ["hidden"], then_branch=inner, else_branch=inner))


def hide_in_function(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.functions.append(
        helper.make_function(
            "own",
            "F",
            [],
            ["o"],
            [helper.make_node("Constant", [], ["o"], value=tensor)],
            [helper.make_opsetid("", 17)],
        )
    )


def hide_in_sparse(model: onnx.ModelProto, tensor: onnx.TensorProto) -> None:
    model.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor, dims=[4]))


@pytest.mark.parametrize("hide", [hide_in_attribute, hide_in_branch, hide_in_function, hide_in_sparse])
def test_no_place_of_a_model_hides_an_external_tensor(
    tmp_path: Path, hide: Callable[[onnx.ModelProto, onnx.TensorProto], None]
) -> None:
    tensor = TensorProto(name="t", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="../../../etc/hostname")
    model = m.mlp()
    hide(model, tensor)
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString())
    with pytest.raises(RecipeError, match="must be a plain file name"):
        onnx_files.read_structure(path)


@pytest.mark.parametrize(("depth", "fine"), [(8, True), (9, False), (30, False)])
def test_subgraphs_nested_deeply_are_refused(tmp_path: Path, depth: int, fine: bool) -> None:
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["o"])], "g", [], [])
    for level in range(depth):
        node = helper.make_node("If", ["c"], ["o"], then_branch=inner)
        inner = helper.make_graph([node], f"g{level}", [], [onnx.ValueInfoProto(name="o")])
    path = tmp_path / "m.onnx"
    path.write_bytes(helper.make_model(inner).SerializeToString())
    if fine:
        onnx_files.read_structure(path)
    else:
        with pytest.raises(RecipeError, match=r"nested|not an ONNX model"):
            onnx_files.read_structure(path)


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    for name, reason in (("fifo", "not a regular file"), ("empty", "not an ONNX model"), ("none", "cannot be read")):
        with pytest.raises(RecipeError, match=reason):
            onnx_files.read_structure(tmp_path / name)
    with pytest.raises(RecipeError, match="not a regular file"):
        onnx_files.read_structure(tmp_path)
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(RecipeError, match="at most"):
        onnx_files.read_structure(tmp_path / "huge")


@pytest.mark.parametrize("dims", [[2**40, 2**40], [-1, 4]])
def test_absurd_shapes_are_refused_before_memory_is_asked_for(tmp_path: Path, dims: list[int]) -> None:
    model = m.mlp()
    tensor = model.graph.initializer.add(name="t", data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.dims.extend(dims)
    tensor.external_data.add(key="location", value="w.data")
    (tmp_path / "w.data").write_bytes(b"0" * 64)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(RecipeError, match="tensor 't'"):
        onnx_files.read_structure(tmp_path / "m.onnx")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_file_is_read_or_refused_in_words(tmp_path: Path, data: st.DataObject) -> None:
    whole = bytearray(external(tmp_path).read_bytes())
    if data.draw(st.booleans()):
        whole = whole[: data.draw(st.integers(0, len(whole)))]
    for position in data.draw(st.lists(st.integers(0, max(0, len(whole) - 1)), max_size=8)):
        if whole:
            whole[position] = data.draw(st.integers(0, 255))
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole)
    try:
        onnx_files.read(path)
    except JobError as error:
        told = str(error)
    else:
        told = ""
    assert "\n" not in told


def test_writing_and_reading_gives_the_same_model(tmp_path: Path) -> None:
    model = m.mlp()
    assert onnx_files.read(onnx_files.write(model, tmp_path / "m.onnx")) == model
    assert onnx_files.weight_bytes(model) == (32 * 48 + 48 + 48 * 24) * 4


def test_a_model_too_large_for_one_file_gets_its_weights_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "SINGLE_FILE_MAX", 4096)
    path = onnx_files.write(m.mlp(), tmp_path / "model.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    np.testing.assert_array_equal(numpy_helper.to_array(onnx_files.read(path).graph.initializer[0]), m.weights(32, 48))
