"""Write a result, and its original where the recipe names one, as entries of a repository with their cards."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from compressor import host, onnx_file
from compressor.artifact import Artifact, Axis, Tensor
from compressor.budget import Measured, Padded
from compressor.fields import Where
from compressor.interface import batched
from compressor.job import Job, Publication
from compressor.pipeline import versions
from protos import card, padding, repository
from protos.card import Card
from protos.model_config import ConfigError, DynamicBatching, InstanceGroup, ModelConfig, TensorSpec

MODEL = "model.onnx"
MAX_BATCH_SIZE = 8
"""Of an entry whose recipe names none."""


@dataclass(frozen=True, slots=True)
class Published:
    name: str
    version: int
    path: Path
    new: bool
    """False where the latest version is this one already."""


def config(
    name: str, artifact: Artifact, publication: Publication | None, where: Where, padded: Padded | None = None
) -> ModelConfig:
    """The entry's configuration, inputs and outputs spelled out. Raises RecipeError when the recipe's batching or
    padding does not go with the model."""
    free = batched(artifact)
    wanted = publication.max_batch_size if publication else None
    if wanted and not free:
        raise where.at("max_batch_size").fail(wanted, "0: the model has no free batch dimension")
    if publication and publication.dynamic_batching is not None and not (free and wanted != 0):
        raise where.at("dynamic_batching").fault("the model has no free batch dimension, or max_batch_size is 0")
    largest = (MAX_BATCH_SIZE if free else 0) if wanted is None else wanted
    batching = publication.dynamic_batching if publication else None
    instances = publication.instance_group if publication else None
    parameters = dict(publication.parameters) if publication else {}
    if padded is not None and padded.declaration and largest > 0:
        parameters.setdefault(padding.KEY, padded.declaration)
    made = ModelConfig(
        name=name,
        platform="onnxruntime_onnx",
        max_batch_size=largest,
        inputs=tuple(_spec(tensor, largest > 0, where) for tensor in artifact.inputs),
        outputs=tuple(_spec(tensor, largest > 0, where) for tensor in artifact.outputs),
        instance_groups=(InstanceGroup(instances.kind, instances.count, instances.gpus),) if instances else (),
        dynamic_batching=DynamicBatching(
            preferred_batch_size=batching.preferred_batch_size,
            max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
            preserve_ordering=batching.preserve_ordering,
        )
        if batching
        else None,
        parameters=parameters,
    )
    try:
        padding.read(made)
    except ConfigError as error:
        raise where.at("parameters").fault(str(error)) from error
    return made


def _spec(tensor: Tensor, without_batch: bool, where: Where) -> TensorSpec:
    """`dims` may not be empty in Triton's grammar: a row without dimensions is one element, reshaped. A model that does
    not batch cannot have such a tensor at all (core: src/model_config_utils.cc, ValidateIOShape)."""
    shape = tensor.shape[1:] if without_batch else tensor.shape
    if not shape and not without_batch:
        raise where.fault(
            f"{tensor.name} is a scalar, which cannot be served by a model without a batch dimension; "
            f"give it the shape [1]"
        )
    dims = tuple(-1 if isinstance(dim, Axis) else dim for dim in shape)
    return TensorSpec(tensor.name, tensor.datatype, dims or (1,), reshape=None if dims else ())


def files(artifact: Artifact) -> dict[str, Path]:
    """What goes into the version folder: the model as `model.onnx`, external weights by the names it knows them by."""
    assert artifact.path is not None
    found = onnx_file.files(artifact.path)
    return {MODEL if path == artifact.path else name: path for name, path in found.items()}


def publish(
    job: Job, baseline: Artifact, result: Artifact, measured: Measured, inputs_sha256: Mapping[str, str]
) -> tuple[Published, ...]:
    """Both entries; an entry whose latest version holds the very same files and configuration is left as it is.
    Raises RepositoryError, ConfigError, CardError."""
    publication = job.publish
    assert publication is not None
    where = Where(job.recipe, "publish")
    done = []
    if publication.baseline is not None:
        original = _original(measured)
        proof = _card(publication.baseline, baseline, original, inputs_sha256, {})
        wanted = config(publication.baseline, baseline, publication, where, original.padding)
        done.append(_write(wanted, baseline, proof, publication))
    proof = _card(job.name, result, measured, inputs_sha256, job.budget)
    wanted = config(job.name, result, publication, where, measured.padding)
    done.append(_write(wanted, result, proof, publication))
    return tuple(done)


def _write(wanted: ModelConfig, artifact: Artifact, proof: Card, publication: Publication) -> Published:
    content = files(artifact)
    root = publication.repository
    there = _latest(root, wanted, content)
    if there is not None:
        return Published(wanted.name, there, root / wanted.name / str(there), new=False)
    entry = repository.write(root, wanted, content, proof)
    version = entry.versions[-1]
    return Published(wanted.name, version, entry.version_path(version), new=True)


def _latest(root: Path, wanted: ModelConfig, content: Mapping[str, Path]) -> int | None:
    """The latest version where it is what would be written now."""
    try:
        entry = repository.read(root, wanted.name)
        version = entry.versions[-1] if entry.versions else 0
        proof = card.read(entry.version_path(version)) if version else None
    except (repository.RepositoryError, card.CardError, OSError):
        return None
    if proof is None or _plain(entry.config) != _plain(wanted):
        return None
    hashes = {name: onnx_file.file_sha256(path) for name, path in content.items()}
    on_disk = {
        path.name: onnx_file.file_sha256(path)
        for path in entry.version_path(version).iterdir()
        if path.is_file() and path.name != card.FILENAME
    }
    return version if proof.files == hashes == on_disk else None


def _plain(one: ModelConfig) -> ModelConfig:
    """Without what only tells where a configuration came from; Triton names backend or platform, either will do."""
    return dataclasses.replace(one, source=b"", backend="", ignored=(), unsupported=())


def _original(measured: Measured) -> Measured:
    """The original measured against itself."""
    none = {"max_abs": 0.0, "mean_abs": 0.0, "cosine": 1.0}
    return dataclasses.replace(
        measured,
        metrics=tuple(dataclasses.replace(metric, result=metric.baseline) for metric in measured.metrics),
        output_error=dict.fromkeys(measured.output_error, none),
        bytes=measured.baseline_bytes,
        latency=tuple(dataclasses.replace(row, p50=row.baseline_p50, p99=row.baseline_p99) for row in measured.latency),
        padding=measured.baseline_padding,
    )


def _errors(measured: Measured) -> Mapping[str, Mapping[str, float]]:
    """Against the original, and what padding does where the entry declares it."""
    found = {name: dict(error) for name, error in measured.output_error.items()}
    if measured.padding.declaration:
        for name, influence in measured.padding.influence.items():
            own = {"padding_influence": influence, "padding_tolerance": measured.padding.tolerance[name]}
            found.setdefault(name, {}).update(own)
    return found


def _card(
    name: str, artifact: Artifact, measured: Measured, inputs_sha256: Mapping[str, str], budget: Mapping[str, float]
) -> Card:
    return Card(
        model=name,
        version=0,  # both this and `files` are filled in by repository.write, which knows them
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        trail=artifact.trail,
        metrics=measured.metrics,
        output_error=_errors(measured),
        baseline_bytes=measured.baseline_bytes,
        bytes=measured.bytes,
        latency=measured.latency,
        host=host.describe(host.detect()),
        files={},
        inputs_sha256=inputs_sha256,
        libraries=versions(),
        budget=budget,
    )
