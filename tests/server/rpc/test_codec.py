"""The codec: what comes in equals what was sent, and what contradicts itself gets Triton's text."""

from __future__ import annotations

import re
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from protos.datatypes import BY_NAME, DATATYPES, Datatype
from protos.model_config import ModelConfig, TensorSpec
from protos.wire import service
from server.errors import InvalidRequest, ServerError, Unsupported
from server.request import InferRequest, Response, Tensor
from server.rpc import codec, tensors
from server.rpc.call import Answer

FP32 = BY_NAME["FP32"]
CONFIG = ModelConfig("m", 8, (TensorSpec("x", FP32, (-1,)),), (TensorSpec("y", FP32, (-1,)),), backend="fake")


def request_of(datatype: str, shape: tuple[int, ...], raw: bytes | None = b"", **contents: Any) -> Any:
    message = service.ModelInferRequest(model_name="m", id="7")
    tensor = message.inputs.add(name="x", datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(tensor.contents, field).extend(values)
    if raw is not None and not contents:
        message.raw_input_contents.append(raw)
    return message


def decode(message: Any) -> InferRequest:
    return codec.decode(service.ModelInferRequest.FromString(message.SerializeToString()), CONFIG)


def error_of(message: Any) -> ServerError:
    with pytest.raises(ServerError) as caught:
        decode(message)
    return caught.value


def arrays(datatype: Datatype) -> st.SearchStrategy[np.ndarray[Any, Any]]:
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=4)
    if datatype.name == "BYTES":
        return hnp.arrays(np.dtype(object), shapes, elements=st.binary(max_size=20), fill=st.nothing())
    if datatype.name == "BF16":
        return hnp.arrays(np.dtype("<u2"), shapes).map(lambda a: a.view(datatype.numpy))
    return hnp.arrays(datatype.numpy, shapes)


def joined(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else b"".join(answer)


def same(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> bool:
    if a.dtype == object:
        return a.shape == b.shape and a.ravel().tolist() == b.ravel().tolist()
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda d: d.name)
def test_raw_contents_of_every_datatype_come_back_as_sent(datatype: Datatype, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype))
    raw = tensors.pack(Tensor("x", datatype, array))
    found = decode(request_of(datatype.name, array.shape, raw)).inputs[0]
    assert found.datatype is datatype
    assert same(found.array, array)


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("datatype", [d for d in DATATYPES if d.contents], ids=lambda d: d.name)
def test_typed_contents_of_every_datatype_come_back_as_sent(datatype: Datatype, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype).filter(lambda a: a.size > 0))
    message = request_of(datatype.name, array.shape, **{str(datatype.contents): array.ravel().tolist()})
    assert same(decode(message).inputs[0].array, array)


def test_narrow_integers_keep_their_low_bits_as_in_triton() -> None:
    message = request_of("INT8", (1, 2), int_contents=[300, -129])
    assert decode(message).inputs[0].array.tolist() == [[44, 127]]


def test_a_bool_byte_that_is_neither_0_nor_1_is_true() -> None:
    array = decode(request_of("BOOL", (3,), b"\x00\x02\xff")).inputs[0].array
    assert array.view(np.uint8).tolist() == [0, 1, 1]


def test_raw_numbers_are_not_copied_once_more() -> None:
    message = request_of("FP32", (1, 1 << 20), bytes(4 << 20))
    parsed = service.ModelInferRequest.FromString(message.SerializeToString())
    tracemalloc.start()
    codec.decode(parsed, CONFIG)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < (4 << 20) * 1.1, "one copy out of the message and no more"


@settings(max_examples=30)
@given(st.data())
@pytest.mark.parametrize("datatype", DATATYPES, ids=lambda d: d.name)
def test_an_answer_reads_the_same_with_the_stock_client(datatype: Datatype, data: st.DataObject) -> None:
    array = data.draw(arrays(datatype).filter(lambda a: a.size > 0))
    response = Response((Tensor("y", datatype, array),), {"n": 1, "f": 0.5, "b": True, "s": "t"})
    body = joined(codec.encode("m", 3, "id", response))
    result = triton.InferResult(triton.service_pb2.ModelInferResponse.FromString(body))
    message = result.get_response()
    assert (message.model_name, message.model_version, message.id) == ("m", "3", "id")
    assert message.parameters["b"].bool_param
    assert message.parameters["n"].int64_param == 1
    if datatype.name != "BF16":  # which the client gives as float32
        found = result.as_numpy("y")
        assert found is not None
        assert same(found.astype(array.dtype, copy=False), array)


