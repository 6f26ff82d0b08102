"""A client that does what it is told: HTTP/2 by ngh2 over a socket, without a gRPC client's deadlines and retries."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from urllib.parse import unquote

import ngh2

from tests.server.rpc.transports import Served, path

Fields = Sequence[tuple[bytes, bytes]]
NOTHING: Mapping[bytes, bytes] = {}
POST: dict[bytes, bytes] = {
    b":method": b"POST",
    b":scheme": b"http",
    b":path": b"",
    b":authority": b"test",
    b"te": b"trailers",
    b"content-type": b"application/grpc",
}


def framed(message: bytes, compressed: int = 0) -> bytes:
    """A gRPC message: flag, length, bytes."""
    return prefix(len(message), compressed) + message


def prefix(length: int, compressed: int = 0) -> bytes:
    return struct.pack(">BI", compressed, length)


@dataclass
class Answered:
    """What has come for one request so far."""

    head: Fields = ()
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = ()
    ended: bool = False
    reset: int | None = None
    order: list[str] = field(default_factory=list)
    """The kinds of its frames, as they came."""

    @property
    def trailers_only(self) -> bool:
        return self.order == ["head"] and self.ended

    @property
    def last(self) -> Fields:
        return self.trailers or self.head

    @property
    def http(self) -> str:
        return value(self.head, ":status")

    @property
    def status(self) -> int:
        return int(value(self.last, "grpc-status"))

    @property
    def text(self) -> str:
        return unquote(value(self.last, "grpc-message"))

    @property
    def messages(self) -> list[bytes]:
        found, rest = [], bytes(self.body)
        while rest:
            flag, length = struct.unpack(">BI", rest[:5])
            assert flag == 0, "answers are not compressed"
            assert len(rest) >= 5 + length, "a whole message"
            found.append(rest[5 : 5 + length])
            rest = rest[5 + length :]
        return found


def value(fields: Fields, name: str) -> str:
    """Of a field that must be there exactly once."""
    found = [v for k, v in fields if k == name.encode()]
    assert len(found) == 1, f"{name} in {fields}"
    return found[0].decode()


class RawClient:
    def __init__(
        self,
        connected: socket.socket,
        settings: dict[int, int] | None = None,
        *,
        auto_window: bool = True,
    ) -> None:
        self.socket = connected
        self.http2 = ngh2.Connection(
            ngh2.Role.CLIENT,
            ngh2.Configuration(
                auto_window_update=auto_window,
                peer_max_concurrent_streams=1 << 20,
                max_inbound_header_list_size=1 << 20,
            ),
        )
        self.http2.initiate_connection(settings or {})
        self.answers: dict[int, Answered] = {}
        self.events: list[ngh2.Event] = []
        """What belongs to no stream."""
        self.closed = False
        """Whether the server has closed the connection."""

    def __enter__(self) -> RawClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.socket.close()

    # --- sending ---

    def request(
        self,
        name: str,
        body: bytes = b"",
        *,
        end: bool = True,
        fields: Iterable[tuple[str, str]] = (),
        without: str = "",
        replaced: Mapping[bytes, bytes] = NOTHING,
    ) -> int:
        """Send the headers, and `body` as it is: prefixes are the caller's. Returns the stream."""
        stream = self.submit(name, body, end=end, fields=fields, without=without, replaced=replaced)
        self.flush()
        return stream

    def submit(
        self,
        name: str,
        body: bytes = b"",
        *,
        end: bool = True,
        fields: Iterable[tuple[str, str]] = (),
        without: str = "",
        replaced: Mapping[bytes, bytes] = NOTHING,
    ) -> int:
        """As `request`, but nothing is sent before the next flush."""
        head = POST | {b":path": (name if name.startswith("/") else path(name)).encode()} | dict(replaced)
        head.pop(without.encode(), None)
        pairs = [*head.items(), *((k.encode(), v.encode()) for k, v in fields)]
        stream = self.http2.send_request(pairs, end_stream=end and not body)
        self.answers[stream] = Answered()
        if body:
            self.http2.send_data(stream, body, end_stream=end)
        return stream

    def send(self, stream: int, body: bytes, *, end: bool = False) -> None:
        self.http2.send_data(stream, body, end_stream=end)
        self.flush()

    def end(self, stream: int) -> None:
        self.http2.end_stream(stream)
        self.flush()

    def reset(self, stream: int) -> None:
        self.http2.reset_stream(stream, ngh2.ErrorCode.CANCEL)
        self.flush()

    def flush(self) -> None:
        data = self.http2.data_to_send()
        if data and not self.closed:
            try:
                self.socket.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                self.closed = True

    # --- receiving ---

    def pump(self, until: Callable[[], bool]) -> None:
        """Read, and let HTTP/2 answer what it must, until the condition holds or the server has closed."""
        self.flush()
        while not until() and not self.closed:
            try:
                data = self.socket.recv(1 << 18)
            except ConnectionResetError:
                data = b""
            if not data:
                self.closed = True
                return
            with contextlib.suppress(ngh2.ConnectionStateError):  # it has ended on both sides; what comes is the close
                self.http2.receive_data(data)
            for event in self.http2.events():
                self._take(event)
            self.flush()

    def answer(self, stream: int) -> Answered:
        """The whole answer."""
        found = self.answers[stream]
        self.pump(lambda: found.ended)
        assert found.ended, f"the connection was closed before the answer: {self.events}"
        return found

    def call(self, name: str, message: bytes = b"", fields: Iterable[tuple[str, str]] = ()) -> Answered:
        """One message there, the whole answer back."""
        return self.answer(self.request(name, framed(message), fields=fields))

    def ping(self) -> None:
        """Everything sent so far has been read by the server when this returns."""
        seen = sum(isinstance(event, ngh2.PingAcknowledged) for event in self.events)
        self.http2.ping()
        self.pump(lambda: sum(isinstance(event, ngh2.PingAcknowledged) for event in self.events) > seen)

    def goaways(self) -> list[ngh2.GoAwayReceived]:
        return [event for event in self.events if isinstance(event, ngh2.GoAwayReceived)]

    def until_closed(self) -> None:
        self.pump(lambda: False)

    def _take(self, event: ngh2.Event) -> None:
        answer = self.answers.get(getattr(event, "stream_id", 0))
        if answer is None:
            self.events.append(event)
        elif isinstance(event, ngh2.ResponseReceived):
            answer.head, answer.ended = event.headers, event.end_stream
            answer.order.append("head")
        elif isinstance(event, ngh2.DataReceived):
            answer.body += event.data
            answer.ended = event.end_stream
            answer.order.append("data")
        elif isinstance(event, ngh2.TrailersReceived):
            answer.trailers, answer.ended = event.headers, True
            answer.order.append("trailers")
        elif isinstance(event, ngh2.StreamReset):
            answer.reset = event.error_code
            answer.ended = True
        elif isinstance(event, ngh2.StreamClosed):
            answer.ended = True


def raw(served: Served, settings: dict[int, int] | None = None, *, auto_window: bool = True) -> RawClient:
    return RawClient(served.connect(), settings, auto_window=auto_window)
