"""Cheap for the client, dear for a server that is not careful: frames without end."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from tests.server.rpc.hostile.conftest import LIMITS
from tests.server.rpc.hostile.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    call,
    frame,
    head,
    indexed,
    literal,
    number,
)
from tests.server.rpc.raw import prefix
from tests.server.rpc.transports import Served

MANY = 20_000
RESETS = 12_000
CANCEL = struct.pack(">I", 8)


def streams(count: int) -> Iterator[int]:
    yield from range(1, 2 * count, 2)


def batches(parts: Iterator[bytes], count: int = 200) -> Iterator[bytes]:
    """Joined, so that a flood costs its sender no system call a frame."""
    held: list[bytes] = []
    for part in parts:
        held.append(part)
        if len(held) == count:
            yield b"".join(held)
            held.clear()
    yield b"".join(held)


@pytest.mark.parametrize("name", ["hold", "open", "deferred", "quick"])
def test_rapid_reset(target: Served, name: str) -> None:
    """CVE-2023-44487: calls that are opened and taken back at once, on one connection, then on the next."""
    before = target.service.calls
    for _ in range(2):
        with Peer(target) as peer:
            peer.flood(batches(call(i, name) + frame(RST_STREAM, 0, i, CANCEL) for i in streams(RESETS)))
            if peer.send(frame(PING, payload=bytes(8))):
                peer.until(PING)
    assert target.service.calls - before <= 2 * RESETS
    while not target.service.held.empty():
        assert target.service.held.get().cancelled()
    while not target.service.opened.empty():
        assert target.service.opened.get().cancelled()


def test_made_you_reset(target: Served) -> None:
    """CVE-2025-8671: each call is opened whole, then broken, so that it is the server who resets."""
    broken = frame(WINDOW_UPDATE, payload=bytes(4))
    for _ in range(3):
        with Peer(target) as peer:
            peer.flood(batches(call(i, "hold") + broken[:5] + struct.pack(">I", i) + broken[9:] for i in streams(2000)))
            peer.send(frame(PING, payload=bytes(8)))
            peer.until(PING)
    while not target.service.held.empty():
        assert target.service.held.get().cancelled()


def test_more_streams_than_allowed(target: Served) -> None:
    with Peer(target) as peer:
        assert peer.synchronised()
        peer.flood(call(i, "hold") for i in streams(LIMITS.streams * 3))
        peer.synchronised()
    taken = 0
    while not target.service.held.empty():
        assert target.service.held.get().cancelled()
        taken += 1
    assert taken <= LIMITS.streams


@pytest.mark.parametrize("payload", [b"", b"x", bytes(1000)], ids=["empty", "one byte", "1000 bytes"])
def test_continuations_without_end(target: Served, payload: bytes) -> None:
    """A header block that never ends must not be collected: CVE-2024-27316 and its family."""
    with Peer(target) as peer:
        peer.send(frame(HEADERS, 0, 1, head("quick")))
        field = literal(b"x", payload)
        peer.flood(batches(frame(CONTINUATION, 0, 1, field if payload else b"") for _ in range(MANY)))
        # grpcio reads and drops them as long as they come; nothing may grow, which is checked at the end
        assert target.kind == "grpcio" or peer.until(GOAWAY) or peer.closed


@pytest.mark.parametrize("size", [64 << 10, 1 << 20])
def test_headers_that_are_much_too_large(target: Served, size: int) -> None:
    """The call is refused, or the connection closed; a call beside it is answered."""
    block = head("quick", (b"x-large", b"a" * size))
    with Peer(target) as peer:
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        peer.send(frame(HEADERS, END_STREAM, 1, parts[0]))
        peer.flood(frame(CONTINUATION, END_HEADERS * (part is parts[-1]), 1, part) for part in parts[1:])
        if peer.send(call(3)):
            peer.until(DATA, 3)
        while not any(seen.stream == 1 or seen.kind == GOAWAY for seen in peer.seen) and peer.read():
            pass
        assert not [seen for seen in peer.seen if seen.kind == DATA and seen.stream == 1]


def test_many_small_headers(target: Served) -> None:
    block = head("quick") + b"".join(literal(b"h%d" % i, b"") for i in range(2000))
    with Peer(target) as peer:
        parts = [block[at : at + 16_000] for at in range(0, len(block), 16_000)]
        peer.send(frame(HEADERS, END_STREAM, 1, parts[0]))
        peer.flood(frame(CONTINUATION, END_HEADERS * (part is parts[-1]), 1, part) for part in parts[1:])
        peer.synchronised()
        assert not [seen for seen in peer.seen if seen.kind == DATA and seen.stream == 1]


def test_a_bomb_of_headers(target: Served) -> None:
    """CVE-2016-6581: a field of 4 KB is named once and then 16,000 times by its number, which makes 64 MB."""
    for _ in range(20):
        with Peer(target) as peer:
            peer.send(frame(HEADERS, END_HEADERS, 1, head("quick") + indexed(b"x", b"a" * 4000)))
            peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 3, head("quick") + b"\xbe" * 16_000))
            peer.synchronised()
            assert not [seen for seen in peer.seen if seen.kind == DATA and seen.stream == 3]


def test_tables_that_change_their_size_without_end(target: Served) -> None:
    with Peer(target) as peer:
        sizes = number(0, 5, 0x20) + number(4096, 5, 0x20)
        peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, sizes * 4000 + head("quick")))
        peer.synchronised()


@pytest.mark.parametrize(
    "one",
    [
        frame(SETTINGS),
        frame(SETTINGS, payload=struct.pack(">HI", 4, 65535) * 30),
        frame(SETTINGS, payload=struct.pack(">HI", 1, 0) + struct.pack(">HI", 1, 4096)),
        frame(SETTINGS, payload=struct.pack(">HI", 0x99, 1) * 1000),
        frame(PING, payload=bytes(8)),
        frame(PING, ACK, payload=bytes(8)),
        frame(PRIORITY, 0, 5, bytes(5)),
        frame(WINDOW_UPDATE, payload=struct.pack(">I", 1)),
        frame(0x77, 0, 0, bytes(100)),
        frame(0x77, 0, 9, b""),
        frame(GOAWAY, payload=bytes(8)),
    ],
    ids=[
        "SETTINGS", "windows", "tables", "unknown settings", "PING", "PING answers", "PRIORITY", "WINDOW_UPDATE",
        "unknown", "unknown and empty", "GOAWAY",
    ],
)  # fmt: skip
def test_frames_of_control_without_end(target: Served, one: bytes) -> None:
    """CVE-2019-9512, 9515 and their like: the client reads none of the answers."""
    with Peer(target) as peer:
        peer.flood(batches(one for _ in range(MANY)))
        if peer.send(call(1)):
            peer.synchronised()


@pytest.mark.parametrize("name", ["quick", "stream"])
@pytest.mark.parametrize("padding", [0, 200])
def test_frames_of_data_that_carry_nothing(target: Served, name: str, padding: int) -> None:
    """CVE-2019-9518. Padding is taken from the windows, which the server has to give back."""
    empty = frame(DATA, PADDED_FLAG, 1, bytes([padding]) + bytes(padding)) if padding else frame(DATA, 0, 1)
    with Peer(target) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, head(name)))
        peer.flood(batches(empty for _ in range(MANY)))
        peer.synchronised()


PADDED_FLAG = 8


def test_empty_data_within_a_message(target: Served) -> None:
    with Peer(target) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, head("quick")) + frame(DATA, 0, 1, prefix(3) + b"a"))
        peer.flood(batches(frame(DATA, 0, 1) for _ in range(MANY)))
        peer.synchronised()


def test_messages_of_nothing_without_end(target: Served) -> None:
    """A stream of empty messages: five bytes each, and each is a call of the handler."""
    with Peer(target) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, head("open")))
        opened = target.opened()
        peer.flood(frame(DATA, 0, 1, prefix(0) * 3000) for _ in range(4))
        for _ in range(12_000):
            assert opened.next() == b""
    assert opened.cancelled()


def test_requests_for_nothing_without_end(target: Served) -> None:
    """Refused calls are answered calls: they must leave nothing, and a thousand of them are no reason to close."""
    with Peer(target) as peer:
        for i in streams(1000):
            assert peer.send(call(i, "nobody"))
            assert peer.until(HEADERS, i)
            peer.seen.clear()
        assert peer.synchronised()
