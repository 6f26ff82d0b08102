"""Models small enough to build in a test, and the samples that go with them; named in recipes as a user would."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from compressor.artifact import Axis, Tensor
from protos.datatypes import BY_NAME

FEATURES, CLASSES = 16, 4


class Mlp(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = torch.nn.Linear(FEATURES, width)
        self.second = torch.nn.Linear(width, width)
        self.third = torch.nn.Linear(width, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(torch.relu(self.second(torch.relu(self.first(x)))))


class Lookup(torch.nn.Module):
    """Ids of any length in, one vector per id and their mean out."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(32, 8)

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        vectors = self.table(ids)
        return vectors, vectors.mean(1)


def mlp(width: int = 64) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    return Mlp(width), {"x": torch.zeros(1, FEATURES)}


def lookup() -> tuple[torch.nn.Module, dict[str, Tensor]]:
    return Lookup(), {"ids": Tensor("ids", BY_NAME["INT64"], (Axis("batch"), Axis("length", maximum=64)))}


def no_module() -> str:
    return "not a model"


def blocked() -> None:
    print("blocked", flush=True)
    threading.Event().wait()


def raises() -> None:
    raise RuntimeError("out of luck")


def samples(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Endless; `label` is the class that the features say."""
    generator = np.random.default_rng([seed, len(split)])
    while True:
        x = generator.standard_normal(FEATURES).astype(np.float32)
        yield {"x": x, "label": int(np.argmax(x[:CLASSES]))}


calls = itertools.count(1)


def samples_that_block(split: str, count: int, seed: int, at_call: int) -> Iterator[dict[str, Any]]:
    """As `samples`, but the call of that number in this process never returns."""
    if next(calls) == at_call:
        blocked()
    return samples(split, count, seed)


def misshapen(split: str, count: int, seed: int) -> Iterator[dict[str, Any]]:
    for i, sample in enumerate(samples(split, count, seed)):
        yield sample if i < 3 else {**sample, "x": np.zeros(FEATURES + 1, np.float32)}


def distance(outputs: dict[str, Any], labels: Any, reference: dict[str, Any]) -> float:
    """A user's own metric."""
    return float(np.abs(outputs["logits"] - reference["logits"]).max())


distance.higher_is_better = False  # type: ignore[attr-defined]

RECIPE = """
name = "{name}"
[source]
factory = "tests.compressor.tiny:mlp"
outputs = ["logits"]
[data]
calibration = {{ samples = "{calibration}", split = "calibration", count = 16 {arguments} }}
evaluation = {{ samples = "tests.compressor.tiny:samples", split = "held_out", count = 24 }}
[[pass]]
name = "export_onnx"
[[pass]]
name = "quantize_static"
{parameters}
[evaluate]
metrics = ["agreement"]
[budget]
{budget}
[publish]
repository = "{repository}"
"""


def recipe(
    folder: Path,
    *,
    name: str = "tiny",
    calibration: str = "tests.compressor.tiny:samples",
    arguments: str = "",
    parameters: str = "",
    budget: str = "",
    extra: str = "",
) -> Path:
    """Write a whole recipe: the MLP, exported and quantized."""
    path = folder / "recipe.toml"
    text = RECIPE.format(
        name=name,
        calibration=calibration,
        arguments=arguments,
        parameters=parameters,
        budget=budget,
        repository=folder / "repository",
    )
    path.write_text(text + extra)
    return path


def arguments(folder: Path, path: Path, *flags: str) -> list[str]:
    """The command line of `python -m compressor`, everything it writes inside `folder`."""
    return [str(path), "--work", str(folder / "work"), "--reports", str(folder / "reports"), *flags]
