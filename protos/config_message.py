"""ModelConfig as a protobuf message and back: one table with a row for each field that is modelled.

`to_message` starts from the message that was once parsed and writes only the fields whose reading differs, so that
whatever is not modelled, and the author's own way of saying what is, survive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableSequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import DecodeError, Message

from protos.config_check import one_line, validate
from protos.datatypes import BY_CONFIG
from protos.model_config import (
    ConfigError,
    DynamicBatching,
    InstanceGroup,
    ModelConfig,
    QueuePolicy,
    TensorSpec,
    VersionPolicy,
)
from protos.wire import config as pb

UNSUPPORTED = (
    "sequence_batching",
    "ensemble_scheduling",
    "model_transaction_policy.decoupled",
    "batch_input",
    "batch_output",
    "input.allow_ragged_batch",
    "input.is_non_linear_format_io",
    "output.is_non_linear_format_io",
    "instance_group.passive",
    "cc_model_filenames",
    "model_operations.op_library_filename",
    "model_repository_agents.agents",
)
"""Fields that change answers and are not served."""
IGNORED = (
    "runtime",
    "model_warmup",
    "response_cache.enable",
    "model_metrics",
    "instance_group.rate_limiter",
    "instance_group.secondary_devices",
    "instance_group.profile",
    "instance_group.host_policy",
    "optimization.priority",
    "optimization.cuda",
    "optimization.execution_accelerators",
    "optimization.gather_kernel_buffer_threshold",
    "optimization.eager_batching",
)
"""Fields that change speed or bookkeeping only. Pinned memory is not named: Triton writes it into every file."""


def from_message(message: pb.ModelConfig, where: str) -> ModelConfig:
    """The configuration that a message holds, validated. Raises ConfigError, its text beginning with `where`."""
    try:
        _check_message(message)
        values = {row.name: row.read(message) for row in FIELDS}
    except ConfigError as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from None
    config = ModelConfig(
        **values,
        unsupported=tuple(path for path in UNSUPPORTED if _is_set(message, path)),
        ignored=tuple(path for path in IGNORED if _is_set(message, path)),
        source=message.SerializeToString(deterministic=True),
    )
    validate(config, where)
    return config


def to_message(config: ModelConfig) -> pb.ModelConfig:
    """The message that `config` stands for, with whatever `config.source` holds besides. Raises ConfigError."""
    try:
        message = pb.ModelConfig.FromString(config.source)
    except DecodeError:
        raise ConfigError(f"model '{config.name}': source is not a serialised ModelConfig") from None
    for row in FIELDS:
        value = getattr(config, row.name)
        if row.read(message) != value:
            try:
                row.write(message, value)
            except (TypeError, ValueError) as error:
                raise ConfigError(f"model '{config.name}': {row.name} cannot hold {value!r}: {error}") from None
    return message


def _is_set(message: Message, path: str) -> bool:
    """Whether a field (`a.b`; any element, where `a` is repeated) is present and not at its default."""
    name, _, rest = path.partition(".")
    field = message.DESCRIPTOR.fields_by_name[name]
    value = getattr(message, name)
    if field.is_repeated:
        return any(_is_set(element, rest) for element in value) if rest else len(value) > 0
    if field.message_type is None:
        return bool(value)
    return message.HasField(name) and (not rest or _is_set(value, rest))


def _check_message(message: pb.ModelConfig) -> None:
    """What the dataclasses cannot say."""
    policy = message.version_policy
    if policy.HasField("specific") and not policy.specific.versions:
        raise ConfigError("version_policy.specific.versions: is empty; at least one version is needed")
    for spec in message.input:
        if spec.format != pb.ModelInput.FORMAT_NONE and len(spec.dims) != 3:
            raise ConfigError(f"input '{spec.name}': format needs 3 dims, got {len(spec.dims)}")


def _name(enum: Any, number: int, field: str) -> str:
    try:
        return str(enum.Name(number))
    except ValueError:
        raise ConfigError(f"{field}: {number} is none of {', '.join(enum.keys())}") from None


def _number(enum: Any, name: str) -> Any:
    return enum.Value(name)


def _read_tensor(field: str, spec: Any) -> TensorSpec:
    datatype = BY_CONFIG.get(pb.DataType.Name(spec.data_type) if spec.data_type in pb.DataType.values() else "")
    if datatype is None:
        raise ConfigError(f"{field} '{spec.name}': data_type is missing or unknown; allowed: {', '.join(BY_CONFIG)}")
    return TensorSpec(
        name=spec.name,
        datatype=datatype,
        dims=tuple(spec.dims),
        reshape=tuple(spec.reshape.shape) if spec.HasField("reshape") else None,
        optional=getattr(spec, "optional", False),
        is_shape_tensor=spec.is_shape_tensor,
        label_filename=getattr(spec, "label_filename", ""),
    )


def _write_tensor(spec: Any, value: TensorSpec) -> None:
    spec.name = value.name
    spec.data_type = _number(pb.DataType, value.datatype.config)
    spec.dims[:] = value.dims
    spec.ClearField("reshape")
    if value.reshape is not None:
        spec.reshape.SetInParent()
        spec.reshape.shape[:] = value.reshape
    spec.is_shape_tensor = value.is_shape_tensor
    for name in ("optional", "label_filename"):  # inputs have the one, outputs the other
        if name in spec.DESCRIPTOR.fields_by_name:
            setattr(spec, name, getattr(value, name))
        elif getattr(value, name):
            raise ValueError(f"{name} is not a field of {spec.DESCRIPTOR.name}")


def _read_group(group: pb.ModelInstanceGroup) -> InstanceGroup:
    kind = _name(pb.ModelInstanceGroup.Kind, group.kind, "instance_group.kind")
    return InstanceGroup(kind=kind, count=group.count, gpus=tuple(group.gpus), name=group.name)


def _write_group(group: pb.ModelInstanceGroup, value: InstanceGroup) -> None:
    group.kind = _number(pb.ModelInstanceGroup.Kind, value.kind)
    group.count = value.count
    group.gpus[:] = value.gpus
    group.name = value.name


def _write_all(
    target: MutableSequence[Any], values: Iterable[Any], read: Callable[[Any], Any], write: Callable[[Any, Any], None]
) -> None:
    """Replace a repeated field; an element that reads like a value already is kept, with what is not modelled of it."""
    old = [(read(element), element) for element in target]
    del target[:]
    for value in values:
        kept = next((element for reading, element in old if reading == value), None)
        element = target.add()  # type: ignore[attr-defined]
        if kept is not None:
            element.CopyFrom(kept)
        else:
            write(element, value)


def _read_versions(message: pb.ModelConfig) -> VersionPolicy:
    policy = message.version_policy
    choice = policy.WhichOneof("policy_choice")
    if choice == "all":
        return VersionPolicy(all=True)
    if choice == "specific":
        return VersionPolicy(specific=tuple(policy.specific.versions))
    return VersionPolicy(latest=policy.latest.num_versions) if choice else VersionPolicy()


def _write_versions(message: pb.ModelConfig, value: VersionPolicy) -> None:
    message.ClearField("version_policy")
    if value.all:
        message.version_policy.all.SetInParent()
    elif value.specific:
        message.version_policy.specific.versions[:] = value.specific
    else:
        message.version_policy.latest.num_versions = value.latest


def _read_policy(policy: pb.ModelQueuePolicy) -> QueuePolicy:
    return QueuePolicy(
        timeout_action=_name(pb.ModelQueuePolicy.TimeoutAction, policy.timeout_action, "timeout_action"),
        default_timeout_microseconds=policy.default_timeout_microseconds,
        allow_timeout_override=policy.allow_timeout_override,
        max_queue_size=policy.max_queue_size,
    )


def _write_policy(policy: pb.ModelQueuePolicy, value: QueuePolicy) -> None:
    policy.timeout_action = _number(pb.ModelQueuePolicy.TimeoutAction, value.timeout_action)
    policy.default_timeout_microseconds = value.default_timeout_microseconds
    policy.allow_timeout_override = value.allow_timeout_override
    policy.max_queue_size = value.max_queue_size


def _read_batching(message: pb.ModelConfig) -> DynamicBatching | None:
    if not message.HasField("dynamic_batching"):
        return None
    batching = message.dynamic_batching
    return DynamicBatching(
        preferred_batch_size=tuple(batching.preferred_batch_size),
        max_queue_delay_microseconds=batching.max_queue_delay_microseconds,
        preserve_ordering=batching.preserve_ordering,
        priority_levels=batching.priority_levels,
        default_priority_level=batching.default_priority_level,
        default_queue_policy=_read_policy(batching.default_queue_policy),
        priority_queue_policy={level: _read_policy(p) for level, p in batching.priority_queue_policy.items()},
    )


def _write_batching(message: pb.ModelConfig, value: DynamicBatching | None) -> None:
    message.ClearField("dynamic_batching")
    if value is None:
        return
    batching = message.dynamic_batching
    batching.SetInParent()
    batching.preferred_batch_size[:] = value.preferred_batch_size
    batching.max_queue_delay_microseconds = value.max_queue_delay_microseconds
    batching.preserve_ordering = value.preserve_ordering
    batching.priority_levels = value.priority_levels
    batching.default_priority_level = value.default_priority_level
    if value.default_queue_policy != QueuePolicy():
        _write_policy(batching.default_queue_policy, value.default_queue_policy)
    for level, policy in value.priority_queue_policy.items():
        _write_policy(batching.priority_queue_policy[level], policy)


def _read_graph(message: pb.ModelConfig) -> int | None:
    return message.optimization.graph.level if message.optimization.HasField("graph") else None


def _write_graph(message: pb.ModelConfig, value: int | None) -> None:
    message.optimization.ClearField("graph")
    if value is not None:
        message.optimization.graph.SetInParent()
        message.optimization.graph.level = value


def _write_parameters(message: pb.ModelConfig, value: dict[str, str]) -> None:
    message.ClearField("parameters")
    for key, text in value.items():
        message.parameters[key].string_value = text


def _write_tags(message: pb.ModelConfig, value: dict[str, str]) -> None:
    message.ClearField("metric_tags")
    message.metric_tags.update(value)


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    """Field of ModelConfig."""
    read: Callable[[pb.ModelConfig], Any]
    write: Callable[[pb.ModelConfig, Any], None]


def _scalar(name: str) -> _Row:
    return _Row(name, lambda m: getattr(m, name), lambda m, value: setattr(m, name, value))


def _repeated(name: str, field: str, read: Callable[[Any], Any], write: Callable[[Any, Any], None]) -> _Row:
    return _Row(
        name,
        lambda m: tuple(read(element) for element in getattr(m, field)),
        lambda m, values: _write_all(getattr(m, field), values, read, write),
    )


FIELDS: tuple[_Row, ...] = (
    *(_scalar(name) for name in ("name", "platform", "backend", "max_batch_size", "default_model_filename")),
    _repeated("inputs", "input", lambda spec: _read_tensor("input", spec), _write_tensor),
    _repeated("outputs", "output", lambda spec: _read_tensor("output", spec), _write_tensor),
    _repeated("instance_groups", "instance_group", _read_group, _write_group),
    _Row("version_policy", _read_versions, _write_versions),
    _Row("dynamic_batching", _read_batching, _write_batching),
    _Row("graph_level", _read_graph, _write_graph),
    _Row("parameters", lambda m: {k: v.string_value for k, v in m.parameters.items()}, _write_parameters),
    _Row("metric_tags", lambda m: dict(m.metric_tags), _write_tags),
)
