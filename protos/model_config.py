"""The model configuration as frozen dataclasses: what flows between modules instead of protobuf messages.

`config_text.py` parses and prints it, `autocomplete.py` fills in what a file leaves out. Defaults are Triton's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from protos.datatypes import Datatype


class ConfigError(ValueError):
    """A configuration that cannot be used: one line naming file or model, field, value and what is allowed."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output as `config.pbtxt` declares it."""

    name: str
    datatype: Datatype
    dims: tuple[int, ...]
    """Without the batch dimension where the model batches; -1 is variable."""
    reshape: tuple[int, ...] | None = None
    """The shape that the model itself wants (batch excluded), where it differs from `dims`."""
    optional: bool = False
    is_shape_tensor: bool = False
    label_filename: str = ""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output as a model file itself declares it, the batch dimension included; -1 is symbolic."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelIO:
    """What a loaded model file says of its inputs and outputs."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


@dataclass(frozen=True, slots=True)
class VersionPolicy:
    """Which versions are served: the `latest` N, these `specific` ones, or `all` of them; exactly one is set."""

    latest: int = 1
    specific: tuple[int, ...] = ()
    all: bool = False

    def select(self, available: tuple[int, ...]) -> tuple[int, ...]:
        """The versions out of `available` to serve, ascending."""
        ascending = tuple(sorted(available))
        if self.all:
            return ascending
        if self.specific:
            return tuple(v for v in ascending if v in self.specific)
        return ascending[-self.latest :]


@dataclass(frozen=True, slots=True)
class InstanceGroup:
    """`count` executors on each named device."""

    kind: str = "KIND_AUTO"
    """KIND_AUTO, KIND_CPU, KIND_GPU or KIND_MODEL."""
    count: int = 0
    """0: the default of the backend (Triton: 2 for onnxruntime on CPU, else 1)."""
    gpus: tuple[int, ...] = ()
    name: str = ""


@dataclass(frozen=True, slots=True)
class QueuePolicy:
    """Limits of one priority level's queue."""

    timeout_action: str = "REJECT"
    """REJECT, or DELAY: run after all requests that are still in time."""
    default_timeout_microseconds: int = 0
    """0: none."""
    allow_timeout_override: bool = False
    """Whether a request's own timeout counts; it does only where it is smaller."""
    max_queue_size: int = 0
    """0: as many as the server allows."""


@dataclass(frozen=True, slots=True)
class DynamicBatching:
    """How waiting requests become batches."""

    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    preserve_ordering: bool = False
    priority_levels: int = 0
    default_priority_level: int = 0
    default_queue_policy: QueuePolicy = QueuePolicy()
    priority_queue_policy: Mapping[int, QueuePolicy] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A model's configuration, complete for what this server does.

    `source` holds the serialised message that was parsed (empty when built in Python), so that fields which are not
    modelled here survive a round trip; it takes no part in equality. `unsupported` names those among them that change
    answers (the server refuses such a model), `ignored` those that do not (the server warns).
    """

    name: str
    max_batch_size: int = 0
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()
    platform: str = ""
    backend: str = ""
    version_policy: VersionPolicy = VersionPolicy()
    instance_groups: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    default_model_filename: str = ""
    parameters: Mapping[str, str] = field(default_factory=dict)
    graph_level: int | None = None
    """`optimization.graph.level`; None: all optimisations."""
    metric_tags: Mapping[str, str] = field(default_factory=dict)
    unsupported: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    source: bytes = field(default=b"", compare=False, repr=False)

    def input(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.inputs if spec.name == name), None)

    def output(self, name: str) -> TensorSpec | None:
        return next((spec for spec in self.outputs if spec.name == name), None)
