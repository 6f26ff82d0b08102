"""The HTTP/2 library, behind the one door that the rest of this folder goes through.

ngh2 (PyPI, MIT) is libnghttp2 as a sans-I/O connection: bytes in, events out, bytes to send. It is young, so its
version is pinned in `pyproject.toml`, and `check` exercises at each start exactly what is used here. A request and its
answer cost 6 µs in it.
"""

from __future__ import annotations

import ngh2
from ngh2 import (
    Connection,
    ConnectionClosed,
    DataReceived,
    Event,
    PingAcknowledged,
    PingReceived,
    RequestReceived,
    SettingsReceived,
    StreamClosed,
    StreamReset,
    TrailersReceived,
)
from ngh2 import NGH2Error as Http2Error

from server.rpc.limits import Limits

__all__ = [
    "Connection", "ConnectionClosed", "DataReceived", "Event", "Http2Error", "PingAcknowledged", "PingReceived",
    "RequestReceived", "SettingsReceived", "StreamClosed", "StreamReset", "TrailersReceived", "Unusable", "accept",
    "check",
]  # fmt: skip

NO_ERROR = 0x0
CANCEL = 0x8
ENHANCE_YOUR_CALM = 0xB

STREAM_WINDOW = 4 << 20
CONNECTION_WINDOW = 16 << 20
"""What a client may send before it hears from us. 64 KiB, the protocol's default, stops a sender of large tensors each
64 KiB; the loop empties sockets as fast as it can, and what it keeps is counted against `Limits.buffered_bytes`."""
FRAME_BYTES = 1 << 20
HEADER_BYTES = 1 << 16
"""Of one call, beyond which its connection is closed; `Limits.header_bytes` refuse the call alone."""
RESETS = (10_000, 1_000)
"""Calls taken back by one connection at once, and each second for long, before it is closed. The library's own 1,000
and 33 would close on a client whose deadlines pass all at once, with all its other calls; to open a call and take it
back costs us some 20 µs."""


FIELD_BYTES = 32
"""What HTTP/2 counts for a header beside its name and value (RFC 9113, 6.5.2)."""


class Unusable(Exception):
    """The library does not do what we need of it."""


def accept(limits: Limits) -> Connection:
    """A server's connection that has its SETTINGS ready to send."""
    connection = Connection(
        ngh2.Role.SERVER,
        ngh2.Configuration(
            max_inbound_header_list_size=max(HEADER_BYTES, limits.header_bytes),
            max_inbound_header_count=max(HEADER_BYTES, limits.header_bytes) // FIELD_BYTES,
            stream_reset_rate_limit=RESETS,
            max_send_header_block_length=1 << 20,
        ),
    )
    settings = ngh2.Setting
    connection.initiate_connection({
        settings.MAX_CONCURRENT_STREAMS: limits.streams,
        settings.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
        settings.MAX_FRAME_SIZE: FRAME_BYTES,
        settings.MAX_HEADER_LIST_SIZE: limits.header_bytes,
    })  # fmt: skip
    connection.set_local_window_size(CONNECTION_WINDOW)
    return connection


def is_open(connection: Connection, stream: int) -> bool:
    """Whether either side may still send on it."""
    try:
        connection.stream_local_window_size(stream)
    except ngh2.StreamUnavailableError:
        return False
    return True


def check() -> None:
    """Run a request, an answer with trailers, a reset and a refusal through it. Raises Unusable."""
    try:
        _round_trip()
    except (Http2Error, AttributeError, TypeError, ValueError) as error:
        raise Unusable(f"ngh2 {ngh2.__version__}: {type(error).__name__}: {error}") from error


def _round_trip() -> None:
    server = accept(Limits())
    client = Connection(ngh2.Role.CLIENT, ngh2.Configuration())
    client.initiate_connection({})
    _exchange(client, server)
    body = bytes(range(256)) * 300  # more than one frame
    head = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/self/test"), (b":authority", b"test")]
    stream = client.send_request(head)
    client.send_data(stream, body, end_stream=True)
    seen = _exchange(client, server)[1]
    _expect([type(event) for event in seen if type(event) is RequestReceived] == [RequestReceived], "a request")
    data = [event for event in seen if type(event) is DataReceived]
    _expect(b"".join(event.data for event in data) == body and data[-1].end_stream, "its body")
    server.send_response(stream, [(b":status", b"200")])
    server.send_data(stream, body)
    server.send_data(stream, memoryview(body))
    server.send_trailers(stream, [(b"grpc-status", b"0")])
    answer = _exchange(client, server)[0]
    got = b"".join(event.data for event in answer if type(event) is DataReceived)
    trailers = [event.headers for event in answer if type(event) is TrailersReceived]
    _expect(got == body * 2 and trailers == [((b"grpc-status", b"0"),)], "an answer")
    stream = client.send_request(head)
    _exchange(client, server)
    client.reset_stream(stream, CANCEL)
    _expect(any(type(event) is StreamReset for event in _exchange(client, server)[1]), "a reset")


def _exchange(client: Connection, server: Connection) -> tuple[list[Event], list[Event]]:
    """Carry bytes until neither side has any; the events of both."""
    at_client: list[Event] = []
    at_server: list[Event] = []
    for _ in range(100):
        up, down = client.data_to_send(), server.data_to_send()
        if not up and not down:
            break
        if up:
            server.receive_data(up)
        if down:
            client.receive_data(down)
        at_server += server.events()
        at_client += client.events()
    return at_client, at_server


def _expect(truth: bool, what: str) -> None:
    if not truth:
        raise Unusable(f"ngh2 {ngh2.__version__} did not bring {what} across")
