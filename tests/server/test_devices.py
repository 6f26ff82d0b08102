"""Instance groups to devices by Triton's rules (core: src/model_config_utils.cc, NormalizeInstanceGroup)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pytest

from protos.model_config import ConfigError, InstanceGroup, ModelConfig
from server.backends.base import Device, LoadRequest, Session
from server.devices import place


@dataclass
class Host:
    """A backend that sees these GPUs."""

    indices: tuple[int, ...] = ()
    name: str = "host"

    def cpu_instances(self, config: ModelConfig, options: Mapping[str, str]) -> int:
        return int(options.get("instances", 2))

    def gpus(self) -> tuple[int, ...]:
        return self.indices

    def load(self, request: LoadRequest) -> Session:
        raise AssertionError("placing instances loads nothing")


CPU, GPU0, GPU1 = Device(), Device("cuda", 0), Device("cuda", 1)


@pytest.mark.parametrize(
    ("groups", "gpus", "expected"),
    [
        ((), (), (CPU, CPU)),
        ((), (0, 1), (GPU0, GPU1)),
        ((InstanceGroup("KIND_AUTO", 3),), (), (CPU, CPU, CPU)),
        ((InstanceGroup("KIND_CPU", 1),), (0,), (CPU,)),
        ((InstanceGroup("KIND_GPU", 2),), (0, 1), (GPU0, GPU0, GPU1, GPU1)),
        ((InstanceGroup("KIND_GPU", 1, (1,)),), (0, 1), (GPU1,)),
        ((InstanceGroup("KIND_GPU", 1, (0,)), InstanceGroup("KIND_CPU", 1)), (0,), (GPU0, CPU)),
        ((InstanceGroup("KIND_MODEL"),), (), (CPU, CPU)),
    ],
)
def test_each_instance_gets_a_device(
    groups: tuple[InstanceGroup, ...], gpus: tuple[int, ...], expected: tuple[Device, ...]
) -> None:
    assert place(ModelConfig("m", instance_groups=groups), Host(gpus), {}) == expected


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (InstanceGroup("KIND_GPU", 1), "GPUs any asked for, the backend has no GPU here"),
        (InstanceGroup("KIND_GPU", 1, (7,)), r"GPUs \[7\] asked for, the backend has no GPU here"),
        (InstanceGroup("KIND_CPU", 1, (0,)), r"KIND_CPU cannot have gpus \[0\]"),
        (InstanceGroup("KIND_CPU", -1), "count is -1, allowed are 0 to 1024"),
        (InstanceGroup("KIND_CPU", 10**9, name="big"), "instance_group 'big': count is 1000000000"),
        (InstanceGroup("KIND_TPU", 1), "unknown kind 'KIND_TPU'"),
    ],
)
def test_a_group_that_cannot_be_placed_is_refused(group: InstanceGroup, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        place(ModelConfig("m", instance_groups=(group,)), Host(), {})


def test_the_number_of_instances_is_bounded_over_all_groups() -> None:
    with pytest.raises(ConfigError, match="more than 1024 instances"):
        place(ModelConfig("m", instance_groups=(InstanceGroup("KIND_CPU", 600),) * 2), Host(), {})


def test_a_count_of_0_is_the_backends_to_choose_by_its_options() -> None:
    assert place(ModelConfig("m"), Host(), {"instances": "5"}) == (CPU,) * 5


def test_a_device_prints_as_people_say_it() -> None:
    assert (str(CPU), str(GPU1)) == ("CPU", "GPU 1")