def whole(name: str, version: int, request_id: str, response: Response) -> Any:
    """The answer as protobuf's own message, put together field by field."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    return service.ModelInferResponse(
        model_name=name,
        model_version=str(version),
        id=request_id,
        parameters={k: service.InferParameter(**{kinds[type(v)]: v}) for k, v in response.parameters.items()},
        outputs=[
            service.ModelInferResponse.InferOutputTensor(name=t.name, datatype=t.datatype.name, shape=t.array.shape)
            for t in response.outputs
        ],
        raw_output_contents=[tensors.pack(t) for t in response.outputs],
    )


parameters = st.dictionaries(
    st.text(max_size=3), st.one_of(st.booleans(), st.integers(-(1 << 63), (1 << 63) - 1), st.floats(), st.text())
)
outputs = st.lists(
    st.tuples(st.text(max_size=3), st.sampled_from(DATATYPES)).flatmap(
        lambda made: arrays(made[1]).map(lambda array: Tensor(made[0], made[1], array))
    ),
    max_size=3,
)


@settings(max_examples=300)
@given(st.text(max_size=3), st.integers(0, 1 << 62), st.text(), outputs, parameters, st.sampled_from([1, 8, 1 << 16]))
def test_an_answer_is_the_message_that_protobuf_would_write(
    name: str, version: int, request_id: str, outputs: list[Tensor], parameters: dict[str, Any], large: int
) -> None:
    response = Response(tuple(outputs), parameters)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "LARGE", large)
        for _ in range(2):
            body = joined(codec.encode(name, version, request_id, response))
            assert service.ModelInferResponse.FromString(body).SerializeToString(deterministic=True) == whole(
                name, version, request_id, response
            ).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "layout", [lambda a: a, lambda a: a[1:], lambda a: a[:, ::2], lambda a: a.T, lambda a: a[0, 0]]
)
def test_tensors_in_any_layout_are_sent_row_by_row(layout: Callable[[Any], Any]) -> None:
    array = layout(np.random.default_rng(0).random((4, 4, 1 << 13), np.float32))
    answer = codec.encode("m", 1, "", Response((Tensor("y", FP32, array),)))
    assert isinstance(answer, list) == (array.nbytes >= codec.LARGE)
    assert service.ModelInferResponse.FromString(joined(answer)).raw_output_contents[0] == array.tobytes()


def test_a_large_tensor_is_not_copied_into_the_answer() -> None:
    array = np.zeros((1, codec.LARGE), np.uint8)
    small = Tensor("s", FP32, np.ones(1, np.float32))
    parts = codec.encode("m", 1, "", Response((small, Tensor("y", BY_NAME["UINT8"], array), small)))
    assert [np.shares_memory(np.frombuffer(part, np.uint8), array) for part in parts].count(True) == 1


CASES: list[tuple[str, Callable[[], Any], str]] = [
    ("too few bytes", lambda: request_of("FP32", (1, 4), bytes(12)),
     "[request id: 7] input byte size mismatch for input 'x' for model 'm'. Expected 16, got 12"),
    ("too many bytes", lambda: request_of("FP16", (2,), bytes(5)),
     "[request id: 7] input byte size mismatch for input 'x' for model 'm'. Expected 4, got 5"),
    ("an absurd shape", lambda: request_of("UINT8", (1 << 31, 1 << 29), b"x"),
     f"[request id: 7] input byte size mismatch for input 'x' for model 'm'. Expected {1 << 60}, got 1"),
    ("a shape beyond all arrays", lambda: request_of("UINT8", (1 << 40, 1 << 40), b"x"),
     f"[request id: 7] unexpected shape for input 'x' for model 'm'. Expected less than 2^62 bytes, "
     f"got [{1 << 40},{1 << 40}]"),
    ("too many dimensions", lambda: request_of("UINT8", (1,) * 65, b"x"),
     "[request id: 7] unexpected shape for input 'x' for model 'm'. Expected at most 64 dimensions, got 65"),
    ("a negative dimension", lambda: request_of("FP32", (-1, 4), bytes(16)),
     "[request id: 7] All input dimensions should be specified for input 'x' for model 'm', got [-1,4]"),
    ("an unknown datatype", lambda: request_of("FP8", (1,), b"x"),
     "[request id: 7] inference input 'x' data-type is 'FP8', but model 'm' expects 'FP32'"),
    ("BYTES, too few elements", lambda: request_of("BYTES", (2,), struct.pack("<I", 1) + b"a"),
     "[request id: 7] expected 2 string elements for inference input 'x' for model 'm', got 1"),
    ("BYTES, too many elements", lambda: request_of("BYTES", (1,), bytes(12)),
     "[request id: 7] unexpected number of string elements 2 for inference input 'x' for model 'm', expecting 1"),
    ("BYTES, a length cut off", lambda: request_of("BYTES", (1,), b"\x01\x00"),
     "[request id: 7] incomplete string length indicator for inference input 'x' for model 'm', expecting 4 bytes but "
     "only 2 bytes available. Please make sure the string length indicator is in one buffer."),
    ("BYTES, an element cut off", lambda: request_of("BYTES", (1,), struct.pack("<I", 0xFFFFFFFF) + b"a"),
     "[request id: 7] incomplete string data for inference input 'x' for model 'm', expecting string of length "
     "4294967295 bytes but only 1 bytes available. Please make sure the string is in one buffer."),
    ("no data", lambda: request_of("FP32", (1,), None),
     "unable to find data for input tensor 'x' for model 'm' in request."),
    ("typed contents of another type", lambda: request_of("FP32", (1,), int_contents=[1]),
     "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'INT32', expected datatype 'FP32'"),
    ("typed contents for a type without them", lambda: request_of("FP16", (1,), fp32_contents=[1]),
     "unexpected explicit tensor data for input tensor 'x' for model 'm' of type 'FP32', expected datatype 'FP16'"),
    ("typed contents twice", lambda: request_of("FP32", (1,), fp32_contents=[1], fp64_contents=[1]),
     "unexpected explicit tensor data for input tensor 'x' for model 'm', binary data was already supplied."),
    ("typed contents, too few", lambda: request_of("FP32", (2,), fp32_contents=[1]),
     "[request id: 7] input byte size mismatch for input 'x' for model 'm'. Expected 8, got 4"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "text"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_a_contradiction_gets_triton_s_text(message: Callable[[], Any], text: str) -> None:
    error = error_of(message())
    assert isinstance(error, InvalidRequest)
    assert str(error) == text


def test_raw_and_typed_contents_exclude_each_other() -> None:
    message = request_of("FP32", (1,), fp32_contents=[1])
    message.raw_input_contents.append(bytes(4))
    text = "contents field must not be specified when using raw_input_contents for 'x' for model 'm'"
    assert str(error_of(message)) == text


def test_raw_contents_without_an_input_are_refused() -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.raw_input_contents.append(bytes(4))
    assert str(error_of(message)).startswith("expected 1 raw input contents but got 2")


def test_an_input_may_come_once() -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.inputs.append(message.inputs[0])
    message.raw_input_contents.append(bytes(4))
    assert str(error_of(message)) == "input 'x' already exists in request"


def test_bytes_that_do_not_fit_leave_names_types_and_shapes_for_the_model_s_own_checks() -> None:
    error = error_of(request_of("FP32", (1 << 20, 1 << 20), b""))
    assert isinstance(error, codec.DataError)
    placeholder = error.declared.inputs[0].array
    assert placeholder.shape == (1 << 20, 1 << 20)
    assert placeholder.base is not None, "a view of one element, whatever the shape"


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("sequence_id", {"bool_param": True},
         "invalid value type for 'sequence_id' parameter, expected int64_param or string_param."),
        ("sequence_start", {"int64_param": 1},
         "invalid value type for 'sequence_start' parameter, expected bool_param."),
        ("sequence_end", {"string_param": "x"},
         "invalid value type for 'sequence_end' parameter, expected bool_param."),
        ("priority", {"int64_param": -1}, "invalid value for 'priority', expected value >= 0."),
        ("priority", {"string_param": "1"},
         "invalid value type for 'priority' parameter, expected int64_param or uint64_param."),
        ("timeout", {"uint64_param": 1}, "invalid value type for 'timeout' parameter, expected int64_param."),
        ("triton_x", {"bool_param": True},
         "parameter keys starting with 'triton_' are reserved for Triton usage. Only the following keys starting with "
         "'triton_' are allowed: triton_enable_empty_final_response"),
        ("mine", {}, "invalid value type for 'mine' parameter, expected int64_param, bool_param, string_param, or "
         "double_param."),
    ],
)  # fmt: skip
def test_a_parameter_of_the_wrong_kind_gets_triton_s_text(key: str, value: dict[str, Any], text: str) -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.parameters[key].CopyFrom(service.InferParameter(**value))
    assert str(error_of(message)) == text


def test_reserved_parameters_steer_the_scheduler_and_the_others_are_the_client_s() -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.parameters["priority"].uint64_param = 2
    message.parameters["timeout"].int64_param = 50
    message.parameters["sequence_id"].int64_param = 9
    message.parameters["a"].double_param = 0.5
    message.parameters["b"].string_param = "t"
    request = decode(message)
    assert (request.priority, request.timeout_us) == (2, 50)
    assert request.parameters == {"a": 0.5, "b": "t"}


def test_requested_outputs_keep_their_order_and_may_ask_for_classes() -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.outputs.add(name="b")
    message.outputs.add(name="a").parameters["classification"].int64_param = 3
    assert [(o.name, o.classification) for o in decode(message).outputs] == [("b", 0), ("a", 3)]
    message.outputs.add(name="b")
    assert str(error_of(message)) == "output 'b' already exists in request"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"string_param": "3"}, "invalid value type for 'classification' parameter, expected int64_param"),
        ({"int64_param": -1}, "invalid value for 'classification' parameter, expected >= 0"),
    ],
)
def test_a_wrong_number_of_classes_gets_triton_s_text(value: dict[str, Any], text: str) -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.outputs.add(name="y").parameters["classification"].CopyFrom(service.InferParameter(**value))
    assert str(error_of(message)) == text


@pytest.mark.parametrize("where", ["inputs", "outputs"])
def test_shared_memory_is_refused_clearly(where: str) -> None:
    message = request_of("FP32", (1,), bytes(4))
    message.outputs.add(name="y")
    getattr(message, where)[0].parameters["shared_memory_region"].string_param = "/r"
    error = error_of(message)
    assert isinstance(error, Unsupported)
    assert "shared memory is not supported" in str(error)


def test_a_response_beyond_grpc_s_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "MAX_BYTES", 100)
    response = Response((Tensor("y", FP32, np.zeros(codec.LARGE, np.float32)),))
    size = whole("m", 1, "id", response).ByteSize()
    text = f"Response has byte size {size} which exceeds gRPC's byte size limit 100."
    with pytest.raises(InvalidRequest, match=re.escape(text)):
        codec.encode("m", 1, "id", response)
    monkeypatch.setattr(codec, "MAX_BYTES", size)
    assert sum(map(len, codec.encode("m", 1, "id", response))) == size
    small = Response((Tensor("y", FP32, np.zeros(10, np.float32)),))
    with pytest.raises(InvalidRequest, match="exceeds gRPC's byte size limit"):
        codec.encode("m", 1, "i" * size, small)


@given(st.binary(max_size=200), st.lists(st.integers(-2, 1 << 62), max_size=4),
       st.sampled_from([*(d.name for d in DATATYPES), "", "FP8"]))  # fmt: skip
def test_whatever_comes_is_decoded_or_refused(raw: bytes, shape: list[int], datatype: str) -> None:
    message = request_of(datatype, tuple(shape), raw)
    try:
        request = decode(message)
    except InvalidRequest as error:
        text = str(error)
    else:
        text = ""
        assert request.inputs[0].array.shape == tuple(shape)
    assert text.isprintable()
