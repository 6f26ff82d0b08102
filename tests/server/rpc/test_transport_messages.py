"""Messages on the wire: cut anywhere, many at once, large ones through small windows, interleaved."""

from __future__ import annotations

import ngh2
import pytest

from server.errors import NotFound
from server.rpc.limits import MIB, Limits
from server.rpc.status import Code
from tests.server.rpc.raw import RawClient, framed, raw
from tests.server.rpc.transports import Served, begun, serving, unary

WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
MESSAGES = [b"first", b"", b"x" * 300, b"last"]


def test_a_message_may_be_cut_at_every_byte_into_two_frames(shared: Served) -> None:
    body = framed(b"abcdef")
    with raw(shared) as client:
        for at in range(len(body) + 1):
            stream = client.request("quick", body[:at], end=False)
            client.ping()  # so that the two parts come by themselves
            if not client.answers[stream].ended:  # grpcio answers what is whole without waiting for the end
                client.send(stream, body[at:], end=True)
            assert client.answer(stream).messages == [b"abcdef"], f"cut at {at}"


def test_messages_of_a_stream_may_be_cut_at_every_byte(shared: Served) -> None:
    body = b"".join(framed(message) for message in MESSAGES)
    with raw(shared) as client:
        for at in range(0, len(body) + 1, 7):
            stream = client.request("stream", body[:at], end=False)
            client.ping()
            client.send(stream, body[at:], end=True)
            assert client.answer(stream).messages == MESSAGES, f"cut at {at}"


def one_byte_a_frame(client: RawClient, stream: int, body: bytes) -> None:
    for at in range(len(body)):
        client.http2.send_data(stream, body[at : at + 1])
        client.flush()
    client.end(stream)


def test_a_frame_for_every_byte(shared: Served) -> None:
    with raw(shared) as client:
        for name, body in (("quick", framed(b"x" * 2000)), ("stream", framed(b"y" * 500) * 4)):
            stream = client.request(name, end=False)
            one_byte_a_frame(client, stream, body)
            assert b"".join(framed(message) for message in client.answer(stream).messages) == body


def test_the_end_may_come_alone(shared: Served) -> None:
    with raw(shared) as client:
        for name in ("quick", "stream"):
            stream = client.request(name, framed(b"x"), end=False)
            client.ping()
            if not client.answers[stream].ended:  # as above
                client.end(stream)
            assert client.answer(stream).messages == [b"x"]


def test_the_end_may_come_as_trailers(own: Served) -> None:
    """Allowed by HTTP/2, though no gRPC client does it; grpcio resets such a stream."""
    with raw(own) as client:
        for name in ("quick", "stream"):
            stream = client.request(name, framed(b"x"), end=False)
            client.http2.send_trailers(stream, [(b"x-last", b"1")])
            assert client.answer(stream).messages == [b"x"]


def test_two_thousand_messages_on_one_stream(shared: Served) -> None:
    bodies = [b"%d" % i for i in range(2000)]
    with shared.channel() as channel:
        assert list(channel.stream_stream("/test.Service/stream")(iter(bodies), timeout=60)) == bodies


def test_many_messages_in_one_write(shared: Served) -> None:
    bodies = [b"%d" % i for i in range(5000)]
    with raw(shared) as client:
        stream = client.request("stream", b"".join(framed(body) for body in bodies))
        assert client.answer(stream).messages == bodies


def test_interleaved_streams_keep_to_themselves(shared: Served) -> None:
    """Twenty requests, a byte of each in turn."""
    with raw(shared) as client:
        bodies = {client.request("quick" if i % 2 else "stream", end=False): framed(b"%d" % i * 40) for i in range(20)}
        for at in range(max(map(len, bodies.values()))):
            for stream, body in bodies.items():
                if at < len(body):
                    client.http2.send_data(stream, body[at : at + 1], end_stream=at == len(body) - 1)
            client.flush()
        for stream, body in bodies.items():
            assert framed(client.answer(stream).messages[0]) == body


