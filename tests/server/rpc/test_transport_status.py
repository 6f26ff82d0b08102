"""What a call ends with that is not as it should be, byte for byte, over both transports."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest

from server.rpc.limits import Limits
from server.rpc.status import Code
from tests.server.rpc.raw import Answered, framed, prefix, raw, value
from tests.server.rpc.transports import KINDS, Served, StandIn, refused, serving, unary

MOST = 4096
DEFECT = "internal error, see the server's log"


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "compression"])
def compression(request: pytest.FixtureRequest) -> bool:
    found: bool = request.param
    return found


@pytest.fixture(scope="module")
def small(kind: str, compression: bool) -> Iterator[Served]:
    with serving(kind, StandIn(), Limits(message_bytes=MOST, compression=compression)) as found:
        yield found


def asked(served: Served, name: str, body: bytes, **options: Any) -> Answered:
    with raw(served) as client:
        return client.answer(client.request(name, body, **options))


@dataclass(frozen=True)
class Case:
    """`status` of our own transport; grpcio's where it differs, and how."""

    id: str
    status: Code
    body: bytes = framed(b"x")
    name: str = "deferred"
    options: dict[str, Any] = field(default_factory=dict)
    grpcio: Code | None = None


def timeout(text: str) -> dict[str, Any]:
    return {"fields": [("grpc-timeout", text)]}


def encoding(name: str) -> dict[str, Any]:
    return {"fields": [("grpc-encoding", name)]}


