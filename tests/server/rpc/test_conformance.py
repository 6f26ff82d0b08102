"""gRPC's interop cases (grpc/grpc: doc/interop-test-descriptions.md) by grpcio's client, over both transports.

Not here: the cases of credentials, and `cacheable_unary`, which needs a proxy.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from queue import SimpleQueue
from typing import Any

import grpc
import grpc.aio
import pytest

from server.errors import InvalidRequest
from server.rpc.limits import Limits
from server.rpc.status import TEXT_LIMIT, text_of
from tests.server.rpc.interop import messages as m
from tests.server.rpc.interop.service import ECHO_INITIAL, ECHO_TRAILING, SERVICE, routes, with_unknown
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import WAIT, Served, StandIn, refused, serving

REQUEST_SIZE, RESPONSE_SIZE = 271828, 314159
SIZES = ((27182, 31415), (8, 9), (1828, 2653), (45904, 58979))
"""Of the streaming cases: payload sent, payload asked for."""


@pytest.fixture(scope="module")
def service(kind: str) -> Iterator[Served]:
    with serving(kind, StandIn(routes()), Limits(compression=True)) as found:
        yield found


@pytest.fixture(scope="module")
def channel(service: Served) -> Iterator[grpc.Channel]:
    with service.channel() as found:
        yield found


def unary_stub(channel: Any, method: str, answer: Any) -> Any:
    return channel.unary_unary(
        SERVICE + method, request_serializer=lambda r: r.SerializeToString(), response_deserializer=answer.FromString
    )


def stream_stub(channel: Any, kind: str, method: str, answer: Any) -> Any:
    return getattr(channel, kind)(
        SERVICE + method, request_serializer=lambda r: r.SerializeToString(), response_deserializer=answer.FromString
    )


def full_duplex(channel: Any) -> Any:
    return stream_stub(channel, "stream_stream", "FullDuplexCall", m.StreamingOutputCallResponse)


def output_request(payload: int, *sizes: int) -> Any:
    parameters = [m.ResponseParameters(size=size) for size in sizes]
    return m.StreamingOutputCallRequest(response_parameters=parameters, payload=m.Payload(body=bytes(payload)))


def large_request(**more: Any) -> Any:
    return m.SimpleRequest(response_size=RESPONSE_SIZE, payload=m.Payload(body=bytes(REQUEST_SIZE)), **more)


LARGE_RESPONSE = m.SimpleResponse(payload=m.Payload(body=bytes(RESPONSE_SIZE)))


def test_empty_unary(channel: grpc.Channel) -> None:
    assert unary_stub(channel, "EmptyCall", m.Empty)(m.Empty(), timeout=WAIT) == m.Empty()


def test_large_unary(channel: grpc.Channel) -> None:
    assert unary_stub(channel, "UnaryCall", m.SimpleResponse)(large_request(), timeout=WAIT) == LARGE_RESPONSE


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_client_compressed_unary(channel: grpc.Channel, algorithm: grpc.Compression) -> None:
    """Without the probe: handlers do not learn whether a message came compressed, so none can insist on it."""
    call = unary_stub(channel, "UnaryCall", m.SimpleResponse)
    assert call(large_request(), timeout=WAIT, compression=algorithm) == LARGE_RESPONSE
    assert call(large_request(), timeout=WAIT) == LARGE_RESPONSE


def test_server_compressed_unary(service: Served) -> None:
    """The server never compresses, which `grpc-accept-encoding` only allows and does not demand."""
    request = large_request(response_compressed=m.BoolValue(value=True)).SerializeToString()
    with raw(service) as client:
        fields = [("grpc-accept-encoding", "identity,deflate,gzip")]
        answer = client.answer(client.request(SERVICE + "UnaryCall", framed(request), fields=fields))
    assert answer.body[0] == 0
    assert m.SimpleResponse.FromString(answer.messages[0]) == LARGE_RESPONSE


def test_client_streaming(channel: grpc.Channel) -> None:
    call = stream_stub(channel, "stream_unary", "StreamingInputCall", m.StreamingInputCallResponse)
    requests = [m.StreamingInputCallRequest(payload=m.Payload(body=bytes(size))) for size, _ in SIZES]
    assert call(iter(requests), timeout=WAIT).aggregated_payload_size == 74922


def test_client_compressed_streaming(channel: grpc.Channel) -> None:
    call = stream_stub(channel, "stream_unary", "StreamingInputCall", m.StreamingInputCallResponse)
    requests = [m.StreamingInputCallRequest(payload=m.Payload(body=bytes(size))) for size in (27182, 45904)]
    answer = call(iter(requests), timeout=WAIT, compression=grpc.Compression.Gzip)
    assert answer.aggregated_payload_size == 73086


def test_server_streaming(channel: grpc.Channel) -> None:
    call = stream_stub(channel, "unary_stream", "StreamingOutputCall", m.StreamingOutputCallResponse)
    sizes = [asked for _, asked in SIZES]
    answers = call(output_request(0, *sizes), timeout=WAIT)
    assert [len(answer.payload.body) for answer in answers] == sizes


def test_ping_pong(channel: grpc.Channel) -> None:
    requests: SimpleQueue[Any] = SimpleQueue()
    answers = full_duplex(channel)(iter(requests.get, None), timeout=WAIT)
    for sent, asked in SIZES:
        requests.put(output_request(sent, asked))
        assert len(next(answers).payload.body) == asked
    requests.put(None)
    assert list(answers) == []
    assert answers.code() is grpc.StatusCode.OK


def test_empty_stream(channel: grpc.Channel) -> None:
    assert list(full_duplex(channel)(iter(()), timeout=WAIT)) == []


METADATA = ((ECHO_INITIAL, "test_initial_metadata_value"), (ECHO_TRAILING, b"\xab\xab\xab"))


def test_custom_metadata(channel: grpc.Channel) -> None:
    answer, call = unary_stub(channel, "UnaryCall", m.SimpleResponse).with_call(
        large_request(), metadata=METADATA, timeout=WAIT
    )
    assert answer == LARGE_RESPONSE
    stream = full_duplex(channel)(iter([output_request(REQUEST_SIZE, RESPONSE_SIZE)]), metadata=METADATA, timeout=WAIT)
    assert len(next(stream).payload.body) == RESPONSE_SIZE
    assert list(stream) == []
    for done in (call, stream):
        assert METADATA[0] in tuple(done.initial_metadata())
        assert METADATA[1] in tuple(done.trailing_metadata())


def test_custom_metadata_comes_with_errors_too(channel: grpc.Channel) -> None:
    request = m.SimpleRequest(response_status=m.EchoStatus(code=5, message="gone"))
    call = unary_stub(channel, "UnaryCall", m.SimpleResponse).future(request, metadata=METADATA, timeout=WAIT)
    assert call.exception(WAIT).code() is grpc.StatusCode.NOT_FOUND
    assert METADATA[0] in tuple(call.initial_metadata())
    assert METADATA[1] in tuple(call.trailing_metadata())


def asked_status(channel: grpc.Channel, code: int, text: str) -> list[tuple[grpc.StatusCode, str]]:
    """What a unary call and a stream end with that ask for a status."""
    wanted = m.EchoStatus(code=code, message=text)
    unary = unary_stub(channel, "UnaryCall", m.SimpleResponse)
    stream = full_duplex(channel)
    return [
        refused(lambda: unary(m.SimpleRequest(response_status=wanted), timeout=WAIT)),
        refused(lambda: list(stream(iter([m.StreamingOutputCallRequest(response_status=wanted)]), timeout=WAIT))),
    ]


def test_status_code_and_message(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch) -> None:
    with_unknown(monkeypatch)
    for found in asked_status(channel, 2, "test status message"):
        assert found == (grpc.StatusCode.UNKNOWN, "test status message")


@pytest.mark.parametrize("code", [1, 3, 4, 5, 6, 8, 12, 13, 14])
def test_every_status_of_the_server_arrives(channel: grpc.Channel, code: int) -> None:
    for found, text in asked_status(channel, code, f"number {code}"):
        assert (found.value[0], text) == (code, f"number {code}")


SPECIAL = "\t\ntest with whitespace\r\nand Unicode BMP ☺ and non-BMP 😈\t\n"


@pytest.mark.parametrize(
    "text",
    [
        SPECIAL,
        "100 % of %41 and %",
        "ends in %e",
        "é",
        " spaces ",
        "a" * TEXT_LIMIT,
        "☺" * TEXT_LIMIT,
        "%" * TEXT_LIMIT,
    ],
)
def test_special_status_message(channel: grpc.Channel, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Control characters come escaped, as in the server's log, and what is long is cut; all else comes as it is."""
    with_unknown(monkeypatch)
    for found in asked_status(channel, 2, text):
        assert found == (grpc.StatusCode.UNKNOWN, text_of(InvalidRequest(text)))


