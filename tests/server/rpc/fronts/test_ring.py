"""Whatever goes into a ring comes out of it, in order and once; whatever else is in its memory is refused."""

from __future__ import annotations

import struct
from mmap import mmap

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.rpc.fronts.ring import Broken, Reader, Writer

SIZES = st.sampled_from([64, 72, 128, 256, 1024])
PART = st.binary(max_size=200)
MESSAGE = st.lists(PART, max_size=4)
MOST = 4096


def ring(size: int, start: int = 16) -> tuple[Writer, Reader, mmap]:
    memory = mmap(-1, start + size)
    return Writer(memory, start, size), Reader(memory, start, size, MOST), memory


def joined(messages: list[bytes | memoryview]) -> list[bytes]:
    return [bytes(message) for message in messages]


@given(SIZES, st.lists(st.tuples(MESSAGE, st.integers(0, 3))))
@settings(deadline=None)
def test_what_goes_in_comes_out(size: int, steps: list[tuple[list[bytes], int]]) -> None:
    """Written and read at any pace; the reader says how far it is as late as it may."""
    writer, reader, _ = ring(size)
    sent: list[bytes] = []
    got: list[bytes] = []
    said = 0

    def read() -> None:
        nonlocal said
        got.extend(joined(reader.take(writer.written)))
        if reader.read - said >= size // 4:
            said = reader.read
            writer.was_read(said)

    for parts, reads in steps:
        writer.put([part if number % 2 else memoryview(part) for number, part in enumerate(parts)])
        sent.append(b"".join(parts))
        writer.push()
        for _ in range(reads):
            read()
            writer.push()
    for _ in range(sum(map(len, sent)) + len(sent) + 1):
        if writer.push():
            break
        before = writer.written
        read()
        writer.push()
        assert writer.written > before, "a way on is always left"
    read()
    assert got == sent
    assert writer.waiting() == 0


@given(SIZES, st.lists(MESSAGE, min_size=1))
@settings(deadline=None)
def test_a_full_ring_takes_no_more_and_loses_nothing(size: int, messages: list[list[bytes]]) -> None:
    writer, reader, _ = ring(size)
    for parts in messages:
        writer.put(parts)
    assert writer.push() is (writer.waiting() == 0 and not writer._queue)
    assert writer.written <= size
    kept = writer.written
    writer.push()
    assert writer.written == kept, "nothing is written over what has not been read"
    whole = joined(reader.take(kept))
    assert whole == [b"".join(parts) for parts in messages[: len(whole)]]


@given(SIZES, st.binary(max_size=1024), st.lists(st.integers(0, 1 << 64), min_size=1, max_size=4))
@settings(deadline=None)
def test_any_bytes_are_messages_or_refused(size: int, data: bytes, written: list[int]) -> None:
    _, reader, memory = ring(size, start=0)
    memory[: len(data[:size])] = data[:size]
    for number in written:
        before = reader.read
        try:
            found = reader.take(number)
        except Broken:
            return
        assert before <= reader.read == number <= before + size
        assert sum(map(len, found)) <= MOST + size


FRAME = struct.Struct("<II")


@pytest.mark.parametrize(
    "frames",
    [
        [(1000, 0)],
        [(0xFFFFFFF0, 0)],
        [(8, MOST)],
        [(8, 0xFFFFFFFF)],
        [(8, 100), (8, 100)],
        [(8, 100), (96, 0)],
        [(8, 100), (8, 0xFFFFFFFF)],
    ],
)
def test_frames_that_contradict_themselves_are_refused(frames: list[tuple[int, int]]) -> None:
    _, reader, memory = ring(256, start=0)
    at = 0
    for size, left in frames:
        FRAME.pack_into(memory, at, size, left)
        at += FRAME.size + -(-size // 8) * 8
    with pytest.raises(Broken):
        reader.take(256)


@pytest.mark.parametrize("written", [-8, 4, 264, 1 << 63])
def test_a_writer_that_is_where_it_cannot_be_is_refused(written: int) -> None:
    with pytest.raises(Broken, match="bytes written, after 0 read of a ring of 256"):
        ring(256)[1].take(written)


def test_a_reader_that_is_where_it_cannot_be_is_refused() -> None:
    writer, _, _ = ring(256)
    writer.put([b"12345678"])
    writer.push()
    writer.was_read(16)
    for read in (8, 24):
        with pytest.raises(Broken, match=f"{read} bytes read, after 16 of 16 written"):
            writer.was_read(read)
