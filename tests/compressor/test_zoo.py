"""The reference models and their data: real, read in place, and never the same for calibration and proof."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from compressor import pipeline, recipe
from compressor.errors import RecipeError
from compressor.zoo import minilm, mnist

TEXT = pytest.mark.skipif(
    not (minilm.DATA / minilm.ARCHIVE).is_file(), reason="the text is not there: `make install` fetches it"
)


@TEXT
def test_samples_are_full_tokens_of_the_models_vocabulary() -> None:
    samples = list(minilm.texts("held_out", 20, seed=0))
    assert len(samples) == 20
    for sample in samples:
        assert sample["input_ids"].shape == sample["attention_mask"].shape == (128,)
        assert sample["input_ids"].dtype == np.int64
        assert sample["attention_mask"].all()
        assert (sample["input_ids"][0], sample["input_ids"][-1]) == (101, 102), "[CLS] and [SEP]"
        assert sample["input_ids"].max() < 30522


@TEXT
def test_unfilled_samples_are_single_snippets_with_padding() -> None:
    lengths = [int(sample["attention_mask"].sum()) for sample in minilm.texts("held_out", 50, seed=0, fill=False)]
    assert max(lengths) < 128
    assert min(lengths) >= 3


@TEXT
def test_no_snippet_is_in_both_splits_and_a_seed_gives_the_same_samples() -> None:
    found = {split: [s["input_ids"].tobytes() for s in minilm.texts(split, 300, seed=1)] for split in minilm.SPLITS}
    assert not set(found["calibration"]) & set(found["held_out"])
    assert found["held_out"] == [s["input_ids"].tobytes() for s in minilm.texts("held_out", 300, seed=1)]
    assert found["held_out"] != [s["input_ids"].tobytes() for s in minilm.texts("held_out", 300, seed=2)]


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(RecipeError, match="split is 'test', must be one of calibration, held_out"):
        next(minilm.texts("test", 1, seed=0))


def test_missing_text_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "DATA", tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        RecipeError, match=r"is missing: run `make install`, or pip download .* vaderSentiment==3\.3\.2"
    ):
        minilm.read_snippets()


def test_text_that_is_not_the_pinned_one_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minilm, "DATA", tmp_path)
    with tarfile.open(tmp_path / minilm.ARCHIVE, "w:gz") as tar:
        tar.addfile(tarfile.TarInfo(minilm.INNER), io.BytesIO())
    with pytest.raises(RecipeError, match=r"SHA-256 is \w+, expected 5d7c06e0"):
        minilm.read_snippets()


def test_held_out_digits_are_in_no_other_part() -> None:
    parts = {split: mnist.read(split) for split in mnist.PARTS}
    seen = {image.tobytes() for image in parts["train"][0]}
    assert {image.tobytes() for image in parts["calibration"][0]} <= seen
    shared = sum(image.tobytes() in seen for image in parts["held_out"][0])
    assert shared == 0
    assert set(parts["held_out"][1].tolist()) == set(range(10))


def test_digits_are_one_channel_between_0_and_1_and_the_same_for_a_seed() -> None:
    first, again = (list(mnist.digits("held_out", 50, seed=3)) for _ in range(2))
    assert all(sample["image"].shape == (1, 28, 28) and sample["image"].dtype == np.float32 for sample in first)
    assert max(sample["image"].max() for sample in first) == 1.0
    assert all(np.array_equal(a["image"], b["image"]) for a, b in zip(first, again, strict=True))


def test_the_network_has_the_parameters_that_its_text_says() -> None:
    model, inputs = mnist.cnn(epochs=0)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert f"{count:,} parameters" in (mnist.cnn.__doc__ or "")
    assert model(inputs["image"]).shape == (1, 10)


@pytest.mark.parametrize("name", recipe.packaged())
def test_packaged_recipes_are_right(name: str) -> None:
    pipeline.check(recipe.load(Path(name)))
