"""Bytes that are no HTTP/2, no whole HTTP/2, or HTTP/2 with a few bytes changed."""

from __future__ import annotations

import random
import socket

import pytest

from server.rpc.status import Code
from tests.server.rpc.hostile.frames import (
    ACK,
    BEGIN,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    call,
    frame,
    head,
    literal,
)
from tests.server.rpc.raw import framed, raw
from tests.server.rpc.transports import Served, begun

TLS_HELLO = bytes.fromhex("16030100c8010000c40303") + bytes(190)
NOISE = {
    "HTTP/1.1": b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "HTTP/1.1 POST": b"POST /v2/models/m/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n" + bytes(10_000),
    "upgrade": b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n"
    b"HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n",
    "TLS": TLS_HELLO,
    "SSH": b"SSH-2.0-OpenSSH_9.6\r\n",
    "zeros": bytes(10_000),
    "ones": b"\xff" * 10_000,
    "half a preface": PREFACE[:12],
    "a preface with one other letter": PREFACE.replace(b"SM", b"SN") + frame(SETTINGS),
    "no SETTINGS": PREFACE + call(1),
    "two prefaces": PREFACE + PREFACE,
    "nothing": b"",
}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
def test_what_is_no_http2(target: Served, noise: bytes) -> None:
    for _ in range(5):
        with Peer(target, noise) as peer:
            peer.half_close()
            peer.until_closed()
            assert not [seen for seen in peer.seen if seen.kind == DATA]


def test_random_bytes(target: Served) -> None:
    chance = random.Random(1)
    for _ in range(200):
        begin = chance.choice((b"", PREFACE, BEGIN))
        with Peer(target, begin + chance.randbytes(chance.randrange(1, 300))) as peer:
            peer.half_close()
            peer.until_closed()


REQUEST = BEGIN + call(1, "deferred", b"some bytes of a message", (b"x-more", b"a value"))


@pytest.mark.parametrize("way", ["fin", "half", "rst"])
def test_cut_at_every_byte(target: Served, way: str) -> None:
    """No call is begun that is not whole, and none is answered with INTERNAL."""
    before = target.service.calls
    for at in range(len(REQUEST)):
        with target.connect() as client:
            client.sendall(REQUEST[:at])
            if way == "rst":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            elif way == "half":
                client.shutdown(socket.SHUT_WR)
                while client.recv(1 << 16):
                    pass
    with raw(target) as client:
        assert client.call("quick", b"x").messages == [b"x"]
    begun_ = target.service.calls - before
    assert begun_ == 0 or target.kind == "grpcio", "grpcio takes a whole message for a whole call"


def test_one_byte_at_a_time(target: Served) -> None:
    with Peer(target, b"") as peer:
        for at in range(len(REQUEST)):
            assert peer.send(REQUEST[at : at + 1])
        seen = peer.until(DATA, 1)
        assert seen
        assert seen.payload == framed(b"some bytes of a message")


