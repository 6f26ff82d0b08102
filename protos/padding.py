"""Which dimensions of a model may be padded: the parameter `demiglace.padding` of a configuration. docs/padding.md.

    parameters { key: "demiglace.padding" value { string_value: "sequence<=512: ids[0]=0, mask[0]=0 -> tokens[0]" } }

    padding := axis (";" axis)*
    axis    := NAME ["<=" NUMBER] ":" padded ("," padded)* ["->" cut ("," cut)*]
    padded  := INPUT "[" DIM "]" "=" VALUE            a dimension of an input, and what it is filled up with
    cut     := OUTPUT "[" DIM "]"                     a dimension of an output that is as long, and is cut back

A dimension counts as in `dims`, without the batch. All that one axis names are of one length in a request. Who declares
an axis promises that a row's answer does not depend on what stands behind its own length: a mask is among the inputs.
A real Triton hands parameters that it does not know to the backend, which ignores this one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protos.config_check import one_line
from protos.datatypes import Datatype
from protos.model_config import ConfigError, ModelConfig, TensorSpec

KEY = "demiglace.padding"
NONE = "none"
"""The value that says in words what an absent parameter says."""
_AXIS = re.compile(r"\s*([A-Za-z_]\w*)\s*(?:<=\s*([0-9]{1,18}))?\s*:(.*)", re.DOTALL)
_PLACE = re.compile(r"\s*([^\s,;\[\]=<>]+)\s*\[\s*([0-9]{1,4})\s*\]\s*(?:=\s*(\S{1,40}?)\s*)?")
_GRAMMAR = '"axis: input[dim]=value, … -> output[dim], …"'


@dataclass(frozen=True, slots=True)
class Place:
    """One dimension of one tensor; the batch does not count."""

    tensor: str
    dim: int

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}]"


@dataclass(frozen=True, slots=True)
class Axis:
    """One length that differs between requests."""

    name: str
    inputs: tuple[Place, ...]
    outputs: tuple[Place, ...] = ()
    maximum: int | None = None
    """The longest that the model takes."""


@dataclass(frozen=True, slots=True)
class Padding:
    axes: tuple[Axis, ...]
    values: Mapping[str, int | float] = field(default_factory=dict)
    """What each input is filled up with."""


def parse(text: str) -> Padding:
    """Raises ConfigError; whether the names mean anything is `check`'s business."""
    values: dict[str, int | float] = {}
    axes = tuple(_axis(part, values) for part in text.split(";"))
    if twice := _repeated([axis.name for axis in axes]):
        raise _fault(f"axis {twice} is declared twice")
    for side in ([p for axis in axes for p in axis.inputs], [p for axis in axes for p in axis.outputs]):
        if again := _repeated([str(place) for place in side]):
            raise _fault(f"{again} is named twice")
    return Padding(axes, values)


def dump(padding: Padding) -> str:
    """Text that `parse` reads back to an equal value."""
    return "; ".join(_axis_text(axis, padding.values) for axis in padding.axes)


def read(config: ModelConfig) -> Padding | None:
    """What a (completed) configuration declares, checked against its inputs and outputs; None where it declares
    nothing. Raises ConfigError."""
    text = config.parameters.get(KEY, NONE)
    if text.strip() in ("", NONE):
        return None
    try:
        padding = parse(text)
        check(padding, config)
    except ConfigError as error:
        raise ConfigError(f"model '{config.name}': {error}") from None
    return padding


def check(padding: Padding, config: ModelConfig) -> None:
    """Whether every place is a variable dimension, and all variable dimensions of outputs are cut. Raises
    ConfigError."""
    if config.max_batch_size < 1:
        raise _fault("needs max_batch_size ≥ 1: without batches nothing is padded")
    for axis in padding.axes:
        for place in axis.inputs:
            spec = _variable(place, config.inputs, "input")
            if spec.optional:
                raise _fault(f"input {spec.name} is optional, and padded ones may not be")
            scalar(spec.datatype, padding.values[place.tensor], place.tensor)
        for place in axis.outputs:
            _variable(place, config.outputs, "output")
    cut = {(place.tensor, place.dim) for axis in padding.axes for place in axis.outputs}
    for spec in config.outputs:
        for dim, size in enumerate(spec.dims):
            if size == -1 and (spec.name, dim) not in cut:
                raise _fault(f"output {spec.name}[{dim}] is variable, and no axis says what it is cut back to")


