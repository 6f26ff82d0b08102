"""Requests over HTTP/2 connections of our own: to a server what grpcio's client is, at a fraction of its cost.

ngh2 (libnghttp2 without I/O) makes and reads the frames, asyncio's transports carry the bytes; whatever is sent in one
turn of the event loop leaves in one write. Measured with the MLP of `tests/bench/tiny.py` (3 KB there, 100 bytes back)
on two cores shared with its server, in client microseconds of processor time per request with 1, 8 and 64 in flight:
111, 31, 25, where grpc.aio takes 317, 157, 130. An answer is looked at as far as its gRPC prefix, and not parsed.
"""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import unquote

import grpc
import ngh2

from tests.load.client import MODEL_INFER, endpoint, failure
from tests.load.loops import Call

PREFIX = struct.Struct(">BI")
"""Before a message: whether it is compressed, and its length (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md)."""
STATUS_NAMES = {str(status.value[0]).encode(): status.name for status in grpc.StatusCode}
OK = grpc.StatusCode.OK.name
# The same page's table; all other codes of HTTP/2 are INTERNAL.
RESET_STATUS: dict[int, str] = {
    ngh2.ErrorCode.REFUSED_STREAM: "UNAVAILABLE",
    ngh2.ErrorCode.CANCEL: "CANCELLED",
    ngh2.ErrorCode.ENHANCE_YOUR_CALM: "RESOURCE_EXHAUSTED",
    ngh2.ErrorCode.INADEQUATE_SECURITY: "PERMISSION_DENIED",
}
TOO_LATE = "DEADLINE_EXCEEDED", "Deadline Exceeded"
Headers = Sequence[tuple[bytes, bytes]]
STREAM_WINDOW, CONNECTION_WINDOW = 16 << 20, 1 << 30
"""What a server may send before it hears from us: nobody is slower here than the server that is measured."""
MAX_TIMEOUT = 99_999_999
"""In any unit: gRPC's timeouts have at most eight digits."""


class Http2Connections:
    """See `client.Connections`. Each is made when it is first needed, and anew when it has gone."""

    def __init__(self, url: str, count: int, timeout_s: float) -> None:
        self._channels = [_Channel(url, timeout_s) for _ in range(count)]

    async def __aenter__(self) -> Http2Connections:
        return self

    async def __aexit__(self, *_: object) -> None:
        for channel in self._channels:
            channel.close()

    def call(self, requests: Sequence[bytes]) -> Call:
        bodies = [PREFIX.pack(0, len(request)) + request for request in requests]
        channels, count, pool = self._channels, len(self._channels), len(bodies)

        async def send(number: int) -> str | None:
            return await channels[number % count].send(bodies[number % pool])

        return send


