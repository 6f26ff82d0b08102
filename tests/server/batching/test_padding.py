"""Requests of unequal lengths in one batch: their answers are the lone ones; no batch shows in another."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from protos.datatypes import BY_NAME
from protos.model_config import DynamicBatching, ModelConfig, TensorSpec
from protos.padding import KEY
from server.backends import get
from server.backends.base import Device, LoadRequest, Session
from server.batching.buffers import Buffers
from server.batching.collate import Collator
from server.batching.padding import SMALLEST, bound, bounds, join, longest_of
from server.errors import Internal
from server.model import Model
from server.request import InferRequest, RequestedOutput, Response, Tensor
from tests.server.backends.models import save, value
from tests.server.core import FP32, Sheet

INT64 = BY_NAME["INT64"]
Array = np.ndarray[Any, Any]


@given(st.integers(1, 10**7), st.none() | st.integers(1, 10**7))
def test_a_bucket_holds_its_lengths_and_little_more(length: int, maximum: int | None) -> None:
    maximum = None if maximum is None else max(maximum, length)
    at = bound(length, maximum)
    assert at >= length
    assert at == bound(at, maximum), "a bound is of its own bucket"
    assert bound(length + 1) >= bound(length)
    if length > SMALLEST:
        assert at < length * 1.25


@given(st.integers(1, 2000))
def test_the_bounds_are_those_of_all_lengths(longest: int) -> None:
    assert list(bounds(longest)) == sorted({bound(length, longest) for length in range(1, longest + 1)})


def test_nothing_is_padded_with_less_than_nothing() -> None:
    assert bound(0) == 0 != bound(1)


SHAPES = st.integers(1, 3).flatmap(lambda rank: st.lists(st.tuples(*[st.integers(0, 5)] * (rank + 1)), min_size=1))


@given(SHAPES)
def test_rows_are_joined_at_the_front_of_theirs_and_all_else_is_the_value(shapes: list[tuple[int, ...]]) -> None:
    arrays = [np.full(shape, i + 1, np.int32) for i, shape in enumerate(shapes)]
    out = np.full((sum(len(array) for array in arrays), *longest_of(arrays)), 99, np.int32)
    join(arrays, np.array(-1), out)
    expected = [
        np.pad(row, [(0, most - size) for size, most in zip(row.shape, out.shape[1:], strict=True)], constant_values=-1)
        for array in arrays
        for row in array
    ]
    assert out.tolist() == [row.tolist() for row in expected]


# --- a small model of texts: an embedding, one attention over the words, masked -------------------------------------

TEXT = ModelConfig(
    "m",
    8,
    (TensorSpec("ids", INT64, (-1,)), TensorSpec("mask", INT64, (-1,))),
    (TensorSpec("text", FP32, (16,)), TensorSpec("words", FP32, (-1, 16)), TensorSpec("pairs", FP32, (-1, -1))),
    backend="onnxruntime",
    dynamic_batching=DynamicBatching(),
    parameters={KEY: "sequence: ids[0]=0, mask[0]=0 -> words[0], pairs[0], pairs[1]"},
)


def load(folder: Path) -> Session:
    random = np.random.default_rng(0)
    weights = {
        "table": random.normal(size=(50, 16)).astype(np.float32),
        "zero": np.array(0, np.int64),
        "far": np.array(-1e9, np.float32),
        "one": np.array([1], np.int64),
    }
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"]),
        helper.make_node("Transpose", ["e"], ["et"], perm=[0, 2, 1]),
        helper.make_node("MatMul", ["e", "et"], ["s"]),
        helper.make_node("Equal", ["mask", "zero"], ["padded"]),
        helper.make_node("Unsqueeze", ["padded", "one"], ["hidden"]),
        helper.make_node("Where", ["hidden", "far", "s"], ["masked"]),
        helper.make_node("Softmax", ["masked"], ["pairs"], axis=-1),
        helper.make_node("MatMul", ["pairs", "e"], ["words"]),
        helper.make_node("Slice", ["words", "start", "one", "one"], ["first"]),
        helper.make_node("Squeeze", ["first", "one"], ["text"]),
    ]
    weights["start"] = np.array([0], np.int64)
    initializers = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    inputs = [value(name, ["n", "t"], TensorProto.INT64) for name in ("ids", "mask")]
    outputs = [value("text", ["n", 16]), value("words", ["n", "t", 16]), value("pairs", ["n", "t", "t"])]
    path = save(folder / "model.onnx", nodes, inputs, outputs, initializers)
    return get("onnxruntime").load(LoadRequest(path, TEXT, (Device(),), {"preflight": "off"}))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    session = load(tmp_path_factory.mktemp("text"))
    yield session
    session.close()


def text(rows: Sequence[Sequence[int]], **fields: Any) -> InferRequest:
    ids = np.array(rows, np.int64)
    tensors = (Tensor("ids", INT64, ids), Tensor("mask", INT64, np.ones_like(ids)))
    return InferRequest("m", tensors, rows=len(ids), **fields)


def run(session: Session, collator: Collator, requests: list[InferRequest], buffers: Buffers) -> list[Response]:
    rows = sum(request.rows for request in requests)
    batch = collator.collate(requests, rows, buffers)
    arrays = session.run(0, batch)
    results = collator.answer(collator.gather(arrays, batch.outputs, rows), requests)
    assert all(isinstance(result, Response) for result in results)
    return [result for result in results if isinstance(result, Response)]


BUFFERS = Buffers()
"""One for all examples: each batch finds what the ones before have left."""


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 20)), min_size=1, max_size=6), st.integers(0, 2**32))
@settings(deadline=None, max_examples=60)
def test_a_padded_row_equals_the_lone_row(session: Session, shapes: list[tuple[int, int]], seed: int) -> None:
    random = np.random.default_rng(seed)
    collator = Collator("m", TEXT)
    requests = [text(random.integers(0, 50, shape).tolist()) for shape in shapes]
    together = run(session, collator, requests, BUFFERS)
    for (rows, length), request, response in zip(shapes, requests, together, strict=True):
        (alone,) = run(session, collator, [request], BUFFERS)
        wanted = {"text": (rows, 16), "words": (rows, length, 16), "pairs": (rows, length, length)}
        assert {tensor.name: tensor.array.shape for tensor in response.outputs} == wanted
        for one, other in zip(alone.outputs, response.outputs, strict=True):
            np.testing.assert_allclose(one.array, other.array, rtol=1e-4, atol=1e-6)


def test_nothing_of_a_batch_is_in_the_next_one() -> None:
    collator, buffers = Collator("m", TEXT), Buffers()
    secret = [text([[47] * length]) for length in (20, 17)]
    public = [text([[3] * length]) for length in (9, 12)]
    collator.collate(secret, 2, buffers)
    batch = collator.collate(public, 2, buffers)
    assert batch.inputs["ids"].tolist() == [[3] * 9 + [0] * 3, [3] * 12]
    assert batch.inputs["mask"].tolist() == [[1] * 9 + [0] * 3, [1] * 12]


def test_a_lone_request_is_neither_padded_nor_copied(session: Session) -> None:
    request = text([[1] * 11, [2] * 11])
    batch = Collator("m", TEXT).collate([request], 2, Buffers())
    assert batch.inputs["ids"] is request.inputs[0].array


def test_only_the_outputs_asked_for_are_cut_and_given(session: Session) -> None:
    requests = [text([[1] * 9]), text([[2] * 12], outputs=(RequestedOutput("words"),))]
    both, words = run(session, Collator("m", TEXT), requests, Buffers())
    assert [tensor.array.shape for tensor in both.outputs] == [(1, 16), (1, 9, 16), (1, 9, 9)]
    assert [tensor.array.shape for tensor in words.outputs] == [(1, 12, 16)]


def test_waste_is_what_padding_added_to_all_that_was_run() -> None:
    collator = Collator("m", TEXT)
    assert collator.pads
    requests = [text([[1] * 9] * 2), text([[2] * 12])]
    assert collator.waste(requests, collator.collate(requests, 3)) == (6, 36)
    assert collator.waste(requests[:1], collator.collate(requests[:1], 2)) == (0, 18)


def test_an_output_of_another_length_than_declared_is_internal() -> None:
    collator = Collator("m", TEXT)
    requests = [text([[1] * 9]), text([[2] * 12])]
    arrays = {
        "text": np.zeros((2, 16), np.float32),
        "words": np.zeros((2, 6, 16), np.float32),
        "pairs": np.zeros((2, 12, 12), np.float32),
    }
    with pytest.raises(Internal, match="returned 6 of output 'words' at dimension 1 for 12 of input 'ids'"):
        collator.answer(collator.gather(arrays, tuple(arrays), 2), requests)


def test_requests_of_a_bucket_share_a_batch_wherever_they_stand(session: Session, tmp_path: Path) -> None:
    """The whole way, with a real model: 40 texts of 4 buckets in turn, in flight at once."""
    lengths = [length for _ in range(10) for length in (10, 15, 20, 27)]
    random = np.random.default_rng(1)
    requests = [text(random.integers(0, 50, (1, length)).tolist()) for length in lengths]
    alone = [run(session, Collator("m", TEXT), [request], Buffers())[0] for request in requests]
    sheet = Sheet()
    model = Model("m", 1, TEXT, load(tmp_path), (Device(),))
    try:
        for request in requests:
            model.submit(request, sheet, hold=True)
        model.release()
        sheet.wait(len(requests))
        assert model.statistics().execution_count <= 4 * 3, "by arrival it would be 40"
    finally:
        model.close()
    for request, expected in zip(requests, alone, strict=True):
        found = sheet.results[request]
        assert isinstance(found, Response)
        for one, other in zip(expected.outputs, found.outputs, strict=True):
            np.testing.assert_allclose(one.array, other.array, rtol=1e-4, atol=1e-6)
