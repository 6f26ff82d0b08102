"""What makes a configuration usable, whatever it was read from. Pure: sees a ModelConfig, no text and no model.

Rules are Triton's (core src/model_config_utils.cc: ValidateIOShape, ValidateModelConfig, ValidateInstanceGroup),
together with bounds on counts that Triton lacks: without them one line of text starts a million threads.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from protos import paths, platforms
from protos.model_config import ConfigError, DynamicBatching, InstanceGroup, ModelConfig, TensorSpec

MAX_INSTANCES = 1024
"""Over all groups and devices of a model."""
MAX_PRIORITY_LEVELS = 1000
KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
INT32_MAX = 2**31 - 1
MAX_ERROR = 600
"""Characters of an error text, whatever is in the file."""


def one_line(text: str, limit: int = MAX_ERROR) -> str:
    """`text` fit for an error: printable, on one line, no longer than `limit`."""
    text = "".join(c if c.isprintable() else "?" for c in " ".join(text[: 4 * limit].split()))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def validate(config: ModelConfig, where: str) -> None:
    """Raises ConfigError, its text beginning with `where`, for the first rule that `config` breaks."""
    try:
        _check(config)
    except ConfigError as error:
        raise ConfigError(f"{where}: {one_line(str(error))}") from None


def _check(config: ModelConfig) -> None:
    if config.name and (problem := paths.name_problem(config.name)):
        raise ConfigError(f"name: {config.name!r} {problem}")
    if not 0 <= config.max_batch_size <= INT32_MAX:
        raise ConfigError(f"max_batch_size: {config.max_batch_size} is not in 0 … {INT32_MAX}")
    for field, specs in (("input", config.inputs), ("output", config.outputs)):
        twice = _repeated(spec.name for spec in specs)
        if twice is not None:
            raise ConfigError(f"{field} '{twice}': declared twice, once is allowed")
        for spec in specs:
            _check_tensor(f"{field} '{spec.name}'", spec, config.max_batch_size)
    _check_versions(config)
    if config.dynamic_batching is not None:
        _check_batching(config.dynamic_batching, config.max_batch_size)
    _check_instances(config.instance_groups)
    filename = config.default_model_filename
    if filename and (problem := paths.relative_problem(filename)):
        raise ConfigError(f"default_model_filename: {filename!r} {problem}")
    platforms.find(config)


def _repeated(names: Iterable[str]) -> str | None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            return name
        seen.add(name)
    return None


def _check_tensor(field: str, spec: TensorSpec, max_batch_size: int) -> None:
    if not spec.name:
        raise ConfigError(f"{field}: name is empty")
    if not spec.dims:
        raise ConfigError(f"{field}: dims is empty; a scalar has dims: [ 1 ]")
    for key, shape in (("dims", spec.dims), ("reshape.shape", spec.reshape or ())):
        for dim in shape:
            if dim < 1 and dim != -1:
                raise ConfigError(f"{field}: {key} holds {dim}; allowed are numbers ≥ 1, and -1 for any size")
    if spec.reshape is not None:
        if not spec.reshape and max_batch_size == 0:
            raise ConfigError(f"{field}: reshape.shape is empty, which is allowed only with max_batch_size > 0")
        if _element_counts(spec.dims) != _element_counts(spec.reshape):
            raise ConfigError(
                f"{field}: dims {list(spec.dims)} and reshape.shape {list(spec.reshape)} differ in size;"
                " equal element counts are allowed, around each -1 too"
            )
    if spec.is_shape_tensor:
        raise ConfigError(f"{field}: is_shape_tensor is for TensorRT only")
    if spec.label_filename and (problem := paths.relative_problem(spec.label_filename)):
        raise ConfigError(f"{field}: label_filename {spec.label_filename!r} {problem}")


def _element_counts(shape: tuple[int, ...]) -> list[int]:
    """Elements of each run of fixed dimensions: [2, 4, -1, 6] gives [8, 6], the same as [8, -1, 1, 6]."""
    counts = [1]
    for dim in shape:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def _check_versions(config: ModelConfig) -> None:
    policy = config.version_policy
    if policy.latest < 1:
        raise ConfigError(f"version_policy.latest.num_versions: {policy.latest} is below 1")
    if policy.all and policy.specific:
        raise ConfigError("version_policy: both all and specific are set; one is allowed")
    for version in policy.specific:
        if not 1 <= version <= paths.INT64_MAX:
            raise ConfigError(f"version_policy.specific.versions: {version} is below 1 or above {paths.INT64_MAX}")


def _check_batching(batching: DynamicBatching, max_batch_size: int) -> None:
    at = "dynamic_batching"
    for size in batching.preferred_batch_size:
        if not 1 <= size <= max_batch_size:
            raise ConfigError(f"{at}.preferred_batch_size: {size} is not in 1 … max_batch_size ({max_batch_size})")
    levels = batching.priority_levels
    if not 0 <= levels <= MAX_PRIORITY_LEVELS:
        raise ConfigError(f"{at}.priority_levels: {levels} is not in 0 … {MAX_PRIORITY_LEVELS}")
    if levels:
        if not 1 <= batching.default_priority_level <= levels:
            given = batching.default_priority_level
            raise ConfigError(f"{at}.default_priority_level: {given} is not in 1 … priority_levels ({levels})")
        for level in batching.priority_queue_policy:
            if not 1 <= level <= levels:
                raise ConfigError(f"{at}.priority_queue_policy: key {level} is not in 1 … priority_levels ({levels})")
    if batching.preserve_ordering:
        if levels > 1:
            raise ConfigError(f"{at}.preserve_ordering: true needs priority_levels ≤ 1, got {levels}")
        for policy in chain([batching.default_queue_policy], batching.priority_queue_policy.values()):
            if policy.timeout_action == "DELAY" and policy.default_timeout_microseconds:
                raise ConfigError(f"{at}.preserve_ordering: true allows no queue policy with timeout_action DELAY")


def _check_instances(groups: tuple[InstanceGroup, ...]) -> None:
    total = 0
    for index, group in enumerate(groups):
        at = f"instance_group[{index}]"
        if group.kind not in KINDS:
            raise ConfigError(f"{at}.kind: {group.kind} is none of {', '.join(KINDS)}")
        if not 0 <= group.count <= MAX_INSTANCES:
            raise ConfigError(f"{at}.count: {group.count} is not in 0 … {MAX_INSTANCES}")
        if group.gpus and group.kind in ("KIND_CPU", "KIND_MODEL"):
            raise ConfigError(f"{at}.gpus: allowed with KIND_GPU and KIND_AUTO only, got {group.kind}")
        if any(gpu < 0 for gpu in group.gpus) or len(set(group.gpus)) < len(group.gpus):
            raise ConfigError(f"{at}.gpus: {list(group.gpus)} holds a negative or repeated number")
        total += max(group.count, 1) * max(len(group.gpus), 1)
    if total > MAX_INSTANCES:
        raise ConfigError(f"instance_group: {total} instances in all, at most {MAX_INSTANCES} are allowed")
