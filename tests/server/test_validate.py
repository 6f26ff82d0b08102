"""Triton's texts to the letter (core: src/infer_request.cc; its own tests in server: qa/L0_input_validation)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protos.datatypes import BY_NAME
from protos.model_config import ConfigError, ModelConfig, TensorSpec
from protos.padding import KEY
from server import validate
from server.batching.padding import Bucket
from server.errors import InvalidRequest
from server.request import InferRequest, RequestedOutput, Tensor
from server.validate import Validator

NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try "
    "setting max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def spec(name: str, dims: tuple[int, ...] = (4,), datatype: str = "FP32", **fields: Any) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], dims, **fields)


def tensor(name: str, *shape: int, datatype: str = "FP32") -> Tensor:
    return Tensor(name, BY_NAME[datatype], np.zeros(shape, BY_NAME[datatype].numpy))


def validator(*inputs: TensorSpec, max_batch_size: int = 8) -> Validator:
    return Validator("m", ModelConfig("m", max_batch_size, inputs, (spec("y"), spec("z"))))


def checked(rules: Validator, *tensors: Tensor, **fields: Any) -> InferRequest:
    request = InferRequest("m", tensors, **fields)
    rules.check(request)
    return request


TWO = (spec("a"), spec("b"))


@pytest.mark.parametrize(
    ("inputs", "max_batch_size", "tensors", "text"),
    [
        (
            (spec("A"), spec("B"), spec("C")), 8, (),
            "expected 3 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing required input(s) "
            "['A','B','C']. Please provide all required input(s).",
        ),
        (
            (spec("A"), spec("B"), spec("D", optional=True)), 8, (tensor("A", 1, 4),),
            "expected number of inputs between 2 and 3 but got 1 inputs for model 'm'. Got input(s) ['A'], but missing "
            "required input(s) ['B']. Please provide all required input(s).",
        ),
        (
            (spec("A"), spec("B"), spec("D", optional=True)), 8, (tensor("A", 1, 4), tensor("D", 1, 4)),
            "expected number of inputs between 2 and 3 but got 2 inputs for model 'm'. Got input(s) ['A','D'], but "
            "missing required input(s) ['B']. Please provide all required input(s).",
        ),
        (TWO, 8, (tensor("a", 1, 4), tensor("q", 1, 4)), "unexpected inference input 'q' for model 'm'"),
        (TWO, 8, (tensor("a", 1, 4), tensor("a", 1, 4)), "input 'a' already exists in request"),
        (TWO, 8, (tensor("a", 9, 4), tensor("b", 9, 4)), "inference request batch-size must be <= 8 for 'm'"),
        (TWO, 8, (tensor("a", 0, 4), tensor("b", 0, 4)), "inference request batch-size must be >= 1 for 'm'"),
        (TWO, 8, (tensor("a", 2, 4), tensor("b", 1, 4)), "input 'b' batch size does not match other inputs for 'm'"),
        (TWO, 8, (tensor("a"), tensor("b", 1, 4)), "input 'a' has no shape but model requires batch dimension for 'm'"),
        (
            TWO, 8, (tensor("a", 1, 4), tensor("b", 1, 4, datatype="INT32")),
            "inference input 'b' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            (spec("a", (-1, 3)),), 8, (tensor("a", 1, 2, 4),),
            f"unexpected shape for input 'a' for model 'm'. Expected [-1,-1,3], got [1,2,4]. {NOTE}",
        ),
        (
            (spec("a"),), 8, (tensor("a", 4),),
            f"unexpected shape for input 'a' for model 'm'. Expected [-1,4], got [4]. {NOTE}",
        ),
        (
            (spec("a"),), 0, (tensor("a", 1, 4),),
            "unexpected shape for input 'a' for model 'm'. Expected [4], got [1,4]",
        ),
        ((spec("a"),), 0, (tensor("a"),), "unexpected shape for input 'a' for model 'm'. Expected [4], got []"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_gets_the_text_of_triton(
    inputs: tuple[TensorSpec, ...], max_batch_size: int, tensors: tuple[Tensor, ...], text: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked(validator(*inputs, max_batch_size=max_batch_size), *tensors)
    assert str(caught.value) == f"[request id: <id_unknown>] {text}"


@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        (("y", "q"), "unexpected inference output 'q' for model 'm'"),
        (("y", "y"), "output 'y' already exists in request"),
    ],
)
def test_outputs_that_are_unknown_or_asked_for_twice_are_refused(outputs: tuple[str, ...], text: str) -> None:
    wanted = tuple(RequestedOutput(name) for name in outputs)
    with pytest.raises(InvalidRequest) as caught:
        checked(validator(spec("a")), tensor("a", 1, 4), outputs=wanted, id="7")
    assert str(caught.value) == f"[request id: 7] {text}"


def test_rows_are_the_batch_dimension() -> None:
    assert checked(validator(*TWO), tensor("b", 3, 4), tensor("a", 3, 4)).rows == 3


def test_rows_are_one_where_the_model_does_not_batch() -> None:
    assert checked(validator(spec("a", (5, 4)), max_batch_size=0), tensor("a", 5, 4)).rows == 1


def test_fixed_shapes_need_no_group() -> None:
    assert checked(validator(*TWO), tensor("a", 1, 4), tensor("b", 1, 4)).group is None


def test_the_group_is_the_variable_shapes_in_the_order_of_the_model() -> None:
    rules = validator(spec("a", (-1,)), spec("b"), spec("c", (2, -1)))
    one = checked(rules, tensor("a", 1, 5), tensor("b", 1, 4), tensor("c", 1, 2, 3))
    two = checked(rules, tensor("c", 2, 2, 3), tensor("b", 2, 4), tensor("a", 2, 5))
    other = checked(rules, tensor("a", 1, 5), tensor("b", 1, 4), tensor("c", 1, 2, 4))
    assert one.group == two.group != other.group


def test_requests_with_and_without_an_optional_input_are_of_different_groups() -> None:
    rules = validator(spec("a"), spec("b", optional=True))
    without, with_it = checked(rules, tensor("a", 1, 4)), checked(rules, tensor("a", 1, 4), tensor("b", 1, 4))
    assert without.group != with_it.group


def test_a_shape_tensor_has_no_batch_dimension_and_its_values_keep_requests_apart() -> None:
    rules = validator(spec("a"), spec("s", (2,), "INT32", is_shape_tensor=True))
    same = [checked(rules, tensor("a", 3, 4), tensor("s", 2, datatype="INT32")) for _ in range(2)]
    ones = Tensor("s", BY_NAME["INT32"], np.ones(2, np.int32))
    other = checked(rules, tensor("a", 3, 4), ones)
    assert same[0].rows == 3
    assert same[0].group == same[1].group != other.group


PADDED = (spec("a", (-1, 3)), spec("b", (-1,)), spec("c", (-1,)))


def padded(maximum: str = "") -> Validator:
    text = f"long{maximum}: a[0]=0, b[0]=0"
    return Validator("m", ModelConfig("m", 8, PADDED, (spec("y"),), parameters={KEY: text}))


def test_lengths_of_a_bucket_are_of_one_group_and_all_else_keeps_requests_apart() -> None:
    rules = padded()
    of = [checked(rules, tensor("a", 1, n, 3), tensor("b", 1, n), tensor("c", 1, m)) for n, m in ((17, 4), (20, 4))]
    longer = checked(rules, tensor("a", 1, 21, 3), tensor("b", 1, 21), tensor("c", 1, 4))
    other = checked(rules, tensor("a", 1, 17, 3), tensor("b", 1, 17), tensor("c", 1, 5))
    assert of[0].group == of[1].group == Bucket([(20, 3), (20,), (4,)])
    assert type(of[0].group) is Bucket
    assert len({of[0].group, longer.group, other.group}) == 3


def test_a_bucket_ends_at_the_longest_that_the_model_takes() -> None:
    request = checked(padded("<=18"), tensor("a", 1, 17, 3), tensor("b", 1, 17), tensor("c", 1, 4))
    assert request.group == Bucket([(18, 3), (18,), (4,)])


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        ((5, 6), "input b[0] is 6 long and input a[0] 5, but they share the padded axis 'long' of model 'm'"),
        ((19, 19), "input a[0] is 19 long, but the padded axis 'long' of model 'm' is at most 18"),
    ],
)
def test_lengths_that_break_the_declaration_are_refused(lengths: tuple[int, int], text: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        checked(padded("<=18"), tensor("a", 1, lengths[0], 3), tensor("b", 1, lengths[1]), tensor("c", 1, 4))
    assert str(caught.value) == f"[request id: <id_unknown>] {text}"


def test_a_declaration_that_does_not_fit_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="input q is not there"):
        Validator("m", ModelConfig("m", 8, PADDED, (spec("y"),), parameters={KEY: "long: q[0]=0"}))


def test_what_validation_finds_depends_on_shapes_alone_but_for_shape_tensors() -> None:
    assert validator(*TWO).cacheable
    assert padded().cacheable
    assert validator(spec("a", (-1,)), spec("s", (2,), optional=True)).cacheable
    assert validator(spec("s", (2,)), max_batch_size=0).cacheable
    assert not validator(spec("a"), spec("s", (2,), "INT32", is_shape_tensor=True)).cacheable


@given(st.lists(st.tuples(st.sampled_from(["a", "b", "q"]), st.lists(st.integers(0, 9), max_size=3)), max_size=4))
def test_whatever_is_sent_is_either_right_or_an_invalid_request(sent: list[tuple[str, list[int]]]) -> None:
    rules = validator(spec("a"), spec("b", (-1,), optional=True))
    tensors = [tensor(name, *shape) for name, shape in sent]
    try:
        request = checked(rules, *tensors)
    except InvalidRequest:
        return
    assert 1 <= request.rows <= 8
    assert all(t.array.shape[0] == request.rows for t in tensors)


def test_the_texts_about_bytes_on_the_wire() -> None:
    assert validate.byte_size_mismatch("x", "m", 32, 40) == (
        "input byte size mismatch for input 'x' for model 'm'. Expected 32, got 40"
    )
    assert validate.string_count_mismatch("x", "m", 3, 2) == (
        "expected 3 string elements for inference input 'x' for model 'm', got 2"
    )
    assert validate.string_length_incomplete("x", "m", 2) == (
        "incomplete string length indicator for inference input 'x' for model 'm', expecting 4 bytes but only 2 bytes "
        "available. Please make sure the string length indicator is in one buffer."
    )
    assert validate.unspecified_dim("x", "m", (-1, 4)) == (
        "All input dimensions should be specified for input 'x' for model 'm', got [-1,4]"
    )
