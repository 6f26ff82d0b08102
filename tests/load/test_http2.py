"""Our own client where grpcio's has nothing to say: what it makes of answers, ends and losses of a raw HTTP/2 server.

That both clients find the same in ordinary cases is `test_tool.py`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import ngh2
import pytest

from tests.load.client import MODEL_INFER
from tests.load.http2 import PREFIX, Http2Connections
from tests.load.virtual import Servicer, serving

HEAD = [(b":status", b"200"), (b"content-type", b"application/grpc")]
OK = [(b"grpc-status", b"0")]
ANSWER = PREFIX.pack(0, 3) + b"abc"


class Raw(asyncio.Protocol):
    """A server of HTTP/2 that hands each whole request to `script`."""

    def __init__(self, script: Script) -> None:
        self.http2 = ngh2.Connection(ngh2.Role.SERVER, ngh2.Configuration())
        self.script = script
        self.requests: dict[int, tuple[dict[bytes, bytes], bytes]] = {}
        self.ended: list[int] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.script.connections.append(self)
        self.http2.initiate_connection({})
        self.flush()

    def data_received(self, data: bytes) -> None:
        self.http2.receive_data(data)
        for event in self.http2.events():
            match event:
                case ngh2.RequestReceived():
                    self.requests[event.stream_id] = (dict(event.headers), b"")
                case ngh2.DataReceived():
                    headers, body = self.requests[event.stream_id]
                    self.requests[event.stream_id] = (headers, body + event.data)
                    if event.end_stream:
                        self.script.on_request(self, event.stream_id)
                case ngh2.StreamReset():
                    self.ended.append(event.error_code)
                    self.script.reset.set()
        self.flush()

    def flush(self) -> None:
        self.transport.write(self.http2.data_to_send())

    def answer(self, stream: int, body: bytes = ANSWER, trailers: list[tuple[bytes, bytes]] = OK) -> None:
        self.http2.send_response(stream, HEAD)
        self.http2.send_data(stream, body)
        self.http2.send_trailers(stream, trailers)


class Script:
    def __init__(self, on_request: Callable[[Raw, int], None]) -> None:
        self.on_request = on_request
        self.connections: list[Raw] = []
        self.reset = asyncio.Event()


@asynccontextmanager
async def raw(on_request: Callable[[Raw, int], None]) -> AsyncIterator[tuple[Script, str]]:
    script = Script(on_request)
    server = await asyncio.get_running_loop().create_server(lambda: Raw(script), "127.0.0.1", 0)
    try:
        yield script, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for connection in script.connections:
            connection.transport.close()


def ask(on_request: Callable[[Raw, int], None], *, times: int = 1, timeout_s: float = 60.0) -> list[str | None]:
    async def main() -> list[str | None]:
        async with raw(on_request) as (_, url), Http2Connections(url, 1, timeout_s) as connections:
            send = connections.call([b"request"])
            return [await send(number) for number in range(times)]

    return asyncio.run(main())


def trailers_only(headers: list[tuple[bytes, bytes]]) -> Callable[[Raw, int], None]:
    return lambda link, stream: link.http2.send_response(stream, [*HEAD, *headers], end_stream=True)


def trailers(*headers: tuple[bytes, bytes]) -> Callable[[Raw, int], None]:
    return lambda link, stream: link.answer(stream, trailers=list(headers))


def body(data: bytes) -> Callable[[Raw, int], None]:
    return lambda link, stream: link.answer(stream, data)


def without_trailers(link: Raw, stream: int) -> None:
    link.http2.send_response(stream, HEAD)
    link.http2.send_data(stream, ANSWER, end_stream=True)


def reset(code: int) -> Callable[[Raw, int], None]:
    return lambda link, stream: link.http2.reset_stream(stream, code)


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        (body(ANSWER), None),
        (body(PREFIX.pack(0, 0)), None),
        (body(PREFIX.pack(0, 1 << 22) + bytes(1 << 22)), None),
        (body(PREFIX.pack(0, 9) + b"abc"), "INTERNAL: the answer's 8 bytes are not one message"),
        (body(ANSWER + ANSWER), "INTERNAL: the answer's 16 bytes are not one message"),
        (body(b"\0\0"), "INTERNAL: the answer's 2 bytes are not one message"),
        (trailers_only(OK), "INTERNAL: the answer's 0 bytes are not one message"),
        (trailers_only([(b"grpc-status", b"8"), (b"grpc-message", b"a%20b%0A%C3%A9")]), "RESOURCE_EXHAUSTED: a b é"),
        (trailers((b"grpc-status", b"13"), (b"grpc-message", b"100%")), "INTERNAL: 100%"),
        (trailers((b"grpc-status", b"99")), "UNKNOWN: "),
        (trailers((b"other", b"1")), "UNKNOWN: the answer has no gRPC status"),
        (without_trailers, "UNKNOWN: the answer has no gRPC status"),
        (reset(ngh2.ErrorCode.REFUSED_STREAM), "UNAVAILABLE: the server ended the call with HTTP/2 code 7"),
        (reset(ngh2.ErrorCode.ENHANCE_YOUR_CALM), "RESOURCE_EXHAUSTED: the server ended the call with HTTP/2 code 11"),
        (reset(77), "INTERNAL: the server ended the call with HTTP/2 code 77"),
        (lambda link, stream: link.transport.abort(), "UNAVAILABLE: the connection was lost"),
        (lambda link, stream: link.transport.write(b"\xff" * 64), "INTERNAL: the connection ended with HTTP/2 code"),
    ],
)
def test_only_one_whole_message_with_status_ok_is_an_answer(
    answer: Callable[[Raw, int], None], found: str | None
) -> None:
    text = ask(answer)[0]
    assert text == found or (found is not None and text is not None and text.startswith(found))


def test_a_lost_connection_is_made_anew() -> None:
    def every_other(link: Raw, stream: int) -> None:
        if stream > 1:
            link.transport.abort()
        else:
            link.answer(stream)

    lost = ask(every_other, times=6)
    assert lost[::2] == [None] * 3
    assert all(text is not None and text.startswith("UNAVAILABLE") for text in lost[1::2])


def test_after_goaway_the_accepted_are_answered_and_the_next_go_to_a_new_connection() -> None:
    async def main() -> None:
        def leave(link: Raw, stream: int) -> None:
            link.http2.send_goaway(last_stream_id=stream)
            link.answer(stream)

        async with raw(leave) as (script, url), Http2Connections(url, 1, 60.0) as connections:
            send = connections.call([b"request"])
            assert [await send(number) for number in range(3)] == [None] * 3
            assert len(script.connections) == 3

    asyncio.run(main())


def test_the_request_is_what_grpc_asks_for() -> None:
    async def main() -> None:
        async with raw(Raw.answer) as (script, url), Http2Connections(url, 1, 0.5) as connections:
            assert await connections.call([b"message"])(0) is None
            headers, sent = script.connections[0].requests[1]
            assert sent == PREFIX.pack(0, 7) + b"message"
            assert headers[b":path"] == MODEL_INFER.encode()
            assert headers[b"grpc-timeout"] == b"500000u"
            assert (headers[b"te"], headers[b"content-type"]) == (b"trailers", b"application/grpc")

    asyncio.run(main())


@pytest.mark.parametrize("end", ["timeout", "cancel"])
def test_a_call_given_up_is_reset_and_the_connection_goes_on(end: str) -> None:
    async def main() -> None:
        def only_third(link: Raw, stream: int) -> None:
            if stream > 3:
                link.answer(stream)

        timeout_s = 0.05 if end == "timeout" else 60.0
        async with raw(only_third) as (script, url), Http2Connections(url, 1, timeout_s) as connections:
            send = connections.call([b"request"])
            calls = [asyncio.ensure_future(send(number)) for number in range(2)]
            if end == "cancel":
                while not (script.connections and len(script.connections[0].requests) == 2):
                    await asyncio.sleep(0)
                for call in calls:
                    call.cancel()
                assert all(
                    isinstance(gone, asyncio.CancelledError)
                    for gone in await asyncio.gather(*calls, return_exceptions=True)
                )
            else:
                assert [await call for call in calls] == ["DEADLINE_EXCEEDED: Deadline Exceeded"] * 2
            await script.reset.wait()
            assert await send(2) is None
            assert set(script.connections[0].ended) == {ngh2.ErrorCode.CANCEL}
            assert len(script.connections) == 1

    asyncio.run(main())


def test_a_server_that_went_is_an_error_of_each_request() -> None:
    async def main() -> None:
        async with raw(Raw.answer) as (_, url):
            pass
        async with Http2Connections(url, 1, 60.0) as connections:
            send = connections.call([b"request"])
            found = await asyncio.gather(*(send(number) for number in range(3)))
        assert all(text is not None and text.startswith("UNAVAILABLE: failed to connect") for text in found)

    asyncio.run(main())


def test_requests_beyond_the_streams_a_server_allows_wait_for_their_turn() -> None:
    async def main() -> None:
        class Few(Raw):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport
                self.script.connections.append(self)
                self.http2.initiate_connection({ngh2.Setting.MAX_CONCURRENT_STREAMS: 2})
                self.flush()

        script = Script(Raw.answer)
        server = await asyncio.get_running_loop().create_server(lambda: Few(script), "127.0.0.1", 0)
        url = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        async with server, Http2Connections(url, 1, 60.0) as connections:
            send = connections.call([b"request"])
            assert await asyncio.gather(*(send(number) for number in range(40))) == [None] * 40
            assert len(script.connections) == 1

    asyncio.run(main())


def test_large_requests_cross_and_unix_sockets_are_servers_too(tmp_path: Path) -> None:
    async def main() -> None:
        servicer = Servicer()
        async with serving(servicer, f"unix:{tmp_path}/socket") as url:
            request = b"\x3a" + b"\x80\x80\xc0\x01" + bytes(3 << 20)  # field 7, raw_input_contents, of 3 MiB
            async with Http2Connections(url, 2, 60.0) as connections:
                send = connections.call([request])
                assert await asyncio.gather(*(send(number) for number in range(4))) == [None] * 4
        assert [len(one.raw_input_contents[0]) for one in servicer.requests] == [3 << 20] * 4

    asyncio.run(main())


def test_grpcios_statuses_have_their_names() -> None:
    for status in grpc.StatusCode:
        if status is grpc.StatusCode.OK:
            continue
        number = str(status.value[0]).encode()
        assert ask(trailers_only([(b"grpc-status", number)])) == [f"{status.name}: "]