def scalar(datatype: Datatype, value: int | float, name: str) -> np.ndarray[Any, Any]:
    """A pad value as an array of rank 0 of an input's type. Raises ConfigError where the type does not hold it."""
    dtype = datatype.numpy
    if dtype.hasobject:
        raise _fault(f"input {name} is {datatype.name}, which cannot be padded")
    if dtype.kind in "biu":
        low, high = (0, 1) if dtype.kind == "b" else (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
        fits = low <= value <= high and (isinstance(value, int) or value.is_integer())
        allowed = f"a whole number from {low} to {high}"
    else:
        with np.errstate(over="ignore"):
            fits = bool(np.isfinite(np.array(value, np.float64).astype(dtype))) or not np.isfinite(float(value))
        allowed = f"a number that {datatype.name} holds"
    if not fits:
        raise _fault(f"{name} is filled with {value:g}, must be {allowed}")
    return np.array(value).astype(dtype)


def _axis(text: str, values: dict[str, int | float]) -> Axis:
    found = _AXIS.fullmatch(text)
    if found is None:
        raise _fault(f"{one_line(text, 80)!r} is not {_GRAMMAR}")
    left, arrow, right = found[3].partition("->")
    inputs = []
    for part in left.split(","):
        place, value = _place(part)
        if value is None:
            raise _fault(f"axis {found[1]}: {place} lacks its value, as in {place}=0")
        number = _number(value, place)
        if values.setdefault(place.tensor, number) != number:
            raise _fault(f"{place.tensor} is filled with {values[place.tensor]} and with {number}")
        inputs.append(place)
    outputs = []
    for part in right.split(",") if arrow else ():
        place, value = _place(part)
        if value is not None:
            raise _fault(f"axis {found[1]}: output {place} has a value, only inputs are filled up")
        outputs.append(place)
    maximum = int(found[2]) if found[2] else None
    if maximum == 0:
        raise _fault(f"axis {found[1]}: at most 0 is no length")
    return Axis(found[1], tuple(inputs), tuple(outputs), maximum)


def _place(text: str) -> tuple[Place, str | None]:
    found = _PLACE.fullmatch(text)
    if found is None:
        raise _fault(f"{one_line(text, 80)!r} is not name[dim] or name[dim]=value")
    return Place(found[1], int(found[2])), found[3]


def _number(text: str, place: Place) -> int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    raise _fault(f"{place} is filled with {one_line(text, 40)!r}, which is no number")


def _axis_text(axis: Axis, values: Mapping[str, int | float]) -> str:
    most = "" if axis.maximum is None else f"<={axis.maximum}"
    padded = ", ".join(f"{place}={values[place.tensor]}" for place in axis.inputs)
    cut = ", ".join(map(str, axis.outputs))
    return f"{axis.name}{most}: {padded}{f' -> {cut}' if cut else ''}"


def _variable(place: Place, specs: Sequence[TensorSpec], side: str) -> TensorSpec:
    spec = next((spec for spec in specs if spec.name == place.tensor), None)
    if spec is None:
        raise _fault(f"{side} {place.tensor} is not there; there are {', '.join(spec.name for spec in specs)}")
    if spec.is_shape_tensor or not place.dim < len(spec.dims) or spec.dims[place.dim] != -1:
        raise _fault(f"{side} {place} is no variable dimension of dims {list(spec.dims)}")
    return spec


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for i, name in enumerate(names) if name in names[:i]), None)


def _fault(text: str) -> ConfigError:
    return ConfigError(f"parameters {KEY}: {text}")
