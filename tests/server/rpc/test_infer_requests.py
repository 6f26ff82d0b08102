"""A request whose like has been seen is answered as it would have been at first sight, or refused in the same words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.model_config import ModelConfig, TensorSpec
from protos.wire import service
from server.backends.base import Device
from server.backends.fake import FakeSession
from server.catalog import Catalog
from server.errors import Cancelled, InvalidRequest, NotFound
from server.model import Model
from server.rpc import tensors
from server.rpc.infer_requests import TEMPLATES, InferRequests
from server.rpc.infer_wire import HEAD_LIMIT
from tests.server.backends.models import Maker
from tests.server.core import load_fake
from tests.server.harness import FP32, catalog_of, write_entry
from tests.server.rpc.infer_cases import (
    MODELS,
    Recorded,
    accepted,
    ask,
    begin,
    bodies,
    elements,
    ids,
    new_service,
    parameter,
    piece,
    tensor,
    wanted,
)

BATCHING = "max_batch_size: 8\ndynamic_batching { }\n"


def write_models(root: Path) -> None:
    write_entry(root, "m", config=BATCHING, behaviour={"multiply": 2, "fail_on": 13.0})
    write_entry(root, "twin", config=BATCHING, behaviour={"multiply": 3})
    write_entry(root, "pair", config=BATCHING, datatype="INT64", shape=(-1, 1), inputs="x,z")
    write_entry(root, "free", config=BATCHING, shape=(-1, -1))
    write_entry(root, "flag", config=BATCHING, datatype="BOOL", shape=(-1, 3))
    write_entry(root, "text", config=BATCHING, datatype="BYTES", shape=(-1, 2))
    Maker("onnxruntime").double(root / "real" / "1")
    (root / "real" / "config.pbtxt").write_text(BATCHING + 'platform: "onnxruntime_onnx"\n')


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Catalog]:
    root = tmp_path_factory.mktemp("models")
    write_models(root)
    with catalog_of(root) as catalog:
        assert {model.name for model in catalog.models()} == set(MODELS)
        yield catalog


def in_place(requests: InferRequests, body: bytes) -> bool:
    """Whether the body was read the cheap way: its tensors lie in it."""
    request = requests.read(body)[0]
    return all(np.shares_memory(t.array, np.frombuffer(body, np.uint8)) for t in request.inputs)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_all_sights_of_a_body_are_answered_alike(models: Catalog, data: st.DataObject) -> None:
    body = data.draw(bodies())
    first = ask(new_service(models), body)
    used = new_service(models)
    for pieces in data.draw(st.lists(accepted(), min_size=1, max_size=3)):
        assert isinstance(ask(used, b"".join(pieces)), service.ModelInferResponse)
    assert ask(used, body) == first
    assert ask(used, body) == first
    assert ask(used, memoryview(b"0123456" + body)[7:]) == first


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_other_bytes_under_a_known_head(models: Catalog, data: st.DataObject) -> None:
    used = new_service(models)
    name = data.draw(st.sampled_from(list(MODELS)))
    fields, raws = MODELS[name]
    before, after = piece(1, name.encode()), b"".join(fields)
    assert isinstance(
        ask(used, before + after + b"".join(piece(7, raw) for raw in data.draw(raws))), service.ModelInferResponse
    )
    request_id = piece(3, data.draw(ids))
    odd = st.lists(st.one_of(st.binary(max_size=40), st.just(elements(b"a", b"b"))), max_size=3)
    body = before + request_id + after + b"".join(piece(7, raw) for raw in data.draw(st.one_of(raws, odd)))
    assert ask(used, body) == ask(new_service(models), body)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_body_like_a_known_one_but_for_some_bytes(models: Catalog, data: st.DataObject) -> None:
    used = new_service(models)
    body = b"".join(data.draw(accepted()))
    for _ in range(3):  # read, recognised by its head, recognised as a whole
        ask(used, body)
    other = bytearray(body)
    for at in data.draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=3)):
        other[at] = data.draw(st.integers(0, 255))
    assert ask(used, bytes(other)) == ask(new_service(models), bytes(other))
    assert ask(used, body) == ask(new_service(models), body)


@settings(max_examples=10, deadline=None)
@given(st.data())
@pytest.mark.parametrize("name", MODELS)
def test_the_second_sight_is_the_cheap_way(models: Catalog, name: str, data: st.DataObject) -> None:
    requests = InferRequests(models)
    body = b"".join(data.draw(accepted([name])))
    first, model, _ = requests.read(body)
    second, _, _ = requests.read(body)
    assert first.checked is second.checked is model.validator
    assert (first.rows, first.group, first.outputs) == (second.rows, second.group, second.outputs)
    if name not in ("flag", "text"):  # whose arrays are not their bytes
        assert in_place(requests, body)
    for a, b in zip(first.inputs, second.inputs, strict=True):
        assert (a.name, a.datatype) == (b.name, b.datatype)
        assert a.array.dtype == b.array.dtype
        assert a.array.shape == b.array.shape
        assert tensors.pack(a) == tensors.pack(b)


X = tensor("x", "FP32", [1, 4])
ROW = np.arange(4, dtype=np.float32)
RAW = piece(7, ROW.tobytes())


def test_bools_are_made_0_or_1_at_every_sight(models: Catalog) -> None:
    requests = InferRequests(models)
    body = piece(1, b"flag") + tensor("x", "BOOL", [1, 3]) + piece(7, b"\0\2\xff")
    for _ in range(2):
        assert requests.read(body)[0].inputs[0].array.view(np.uint8).tolist() == [[0, 1, 1]]


def test_parameters_priority_timeout_and_outputs_are_the_head_s(models: Catalog) -> None:
    requests = InferRequests(models)
    for timeout, classes in ((5, 2), (7, 3), (5, 2), (7, 3)):
        steering = parameter("timeout", int64_param=timeout) + parameter("mine", int64_param=classes)
        request = requests.read(piece(1, b"m") + steering + X + wanted("y", classes) + RAW)[0]
        assert (request.timeout_us, request.parameters) == (timeout, {"mine": classes})
        assert [(o.name, o.classification) for o in request.outputs] == [("y", classes)]


def test_models_that_differ_in_name_only_are_told_apart(models: Catalog) -> None:
    used = new_service(models)
    for _ in range(2):
        for name, factor in ((b"m", 2), (b"twin", 3)):
            answer = ask(used, piece(1, name) + X + RAW)
            assert np.frombuffer(answer.raw_output_contents[0], np.float32).tolist() == (ROW * factor).tolist()


def test_typed_contents_are_never_taken_from_an_earlier_request(models: Catalog) -> None:
    requests = InferRequests(models)
    for value in (1.0, 2.0):
        body = piece(1, b"m") + tensor("x", "FP32", [1, 4], fp32_contents=[value] * 4)
        for _ in range(2):
            assert requests.read(body)[0].inputs[0].array.tolist() == [[value] * 4]
    assert not requests._templates


def test_a_refused_request_leaves_nothing_behind(models: Catalog) -> None:
    requests = InferRequests(models)
    for fields in (tensor("x", "FP32", [9, 4]), tensor("z", "FP32", [1, 4]), X + wanted("z")):
        raw = piece(7, bytes(9 * 16 if fields.startswith(tensor("x", "FP32", [9, 4])) else 16))
        request, model, _ = requests.read(piece(1, b"m") + fields + raw)
        with pytest.raises(InvalidRequest):
            model.validator.check(request)
    assert not requests._templates


def test_what_is_kept_is_bounded(models: Catalog) -> None:
    requests = InferRequests(models)
    largest = 0
    for number in range(TEMPLATES + 10):
        requests.read(piece(1, b"m") + parameter("n", int64_param=number) + X + RAW)
        largest = max(largest, len(requests._templates))
    assert largest == TEMPLATES
    assert len(requests._templates) == 10
    plain = piece(1, b"m") + X + RAW
    for size in range(1, TEMPLATES + 12):
        for _ in range(2):
            requests.read(plain + piece(3, b"i" * size))
    assert len(requests._known) == 11
    long = piece(1, b"m") + parameter("long", string_param="x" * HEAD_LIMIT) + X + RAW
    requests.read(long)
    assert len(requests._templates) == 11
    assert not in_place(requests, long)


class Shelf:
    """A catalog of one model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def model(self, name: str, version: str = "") -> Model:
        return self._model


