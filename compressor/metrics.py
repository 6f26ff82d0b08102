"""The metrics a recipe may name: outputs in, one number out.

A metric is a function of (output, labels, reference), where `output` is what a model answered, rows first, `labels`
what the samples say is right, and `reference` what the untouched original answered; it is called once with the
original's own answers and once with the result's. Metrics that compare with the original need no labels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
LABEL = "label"
"""The key of a sample that is no input of the model but the right answer."""


class MetricError(ValueError):
    """Outputs or labels that a metric cannot work on; the text says which shape and what is needed."""


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    function: Callable[[Array, Array, Array], float]
    higher_is_better: bool
    needs_labels: bool
    own: bool = False
    """A user's `module:function`: called as function(outputs, labels, reference) with all outputs by name."""


def accuracy(output: Array, labels: Array, reference: Array) -> float:
    """Share of rows whose largest logit is the label's. One column (or none): the sign decides between 0 and 1."""
    return float(np.mean(_classes(output) == _rows(labels, output)))


def agreement(output: Array, labels: Array, reference: Array) -> float:
    """Share of rows for which the original and the result choose the same class."""
    return float(np.mean(_classes(output) == _classes(reference)))


def f1(output: Array, labels: Array, reference: Array) -> float:
    """F1 of class 1 where the labels are 0 and 1, else the mean over the classes (macro)."""
    chosen, truth = _classes(output), _rows(labels, output)
    classes = np.unique(np.concatenate([truth, chosen]))
    wanted = [1] if set(classes.tolist()) <= {0, 1} else classes.tolist()
    scores = []
    for which in wanted:
        hits = np.sum((chosen == which) & (truth == which))
        relevant = np.sum(chosen == which) + np.sum(truth == which)
        scores.append(2.0 * float(hits) / float(relevant) if relevant else 0.0)
    return float(np.mean(scores))


def mse(output: Array, labels: Array, reference: Array) -> float:
    """Mean squared error against the labels, which have the output's shape (a last dimension of 1 may be left out)."""
    if labels.size != output.size:
        raise MetricError(f"mse: labels have shape {labels.shape}, the output has {output.shape}")
    return float(np.mean((output.astype(np.float64) - labels.reshape(output.shape).astype(np.float64)) ** 2))


def embedding_cosine(output: Array, labels: Array, reference: Array) -> float:
    """Mean over the rows of the cosine between the original's vector and the result's."""
    return float(np.mean(cosines(reference, output)))


def embedding_cosine_worst(output: Array, labels: Array, reference: Array) -> float:
    """The smallest of those cosines."""
    return float(np.min(cosines(reference, output)))


def embedding_retrieval(output: Array, labels: Array, reference: Array) -> float:
    """Recall@1 against the original: share of rows whose nearest other row (by cosine) is the same for both models."""
    if len(output) < 3:
        raise MetricError(f"embedding_retrieval: needs 3 samples or more, got {len(output)}")
    return float(np.mean(_nearest(output) == _nearest(reference)))


def cosines(a: Array, b: Array) -> Array:
    """Cosine per row of two arrays [rows, ...]; two zero rows count as equal."""
    x, y = (m.reshape(len(m), -1).astype(np.float64) for m in (a, b))
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1)
    products = np.sum(x * y, axis=1)
    return np.asarray(
        np.where(norms > 0, products / np.where(norms > 0, norms, 1.0), np.all(x == y, axis=1).astype(float))
    )


def _nearest(vectors: Array) -> Array:
    flat = vectors.reshape(len(vectors), -1).astype(np.float64)
    flat = flat / np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), 1e-12)
    similar = flat @ flat.T
    np.fill_diagonal(similar, -np.inf)
    return np.asarray(np.argmax(similar, axis=1))


def _classes(output: Array) -> Array:
    if output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1):
        return (output.reshape(-1) > 0).astype(np.int64)
    return np.asarray(np.argmax(output, axis=-1))


def _rows(labels: Array, output: Array) -> Array:
    chosen = _classes(output)
    flat = labels[..., 0] if labels.ndim == chosen.ndim + 1 and labels.shape[-1] == 1 else labels
    if flat.shape != chosen.shape:
        raise MetricError(f"labels have shape {labels.shape}, the output {output.shape} asks for {chosen.shape}")
    return flat


METRICS: Mapping[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", accuracy, higher_is_better=True, needs_labels=True),
        Metric("f1", f1, higher_is_better=True, needs_labels=True),
        Metric("mse", mse, higher_is_better=False, needs_labels=True),
        Metric("agreement", agreement, higher_is_better=True, needs_labels=False),
        Metric("embedding_cosine", embedding_cosine, higher_is_better=True, needs_labels=False),
        Metric("embedding_cosine_worst", embedding_cosine_worst, higher_is_better=True, needs_labels=False),
        Metric("embedding_retrieval", embedding_retrieval, higher_is_better=True, needs_labels=False),
    )
}


def metric_name(spec: str) -> str:
    """What a metric of the recipe is called in budget, card and report: a user's function by its own name."""
    return spec.rpartition(":")[2]
