"""The reference model and its text: real, read in place, and never the same text for calibration and proof."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from compressor.errors import RecipeError
from compressor.zoo import minilm

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
