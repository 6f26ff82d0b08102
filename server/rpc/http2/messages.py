"""Bytes of DATA frames to gRPC messages, whose length is known, and judged, from their first five bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from server.errors import Internal, ResourceExhausted
from server.rpc.call import Buffer
from server.rpc.http2 import framing
from server.rpc.http2.framing import PREFIX

LARGE = 1 << 16
"""Bytes of a message from which on it is written to its place as it comes. The memory is asked for when the length is
known and within the limits; none of it is real before bytes are written there (a `bytearray` is filled with zeros,
which takes 0.3 s for 256 MB that a client only announces). Collecting parts and joining them costs three times as much
for 16 MB: all is touched twice."""
PARTS = 64
"""How many of a small one are kept apart: a part of one byte, or none, costs 40."""


class Messages:
    """Of one call. `reserve` counts bytes against a budget before they come; `take_back` says how many are counted."""

    __slots__ = ("_encoding", "_flag", "_have", "_large", "_limit", "_parts", "_reserve", "_want", "reserved")

    def __init__(self, limit: int, encoding: bytes | None, reserve: Callable[[int], bool]) -> None:
        self._limit = limit
        self._encoding = encoding
        self._reserve = reserve
        self._parts: list[bytes] = []
        self._have = 0
        self._want = 0
        """Bytes of the message under way with its prefix; 0: not announced yet."""
        self._flag = 0
        self._large: memoryview | None = None
        """The place of a large message under way, prefix included; `_have` bytes of it are written."""
        self.reserved = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun that is not whole."""
        return self._have > 0

    def feed(self, data: bytes) -> Sequence[Buffer]:
        """The messages that are whole with `data`. Raises ServerError; the call has then to end."""
        if self._large is not None:
            return self._written(self._large, data)
        self._parts.append(data)
        self._have += len(data)
        if self._have < max(self._want, PREFIX.size):
            if len(self._parts) == PARTS:
                self._parts = [b"".join(self._parts)]
            return ()
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        found: list[Buffer] = []
        at = 0
        while len(whole) - at >= PREFIX.size:
            flag, length = PREFIX.unpack_from(whole, at)
            if not self._want:
                self._announced(flag, length)
            end = at + PREFIX.size + length
            if end > len(whole):
                self._want, self._flag = end - at, flag
                break
            self._want = 0
            found.append(self._message(flag, whole[at + PREFIX.size : end]))
            at = end
        rest = whole[at:]
        self._parts, self._have = ([rest], len(rest)) if rest else ([], 0)
        if self._want > LARGE:
            self._large = np.empty(self._want, np.uint8).data
            self._large[: self._have] = rest
            self._parts = []
        return found

    def _written(self, place: memoryview, data: bytes) -> Sequence[Buffer]:
        take = min(len(data), self._want - self._have)
        place[self._have : self._have + take] = data if take == len(data) else data[:take]
        self._have += take
        if self._have < self._want:
            return ()
        self._large, self._have, self._want = None, 0, 0
        message = self._message(self._flag, place[PREFIX.size :])
        return (message, *self.feed(data[take:])) if take < len(data) else (message,)

    def _announced(self, flag: int, length: int) -> None:
        if length > self._limit:
            raise framing.too_large(length, self._limit)
        if flag and self._encoding is None:
            raise Internal("Compressed flag set on a message, but the call names no grpc-encoding")
        if flag > 1:
            raise Internal(f"invalid message flag {flag}")
        self._take(length)

    def _message(self, flag: int, message: Buffer) -> Buffer:
        if not flag:
            return message
        assert self._encoding is not None
        data = framing.expand(message, self._encoding, self._limit)
        self._take(len(data))
        return data

    def _take(self, size: int) -> None:
        if not self._reserve(size):
            raise ResourceExhausted("this server is receiving as much as it may hold; try again")
        self.reserved += size