def test_shape_tensors_whose_values_make_the_group_are_read_anew(tmp_path: Path) -> None:
    specs = (TensorSpec("x", FP32, (4,)), TensorSpec("s", FP32, (1,), is_shape_tensor=True))
    config = ModelConfig("m", 8, specs, (TensorSpec("y", FP32, (4,)),), backend="fake")
    model = Model("m", 1, config, load_fake(tmp_path), (Device(),))
    try:
        requests = InferRequests(cast(Catalog, Shelf(model)))
        groups = []
        for value in (1, 2, 1):
            shape = piece(7, np.float32(value).tobytes())
            request, _, _ = requests.read(piece(1, b"m") + X + tensor("s", "FP32", [1]) + RAW + shape)
            if request.checked is not model.validator:
                model.validator.check(request)
            groups.append(request.group)
        assert groups[0] != groups[1]
        assert groups[0] == groups[2]
    finally:
        model.close()


def test_a_reload_with_another_shape_between_two_equal_requests(tmp_path: Path) -> None:
    write_entry(tmp_path, config=BATCHING)
    body, other = piece(1, b"m") + X + RAW, piece(1, b"m") + tensor("x", "FP32", [2, 2]) + RAW
    with catalog_of(tmp_path, mode="explicit", start=("m",)) as catalog:
        used = new_service(catalog)
        for _ in range(2):
            assert ask(used, body).outputs[0].shape == [1, 4]
            assert ask(used, other)[0] is InvalidRequest
        write_entry(tmp_path, config=BATCHING, shape=(-1, 2))
        catalog.load("m")
        for _ in range(2):
            assert ask(used, body) == ask(new_service(catalog), body)
            assert ask(used, body)[0] is InvalidRequest
            assert ask(used, other).outputs[0].shape == [2, 2]
        catalog.unload("m")
        assert ask(used, other) == (NotFound, "Request for unknown model: 'm' has no available versions")


