"""ONNX files as found in the wild, the whole way: served as they are, compressed by a recipe, served again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc as triton
from onnx import helper

from tests.children import ROOT, ServerChild, started_server
from tests.compressor.passes import models as m
from tests.compressor.passes.test_wild_onnx import branches

pytestmark = pytest.mark.slow

RECIPE = """name = "{name}-int8"
[source]
onnx = "{file}"
[data]
evaluation = {{ samples = "random", count = 8 }}
calibration = {{ samples = "random", count = 8, seed = 1 }}
[[pass]]
name = "{technique}"
[budget]
output_cosine_min = 0.99
[publish]
repository = "{repository}"
"""


def constant_nodes() -> onnx.ModelProto:
    return m.graph([m.constant("w", m.weights(32, 24)), helper.make_node("MatMul", ["x", "w"], ["y"])], {})


def if_branches() -> onnx.ModelProto:
    first = [helper.make_node("MatMul", ["x", "wa"], ["a_y"], "in_a")]
    second = [m.constant("wb", m.weights(32, 24, seed=9)), helper.make_node("MatMul", ["x", "wb"], ["b_y"], "in_b")]
    return branches(first, second, {}, {"wa": m.weights(32, 24)})


def channels_last() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[0, 3, 1, 2]),
        helper.make_node("Conv", ["a", "k"], ["b"], pads=[1, 1, 1, 1]),
        helper.make_node("Transpose", ["b"], ["y"], perm=[0, 2, 3, 1]),
    ]
    x, y = m.tensor("x", "FP32", m.BATCH, 10, 10, 16), m.tensor("y", "FP32", m.BATCH, 10, 10, 32)
    return m.graph(nodes, {"k": m.weights(32, 16, 3, 3) / 2}, inputs=(x,), outputs=(y,))


def no_batch() -> onnx.ModelProto:
    return m.mlp(inputs=(m.tensor("x", "FP32", 20, 32),), outputs=(m.tensor("y", "FP32", 20, 24),))


def external_data() -> onnx.ModelProto:
    return m.mlp()


WILD = {
    "constant-nodes": (constant_nodes, "quantize_dynamic"),
    "if-branches": (if_branches, "quantize_dynamic"),
    "channels-last": (channels_last, "quantize_static"),
    "no-batch": (no_batch, "quantize_dynamic"),
    "external-data": (external_data, "quantize_dynamic"),
}
each = pytest.mark.parametrize("name", WILD)


def compress(folder: Path, name: str, file: Path, technique: str) -> subprocess.CompletedProcess[str]:
    recipe = folder / f"{name}.toml"
    recipe.write_text(RECIPE.format(name=name, file=file, technique=technique, repository=folder / "repository"))
    command = [sys.executable, "-m", "compressor", str(recipe), "--work", str(folder / "work")]
    command += ["--reports", str(folder / "reports")]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every wild file as an entry without a configuration, and every recipe run over it."""
    root = tmp_path_factory.mktemp("wild")
    for name, (make, technique) in WILD.items():
        version = root / "repository" / name / "1"
        version.mkdir(parents=True)
        path = version / "model.onnx"
        if name == "external-data":  # Triton's layout for it: a folder named like the file
            path.mkdir()
            path = path / "model.onnx"
            onnx.save(make(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
        else:
            onnx.save(make(), path)
        done = compress(root, name, path, technique)
        assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return root


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[ServerChild]:
    with started_server(folder / "repository") as child:
        yield child


def original(folder: Path, name: str) -> Path:
    path = folder / "repository" / name / "1" / "model.onnx"
    return path / "model.onnx" if path.is_dir() else path


def ask(server: ServerChild, name: str, x: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    with triton.InferenceServerClient(server.url) as client:
        given = triton.InferInput("x", list(x.shape), "FP32").set_data_from_numpy(x)
        return client.infer(name, [given]).as_numpy("y")


def sample(folder: Path, name: str) -> np.ndarray:  # type: ignore[type-arg]
    dims = onnx.load(original(folder, name), load_external_data=False).graph.input[0].type.tensor_type.shape.dim
    shape = [dim.dim_value or 3 for dim in dims]
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@each
def test_it_is_served_as_it_is(folder: Path, server: ServerChild, name: str) -> None:
    x = sample(folder, name)
    expected = m.answers(original(folder, name), {"x": x})[0]
    np.testing.assert_allclose(ask(server, name, x), expected, rtol=1e-5, atol=1e-6)


@each
def test_the_compressed_one_is_smaller_in_int8_and_served(folder: Path, server: ServerChild, name: str) -> None:
    x = sample(folder, name)
    result = folder / "repository" / f"{name}-int8" / "1" / "model.onnx"
    assert m.INT8 in m.stored_types(result).values() or b"MatMulInteger" in result.read_bytes()
    assert m.close(m.answers(original(folder, name), {"x": x})[0], ask(server, f"{name}-int8", x), 0.05)


def test_one_that_is_quantized_already_is_refused_with_the_count(folder: Path) -> None:
    done = compress(folder, "again", folder / "repository" / "no-batch-int8" / "1" / "model.onnx", "quantize_dynamic")
    assert done.returncode == 3
    assert "already quantized" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "repository" / "again-int8").exists()
