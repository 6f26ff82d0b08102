"""What all connections and calls of one transport share. Owned by its loop's thread, except where said."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from server.errors import InvalidRequest, ResourceExhausted, ServerError, Unsupported
from server.logs import log
from server.rpc.call import Refused, Route, Routes
from server.rpc.http2 import framing
from server.rpc.http2.framing import Headers
from server.rpc.http2.library import FIELD_BYTES
from server.rpc.http2.timers import Timers
from server.rpc.limits import Limits

if TYPE_CHECKING:
    from server.rpc.http2.connection import Connection

Clock = Callable[[], int]
HEADS_KEPT = 1024
READ_BYTES = 1 << 18
"""Of one system call."""


@dataclass(frozen=True, slots=True)
class Head:
    """A call's request headers, understood; clients send the same ones again and again."""

    headers: Headers
    route: Route | None = None
    timeout_ns: int | None = None
    encoding: bytes | None = None
    """Of compressed messages, if there may be any."""
    refusal: ServerError | None = None
    http_status: bytes = b""
    """For what is no gRPC call at all."""


class Shared:
    """Routes, limits, clock, budgets, and the way into the loop's thread."""

    def __init__(self, routes: Routes, limits: Limits, clock: Clock, wake: Callable[[], None]) -> None:
        self.limits = limits
        self.clock = clock
        self.timers = Timers()
        self.inbox = memoryview(bytearray(READ_BYTES))
        """What a socket has just given; the library copies what it keeps."""
        self.now_ns = clock()
        """When the loop's present round began."""
        self.touched: dict[Connection, None] = {}
        """Connections that have something to send, in order."""
        self.thread = 0
        """The loop's own."""
        self.in_flight = 0
        """Calls begun and not yet ended, streams aside."""
        self.arrived = 0
        self.buffered = 0
        """Bytes of messages being received and of answers not yet sent."""
        self.waiters = ThreadPoolExecutor(8, thread_name_prefix="rpc-wait")
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="rpc-decode")
        self._routes = {path.encode(): route for path, route in routes.items()}
        self._heads: dict[Headers, Head] = {}
        self._mail: deque[Callable[[], None]] = deque()
        self._wake = wake
        self._woken = False

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done on the loop's thread; from any thread, with one wake-up for all that comes meanwhile."""
        self._mail.append(action)
        # append comes first and `deliver` clears the flag before it takes, so whoever sees it set will be taken
        if not self._woken:
            self._woken = True
            self._wake()

    def deliver(self) -> None:
        self._woken = False
        mail = self._mail
        while mail:
            try:
                mail.popleft()()
            except Exception as error:  # noqa: BLE001  one call must not end all
                log.defect("an answer was lost", error)

    def reserve(self, size: int) -> bool:
        """Count `size` bytes against the limit of all that is buffered; False, and nothing counted, if beyond it."""
        if self.buffered + size > self.limits.buffered_bytes:
            return False
        self.buffered += size
        return True

    @property
    def full(self) -> bool:
        """Whether more answers wait for their clients than may be held."""
        return self.buffered > self.limits.buffered_bytes

    def head(self, headers: Headers) -> Head:
        head = self._heads.get(headers)
        if head is None:
            head = self._understood(headers)
            if head.route is not None and head.timeout_ns is None:  # timeouts differ from call to call
                if len(self._heads) >= HEADS_KEPT:
                    self._heads.clear()
                self._heads[headers] = head
        return head

    def _understood(self, headers: Headers) -> Head:
        size = sum(len(name) + len(value) + FIELD_BYTES for name, value in headers)
        if size > self.limits.header_bytes:
            text = f"received metadata size exceeds limit ({size} vs. {self.limits.header_bytes})"
            return Head((), refusal=ResourceExhausted(text))
        found = dict(headers)
        if found.get(b":method") != b"POST":
            return Head(headers, http_status=b"405")
        if not framing.is_grpc(found.get(b"content-type", b"")):
            return Head(headers, http_status=b"415")
        path = found.get(b":path", b"")
        route = self._routes.get(path)
        if route is None:
            return Head(headers, refusal=Unsupported("Method not found!"))
        if isinstance(route, Refused):
            return Head(headers, refusal=route.error)
        timeout = None
        if (given := found.get(b"grpc-timeout")) is not None:
            timeout = framing.timeout_ns(given)
            if timeout is None:
                text = f"invalid grpc-timeout '{given[:20].decode('ascii', 'replace')}'"
                return Head(headers, refusal=InvalidRequest(text))
        encoding = found.get(b"grpc-encoding", b"identity")
        if encoding == b"identity":
            return Head(headers, route, timeout)
        if encoding not in framing.ENCODINGS or not self.limits.compression:
            name = encoding[:40].decode("ascii", "replace")
            text = f"Compression algorithm '{name}' is not supported by this server"
            return Head(headers, refusal=Unsupported(text))
        return Head(headers, route, timeout, encoding)
