"""Where instances run: instance groups of a configuration to one Device per instance."""

from __future__ import annotations

from collections.abc import Mapping

from protos.model_config import ConfigError, InstanceGroup, ModelConfig
from server.backends.base import Backend, Device

MAX_INSTANCES = 1024
"""A thread each; more is a slip of the pen."""


def place(config: ModelConfig, backend: Backend, options: Mapping[str, str]) -> tuple[Device, ...]:
    """One Device per instance, in the order of the groups; KIND_AUTO (the default) is the GPUs where there are any.

    Counts are per device, as in Triton; a count of 0 is the backend's default (core: src/model_config_utils.cc,
    SetDefaultInstanceCount), for which it sees `options`. Raises ConfigError.
    """
    gpus = backend.gpus()
    cpu_instances = backend.cpu_instances(config, options)
    devices: list[Device] = []
    for group in config.instance_groups or (InstanceGroup(),):
        devices.extend(_group(config.name, group, gpus, cpu_instances))
        if len(devices) > MAX_INSTANCES:
            raise ConfigError(f"model '{config.name}': instance_group: more than {MAX_INSTANCES} instances")
    return tuple(devices)


def _group(model: str, group: InstanceGroup, gpus: tuple[int, ...], cpu_instances: int) -> list[Device]:
    where = f"model '{model}': instance_group{f' {group.name!r}' if group.name else ''}"
    kind = group.kind
    if kind in ("KIND_AUTO", "KIND_MODEL"):
        kind = "KIND_GPU" if gpus or group.gpus else "KIND_CPU"
    if group.count < 0 or group.count > MAX_INSTANCES:
        raise ConfigError(f"{where}: count is {group.count}, allowed are 0 to {MAX_INSTANCES}")
    if kind == "KIND_CPU":
        if group.gpus:
            raise ConfigError(f"{where}: KIND_CPU cannot have gpus {list(group.gpus)}")
        return [Device()] * (group.count or cpu_instances)
    if kind != "KIND_GPU":
        raise ConfigError(f"{where}: unknown kind '{kind}'; there are: KIND_AUTO, KIND_CPU, KIND_GPU, KIND_MODEL")
    wanted = group.gpus or gpus
    missing = [index for index in wanted if index not in gpus]
    if missing or not wanted:
        found = f"GPUs {list(gpus)}" if gpus else "no GPU"
        raise ConfigError(f"{where}: GPUs {missing or 'any'} asked for, the backend has {found} here")
    return [Device("cuda", index) for index in wanted for _ in range(group.count or 1)]
