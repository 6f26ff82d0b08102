"""Samples: where they come from, and what is told when they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compressor import data
from compressor.artifact import Artifact, Axis, Kind, Tensor
from compressor.errors import RecipeError
from compressor.fields import Where
from compressor.job import SampleSet
from protos.datatypes import BY_NAME

RECIPE = Path("recipe.toml")
VECTOR = Tensor("x", BY_NAME["FP32"], (Axis("batch"), 16))
TOKENS = Tensor("ids", BY_NAME["INT64"], (Axis("batch"), Axis("length", maximum=8)))
SCORE = Tensor("y", BY_NAME["FP32"], (Axis("batch"), 4))


def stream(table: SampleSet, *inputs: Tensor) -> data.Samples:
    artifact = Artifact(Kind.ONNX, inputs or (VECTOR,), (SCORE,), path=Path("model.onnx"))
    found = data.samples(table, "evaluation", RECIPE, artifact, seed=3)
    assert found is not None
    return found


def npz(folder: Path, **arrays: Any) -> SampleSet:
    np.savez(folder / "data.npz", **arrays)
    return SampleSet(str(folder / "data.npz"), count=4)


def test_a_stream_gives_the_same_samples_each_time_it_is_read() -> None:
    samples = stream(SampleSet("tests.compressor.tiny:samples", count=5))
    first, second = list(samples()), list(samples())
    assert len(first) == 5
    assert all(np.array_equal(a["x"], b["x"]) for a, b in zip(first, second, strict=True))
    assert samples.digests() == samples.digests()


def test_a_sample_of_another_shape_is_told_with_its_number_input_and_both_shapes() -> None:
    samples = stream(SampleSet("tests.compressor.tiny:misshapen", count=5))
    with pytest.raises(RecipeError) as caught:
        list(samples())
    assert str(caught.value) == (
        "recipe.toml: data.evaluation: sample 3 has input 'x' of shape [17], "
        "expected [16] (the batch dimension excluded)"
    )


def test_a_file_without_an_input_says_which(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"sample 0 has 'y', expected the inputs x and label"):
        list(stream(npz(tmp_path, y=np.zeros((4, 16), np.float32)))())
    with pytest.raises(RecipeError, match=r"sample 0 has no input 'x', expected all of x"):
        list(stream(npz(tmp_path, label=np.zeros(4)))())


def test_values_are_cast_only_where_none_is_lost(tmp_path: Path) -> None:
    doubles = list(stream(npz(tmp_path, x=np.ones((4, 16))))())
    assert doubles[0]["x"].dtype == np.float32
    narrow = list(stream(npz(tmp_path, ids=np.ones((4, 3), np.int32)), TOKENS)())
    assert narrow[0]["ids"].dtype == np.int64
    with pytest.raises(RecipeError, match="sample 0 has input 'ids' of type float64, expected INT64"):
        list(stream(npz(tmp_path, ids=np.full((4, 3), 0.5)), TOKENS)())


def test_a_free_axis_has_its_bounds(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"shape \[9\], expected \[length up to 8\]"):
        list(stream(npz(tmp_path, ids=np.ones((4, 9), np.int64)), TOKENS)())


def test_files_that_could_run_code_are_not_read(tmp_path: Path) -> None:
    objects = np.empty(4, dtype=object)
    np.savez(tmp_path / "data.npz", x=objects)
    with pytest.raises(RecipeError, match=r"must be a \.npz file of plain arrays: ValueError"):
        list(stream(SampleSet(str(tmp_path / "data.npz"), count=4))())


def test_arrays_of_unequal_length_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="equally many rows; it has x: 4, label: 3"):
        list(stream(npz(tmp_path, x=np.zeros((4, 16), np.float32), label=np.zeros(3)))())


def test_fewer_samples_than_asked_for_are_an_error(tmp_path: Path) -> None:
    table = npz(tmp_path, x=np.zeros((3, 16), np.float32))
    with pytest.raises(RecipeError, match=r"data.evaluation.count = 4: must be at most 3"):
        list(stream(table)())


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        ("tests.compressor.tiny:sampels", 'did you mean "samples"?'),
        ("tests.compressor.absent:samples", "there is no module tests.compressor.absent"),
        ("tests.compressor.tiny:mlp", "a function that takes split=, count=, seed="),
        ("math:sqrt", "math:sqrt"),
    ],
)
def test_a_function_that_cannot_be_used_says_why(samples: str, expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        list(stream(SampleSet(samples, count=1))())
    assert expected in str(caught.value)
    assert str(caught.value).startswith("recipe.toml: data.evaluation.samples = ")


def test_random_samples_need_a_size_for_each_free_axis() -> None:
    with pytest.raises(RecipeError, match=r"data\.evaluation\.sizes\.length: missing"):
        list(stream(SampleSet("random", count=1), TOKENS)())
    made = list(stream(SampleSet("random", count=3, sizes={"length": 5}, high={"ids": 7}), TOKENS)())
    assert {sample["ids"].shape for sample in made} == {(5,)}
    assert max(int(sample["ids"].max()) for sample in made) < 7


def test_held_out_samples_that_were_calibrated_on_are_refused() -> None:
    where = Where(RECIPE, "data.evaluation")
    data.check_disjoint(("a", "b"), ("c", "d"), where)
    with pytest.raises(RecipeError, match=r"1 of 2 samples are in data.calibration too"):
        data.check_disjoint(("a", "b"), ("b", "c"), where)


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=20), rows=st.integers(1, 6), padded=st.booleans())
def test_batches_hold_every_sample_once_in_order_and_no_more_than_asked(
    lengths: list[int], rows: int, padded: bool
) -> None:
    samples = [{"ids": np.full(length, i + 1, np.int64)} for i, length in enumerate(lengths)]
    found = list(data.batches(iter(samples), rows, {"ids": 0} if padded else {}))
    assert all(len(batch["ids"]) <= rows for batch in found)
    flat = [row for batch in found for row in batch["ids"]]
    assert len(flat) == len(samples)
    for row, sample in zip(flat, samples, strict=True):
        length = len(sample["ids"])
        assert np.array_equal(row[:length], sample["ids"])
        assert not row[length:].any()
        assert padded or len(row) == length
    if padded:
        assert len(found) == -(-len(samples) // rows)