def test_a_thousand_streams_at_once(shared: Served) -> None:
    with raw(shared) as client:
        client.ping()  # the server's SETTINGS say how many
        streams = [client.submit("quick", framed(b"%d" % i)) for i in range(1000)]
        client.flush()
        assert [client.answer(stream).messages for stream in streams] == [[b"%d" % i] for i in range(1000)]


@pytest.mark.parametrize("window", [1, 1000, 65535, 1 << 20])
def test_a_large_answer_goes_through_a_small_window(shared: Served, window: int) -> None:
    size = min(16 * MIB, window * 200)
    with raw(shared, {WINDOW: window}) as client:
        answer = client.answer(client.request("large", framed(b"%d" % size)))
    assert (answer.status, len(answer.messages[0])) == (Code.OK, size)


def test_large_messages_both_ways(shared: Served) -> None:
    body = bytes(range(256)) * (16 * MIB // 256)
    with shared.channel() as channel:
        for name in ("quick", "deferred", "slow"):
            assert unary(channel, name, body) == body


def test_large_answers_share_a_connection_with_small_ones(shared: Served) -> None:
    """A client that takes a large answer bit by bit gets small ones meanwhile."""
    with raw(shared, {WINDOW: 65535}, auto_window=False) as client:
        client.http2.set_local_window_size(64 * MIB)
        large = client.request("large", framed(b"%d" % MIB))
        client.pump(lambda: len(client.answers[large].body) == 65535)
        for i in range(50):
            assert client.call("quick", b"%d" % i).messages == [b"%d" % i]
        client.http2.set_local_window_size(2 * MIB, stream_id=large)
        assert len(client.answer(large).messages[0]) == MIB


@pytest.mark.parametrize("code", [Code.OK, Code.NOT_FOUND])
def test_what_a_stream_has_sent_arrives_before_its_end_however_slow_the_client(served: Served, code: Code) -> None:
    with raw(served, {WINDOW: 1000}) as client:
        stream, opened = begun(served, client, "open")
        for i in range(20):
            opened.call.send(bytes([i]) * 10_000)
        opened.call.end(None if code is Code.OK else NotFound("no more"))
        answer = client.answer(stream)
    assert answer.status == code
    assert answer.messages == [bytes([i]) * 10_000 for i in range(20)]


def test_pings_within_a_long_answer_are_no_strikes() -> None:
    """Clients measure the connection with pings while they receive; gRFC A8 counts those only where nothing is sent."""
    with serving("http2") as served, raw(served, {WINDOW: 65535}) as client:
        stream = client.request("large", framed(b"%d" % MIB))
        body, pings = client.answers[stream].body, 0
        while len(body) < MIB // 2:
            size = len(body)
            client.pump(lambda size=size: len(body) > size)  # type: ignore[misc]
            for _ in range(4):  # one read may bring several windows, and the whole half
                client.ping()
                pings += 1
        assert pings > Limits().ping_strikes
        assert len(client.answer(stream).messages[0]) == MIB
        assert client.goaways() == []


def test_pings_without_anything_else_are_refused_in_the_end(kind: str) -> None:
    with serving(kind) as served, raw(served) as client:
        for _ in range(20):
            client.http2.ping()
        client.until_closed()
        assert [(event.error_code, event.debug_data) for event in client.goaways()] == [
            (ngh2.ErrorCode.ENHANCE_YOUR_CALM, b"too_many_pings")
        ]


def test_a_reader_that_takes_nothing_of_its_stream_is_ended(served: Served) -> None:
    """Beyond `Limits.unread_bytes`; the other calls of its connection go on."""
    with raw(served, {WINDOW: 0}) as client:
        client.ping()
        stream, opened = begun(served, client, "open")
        for _ in range(200):
            opened.call.send(bytes(100_000))
        assert opened.cancelled()
        client.http2.update_settings({WINDOW: 1 << 20})
        client.http2.set_local_window_size(64 * MIB)
        answer = client.answer(stream)
        assert answer.reset is not None or answer.status == Code.RESOURCE_EXHAUSTED
        other = client.request("missing", framed(b"gone"))
        assert client.answer(other).status == Code.NOT_FOUND