def test_the_latest_version_is_looked_up_each_time(tmp_path: Path) -> None:
    write_entry(tmp_path, config="version_policy: { all { } }\n" + BATCHING, constant=1)
    with catalog_of(tmp_path, mode="explicit", start=("m",)) as catalog:
        used = new_service(catalog)
        latest, first = piece(1, b"m") + X + RAW, piece(1, b"m") + piece(2, b"1") + X + RAW
        assert [ask(used, body).model_version for body in (latest, first, latest, first)] == ["1"] * 4
        write_entry(tmp_path, version=2, constant=2)
        catalog.load("m")
        assert [ask(used, body).model_version for body in (latest, first, latest, first)] == ["2", "1"] * 2
        assert used._requests.read(latest)[0].checked is catalog.model("m").validator


def test_large_tensors_are_read_and_answered_in_place(tmp_path: Path) -> None:
    write_entry(tmp_path, shape=(-1, 1 << 20))
    array = np.random.default_rng(0).random((4, 1 << 20), np.float32)
    body = piece(1, b"m") + piece(3, b"id") + tensor("x", "FP32", array.shape) + piece(7, array.tobytes())
    with catalog_of(tmp_path) as catalog:
        used = new_service(catalog)
        for _ in range(2):
            answer = ask(used, memoryview(body))
            assert answer.id == "id"
            assert answer.raw_output_contents[0] == array.tobytes()
        assert in_place(used._requests, body)


def test_a_client_that_goes_takes_its_request_out_of_the_queue(tmp_path: Path) -> None:
    one = BATCHING + "instance_group [{ count: 1 kind: KIND_CPU }]\n"
    write_entry(tmp_path, config=one, behaviour={"gate": "closed"})
    with catalog_of(tmp_path) as catalog:
        used = new_service(catalog)
        body = piece(1, b"m") + X + RAW
        session = catalog.model("m")._session
        assert isinstance(session, FakeSession)
        running = begin(used, body)
        assert session.gate.arrived(1)
        waiting = [begin(used, body) for _ in range(2)]
        waiting[0].gone()
        assert waiting[0].result()[0] is Cancelled
        session.gate.open()
        assert running.result() == waiting[1].result()


def test_a_release_while_a_body_is_decoded_elsewhere_leaves_no_request_behind(models: Catalog) -> None:
    used = new_service(models)

    class Interrupted(Recorded):
        def on_cancel(self, action: Callable[[], None]) -> None:
            used.release()  # as the transport's loop may at any time

    call = Interrupted()
    begin(used, piece(1, b"m") + X + RAW, call)
    assert call.result().outputs[0].shape == [1, 4]
