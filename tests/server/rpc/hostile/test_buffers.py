"""Memory: what clients announce, send slowly, do not read, or have expanded, is bounded for all of them together."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from dataclasses import replace

import ngh2
import pytest

from server.rpc.limits import KIB, MIB
from server.rpc.status import Code
from tests.server.rpc.hostile.conftest import LIMITS, peak_memory, settled_memory, unharmed
from tests.server.rpc.hostile.frames import DATA, END_HEADERS, HEADERS, PREFACE, SETTINGS, Peer, call, frame, head
from tests.server.rpc.raw import framed, prefix, raw
from tests.server.rpc.transports import Served, StandIn, serving

WINDOW = ngh2.Setting.INITIAL_WINDOW_SIZE
MOST = LIMITS.message_bytes
FIT = LIMITS.buffered_bytes // MOST


@pytest.fixture
def wide() -> Iterator[Served]:
    """As large as the defaults."""
    with serving("http2", StandIn(), replace(LIMITS, message_bytes=256 * MIB, buffered_bytes=1024 * MIB)) as served:
        yield served


def test_four_gigabytes_may_be_announced_but_not_sent(own_target: Served) -> None:
    """Refused at the fifth byte; what comes behind it is not kept."""
    part = bytes(16_000)
    with raw(own_target) as client:
        stream = client.request("hold", prefix((1 << 32) - 1), end=False)
        for _ in range(2000):
            if client.answers[stream].ended:
                break
            client.send(stream, part)
            client.pump(lambda: True)
        assert client.answer(stream).status == Code.RESOURCE_EXHAUSTED


def test_what_is_only_announced_takes_no_memory(wide: Served) -> None:
    with unharmed(wide, 8 * MIB), raw(wide) as client:
        streams = [client.request("quick", prefix(256 * MIB), end=False) for _ in range(4)]
        client.ping()
        assert all(not client.answers[stream].ended for stream in streams)


def test_all_messages_together_are_bounded(own_target: Served) -> None:
    """Those that fit are taken, those beyond are refused, and when they are done others may come."""
    for _ in range(3):
        with raw(own_target) as client:
            streams = [client.request("quick", prefix(MOST), end=False) for _ in range(FIT + 3)]
            client.ping()
            refused = [stream for stream in streams if client.answers[stream].ended]
            assert [client.answers[stream].status for stream in refused] == [Code.RESOURCE_EXHAUSTED] * 3
            assert client.call("quick", b"small ones are still answered").status == Code.OK
            for stream in set(streams) - set(refused):
                client.send(stream, bytes(MOST), end=True)
                assert client.answer(stream).messages == [bytes(MOST)]


@pytest.mark.parametrize("way", ["reset", "close", "too much", "no end", "deadline"])
def test_what_was_counted_is_given_back_however_a_call_ends(own_target: Served, way: str) -> None:
    for _ in range(3):
        with raw(own_target) as client:
            fields = [("grpc-timeout", "50m")] if way == "deadline" else []
            body = prefix(MOST) + bytes(1000)
            streams = [client.request("quick", body, end=False, fields=fields) for _ in range(FIT)]
            client.ping()
            for stream in streams:
                match way:
                    case "reset":
                        client.reset(stream)
                    case "too much":
                        client.send(stream, bytes(MOST) + framed(b"another"), end=True)
                        assert client.answer(stream).status in (Code.UNIMPLEMENTED, Code.RESOURCE_EXHAUSTED)
                    case "no end":
                        client.end(stream)
                        assert client.answer(stream).status == Code.INTERNAL
                    case "deadline":
                        assert client.answer(stream).status == Code.DEADLINE_EXCEEDED
                    case _:
                        pass


def test_a_message_in_frames_of_a_byte_takes_what_it_is_long(own_target: Served) -> None:
    one = frame(DATA, 0, 1, b"x") * 1000
    with unharmed(own_target, 8 * MIB), Peer(own_target) as peer:
        for stream in range(1, 21, 2):
            peer.send(frame(HEADERS, END_HEADERS, stream, head("quick")) + frame(DATA, 0, stream, prefix(60_000)))
            flood = one.replace(b"\0\0\1\0\0\0\0\0\1", b"\0\0\1\0\0\0\0\0" + bytes([stream]))
            for _ in range(40):
                peer.send(flood)
        assert peer.synchronised()


# --- answers ---


@pytest.mark.parametrize("size", [10 * KIB, 200 * KIB, 4 * MIB])
def test_answers_that_nobody_takes_are_bounded(own_target: Served, size: int) -> None:
    """Every stream of ten connections asks, and none has a window."""
    begin = PREFACE + frame(SETTINGS, payload=b"\0\4\0\0\0\0")
    peers = [Peer(own_target, begin) for _ in range(10)]
    try:
        for peer in peers:
            for stream in range(1, 2 * LIMITS.streams, 2):
                peer.send(call(stream, "large", b"%d" % size))
            assert peer.synchronised()
        assert own_target.transport._shared.buffered <= LIMITS.buffered_bytes + size
    finally:
        for peer in peers:
            peer.socket.close()


def test_streams_that_nobody_reads_are_ended_one_by_one(own_target: Served) -> None:
    with raw(own_target, {WINDOW: 0}) as client:
        client.ping()
        for _ in range(20):
            client.request("open", framed(b"x"), end=False)
            opened = own_target.opened()
            for _ in range(40):
                opened.call.send(bytes(100_000))
            assert opened.cancelled()


# --- expansion ---


def bomb(size: int, window: int) -> bytes:
    """That many zeros, a thousandth as large; the checksum is wrong, but nobody must come so far."""
    packer = zlib.compressobj(9, zlib.DEFLATED, window)
    first, again = (packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH) for _ in range(2))
    return first + again * (size // MIB - 1) + packer.flush()


@pytest.mark.parametrize(("encoding", "window"), [("gzip", 31), ("deflate", 15)])
def test_a_gigabyte_of_zeros_is_not_expanded(own_target: Served, encoding: str, window: int) -> None:
    """H13: only as far as a message may be large, each time again."""
    body = framed(bomb(1024 * MIB, window), 1)
    with raw(own_target) as client:
        before = settled_memory()
        for _ in range(20):
            answer = client.answer(client.request("quick", body, fields=[("grpc-encoding", encoding)]))
            assert answer.status == Code.RESOURCE_EXHAUSTED
        assert peak_memory() - before <= 32 * MIB


def test_an_expanded_message_counts_as_what_it_has_become(own_target: Served) -> None:
    """The budget is full of announced messages: there is no room for an expanded one."""
    body = framed(gzip.compress(bytes(MOST)), 1)
    with raw(own_target) as client:
        streams = [client.request("quick", prefix(MOST), end=False) for _ in range(FIT)]
        answer = client.answer(client.request("quick", body, fields=[("grpc-encoding", "gzip")]))
        assert answer.status == Code.RESOURCE_EXHAUSTED
        for stream in streams[:2]:  # what came is counted as well as what it has become
            client.reset(stream)
        answer = client.answer(client.request("quick", body, fields=[("grpc-encoding", "gzip")]))
        assert answer.messages == [bytes(MOST)]
