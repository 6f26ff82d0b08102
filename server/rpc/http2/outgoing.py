"""Large answers on their way out, a slice at a time: the library copies what it is given."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from server.rpc.call import Buffer
from server.rpc.http2.framing import Headers

SLICE_BYTES = 1 << 17


class Outgoing:
    """Parts of answers that wait for their turn."""

    __slots__ = ("_parts", "size", "trailers")

    def __init__(self) -> None:
        self._parts: deque[memoryview] = deque()
        self.size = 0
        self.trailers: Headers | None = None

    def add(self, parts: Iterable[Buffer]) -> int:
        """Returns the bytes added."""
        added = 0
        for part in parts:
            view = memoryview(part).cast("B")
            self._parts.append(view)
            added += len(view)
        self.size += added
        return added

    def take(self) -> memoryview:
        """At most a slice."""
        part = self._parts.popleft()
        if len(part) > SLICE_BYTES:
            self._parts.appendleft(part[SLICE_BYTES:])
            part = part[:SLICE_BYTES]
        self.size -= len(part)
        return part