def test_unimplemented_method(channel: grpc.Channel) -> None:
    call = unary_stub(channel, "UnimplementedCall", m.Empty)
    assert refused(lambda: call(m.Empty(), timeout=WAIT))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_unimplemented_service(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/grpc.testing.UnimplementedService/UnimplementedCall")
    assert refused(lambda: call(b"", timeout=WAIT))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_cancel_after_begin(channel: grpc.Channel) -> None:
    call = stream_stub(channel, "stream_unary", "StreamingInputCall", m.StreamingInputCallResponse)
    requests: SimpleQueue[Any] = SimpleQueue()
    begun = call.future(iter(requests.get, None), timeout=WAIT)
    begun.cancel()
    requests.put(None)
    assert begun.cancelled()
    assert begun.code() is grpc.StatusCode.CANCELLED


def test_cancel_after_first_response(channel: grpc.Channel) -> None:
    call = full_duplex(channel)(iter([output_request(27182, 31415)]), timeout=WAIT)
    assert len(next(call).payload.body) == 31415
    if call.cancel():  # else the server has ended it meanwhile, as it must when the client sends no more
        assert call.code() is grpc.StatusCode.CANCELLED


def test_timeout_on_sleeping_server(channel: grpc.Channel) -> None:
    requests: SimpleQueue[Any] = SimpleQueue()
    requests.put(output_request(27182))
    answers = full_duplex(channel)(iter(requests.get, None), timeout=0.001)
    assert refused(lambda: next(answers))[0] is grpc.StatusCode.DEADLINE_EXCEEDED
    requests.put(None)


def test_concurrent_large_unary_by_the_aio_client(service: Served) -> None:
    """In fewer calls than the thousand of the description, which here would carry 600 MB."""

    async def main() -> list[Any]:
        async with grpc.aio.insecure_channel(service.url) as channel:
            call = unary_stub(channel, "UnaryCall", m.SimpleResponse)
            return await asyncio.gather(*(call(large_request(), timeout=WAIT) for _ in range(64)))

    assert asyncio.run(main()) == [LARGE_RESPONSE] * 64


def test_many_calls_at_once_on_one_channel(service: Served) -> None:
    """More than a connection may have open: the client waits for its turn, and every call is answered with its own."""

    async def one(call: Any, size: int) -> bool:
        answer = await call(m.SimpleRequest(response_size=size), timeout=WAIT)
        return len(answer.payload.body) == size

    # grpcio's server cancels what waits for its handler beyond 1,000 calls (grpc.server.max_pending_requests)
    calls = 2000 if service.kind == "http2" else 800

    async def main() -> list[bool]:
        async with grpc.aio.insecure_channel(service.url) as channel:
            call = unary_stub(channel, "UnaryCall", m.SimpleResponse)
            return await asyncio.gather(*(one(call, size) for size in range(calls)))

    assert all(asyncio.run(main()))


def test_ping_pong_by_the_aio_client(service: Served) -> None:
    async def main() -> list[int]:
        async with grpc.aio.insecure_channel(service.url) as channel:
            call, got = full_duplex(channel)(timeout=WAIT), []
            for sent, asked in SIZES:
                await call.write(output_request(sent, asked))
                got.append(len((await call.read()).payload.body))
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
            assert await call.code() is grpc.StatusCode.OK
            return got

    assert asyncio.run(main()) == [asked for _, asked in SIZES]
