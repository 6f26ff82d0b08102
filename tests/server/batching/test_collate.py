"""From requests to arrays and back: reshape, optional inputs, strings, rank 0, no copies where none are needed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from protos.datatypes import BY_NAME
from protos.model_config import ModelConfig, TensorSpec
from server.batching.buffers import Buffers
from server.batching.collate import Collator, reshaped
from server.errors import Internal, InvalidRequest
from server.request import InferRequest, RequestedOutput, Response, Tensor


def spec(name: str, dims: tuple[int, ...], datatype: str = "FP32", **fields: Any) -> TensorSpec:
    return TensorSpec(name, BY_NAME[datatype], dims, **fields)


def asking(arrays: dict[str, np.ndarray[Any, Any]], rows: int = 1, datatype: str = "FP32") -> InferRequest:
    request = InferRequest("m", tuple(Tensor(name, BY_NAME[datatype], array) for name, array in arrays.items()))
    request.rows = rows
    return request


def through(collator: Collator, requests: list[InferRequest], arrays: dict[str, np.ndarray[Any, Any]]) -> list[Any]:
    rows = sum(request.rows for request in requests)
    names = collator.collate(requests, rows).outputs
    return collator.answer(collator.gather(arrays, names, rows), requests)


def test_rows_are_joined_in_order_whatever_the_order_of_the_inputs() -> None:
    collator = Collator("m", ModelConfig("m", 8, (spec("a", (1,)), spec("b", (1,)))))
    one = asking({"a": np.array([[1.0]], np.float32), "b": np.array([[10.0]], np.float32)})
    two = asking({"b": np.array([[20.0]], np.float32), "a": np.array([[2.0]], np.float32)})
    batch = collator.collate([one, two], 2)
    assert batch.inputs["a"].tolist() == [[1.0], [2.0]]
    assert batch.inputs["b"].tolist() == [[10.0], [20.0]]


def test_a_lone_request_is_not_copied() -> None:
    array = np.ones((2, 3), np.float32)
    batch = Collator("m", ModelConfig("m", 8, (spec("x", (3,)),))).collate([asking({"x": array}, 2)], 2)
    assert np.shares_memory(batch.inputs["x"], array)


def test_a_lone_array_that_starts_at_an_odd_byte_is_aligned() -> None:
    array = np.frombuffer(b"\0" + np.ones((1, 3), np.float32).tobytes(), np.float32, offset=1).reshape(1, 3)
    assert not array.flags.aligned
    batch = Collator("m", ModelConfig("m", 8, (spec("x", (3,)),))).collate([asking({"x": array})], 1)
    assert batch.inputs["x"].flags.aligned


def test_several_requests_are_written_into_memory_that_is_kept() -> None:
    collator, buffers = Collator("m", ModelConfig("m", 8, (spec("x", (-1,)),))), Buffers()
    secret = collator.collate([asking({"x": np.full((2, 9), 47, np.float32)}, 2)] * 3, 6, buffers)
    batch = collator.collate([asking({"x": np.full((1, 4), value, np.float32)}) for value in (1, 2)], 2, buffers)
    assert np.shares_memory(batch.inputs["x"], secret.inputs["x"])
    assert batch.inputs["x"].tolist() == [[1.0] * 4, [2.0] * 4]
    fresh = collator.collate([asking({"x": np.ones((1, 4), np.float32)})] * 2, 2)
    assert not np.shares_memory(fresh.inputs["x"], batch.inputs["x"])


def test_answers_are_views_of_what_the_model_returned() -> None:
    collator = Collator("m", ModelConfig("m", 8, (spec("x", (3,)),), (spec("y", (3,)),)))
    x = np.ones((1, 3), np.float32)
    y = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = through(collator, [asking({"x": x}), asking({"x": x})], {"y": y})
    assert all(np.shares_memory(result.outputs[0].array, y) for result in results)
    assert results[1].outputs[0].array.tolist() == [[3.0, 4.0, 5.0]]


def test_bytes_are_joined_and_split_as_objects() -> None:
    collator = Collator("m", ModelConfig("m", 8, (spec("x", (1,), "BYTES"),), (spec("y", (1,), "BYTES"),)))
    arrays = [np.array([[b"a\0"]], object), np.array([[b""], [b"\xff"]], object)]
    requests = [asking({"x": arrays[0]}, 1, "BYTES"), asking({"x": arrays[1]}, 2, "BYTES")]
    batch = collator.collate(requests, 3)
    assert batch.inputs["x"].tolist() == [[b"a\0"], [b""], [b"\xff"]]
    results = through(collator, requests, {"y": batch.inputs["x"]})
    assert results[1].outputs[0].array.tolist() == [[b""], [b"\xff"]]


def test_an_optional_input_that_the_group_lacks_is_left_out() -> None:
    config = ModelConfig("m", 8, (spec("x", (1,)), spec("extra", (1,), optional=True)))
    batch = Collator("m", config).collate([asking({"x": np.ones((1, 1), np.float32)})] * 2, 2)
    assert set(batch.inputs) == {"x"}


@pytest.mark.parametrize(
    ("dims", "source", "target", "expected"),
    [((1,), (1,), (), ()), ((5, 3), (-1, 3), (3, -1), (3, 5)), ((2, 7), (-1, -1), (-1, 1, -1), (2, 1, 7))],
)
def test_variable_dimensions_keep_their_order_through_a_reshape(
    dims: tuple[int, ...], source: tuple[int, ...], target: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert reshaped(dims, source, target) == expected


def test_the_model_sees_the_reshape_and_the_client_the_dims() -> None:
    config = ModelConfig("m", 8, (spec("x", (1,), reshape=()),), (spec("y", (1, 2), reshape=(2,)),))
    collator = Collator("m", config)
    requests = [asking({"x": np.array([[float(i)]], np.float32)}) for i in range(2)]
    assert collator.collate(requests, 2).inputs["x"].shape == (2,)
    results = through(collator, requests, {"y": np.zeros((2, 2), np.float32)})
    assert results[0].outputs[0].array.shape == (1, 1, 2)


def test_a_rank_0_output_of_a_model_that_does_not_batch_is_shown_as_one_element() -> None:
    collator = Collator("m", ModelConfig("m", 0, (spec("x", (1,), reshape=()),), (spec("y", (1,), reshape=()),)))
    request = asking({"x": np.array([7.0], np.float32)})
    assert collator.collate([request], 1).inputs["x"].shape == ()
    (result,) = through(collator, [request], {"y": np.array(7.0, np.float32)})
    assert result.outputs[0].array.tolist() == [7.0]


def test_an_output_of_unknown_rank_is_passed_as_it_is() -> None:
    collator = Collator("m", ModelConfig("m", 0, (spec("x", (2,)),), (spec("y", (1,), reshape=()),)))
    (result,) = through(collator, [asking({"x": np.zeros(2, np.float32)})], {"y": np.zeros((2, 3), np.float32)})
    assert result.outputs[0].array.shape == (2, 3)


def test_an_output_that_does_not_fit_its_reshape_is_internal() -> None:
    collator = Collator("m", ModelConfig("m", 8, (spec("x", (1,)),), (spec("y", (4,), reshape=(2, 2)),)))
    with pytest.raises(Internal, match=r"shape \[1, 3\], which does not fit its reshape \[2, 2\]"):
        through(collator, [asking({"x": np.zeros((1, 1), np.float32)})], {"y": np.zeros((1, 3), np.float32)})


def test_outputs_come_in_the_order_asked_for() -> None:
    collator = Collator("m", ModelConfig("m", 8, (spec("x", (1,)),), (spec("y", (1,)), spec("z", (1,)))))
    x = np.zeros((1, 1), np.float32)
    both, one = asking({"x": x}), asking({"x": x})
    both.outputs = (RequestedOutput("z"), RequestedOutput("y"))
    one.outputs = (RequestedOutput("y"),)
    assert collator.collate([one], 1).outputs == ("y",)
    arrays = {"y": np.zeros((2, 1), np.float32), "z": np.ones((2, 1), np.float32)}
    first, second = through(collator, [both, one], arrays)
    assert [tensor.name for tensor in first.outputs] == ["z", "y"]
    assert [tensor.name for tensor in second.outputs] == ["y"]


def test_one_request_may_ask_for_classes_and_its_mate_for_the_tensor() -> None:
    config = ModelConfig("m", 8, (spec("x", (1,)),), (spec("y", (3,)), spec("h", (1,), "FP16")))
    collator = Collator("m", config, {"y": ("cat", "dog")})
    x = np.zeros((1, 1), np.float32)
    classes, plain, wrong = asking({"x": x}), asking({"x": x}), asking({"x": x})
    classes.outputs = (RequestedOutput("y", 2),)
    wrong.outputs = (RequestedOutput("h", 2),)
    arrays = {"y": np.array([[0.1, 0.7, 0.2]] * 3, np.float32), "h": np.zeros((3, 1), np.float16)}
    first, second, third = through(collator, [classes, plain, wrong], arrays)
    assert first.outputs[0].array.tolist() == [[b"0.700000:1:dog", b"0.200000:2"]]
    assert isinstance(second, Response)
    assert isinstance(third, InvalidRequest)
    assert str(third) == "class result not available for output due to unsupported type 'FP16'"