# grpcio waits for the rest of a truncated message, and for the first one, although the client will send no more: only a
# deadline ends such a call
HUNG = timeout("200m")
CASES = (
    Case("unknown path", Code.UNIMPLEMENTED, name="nobody"),
    Case("another spelling", Code.UNIMPLEMENTED, name="/test.Service/Deferred"),
    Case("a path below", Code.UNIMPLEMENTED, name="/test.Service/deferred/"),
    Case("known and not there", Code.UNIMPLEMENTED, name="nothing"),
    Case("one more byte than allowed", Code.RESOURCE_EXHAUSTED, framed(bytes(MOST + 1))),
    Case("truncated message", Code.INTERNAL, prefix(10) + b"abc", options=HUNG, grpcio=Code.DEADLINE_EXCEEDED),
    Case("truncated prefix", Code.INTERNAL, b"\0\0", options=HUNG, grpcio=Code.DEADLINE_EXCEEDED),
    Case("no message", Code.UNIMPLEMENTED, b"", options=HUNG, grpcio=Code.DEADLINE_EXCEEDED),
    Case("two messages", Code.UNIMPLEMENTED, framed(b"a") + framed(b"b"), grpcio=Code.OK),  # it takes the first
    Case("a message and a half", Code.INTERNAL, framed(b"a") + b"\0\0", grpcio=Code.OK),
    Case("compressed and no encoding", Code.INTERNAL, framed(b"x", 1)),
    Case("compressed as identity", Code.INTERNAL, framed(b"x", 1), options=encoding("identity")),
    Case("unknown encoding", Code.UNIMPLEMENTED, options=encoding("snappy"), grpcio=Code.INTERNAL),
    Case("defect", Code.INTERNAL, name="defect"),
    Case("defect in a thread", Code.INTERNAL, name="slow_defect"),
    Case("defect of a deferred call", Code.INTERNAL, name="deferred_defect"),
    Case("defect of its answer", Code.INTERNAL, name="answer_defect"),
    Case("defect of a stream", Code.INTERNAL, name="stream_defect"),
    Case("timeout not a number", Code.INVALID_ARGUMENT, options=timeout("abc"), grpcio=Code.INTERNAL),
    Case("timeout without unit", Code.INVALID_ARGUMENT, options=timeout("10"), grpcio=Code.INTERNAL),
    Case("timeout negative", Code.INVALID_ARGUMENT, options=timeout("-1S"), grpcio=Code.INTERNAL),
    # the protocol allows eight digits
    Case("timeout too long", Code.INVALID_ARGUMENT, options=timeout("123456789S"), grpcio=Code.OK),
    Case("timeout of 11,000 years", Code.OK, options=timeout("99999999H")),
    Case("no user agent, any authority", Code.OK, options={"replaced": {b":authority": b"a.b:1"}}),
    Case("content type of protobuf", Code.OK, options={"replaced": {b"content-type": b"application/grpc+proto"}}),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_a_call_ends_with_its_exact_status(small: Served, case: Case) -> None:
    answer = asked(small, case.name, case.body, **case.options)
    expected = case.status if small.kind == "http2" or case.grpcio is None else case.grpcio
    assert (answer.http, answer.status) == ("200", expected), answer.text
    assert answer.trailers_only == (expected is not Code.OK)
    assert value(answer.head, "content-type") == "application/grpc"


@pytest.mark.parametrize("name", ["defect", "slow_defect", "deferred_defect", "answer_defect", "stream_defect"])
def test_a_defect_tells_the_client_nothing_of_the_server(shared: Served, name: str) -> None:
    assert asked(shared, name, framed(b"x")).text == DEFECT


@pytest.mark.parametrize("name", ["missing", "deferred_missing"])
def test_an_error_of_a_handler_arrives_with_its_text(shared: Served, name: str) -> None:
    answer = asked(shared, name, framed("50 % of é".encode()))
    assert (answer.status, answer.text) == (Code.NOT_FOUND, "50 % of é")
    assert value(answer.head, "grpc-message").isascii(), "percent-encoded"


def test_what_is_no_call_of_grpc_gets_a_status_of_http(own: Served) -> None:
    """grpcio resets such streams, or answers them."""
    for replaced, status in (
        ({b":method": b"GET"}, "405"),
        ({b":method": b"PUT"}, "405"),
        ({b"content-type": b"application/json"}, "415"),
        ({b"content-type": b"application/grpc-web+proto"}, "415"),
        ({b"content-type": b""}, "415"),
    ):
        assert asked(own, "quick", framed(b"x"), replaced=replaced).http == status
    assert asked(own, "quick", framed(b"x"), without="content-type").http == "415"


def test_a_client_without_te_is_answered(own: Served) -> None:
    """The header only finds out proxies; h2load does not send it. grpcio resets the stream."""
    assert asked(own, "quick", framed(b"x"), without="te").status == Code.OK


@pytest.mark.parametrize("name", ["stream", "deferred"])
def test_a_message_too_large_is_refused_before_it_is_sent(small: Served, name: str) -> None:
    with raw(small) as client:
        answer = client.answer(client.request(name, prefix(MOST + 1), end=False))
    text = f"Received message larger than max ({MOST + 1} vs. {MOST})"
    assert (answer.status, answer.text.removeprefix("SERVER: ")) == (Code.RESOURCE_EXHAUSTED, text)


def test_a_message_of_four_gigabytes_is_refused_before_it_is_sent(shared: Served) -> None:
    with raw(shared) as client:
        assert (
            client.answer(client.request("quick", prefix((1 << 32) - 1), end=False)).status == Code.RESOURCE_EXHAUSTED
        )


def test_the_largest_message_allowed_is_taken(small: Served) -> None:
    assert asked(small, "quick", framed(bytes(MOST))).messages == [bytes(MOST)]
    assert asked(small, "stream", framed(bytes(MOST)) * 3).messages == [bytes(MOST)] * 3


def test_after_a_refusal_the_client_is_told_to_stop_sending(own: Served) -> None:
    """What it still sends meanwhile is dropped, and the connection goes on."""
    with raw(own) as client:
        for _ in range(20):
            stream = client.request("quick", prefix((1 << 32) - 1), end=False)
            client.send(stream, bytes(60000))
            assert client.answer(stream).status == Code.RESOURCE_EXHAUSTED
            client.pump(lambda stream=stream: client.answers[stream].reset == 0)  # type: ignore[misc]
        assert client.call("quick", b"x").messages == [b"x"]


def test_after_a_whole_request_nothing_is_reset(shared: Served) -> None:
    with raw(shared) as client:
        for name in ("missing", "nobody", "nothing", "deferred_missing", "stream_defect"):
            stream = client.request(name, framed(b"x"))
            assert client.answer(stream).status != Code.OK
            client.ping()
            assert client.answers[stream].reset is None, name
        assert not [event for event in client.events if type(event).__name__ == "StreamReset"]


# --- compression ---


def test_compressed_messages_are_refused_unless_allowed(small: Served, compression: bool) -> None:
    with small.channel() as channel:
        for algorithm in (grpc.Compression.Gzip, grpc.Compression.Deflate):
            if compression:
                assert unary(channel, "quick", bytes(1000), compression=algorithm) == bytes(1000)
            else:
                code, _ = refused(lambda a=algorithm: unary(channel, "quick", bytes(1000), compression=a))  # type: ignore[misc]
                assert code is grpc.StatusCode.UNIMPLEMENTED
        assert unary(channel, "quick", b"x") == b"x"


def test_a_refused_encoding_comes_with_those_that_are_taken(own: Served) -> None:
    for limits, allowed in ((Limits(), "identity"), (Limits(compression=True), "identity,deflate,gzip")):
        with serving("http2", StandIn(), limits) as served:
            answer = asked(served, "quick", framed(b"x", 1), **encoding("snappy"))
        assert (answer.status, value(answer.head, "grpc-accept-encoding")) == (Code.UNIMPLEMENTED, allowed)


GZIP = encoding("gzip")


@pytest.fixture(scope="module", params=KINDS)
def expanding(request: pytest.FixtureRequest) -> Iterator[Served]:
    with serving(request.param, StandIn(), Limits(message_bytes=MOST, compression=True)) as found:
        yield found


def test_a_compressed_message_may_be_as_large_as_a_plain_one(expanding: Served) -> None:
    assert asked(expanding, "quick", framed(gzip.compress(bytes(MOST)), 1), **GZIP).messages == [bytes(MOST)]
    answer = asked(expanding, "quick", framed(gzip.compress(bytes(MOST + 1)), 1), **GZIP)
    assert answer.status == Code.RESOURCE_EXHAUSTED


def test_a_call_with_an_encoding_may_have_plain_messages_too(expanding: Served) -> None:
    body = framed(b"a") + framed(gzip.compress(b"b"), 1) + framed(b"c")
    assert asked(expanding, "stream", body, **GZIP).messages == [b"a", b"b", b"c"]


@pytest.mark.parametrize(
    "body",
    [
        b"x", bytes(100), gzip.compress(b"x" * 100)[:-1], gzip.compress(b"x" * 100)[:-9], gzip.compress(b"x")[:10],
        gzip.compress(b"x") + b"more", gzip.compress(b"x") * 2,
    ],
    ids=["no gzip", "zeros", "checksum cut", "data cut", "header only", "more behind it", "twice"],
)  # fmt: skip
def test_what_is_no_whole_gzip_is_refused(expanding: Served, body: bytes) -> None:
    answer = asked(expanding, "quick", framed(body, 1), **GZIP)
    assert answer.status == (Code.INVALID_ARGUMENT if expanding.kind == "http2" else Code.INTERNAL)
    assert asked(expanding, "quick", framed(b"x")).messages == [b"x"]
