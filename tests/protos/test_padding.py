"""The grammar of `demiglace.padding`, and what a declaration must agree with."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos import config_text, padding
from protos.datatypes import BY_NAME
from protos.model_config import ConfigError, ModelConfig, TensorSpec
from protos.padding import KEY, Axis, Padding, Place

NAMES = st.text(st.characters(exclude_categories=["Z", "C"], exclude_characters=",;[]=<>"), min_size=1, max_size=8)
PLACES = st.builds(Place, NAMES, st.integers(0, 9))
NUMBERS = st.one_of(st.integers(-(2**63), 2**64), st.floats(allow_nan=False))


@st.composite
def paddings(draw: st.DrawFn) -> Padding:
    inputs = draw(st.lists(PLACES, min_size=1, max_size=6, unique=True))
    outputs = draw(st.lists(PLACES, max_size=4, unique=True))
    number = draw(st.integers(1, len(inputs)))
    axes = tuple(
        Axis(f"axis_{i}", tuple(inputs[i::number]), tuple(outputs[i::number]), draw(st.none() | st.integers(1, 10**9)))
        for i in range(number)
    )
    return Padding(axes, {place.tensor: draw(NUMBERS) for place in inputs})


@given(paddings())
def test_what_is_printed_is_read_back(wanted: Padding) -> None:
    assert padding.parse(padding.dump(wanted)) == wanted


@given(st.text(max_size=60) | st.text("ab[]0=<>,;:- ", max_size=60))
def test_any_text_is_a_padding_or_a_config_error_of_one_line(text: str) -> None:
    told = ""
    try:
        padding.parse(text)
    except ConfigError as error:
        told = str(error)
    assert "\n" not in told
    assert len(told) < 300


def test_a_declaration_reads_as_it_is_written() -> None:
    found = padding.parse("sequence<=512: ids[0]=0,mask[0] = 0 -> tokens[0] ;\n width: x:0[1]=-1.5")
    places = (Place("ids", 0), Place("mask", 0))
    assert found.axes == (
        Axis("sequence", places, (Place("tokens", 0),), 512),
        Axis("width", (Place("x:0", 1),)),
    )
    assert found.values == {"ids": 0, "mask": 0, "x:0": -1.5}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("ids[0]=0", "'ids[0]=0' is not \"axis: input[dim]=value, … -> output[dim], …\""),
        ("a: ids[0]", "axis a: ids[0] lacks its value, as in ids[0]=0"),
        ("a: ids=0", "'ids=0' is not name[dim] or name[dim]=value"),
        ("a: ids[-1]=0", "'ids[-1]=0' is not name[dim] or name[dim]=value"),
        ("a: ids[0]=zero", "ids[0] is filled with 'zero', which is no number"),
        ("a: ids[0]=0 -> y[0]=0", "axis a: output y[0] has a value, only inputs are filled up"),
        ("a: ids[0]=0, ids[0]=0", "ids[0] is named twice"),
        ("a: ids[0]=0; b: ids[0]=0", "ids[0] is named twice"),
        ("a: ids[0]=0; a: ids[1]=0", "axis a is declared twice"),
        ("a: ids[0]=0; b: ids[1]=1", "ids is filled with 0 and with 1"),
        ("a<=0: ids[0]=0", "axis a: at most 0 is no length"),
    ],
)
def test_a_text_that_is_no_declaration_is_told_why(text: str, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        padding.parse(text)
    assert str(caught.value) == f"parameters {KEY}: {reason}"


def spec(name: str, dims: tuple[int, ...], datatype: str = "INT64", **fields: Any) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], dims, **fields)


def config(text: str, *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (), batch: int = 8) -> ModelConfig:
    given = inputs or (spec("ids", (-1,)), spec("fixed", (4,)))
    return ModelConfig("m", batch, given, outputs or (spec("y", (4,)),), "onnxruntime_onnx", parameters={KEY: text})


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (config("a: q[0]=0"), "input q is not there; there are ids, fixed"),
        (config("a: fixed[0]=0"), "input fixed[0] is no variable dimension of dims [4]"),
        (config("a: ids[1]=0"), "input ids[1] is no variable dimension of dims [-1]"),
        (config("a: ids[0]=0 -> y[0]"), "output y[0] is no variable dimension of dims [4]"),
        (config("a: ids[0]=0 -> z[0]"), "output z is not there; there are y"),
        (config("a: ids[0]=0", batch=0), "needs max_batch_size ≥ 1: without batches nothing is padded"),
        (config("a: ids[0]=0.5"), f"ids is filled with 0.5, must be a whole number from {-(2**63)} to {2**63 - 1}"),
        (config("a: t[0]=0", spec("t", (-1,), "BYTES")), "input t is BYTES, which cannot be padded"),
        (config("a: t[0]=9", spec("t", (-1,), "BOOL")), "t is filled with 9, must be a whole number from 0 to 1"),
        (config("a: t[0]=2e9", spec("t", (-1,), "FP16")), "t is filled with 2e+09, must be a number that FP16 holds"),
        (config("a: ids[0]=0", spec("ids", (-1,), optional=True)), "input ids is optional, and padded ones may not be"),
        (
            config("a: ids[0]=0 -> y[0]", outputs=(spec("y", (-1, -1)),)),
            "output y[1] is variable, and no axis says what it is cut back to",
        ),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_fit_its_model_is_refused(wrong: ModelConfig, reason: str) -> None:
    with pytest.raises(ConfigError) as caught:
        padding.read(wrong)
    assert str(caught.value) == f"model 'm': parameters {KEY}: {reason}"


def test_a_declaration_travels_in_the_configuration() -> None:
    square = (spec("y", (-1, -1)),)
    wanted = config("a: ids[0]=7 -> y[0], y[1]", outputs=square)
    again = config_text.parse(config_text.dump(wanted), "m/config.pbtxt")
    assert padding.read(again) == padding.read(wanted) == padding.parse(wanted.parameters[KEY])


@pytest.mark.parametrize("text", ["", "  ", "none"])
def test_nothing_declared_is_nothing_padded(text: str) -> None:
    assert padding.read(config(text)) is None
    assert padding.read(ModelConfig("m")) is None


@pytest.mark.parametrize(
    ("datatype", "value", "expected"),
    [
        ("INT64", 1.0, np.int64(1)),
        ("UINT64", 2**64 - 1, np.uint64(2**64 - 1)),
        ("BOOL", 1, np.True_),
        ("FP16", float("-inf"), np.float16("-inf")),
        ("BF16", 1.5, ml_dtypes.bfloat16(1.5)),
    ],
)
def test_a_value_becomes_an_element_of_its_input(datatype: str, value: float, expected: np.generic) -> None:
    found = padding.scalar(BY_NAME[datatype], value, "x")
    assert found == expected
    assert found.dtype == BY_NAME[datatype].numpy
