"""One compression job, as a recipe describes it and nothing more: frozen, every value checked, every path absolute.

The dataclasses are the recipe's tables: field names are keys, defaults and ranges are what `fields.py` enforces. What
needs a look at more than one field is in `recipe.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from compressor.passes.base import Pass


@dataclass(frozen=True, slots=True)
class Source:
    """`[source]`: the trained model; exactly one of `huggingface`, `factory` and `onnx`."""

    huggingface: str | None = None
    """A folder, `package:<module>/<folder>` (inside an installed package, which is not imported), or a hub name."""
    wrapper: str | None = None
    """Which of the model's answers is served: a name in `wrappers.py`. Hugging Face only."""
    inputs: tuple[str, ...] = ()
    """What the model is called with, where that is not the wrapper's own choice: add `token_type_ids` for pairs of
    texts. Hugging Face only."""
    factory: str | None = None
    """`module:function` that returns (module, inputs); see `load.py`."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments for the factory."""
    state: Path | None = None
    """Weights for the factory's module: `.safetensors`, or a `torch.save`d state dict of plain tensors."""
    outputs: tuple[str, ...] = ()
    """Names for what the factory's module returns, in order."""
    onnx: Path | None = None


@dataclass(frozen=True, slots=True)
class SampleSet:
    """A table of `[data]`: where samples come from."""

    samples: str
    """`module:function`, a `.npz` file with one array per input (rows first), or `random`."""
    count: int = field(default=64, metadata={"minimum": 1})
    split: str = "train"
    """Handed to the function: which part of its data is wanted. Calibration and held-out must not overlap."""
    seed: int | None = field(default=None, metadata={"minimum": 0})
    """The job's seed where the table has none."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """Further keyword arguments for the function."""
    sizes: Mapping[str, int] = field(default_factory=dict, metadata={"minimum": 1})
    """For `random`: the size of each free axis, by its name."""
    high: Mapping[str, int] = field(default_factory=dict, metadata={"minimum": 1})
    """For `random`: whole numbers of an input are drawn below this; below 2 where it is silent."""
    pad: Mapping[str, float] = field(default_factory=dict)
    """Per input, what rows of unequal size are filled up with to share a batch. Else only equal rows share one."""


@dataclass(frozen=True, slots=True)
class Data:
    """`[data]`."""

    calibration: SampleSet | None = None
    evaluation: SampleSet | None = None


@dataclass(frozen=True, slots=True)
class LatencyPlan:
    """`evaluate.latency`: one request in flight at each batch size."""

    batches: tuple[int, ...] = field(default=(1,), metadata={"minimum": 1})
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, metadata={"minimum": 1})
    """Shape of one row per input with free axes (the batch dimension excluded)."""
    requests: int = field(default=100, metadata={"minimum": 10, "maximum": 1_000_000})
    """Requests per batch size and model."""
    rounds: int = field(default=3, metadata={"minimum": 1, "maximum": 100})
    """The two models take turns this often, so that a host that slows down meanwhile slows both."""


@dataclass(frozen=True, slots=True)
class ThroughputPlan:
    """`evaluate.throughput`: many requests in flight."""

    concurrency: int = field(default=16, metadata={"minimum": 1, "maximum": 4096})
    batch: int = field(default=1, metadata={"minimum": 1})
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict, metadata={"minimum": 1})
    requests: int = field(default=200, metadata={"minimum": 10, "maximum": 1_000_000})
    rounds: int = field(default=2, metadata={"minimum": 1, "maximum": 100})


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`[evaluate]`."""

    metrics: tuple[str, ...] = ()
    """Names in `metrics.py`, or a user's own `module:function`."""
    output: str | None = None
    """The output that the metrics look at; the first one where it is not named."""
    batch: int = field(default=8, metadata={"minimum": 1, "maximum": 4096})
    latency: LatencyPlan | None = None
    throughput: ThroughputPlan | None = None


@dataclass(frozen=True, slots=True)
class Instances:
    """`publish.instance_group`."""

    count: int = field(default=1, metadata={"minimum": 1, "maximum": 1024})
    kind: Literal["KIND_AUTO", "KIND_CPU", "KIND_GPU"] = "KIND_AUTO"
    gpus: tuple[int, ...] = field(default=(), metadata={"minimum": 0})


@dataclass(frozen=True, slots=True)
class Batching:
    """`publish.dynamic_batching`, in Triton's names; an empty table switches batching on with Triton's defaults."""

    preferred_batch_size: tuple[int, ...] = field(default=(), metadata={"minimum": 1})
    max_queue_delay_microseconds: int = field(default=0, metadata={"minimum": 0})
    preserve_ordering: bool = False


@dataclass(frozen=True, slots=True)
class Publication:
    """`[publish]`."""

    repository: Path
    """Relative to the working directory."""
    baseline: str | None = None
    """Also publish the untouched original, under this name."""
    max_batch_size: int | None = field(default=None, metadata={"minimum": 0, "maximum": 65536})
    """None: 8, or 0 for a model without a batch dimension."""
    instance_group: Instances | None = None
    dynamic_batching: Batching | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)
    """The backend's own, as `intra_op_thread_count`; `demiglace.padding` (docs/padding.md) in place of what is found,
    `none` for none."""


@dataclass(frozen=True, slots=True)
class Job:
    name: str
    """Of the entry to publish, and of the folder of checkpoints."""
    recipe: Path
    recipe_sha256: str
    source: Source
    data: Data = field(default_factory=Data)
    passes: tuple[Pass, ...] = ()
    evaluate: Evaluation = field(default_factory=Evaluation)
    budget: Mapping[str, float] = field(default_factory=dict)
    publish: Publication | None = None
    seed: int = 0
    insist: bool = False
    """Do what is known not to pay on this host all the same."""
