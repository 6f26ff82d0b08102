"""What a recipe may say, and the one line that tells what it may not."""

from __future__ import annotations

from pathlib import Path

import pytest

from compressor import recipe
from compressor.errors import RecipeError
from compressor.job import Batching, Instances
from compressor.passes import REGISTRY
from tests.compressor import tiny

CASES = sorted((Path(__file__).resolve().parents[1] / "cases" / "recipes").glob("*.toml"))


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_a_wrong_recipe_is_one_line_with_file_key_value_and_what_is_allowed(path: Path) -> None:
    expected = path.read_text().splitlines()[0].removeprefix("# expect: ")
    with pytest.raises(RecipeError) as caught:
        recipe.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: {expected}")
    assert "\n" not in text
    assert caught.value.exit_status == 2


@pytest.mark.parametrize("name", recipe.packaged())
def test_a_packaged_recipe_is_right_and_found_by_its_name(name: str) -> None:
    job = recipe.load(Path(name))
    assert job.recipe == recipe.PACKAGED / f"{name}.toml"
    assert job.passes
    assert job.budget


def test_a_missing_recipe_names_those_that_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RecipeError, match=r'^minilm-dynamik: no such file; .* did you mean "minilm-dynamic"'):
        recipe.load(Path("minilm-dynamik"))


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(b"\x08\x08\xff\xfe")
    with pytest.raises(RecipeError, match="not UTF-8 text"):
        recipe.load(path)


def test_every_value_arrives_typed_and_defaults_fill_the_rest(tmp_path: Path) -> None:
    text = """
max_batch_size = 16
instance_group = { count = 2, kind = "KIND_CPU" }
dynamic_batching = { }
parameters = { intra_op_thread_count = "1" }
"""
    job = recipe.load(tiny.recipe(tmp_path, parameters='calibrator = "percentile"\npercentile = 99', extra=text))
    assert [one.name for one in job.passes] == ["export_onnx", "quantize_static"]
    quantize = job.passes[1]
    assert isinstance(quantize, REGISTRY["quantize_static"])
    assert quantize.percentile == 99.0
    assert isinstance(quantize.percentile, float)
    assert job.publish is not None
    assert job.publish.instance_group == Instances(count=2, kind="KIND_CPU")
    assert job.publish.dynamic_batching == Batching()
    assert job.seed == 0
    assert not job.insist


def test_data_is_looked_for_beside_the_recipe_and_the_repository_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "recipes").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "recipes" / "data.npz").touch()
    path = tmp_path / "recipes" / "r.toml"
    path.write_text(
        'name = "tiny"\n[source]\nfactory = "a:b"\n[data]\ncalibration = { samples = "data.npz" }\n'
        '[publish]\nrepository = "models"\n'
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    job = recipe.load(path)
    assert job.data.calibration is not None
    assert job.data.calibration.samples == str(tmp_path / "recipes" / "data.npz")
    assert job.publish is not None
    assert job.publish.repository == tmp_path / "elsewhere" / "models"