class _Channel:
    """One connection at a time to one server."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self._endpoint = endpoint(url)
        self._timeout_s = timeout_s
        self._connecting = asyncio.Lock()
        self._link: _Link | None = None
        self._head = (
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", MODEL_INFER.encode()),
            (b":authority", b"localhost" if isinstance(self._endpoint, str) else url.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            (b"grpc-timeout", _timeout(timeout_s)),
        )

    async def send(self, body: bytes) -> str | None:
        link = self._link
        if link is None or not link.open:
            try:
                async with asyncio.timeout(self._timeout_s), self._connecting:
                    link = await self._connected()
            except TimeoutError:
                return failure(*TOO_LATE)
            except OSError as error:
                return failure("UNAVAILABLE", f"failed to connect: {error.strerror or error}")
        return await link.call(self._head, body)

    def close(self) -> None:
        if self._link is not None:
            self._link.close()

    async def _connected(self) -> _Link:
        if self._link is None or not self._link.open:
            loop = asyncio.get_running_loop()
            if isinstance(self._endpoint, str):
                _, self._link = await loop.create_unix_connection(lambda: _Link(self._timeout_s), self._endpoint)
            else:
                _, self._link = await loop.create_connection(lambda: _Link(self._timeout_s), *self._endpoint)
        return self._link


def _timeout(seconds: float) -> bytes:
    for unit, each in ((b"u", 1e6), (b"m", 1e3), (b"S", 1)):
        if seconds * each <= MAX_TIMEOUT:
            return b"%d%s" % (math.ceil(seconds * each), unit)
    return b"%dS" % MAX_TIMEOUT


@dataclass(slots=True, eq=False)
class _Pending:
    """A call that is not answered yet; `start` is what has come of its answer, as far as the prefix at least."""

    answered: asyncio.Future[str | None]
    due: float
    start: bytes = b""
    size: int = 0


class _Link(asyncio.Protocol):
    """One connection, from its first byte to its last."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
        self._timeout_s = timeout_s
        self._calls: dict[int, _Pending] = {}
        """By stream, in the order of their due times, since all have the same timeout."""
        self._flushing = False
        self.open = True

    def close(self) -> None:
        self.open = False
        self._transport.close()

    async def call(self, head: Headers, body: bytes) -> str | None:
        http2 = self._http2
        try:
            stream = http2.send_request(head)
            http2.send_data(stream, body, end_stream=True)
        except ngh2.NGH2Error as error:
            self.open = False
            return failure("UNAVAILABLE", f"the connection takes no more calls: {error}")
        call = _Pending(self._loop.create_future(), self._loop.time() + self._timeout_s)
        self._calls[stream] = call
        self._flush_soon()
        try:
            return await call.answered
        except asyncio.CancelledError:
            if self._calls.pop(stream, None) is not None:
                self._reset(stream)
            raise

    # --- asyncio's side ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        setting = ngh2.Setting
        settings = {setting.ENABLE_PUSH: 0, setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW, setting.MAX_FRAME_SIZE: 1 << 20}
        self._http2.initiate_connection(settings)
        self._http2.set_local_window_size(CONNECTION_WINDOW)
        self._flush()
        self._timer = self._loop.call_later(self._timeout_s, self._expire)

    def data_received(self, data: bytes) -> None:
        try:
            self._http2.receive_data(data)
        except ngh2.NGH2Error as error:
            self._fail("INTERNAL", f"HTTP/2: {error}")
            return
        self._take_events()
        # Behind the calls that were answered here: each sends its next before this runs.
        self._flush_soon()

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()
        self._fail("UNAVAILABLE", f"the connection was lost: {error or 'the server closed it'}")

    # --- inside ---

    def _flush_soon(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        try:
            data = self._http2.data_to_send()
        except ngh2.NGH2Error as error:
            self._fail("INTERNAL", f"HTTP/2: {error}")
            return
        if data:
            self._transport.write(data)
        self._take_events()

    def _take_events(self) -> None:
        for event in self._http2.events():
            if isinstance(event, ngh2.DataReceived):
                self._on_data(event)
            elif isinstance(event, ngh2.TrailersReceived):
                self._end(event.stream_id, event.headers)
            elif isinstance(event, ngh2.ResponseReceived):
                if event.end_stream:
                    self._end(event.stream_id, event.headers)
            elif isinstance(event, ngh2.StreamClosed | ngh2.StreamReset):
                status = RESET_STATUS.get(event.error_code, "INTERNAL")
                self._settle(event.stream_id, status, f"the server ended the call with HTTP/2 code {event.error_code}")
            elif isinstance(event, ngh2.GoAwayReceived):
                self.open = False
            elif isinstance(event, ngh2.ConnectionClosed):
                self._fail("INTERNAL", f"the connection ended with HTTP/2 code {event.error_code}")

    def _fail(self, status: str, text: str) -> None:
        for stream in list(self._calls):
            self._settle(stream, status, text)
        self.close()

    def _on_data(self, event: ngh2.DataReceived) -> None:
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        if len(call.start) < PREFIX.size:
            call.start += event.data[: PREFIX.size]
        call.size += len(event.data)
        if event.end_stream:
            self._end(event.stream_id, ())

    def _end(self, stream: int, headers: Headers) -> None:
        """The server has ended its side; the last headers hold the status."""
        call = self._calls.get(stream)
        if call is None:
            return
        found = dict(headers)
        code = found.get(b"grpc-status")
        if code is None:
            self._settle(stream, "UNKNOWN", "the answer has no gRPC status")
        elif code != b"0":
            message = unquote(found.get(b"grpc-message", b"").decode("utf-8", "replace"))
            self._settle(stream, STATUS_NAMES.get(code, "UNKNOWN"), message)
        elif call.size < PREFIX.size or PREFIX.unpack_from(call.start)[1] != call.size - PREFIX.size:
            self._settle(stream, "INTERNAL", f"the answer's {call.size} bytes are not one message")
        else:
            self._settle(stream, OK, "")

    def _settle(self, stream: int, status: str, text: str) -> None:
        """Answer a call, unless it has been: each stream that is answered is closed as well."""
        call = self._calls.pop(stream, None)
        if call is not None and not call.answered.done():
            call.answered.set_result(None if status == OK else failure(status, text))

    def _reset(self, stream: int) -> None:
        if not self._transport.is_closing():
            self._http2.reset_stream(stream, ngh2.ErrorCode.CANCEL)
            self._flush_soon()

    def _expire(self) -> None:
        """Ends the calls whose time is over, and comes back when the next one's is."""
        now = self._loop.time()
        while self._calls:
            stream, call = next(iter(self._calls.items()))
            if call.due > now:
                break
            self._settle(stream, *TOO_LATE)
            self._reset(stream)
        oldest = next(iter(self._calls.values()), None)
        self._timer = self._loop.call_at(now + self._timeout_s if oldest is None else oldest.due, self._expire)
