"""Both ends of a link in one process: what is put at one comes out at the other, and nothing is believed."""

from __future__ import annotations

import random
import socket
from contextlib import suppress
from select import select

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.rpc.fronts.link import _HEAD, LARGE, RING_BYTES, Gone, Kind, packed, unpacked
from server.rpc.fronts.ring import Broken
from tests.server.rpc.fronts.conftest import MOST, Pair


def test_a_record_arrives_as_it_was_put(pair: Pair) -> None:
    pair.front.put(Kind.CALL, 1 << 63, 7, 123456789, b"[]", b"body")
    pair.front.put(Kind.CANCEL, 5)
    assert pair.front.flush()
    assert pair.engine.take() == [(Kind.CALL, 7, 1 << 63, 123456789, b"[]", b"body"), (Kind.CANCEL, 0, 5, 0, b"", b"")]
    pair.engine.put(Kind.ANSWER, 5, body=[b"a", memoryview(np.arange(3, dtype=np.int16)), bytearray(b"z"), b""])
    assert pair.engine.flush()
    assert [bytes(record.body) for record in pair.front.take()] == [b"a\0\0\1\0\2\0z"]


def test_nothing_is_there_until_it_is_flushed_and_nothing_twice(pair: Pair) -> None:
    pair.front.put(Kind.CANCEL, 1)
    assert pair.engine.take() == []
    pair.front.flush()
    assert len(pair.engine.take()) == 1
    pair.front.flush()
    assert pair.engine.take() == []


def test_a_deadline_beyond_all_time_is_one(pair: Pair) -> None:
    pair.front.put(Kind.CALL, 1, time=1 << 70)
    pair.front.flush()
    assert pair.engine.take()[0].time == (1 << 63) - 1


@pytest.mark.parametrize(
    "size", [LARGE - 1, LARGE, RING_BYTES // 4, RING_BYTES - _HEAD.size, RING_BYTES, 5 * RING_BYTES + 1]
)
def test_bodies_larger_than_the_ring_go_through_it_piece_by_piece(pair: Pair, size: int) -> None:
    body = random.Random(size).randbytes(size)
    sent = [body, b"after"] * 2
    for part in sent:
        pair.front.put(Kind.CALL, 1, body=part)
    got: list[bytes] = []
    while not pair.front.flush():
        got.extend(bytes(record.body) for record in pair.engine.take())
        assert pair.engine.flush()
        assert pair.front.take() == []
    got.extend(bytes(record.body) for record in pair.engine.take())
    assert got == sent
    assert pair.front.waiting() == 0


def test_what_waits_is_counted(pair: Pair) -> None:
    for _ in range(3):
        pair.engine.put(Kind.ANSWER, 1, body=bytes(RING_BYTES // 2))
    assert not pair.engine.flush()
    assert RING_BYTES // 4 < pair.engine.waiting() < RING_BYTES


def test_a_bell_that_cannot_be_rung_is_rung_later(pair: Pair) -> None:
    """The other side has not listened for so long that the socket is full; it still hears of everything."""
    count = 0
    while not full(pair.bells[1]):
        pair.front.put(Kind.CANCEL, count)
        pair.front.flush()
        count += 1
    for _ in range(3):
        pair.front.put(Kind.CANCEL, count)
        assert pair.front.flush(), "there is room in the ring"
        count += 1
    got: list[int] = []
    while found := pair.engine.take():
        got.extend(record.call for record in found)
    pair.front.flush()
    got.extend(record.call for record in pair.engine.take())
    assert got == list(range(count))


def full(bell: socket.socket) -> bool:
    return not select([], [bell], [], 0)[1]


def test_the_other_sides_end_is_seen_after_its_last_words(pair: Pair) -> None:
    pair.front.put(Kind.FAILED, body=b"why")
    pair.front.flush()
    pair.bells[1].close()
    assert bytes(pair.engine.take()[0].body) == b"why"
    with pytest.raises(Gone):
        pair.engine.take()
    pair.engine.put(Kind.STOP)
    pair.engine.flush()  # nobody hears it, which is no error


@pytest.mark.parametrize("said", [b"1", b"x" * 15, b"x" * 17, b"\xff" * 16, b"\0" * 8 + b"\1" + b"\0" * 7])
def test_a_bell_that_says_what_cannot_be_is_refused(pair: Pair, said: bytes) -> None:
    pair.bells[1].send(said)
    with pytest.raises(Broken):
        pair.engine.take()


@given(st.binary(max_size=200))
def test_any_message_is_a_record_or_refused(message: bytes) -> None:
    pair = Pair()
    pair.front._writer.put([message])
    pair.front.flush()
    try:
        (record,) = pair.engine.take()
    except Broken:
        assert len(message) < _HEAD.size + int.from_bytes(message[4:8], "little")
    else:
        assert _HEAD.size + len(record.metadata) + len(record.body) == len(message)
    finally:
        pair.close()


def test_a_record_beyond_what_is_allowed_is_refused_before_it_is_there(pair: Pair) -> None:
    pair.front.put(Kind.CALL, 1, body=bytes(MOST))
    pair.front.flush()
    with pytest.raises(Broken, match="at most"):
        pair.engine.take()


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255))
METADATA = st.lists(st.one_of(st.tuples(st.just("key"), TEXT), st.tuples(st.just("key-bin"), st.binary())))


@given(METADATA)
def test_metadata_comes_back(metadata: list[tuple[str, str | bytes]]) -> None:
    assert unpacked(packed(metadata)) == tuple(metadata)


@given(st.binary())
def test_what_is_no_metadata_is_refused(data: bytes) -> None:
    with suppress(Broken):
        assert all(isinstance(key, str) for key, _ in unpacked(data))
