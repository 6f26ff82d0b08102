"""Messages one way between two processes, through a ring of bytes in memory that both see.

Only bytes are in the memory. How far each side has come is told through a socket (`link.py`): what the kernel carries
over it comes after the bytes that it speaks of, on every kind of processor, so there are no counters here to be read
half-written, no flags, and no wake-up that can be lost.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Sequence
from mmap import mmap

import numpy as np

from server.rpc.call import Buffer

_FRAME = struct.Struct("<II")
"""Bytes in this frame, and bytes of its message that later frames bring. Frames begin at multiples of its size."""
_SKIP = struct.Struct("<I")
_TO_THE_START = 0xFFFFFFFF
"""Instead of a frame's size: the next frame is at the beginning of the ring."""


class Broken(Exception):
    """The other side has written what it never writes."""


class Writer:
    """`put` may be called from any thread, everything else from one."""

    def __init__(self, memory: mmap, start: int, size: int) -> None:
        self._memory = memory
        self._start = start
        self._size = size
        self._most = size // 4
        """Of a frame. What is skipped at the end is less, so that there is always a way on in an empty ring, and in one
        of which the reader has not yet said that its last quarter is empty."""
        self._queue: deque[Sequence[Buffer]] = deque()
        self._parts: deque[Buffer] = deque()
        """Of a message that goes in several frames, what is still to be written."""
        self.written = 0
        """Bytes that ever have been, skipped ones among them."""
        self._read = 0

    def put(self, parts: Sequence[Buffer]) -> None:
        """A message, to be written when it is its turn and there is room; until then its parts must not change.

        A view among them must be one of bytes.
        """
        self._queue.append(parts)

    def waiting(self) -> int:
        """Bytes of messages for which there has been no room."""
        return sum(len(part) for parts in (self._parts, *self._queue) for part in parts)

    def was_read(self, read: int) -> None:
        """The reader has come so far. Raises Broken."""
        if not self._read <= read <= self.written:
            raise Broken(f"{read} bytes read, after {self._read} of {self.written} written")
        self._read = read

    def push(self) -> bool:
        """Write what there is room for; whether that was all."""
        queue, memory = self._queue, self._memory
        while queue or self._parts:
            if self._parts:
                if not self._go_on():
                    return False
                continue
            size = sum(map(len, queue[0]))
            if size > self._most:
                self._parts = deque(part for part in queue.popleft() if len(part))
                continue
            at = self._frame(size, 0)
            if at is None:
                return False
            for part in queue.popleft():
                end = at + len(part)
                memory[at:end] = part
                at = end
        return True

    def _go_on(self) -> bool:
        """The next frame of a message that takes several."""
        left = sum(map(len, self._parts))
        size = min(left, self._most)
        at = self._frame(size, left - size)
        if at is None:
            return False
        while size:
            part = self._parts.popleft()
            if len(part) > size:
                view = memoryview(part)
                self._parts.appendleft(view[size:])
                part = view[:size]
            end = at + len(part)
            self._memory[at:end] = part
            size -= len(part)
            at = end
        return True

    def _frame(self, size: int, left: int) -> int | None:
        """Begin a frame; where its bytes go."""
        need = _space(size)
        at = self.written % self._size
        tail = self._size - at
        free = self._size - (self.written - self._read)
        if need > tail:
            if tail + need > free:
                return None
            _SKIP.pack_into(self._memory, self._start + at, _TO_THE_START)
            self.written += tail
            at = 0
        elif need > free:
            return None
        _FRAME.pack_into(self._memory, self._start + at, size, left)
        self.written += need
        return self._start + at + _FRAME.size


class Reader:
    """Believes nothing of what it reads: it may come from a process that is dying of a defect."""

    def __init__(self, memory: mmap, start: int, size: int, most: int) -> None:
        self._memory = memory
        self._view = memoryview(memory)
        self._start = start
        self._size = size
        self._most = most
        self._place: memoryview | None = None
        """Of a message that came in part."""
        self._have = 0
        self.read = 0
        """Bytes that ever have been, skipped ones among them."""

    def take(self, written: int) -> list[bytes | memoryview]:
        """The messages that are whole now that the writer has come so far. Raises Broken."""
        if not self.read <= written <= self.read + self._size or written % _FRAME.size:
            raise Broken(f"{written} bytes written, after {self.read} read of a ring of {self._size}")
        found: list[bytes | memoryview] = []
        while self.read < written:
            at = self.read % self._size
            tail = self._size - at
            size, left = _FRAME.unpack_from(self._memory, self._start + at)
            space = tail if size == _TO_THE_START else _space(size)
            if space > min(tail, written - self.read):
                raise Broken(f"a frame of {size} bytes where {min(tail, written - self.read)} are")
            self.read += space
            if size != _TO_THE_START:
                begin = self._start + at + _FRAME.size
                if self._place is not None or left:
                    self._part(begin, size, left, found)
                else:
                    found.append(self._memory[begin : begin + size])
        return found

    def close(self) -> None:
        """Let go of the memory."""
        self._view.release()

    def _part(self, begin: int, size: int, left: int, found: list[bytes | memoryview]) -> None:
        if self._place is None:
            if size + left > self._most:
                raise Broken(f"a message of {size + left} bytes, at most {self._most} are allowed")
            self._place, self._have = np.empty(size + left, np.uint8).data, 0
        place = self._place
        if self._have + size + left != len(place):
            raise Broken(f"{size} and {left} more bytes for a message that has {self._have} of {len(place)}")
        place[self._have : self._have + size] = self._view[begin : begin + size]
        self._have += size
        if not left:
            self._place = None
            found.append(place)


def _space(size: int) -> int:
    """What a frame of `size` takes in the ring."""
    return size + 15 & ~7
