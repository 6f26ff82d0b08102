"""The catalogue: every pass keeps the contract's form, and its parameters are what a recipe can say."""

from __future__ import annotations

import dataclasses
import re

import pytest

from compressor.artifact import Kind
from compressor.passes import REGISTRY

EACH = pytest.mark.parametrize("technique", REGISTRY.values(), ids=REGISTRY.keys())


def test_the_names_are_those_that_recipes_use() -> None:
    assert set(REGISTRY) == {"export_onnx", "optimize", "prune_magnitude", "quantize_dynamic", "quantize_static"}
    for name, technique in REGISTRY.items():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name)
        assert technique.name == name


@EACH
def test_a_pass_is_a_frozen_dataclass_that_needs_no_parameter(technique: type) -> None:
    made = technique()
    assert made == technique()
    assert dataclasses.is_dataclass(technique)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, 1)


@EACH
def test_a_pass_says_what_it_takes_and_gives(technique: type) -> None:
    assert isinstance(technique.takes, Kind)
    assert isinstance(technique.gives, Kind)
    assert isinstance(technique.needs_calibration, bool)
    assert technique.__doc__
