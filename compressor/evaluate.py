"""Quality of a result against the untouched original: both run in this process on the held-out samples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from compressor import data, functions, host
from compressor.artifact import Artifact
from compressor.errors import RecipeError
from compressor.fields import Where
from compressor.interface import batched
from compressor.job import Job
from compressor.metrics import METRICS, Metric, MetricError, cosines, metric_name
from compressor.passes import probe
from compressor.passes.base import Sample
from compressor.progress import Report
from protos import card

Array = np.ndarray[Any, Any]
ALONE = 32
"""So many samples are run alone too, to state how much a batch-mate changes a row."""


@dataclass(frozen=True, slots=True)
class Quality:
    metrics: tuple[card.Metric, ...]
    output_error: Mapping[str, Mapping[str, float]]
    """Per output `max_abs`, `mean_abs`, `cosine` (mean over the samples), against the original; where the model batches
    `batch_influence` too: the largest difference between a row of the result in a batch and the same row alone."""
    samples: int


def evaluate(job: Job, baseline: Artifact, result: Artifact, report: Report) -> Quality:
    """Run both on `data.evaluation` in batches of `evaluate.batch`. Raises RecipeError where data or metrics misfit."""
    stream = data.samples(job.data.evaluation, "evaluation", job.recipe, result, job.seed)
    if stream is None:
        return Quality((), {}, 0)
    where = Where(job.recipe, "evaluate")
    metrics = [_metric(spec, where.at("metrics")) for spec in job.evaluate.metrics]
    chosen = _output(job, result, where)
    labels = [label for _, label in stream.labelled()]
    _check_labels(metrics, labels, where)
    rows = job.evaluate.batch if batched(result) else 1
    answers = []
    for step, artifact in enumerate((baseline, result)):
        done = 0
        collected = []
        for answer in _run(artifact, stream(), rows, stream.table.pad):
            collected.append(answer)
            done += len(answer)
            report(step * len(labels) + done, 2 * len(labels), "original" if step == 0 else "result")
        answers.append([row for batch in collected for row in batch])
    truth = (
        np.stack([label for label in labels if label is not None]) if metrics and labels[0] is not None else np.empty(0)
    )
    error = {tensor.name: _error(answers[0], answers[1], tensor.name) for tensor in result.outputs}
    if rows > 1:
        for name, influence in _influence(result, stream(), answers[1]).items():
            error[name]["batch_influence"] = influence
    scored = tuple(_score(one, answers[0], answers[1], truth, chosen, job, where) for one in metrics)
    return Quality(scored, error, len(labels))


def _metric(spec: str, where: Where) -> Metric:
    if spec in METRICS:
        return METRICS[spec]
    function = functions.resolve(spec, where)
    higher = bool(getattr(function, "higher_is_better", True))
    return Metric(metric_name(spec), function, higher, needs_labels=False, own=True)


def _output(job: Job, artifact: Artifact, where: Where) -> str:
    names = [tensor.name for tensor in artifact.outputs]
    chosen = job.evaluate.output or names[0]
    if chosen not in names:
        raise where.at("output").fail(chosen, f"an output of the model: {', '.join(names)}")
    return chosen


def _check_labels(metrics: list[Metric], labels: list[Array | None], where: Where) -> None:
    missing = sum(label is None for label in labels)
    for metric in metrics:
        if metric.needs_labels and missing:
            raise where.fault(
                f"metrics: {metric.name} needs a `label` in every sample of data.evaluation; "
                f"{missing} of {len(labels)} have none"
            )
    if 0 < missing < len(labels):
        raise where.fault(f"{missing} of {len(labels)} samples of data.evaluation have no `label`; all or none must")


Row = Mapping[str, Array]


def _run(artifact: Artifact, stream: Iterator[Sample], rows: int, pad: Mapping[str, float]) -> Iterator[list[Row]]:
    """Batch by batch, the outputs of each of its rows."""
    assert artifact.path is not None
    live = probe.session(artifact.path, threads=host.cores())
    names = [tensor.name for tensor in artifact.outputs]
    fed = {value.name for value in live.get_inputs()}
    alone = not batched(artifact)
    for batch in data.batches(stream, rows, pad):
        count = len(next(iter(batch.values())))
        given = {name: np.asarray(array[0]) if alone else array for name, array in batch.items() if name in fed}
        try:
            outputs = live.run(names, given)
        except Exception as error:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise RecipeError(f"data.evaluation: the model fails on {shapes}: {functions.one_line(error)}") from error
        yield [
            {name: output if alone else output[row] for name, output in zip(names, outputs, strict=True)}
            for row in range(count)
        ]


def _error(reference: list[Row], found: list[Row], name: str) -> dict[str, float]:
    worst, total, count, cosine = 0.0, 0.0, 0, 0.0
    for a, b in zip(reference, found, strict=True):
        if a[name].shape != b[name].shape:
            raise RecipeError(
                f"data.evaluation: output {name} has shape {list(b[name].shape)}, the original's has "
                f"{list(a[name].shape)}"
            )
        if a[name].dtype.kind not in "fiubV" or a[name].size == 0:
            continue
        x, y = a[name].astype(np.float64).reshape(1, -1), b[name].astype(np.float64).reshape(1, -1)
        gap = np.abs(x - y)
        worst, total, count = max(worst, float(gap.max())), total + float(gap.sum()), count + gap.size
        cosine += float(cosines(x, y)[0])
    return {"max_abs": worst, "mean_abs": total / max(count, 1), "cosine": cosine / max(len(reference), 1)}


def _influence(artifact: Artifact, stream: Iterator[Sample], together: list[Row]) -> dict[str, float]:
    """How far a row moves when it shares a batch: dynamic quantization has one activation scale for the whole batch."""
    worst = {tensor.name: 0.0 for tensor in artifact.outputs}
    alone = (row for batch in _run(artifact, stream, 1, {}) for row in batch)
    for a, b in zip(alone, together[:ALONE], strict=False):
        for name in worst:
            if a[name].shape == b[name].shape and a[name].dtype.kind in "fiu" and a[name].size:
                gap = np.abs(a[name].astype(np.float64) - b[name].astype(np.float64))
                worst[name] = max(worst[name], float(gap.max()))
    return worst


def _score(
    metric: Metric, reference: list[Row], found: list[Row], labels: Array, output: str, job: Job, where: Where
) -> card.Metric:
    """The metric of the original's own answers, and of the result's."""
    table = job.data.evaluation
    assert table is not None
    place = where.at("metrics")
    if metric.own:
        original, result = _columns(reference), _columns(found)
        pair = [
            functions.call(metric.function, metric.name, place, given, labels if labels.size else None, original)
            for given in (original, result)
        ]
    else:
        original_one, result_one = _stack(reference, output, metric, place), _stack(found, output, metric, place)
        try:
            pair = [metric.function(given, labels, original_one) for given in (original_one, result_one)]
        except MetricError as error:
            raise place.fault(str(error)) from error
    for value in pair:
        if isinstance(value, bool) or not isinstance(value, (int, float, np.number)) or not np.isfinite(value):
            raise place.fault(f"{metric.name} gave {value!r}, must be a finite number")
    return card.Metric(
        metric.name,
        float(pair[0]),
        float(pair[1]),
        metric.higher_is_better,
        f"{table.samples} {table.split}",
        len(reference),
    )


def _stack(rows: list[Row], name: str, metric: Metric, where: Where) -> Array:
    shapes = {row[name].shape for row in rows}
    if len(shapes) > 1:
        raise where.fault(
            f"{metric.name} needs output {name} of one shape; it has {', '.join(map(str, sorted(shapes)[:3]))}"
        )
    return np.stack([row[name] for row in rows])


def _columns(rows: list[Row]) -> dict[str, Any]:
    """Outputs by name: one array where all rows are of one shape, else a list of arrays."""
    columns: dict[str, Any] = {}
    for name in rows[0]:
        parts = [row[name] for row in rows]
        columns[name] = np.stack(parts) if len({part.shape for part in parts}) == 1 else parts
    return columns
