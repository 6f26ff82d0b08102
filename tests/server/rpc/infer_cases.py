"""ModelInfer's requests piece by piece as wire bytes, in any order and damaged, and how a service answers them.

The bytes are written here, by a writer of its own: what is tested must not be what makes the test.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Sequence
from typing import Any

from google.protobuf.message import DecodeError
from hypothesis import strategies as st

from protos.wire import service
from server.catalog import Catalog
from server.errors import ServerError
from server.rpc.call import Answer, Deferred
from server.rpc.service import Service

PATH = "/inference.GRPCInferenceService/ModelInfer"
Request = service.ModelInferRequest


def varint(number: int, extra: int = 0) -> bytes:
    """`extra` bytes longer than it need be."""
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    for _ in range(extra):
        out[-1] |= 128
        out.append(0)
    return bytes(out)


def piece(number: int, payload: bytes, extra: int = 0) -> bytes:
    """A field with a length."""
    return varint(number << 3 | 2) + varint(len(payload), extra) + payload


def parameter(key: str, **value: Any) -> bytes:
    return Request(parameters={key: service.InferParameter(**value)}).SerializeToString()


def tensor(name: str, datatype: str, shape: Sequence[int], **contents: Any) -> bytes:
    message = Request()
    found = message.inputs.add(name=name, datatype=datatype, shape=shape)
    for field, values in contents.items():
        getattr(found.contents, field).extend(values)
    return message.SerializeToString()


def wanted(name: str, classes: int | None = None) -> bytes:
    message = Request()
    output = message.outputs.add(name=name)
    if classes is not None:
        output.parameters["classification"].int64_param = classes
    return message.SerializeToString()


def elements(*texts: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


# --- whole requests ---

floats = st.lists(st.floats(-100, 100, width=32), min_size=4, max_size=4).map(
    lambda values: struct.pack("<4f", *values)
)
integers = st.lists(st.integers(-100, 100), min_size=2, max_size=2).map(lambda values: struct.pack("<2q", *values))
MODELS: dict[str, tuple[tuple[bytes, ...], st.SearchStrategy[list[bytes]]]] = {
    # name: what follows it, and its raw tensors; `models` of test_infer_requests.py has such entries
    "m": ((tensor("x", "FP32", [1, 4]),), floats.map(lambda raw: [raw])),
    "twin": ((tensor("x", "FP32", [1, 4]),), floats.map(lambda raw: [raw])),
    "real": ((tensor("x", "FP32", [2, 4]),), st.tuples(floats, floats).map(lambda rows: [b"".join(rows)])),
    "pair": ((tensor("x", "INT64", [2, 1]), tensor("z", "INT64", [2, 1])), st.lists(integers, min_size=2, max_size=2)),
    "free": ((tensor("x", "FP32", [2, 2]),), floats.map(lambda raw: [raw])),
    "flag": ((tensor("x", "BOOL", [1, 3]),), st.binary(min_size=3, max_size=3).map(lambda raw: [raw])),
    "text": ((tensor("x", "BYTES", [1, 2]),), st.lists(st.binary(max_size=5), min_size=2, max_size=2).map(
        lambda texts: [elements(*texts)]
    )),
}  # fmt: skip

ids = st.one_of(st.text(max_size=5), st.sampled_from(["", "é", "\0", "\U0001f600" * 40, "a" * 200])).map(str.encode)
extras = st.sampled_from([
    parameter("priority", int64_param=0), parameter("priority", int64_param=-1), parameter("timeout", int64_param=9),
    parameter("timeout", bool_param=True), parameter("mine", string_param="t"), parameter("mine", double_param=0.5),
    parameter("triton_x", bool_param=True), parameter("sequence_id", bool_param=True),
    wanted("y"), wanted("nothing"), wanted("y", 2), wanted("y", -1),
    piece(2, b""), piece(2, b"1"), piece(2, b"9"), piece(2, b"x"),
])  # fmt: skip
oddities = st.one_of(
    extras,
    ids.map(lambda text: piece(3, text)),
    st.binary(max_size=4).map(lambda text: piece(3, text)),
    st.tuples(st.sampled_from([1, 2, 3, 4, 5, 6, 7]), st.binary(max_size=20), st.integers(0, 9)).map(
        lambda made: piece(*made)
    ),
    st.sampled_from([
        piece(1, b"m"), piece(1, b"twin"), piece(1, b""), piece(7, b""), piece(7, bytes(16)), piece(7, bytes(4096)),
        tensor("x", "FP32", [1, 4]), tensor("x", "FP32", [1, 4], fp32_contents=[1] * 4), tensor("z", "INT64", [2, 1]),
        tensor("x", "FP8", [-1]), piece(4, b"\x0a\x01k" * 1500), piece(3, b"i" * 100_000),
        # fields that the message does not have, groups, tags and lengths that nobody writes
        piece(8, b"unknown"), piece(20, b""), b"\x08\x01", b"\x3d" + bytes(4), b"\x39" + bytes(8), b"\x1b\x1c", b"\x1b",
        b"\0", b"\x9a\0\x01a", b"\x9a" + b"\x80" * 8 + b"\x01", b"\x3a\xff\xff\xff\xff\x07",
        b"\x3a" + b"\xff" * 9 + b"\x01",
    ]),
)  # fmt: skip


@st.composite
def accepted(draw: st.DrawFn, models: Sequence[str] = tuple(MODELS)) -> list[bytes]:
    """The fields of a request that its model takes, as clients write them."""
    name = draw(st.sampled_from(models))
    fields, raws = MODELS[name]
    request_id = draw(ids)
    return [
        piece(1, name.encode()),
        *([piece(3, request_id)] if request_id else []),
        *fields,
        *(piece(7, raw) for raw in draw(raws)),
    ]


@st.composite
def bodies(draw: st.DrawFn, models: Sequence[str] = tuple(MODELS)) -> bytes:
    """Fields of a request in any order, with others between them, some of them missing, and damaged or not."""
    pieces = draw(accepted(models))
    pieces += draw(st.lists(oddities, max_size=2))
    if draw(st.booleans()):
        pieces = draw(st.permutations(pieces))
    if draw(st.integers(0, 5)) == 0:
        del pieces[draw(st.integers(0, len(pieces) - 1))]
    body = b"".join(pieces)
    return draw(damaged(body)) if draw(st.integers(0, 2)) == 0 else body


@st.composite
def damaged(draw: st.DrawFn, body: bytes) -> bytes:
    start = draw(st.integers(0, len(body)))
    end = draw(st.integers(start, min(len(body), start + 8)))
    new = draw(st.one_of(st.just(b""), st.binary(min_size=1, max_size=2), st.just(body[start:end] * 2)))
    return body[:start] if draw(st.booleans()) else body[:start] + new + body[end:]


# --- what becomes of them ---


def parsed(body: bytes | memoryview) -> Any:
    """The message, or None where protobuf refuses it."""
    try:
        return Request.FromString(body)  # type: ignore[arg-type]
    except DecodeError:
        return None


class Recorded:
    """A call that keeps what it was completed with."""

    deadline_ns: int | None = None

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.gone: Callable[[], None] = lambda: None
        self._answer: Callable[[], Answer] | None = None

    def complete(self, answer: Callable[[], Answer]) -> None:
        assert self._answer is None, "answered twice"
        self._answer = answer
        self.ended.set()

    def on_cancel(self, action: Callable[[], None]) -> None:
        self.gone = action

    def result(self) -> Any:
        """The message, or type and text of the refusal."""
        assert self.ended.wait(10)
        assert self._answer is not None
        try:
            answer = self._answer()
        except ServerError as error:
            return type(error), str(error)
        return service.ModelInferResponse.FromString(answer if isinstance(answer, bytes) else b"".join(answer))


def new_service(catalog: Catalog) -> Service:
    """One that has seen no request yet: it takes the ordinary way for the first."""
    return Service(catalog, "triton", lambda: 1)


def begin(to: Service, body: bytes | memoryview, call: Recorded | None = None) -> Recorded:
    route = to.routes()[PATH]
    assert isinstance(route, Deferred)
    call = call or Recorded()
    route.run(body, call)  # type: ignore[arg-type]  # of a call ModelInfer needs no more
    to.release()
    return call


def ask(to: Service, body: bytes | memoryview) -> Any:
    return begin(to, body).result()
