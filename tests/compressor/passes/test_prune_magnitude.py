"""Pruning: exactly the smallest weights of a copy become zero; what was given stays whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from compressor.errors import RecipeError, Refused
from compressor.passes.prune_magnitude import PruneMagnitude
from tests.compressor.passes import models as m


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(20, 8)
        self.inner = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 20)
        self.head.weight = self.table.weight


def perceptron() -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.ReLU(), torch.nn.Linear(64, 24))


def test_the_share_asked_for_becomes_zero_in_a_copy(tmp_path: Path) -> None:
    module = perceptron()
    before = [p.clone() for p in module.parameters()]
    outcome = m.run_pass(PruneMagnitude(sparsity=0.9), m.torch_artifact(module, (m.X,), (m.Y,)), m.context(tmp_path))
    pruned = outcome.artifact.module
    zeros = int((pruned[0].weight == 0).sum() + (pruned[2].weight == 0).sum())
    assert zeros == outcome.effect["zeros"] == round(0.9 * (32 * 64 + 64 * 24))
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert torch.equal(pruned[0].bias, module[0].bias)
    assert "do not make onnxruntime faster" in outcome.effect["note"]


def test_globally_the_layer_of_smaller_weights_loses_more_and_by_layer_all_lose_alike(tmp_path: Path) -> None:
    module = perceptron()
    with torch.no_grad():
        module[0].weight.mul_(0.1)
    artifact = m.torch_artifact(module, (m.X,), (m.Y,))
    together = m.run_pass(PruneMagnitude(sparsity=0.5), artifact, m.context(tmp_path)).effect["sparsity per layer"]
    assert together["0"] > 0.7
    assert together["2"] < 0.2
    alike = m.run_pass(PruneMagnitude(sparsity=0.5, scope="layer"), artifact, m.context(tmp_path)).effect
    assert alike["sparsity per layer"] == {"0": 0.5, "2": 0.5}


def test_an_excluded_layer_stays_whole_and_an_unknown_name_is_an_error(tmp_path: Path) -> None:
    artifact = m.torch_artifact(perceptron(), (m.X,), (m.Y,))
    outcome = m.run_pass(PruneMagnitude(exclude=("2",)), artifact, m.context(tmp_path))
    assert list(outcome.effect["sparsity per layer"]) == ["0"]
    with pytest.raises(RecipeError, match="no layer is called 'head'"):
        m.run_pass(PruneMagnitude(exclude=("head",)), artifact, m.context(tmp_path))
    with pytest.raises(Refused, match="no linear or convolution layer"):
        m.run_pass(PruneMagnitude(exclude=("*",)), artifact, m.context(tmp_path))


def test_a_weight_tied_to_an_embedding_stays_whole_and_stays_tied(tmp_path: Path) -> None:
    artifact = m.torch_artifact(Tied(), (m.X,), (m.Y,))
    outcome = m.run_pass(PruneMagnitude(), artifact, m.context(tmp_path))
    assert list(outcome.effect["sparsity per layer"]) == ["inner"]
    module = outcome.artifact.module
    assert module.head.weight is module.table.weight
    outcome = m.run_pass(PruneMagnitude(embeddings=True), artifact, m.context(tmp_path))
    assert list(outcome.effect["sparsity per layer"]) == ["table", "inner"]


def test_pruning_again_goes_on_from_the_zeros_that_are_there(tmp_path: Path) -> None:
    artifact = m.torch_artifact(perceptron(), (m.X,), (m.Y,))
    half = m.run_pass(PruneMagnitude(sparsity=0.5), artifact, m.context(tmp_path)).artifact
    most = m.run_pass(PruneMagnitude(sparsity=0.8), half, m.context(tmp_path)).artifact
    once = m.run_pass(PruneMagnitude(sparsity=0.8), artifact, m.context(tmp_path)).artifact
    for a, b in zip(most.module.parameters(), once.module.parameters(), strict=True):
        assert torch.equal(a, b)
