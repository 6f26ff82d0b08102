"""Bytes of DATA frames to gRPC messages, whose length is known, and judged, from their first five bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from server.errors import Internal, ResourceExhausted
from server.rpc.call import Buffer
from server.rpc.http2 import framing
from server.rpc.http2.framing import PREFIX

VIEWED = 1 << 16
"""Bytes of a message from which on it is a view of what came, not a copy."""


class Messages:
    """Of one call. `reserve` counts bytes against a budget before they come; `take_back` says how many are counted."""

    __slots__ = ("_encoding", "_have", "_limit", "_parts", "_reserve", "_want", "reserved")

    def __init__(self, limit: int, encoding: bytes | None, reserve: Callable[[int], bool]) -> None:
        self._limit = limit
        self._encoding = encoding
        self._reserve = reserve
        self._parts: list[bytes] = []
        self._have = 0
        self._want = 0
        """Bytes of the message under way with its prefix; 0: not announced yet."""
        self.reserved = 0

    @property
    def partial(self) -> bool:
        """Whether a message has begun that is not whole."""
        return self._have > 0

    def feed(self, data: bytes) -> Sequence[Buffer]:
        """The messages that are whole with `data`. Raises ServerError; the call has then to end."""
        self._parts.append(data)
        self._have += len(data)
        if self._have < max(self._want, PREFIX.size):
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
                self._want = end - at
                break
            self._want = 0
            found.append(self._message(flag, whole, at + PREFIX.size, end))
            at = end
        rest = whole[at:]
        self._parts, self._have = ([rest], len(rest)) if rest else ([], 0)
        return found

    def _announced(self, flag: int, length: int) -> None:
        if length > self._limit:
            raise framing.too_large(length, self._limit)
        if flag and self._encoding is None:
            raise Internal("Compressed flag set on a message, but the call names no grpc-encoding")
        if flag > 1:
            raise Internal(f"invalid message flag {flag}")
        self._take(length)

    def _message(self, flag: int, whole: bytes, start: int, end: int) -> Buffer:
        if not flag:
            return whole[start:end] if end - start < VIEWED else memoryview(whole)[start:end]
        assert self._encoding is not None
        data = framing.expand(memoryview(whole)[start:end], self._encoding, self._limit)
        self._take(len(data))
        return data

    def _take(self, size: int) -> None:
        if not self._reserve(size):
            raise ResourceExhausted("this server is receiving as much as it may hold; try again")
        self.reserved += size