WRONG = {
    "DATA on stream 0": frame(DATA, 0, 0, b"x"),
    "DATA on a stream that never was": frame(DATA, 0, 99, b"x"),
    "DATA before HEADERS": frame(DATA, 0, 1, framed(b"x")),
    "HEADERS on stream 0": frame(HEADERS, END_HEADERS, 0, head("quick")),
    "HEADERS on an even stream": frame(HEADERS, END_HEADERS, 2, head("quick")),
    "HEADERS that go back": call(9) + call(3),
    "HEADERS without any field": frame(HEADERS, END_HEADERS | END_STREAM, 1),
    "HEADERS of nonsense": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xff" * 100),
    "a number without end": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x7f" + b"\x80" * 50 + b"\x01"),
    "an index that is not there": frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\xfe"),
    "an upper-case name": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick") + literal(b"X-Up", b"")),
    "a name with a space": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick") + literal(b"a b", b"")),
    "a value with a line end": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick") + literal(b"a", b"b\r\nc")),
    "a value with NUL": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick") + literal(b"a", b"\0")),
    "a connection header": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick", (b"connection", b"close"))),
    "two paths": frame(HEADERS, END_HEADERS | END_STREAM, 1, head("quick", (b":path", b"/other"))),
    "a pseudo header of nobody": frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b":who", b"me") + head("quick")),
    "no path": frame(HEADERS, END_HEADERS | END_STREAM, 1, literal(b":method", b"POST")),
    "a length of the body that is not so": frame(HEADERS, END_HEADERS, 1, head("quick", (b"content-length", b"3")))
    + frame(DATA, END_STREAM, 1, framed(b"x")),
    "CONTINUATION alone": frame(CONTINUATION, END_HEADERS, 1, head("quick")),
    "another frame within headers": frame(HEADERS, 0, 1, head("quick")) + frame(PING, payload=bytes(8)),
    "padding longer than the frame": frame(DATA, 8, 1, b"\xff"),
    "a frame larger than agreed": frame(DATA, 0, 1, bytes((1 << 24) - 1)),
    "PRIORITY of itself": frame(PRIORITY, 0, 1, b"\0\0\0\1\0"),
    "PRIORITY of a wrong size": frame(PRIORITY, 0, 1, b"x"),
    "RST_STREAM on stream 0": frame(RST_STREAM, 0, 0, bytes(4)),
    "RST_STREAM of a stream that never was": frame(RST_STREAM, 0, 77, bytes(4)),
    "RST_STREAM of a wrong size": frame(RST_STREAM, 0, 1, b"x"),
    "SETTINGS of a wrong size": frame(SETTINGS, payload=b"x"),
    "SETTINGS on a stream": frame(SETTINGS, 0, 1),
    "an answer to SETTINGS with contents": frame(SETTINGS, ACK, payload=bytes(6)),
    "answers to SETTINGS nobody sent": frame(SETTINGS, ACK) * 50,
    "a window too large": frame(SETTINGS, payload=b"\0\4\xff\xff\xff\xff"),
    "frames too small": frame(SETTINGS, payload=b"\0\5\0\0\0\1"),
    "push switched on": frame(SETTINGS, payload=b"\0\2\0\0\0\2"),
    "PUSH_PROMISE": frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + head("quick")),
    "PING of a wrong size": frame(PING, payload=b"x"),
    "PING on a stream": frame(PING, 0, 1, bytes(8)),
    "GOAWAY of a wrong size": frame(GOAWAY, payload=b"x"),
    "GOAWAY with an error": frame(GOAWAY, payload=b"\0\0\0\0\0\0\0\2"),
    "WINDOW_UPDATE of zero": frame(WINDOW_UPDATE, payload=bytes(4)),
    "WINDOW_UPDATE too far": frame(WINDOW_UPDATE, payload=b"\x7f\xff\xff\xff") * 2,
    "WINDOW_UPDATE of a wrong size": frame(WINDOW_UPDATE, payload=b"x"),
    "DATA after the end": call(1) + frame(DATA, END_STREAM, 1, framed(b"y")),
    "HEADERS twice": frame(HEADERS, END_HEADERS, 1, head("quick")) * 2,
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_frames_that_break_the_protocol(target: Served, wrong: bytes) -> None:
    """The connection may end or go on; nothing answers what was not asked properly with INTERNAL or a defect."""
    with Peer(target) as peer:
        peer.flood([wrong])
        peer.half_close()
        peer.until_closed()


@pytest.mark.parametrize(
    "wrong", ["DATA on stream 0", "a number without end", "GOAWAY of a wrong size", "a window too large"]
)
def test_a_broken_connection_takes_its_calls_back_at_once(own_target: Served, wrong: str) -> None:
    """Although its client does not close it; grpcio lets some go on."""
    with raw(own_target) as client:
        _, held = begun(own_target, client, "hold")
        _, opened = begun(own_target, client, "open")
        client.socket.sendall(WRONG[wrong])
        assert held.cancelled()
        assert opened.cancelled()


def test_a_path_that_is_no_text(own_target: Served) -> None:
    """It ends the whole server of `grpc.aio` (1.85.1), which decodes paths where nothing catches an error."""
    plain = literal(b":path", b"/test.Service/quick")
    for path in (b"/test.Service/\xd8quick", b"/\xff", b"\xc3\xa9", b"*", b"quick"):
        with Peer(own_target) as peer:
            block = head("quick").replace(plain, literal(b":path", path))
            peer.send(frame(HEADERS, END_HEADERS, 1, block) + frame(DATA, END_STREAM, 1, framed(b"x")))
            peer.half_close()
            peer.until_closed()
            assert not [seen for seen in peer.seen if seen.kind == DATA]


def test_mutated_requests(own_target: Served) -> None:
    """A few bytes changed, taken away, added or sent again, anywhere behind the preface.

    Not for grpcio, because of the case before this one.
    """
    chance = random.Random(2)
    calls = b"".join(
        call(1 + 2 * i, name, b"m" * 20) for i, name in enumerate(("deferred", "stream", "quick", "missing"))
    )
    for _ in range(3000):
        body = bytearray(calls)
        for _ in range(chance.randrange(1, 4)):
            at = chance.randrange(len(body))
            match chance.randrange(5):
                case 0:
                    body[at] = chance.randrange(256)
                case 1:
                    body[at] ^= 1 << chance.randrange(8)
                case 2:
                    del body[at : at + chance.randrange(1, 12)]
                case 3:
                    body[at:at] = chance.randbytes(chance.randrange(1, 12))
                case _:
                    body[at:at] = body[chance.randrange(len(body)) :][: chance.randrange(1, 60)]
        with Peer(own_target, BEGIN + bytes(body)) as peer:
            peer.half_close()
            peer.until_closed()
    with raw(own_target) as client:
        assert client.call("missing", b"x").status == Code.NOT_FOUND
