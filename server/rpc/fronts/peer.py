"""One front as the engine sees it: its process, the link to it, and the calls that came through it."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from logging import DEBUG, ERROR, INFO, WARNING

from server.logs import log
from server.rpc.call import Answer, Deferred, Quick, Refused, Route, Slow, Stream
from server.rpc.fronts.calls import StreamCall, UnaryCall
from server.rpc.fronts.link import Kind, Link, Record
from server.rpc.fronts.loop import Loop
from server.rpc.fronts.ring import Broken
from server.rpc.http2.framing import size_of

_LEVELS: dict[int, Callable[..., None]] = {
    DEBUG: log.verbose,
    INFO: log.info,
    WARNING: log.warning,
    ERROR: log.error,
}


class Peer:
    """Belongs to the loop's thread, except where said."""

    def __init__(
        self,
        number: int,
        process: subprocess.Popen[bytes],
        link: Link,
        door: socket.socket,
        loop: Loop,
        routes: Sequence[Route],
        pools: tuple[ThreadPoolExecutor, ThreadPoolExecutor],
        most_waiting: int,
    ) -> None:
        self.number = number
        self.process = process
        self.link = link
        self._door = door
        self.loop = loop
        self.waiters, self.decoders = pools
        self.calls: dict[int, UnaryCall | StreamCall] = {}
        self.up: Future[None] = Future()
        """Done when it serves; OSError when it cannot. For any thread."""
        self.serves = False
        self._handed = 0
        self._closed = 0
        """Connections that it has been given, and those of them that have ended."""
        self._drained: Future[bool] = Future()
        self._most_waiting = most_waiting
        self._waiting = 0
        """Bytes of answers for which there is no room in the ring yet."""
        self._routes = routes
        self._handlers: dict[int, Callable[[Record], None]] = {
            Kind.CALL: self._call,
            Kind.OPEN: self._open,
            Kind.MESSAGE: lambda record: self._give(record, record.body),
            Kind.HALF_CLOSE: lambda record: self._give(record, None),
            Kind.CANCEL: self._cancel,
            Kind.LOG: self._log,
            Kind.CLOSED: self._has_closed,
            Kind.UP: lambda record: self._is_up(),
            Kind.FAILED: lambda record: self._failed(bytes(record.body).decode("utf-8", "replace")),
            Kind.DRAINED: lambda record: self._is_drained(bool(record.code)),
        }

    @property
    def connections(self) -> int:
        return self._handed - self._closed

    def hand(self, connection: socket.socket) -> None:
        """Have it serve the connection."""
        try:
            socket.send_fds(self._door, [b"+"], [connection.fileno()])
        except OSError as error:  # it takes none, or has gone: the client will come again
            log.warning("a connection was lost", front=self.number, reason=error.strerror)
        else:
            self._handed += 1

    def read(self) -> None:
        """Do what has come from it. Raises Gone, Broken."""
        handlers = self._handlers
        for record in self.link.take():
            handler = handlers.get(record.kind)
            if handler is None:
                raise Broken(f"a record of kind {record.kind}")
            handler(record)

    def drain(self, timeout_ns: int) -> Future[bool]:
        """Whether it has finished what it has accepted."""
        self.link.put(Kind.DRAIN, time=timeout_ns)
        self._drained = Future()
        return self._drained

    def stop(self, grace_ns: int) -> None:
        self.link.put(Kind.STOP, time=grace_ns)

    def reply(self, kind: Kind, number: int, code: int, metadata: bytes, body: Answer = b"") -> None:
        self._waiting += len(body) if isinstance(body, bytes) else size_of(body)
        self.link.put(kind, number, code, metadata=metadata, body=body)

    @property
    def full(self) -> bool:
        """Whether more answers wait for its clients than may be held."""
        return self._waiting > self._most_waiting

    def flush(self) -> None:
        self._waiting = 0 if self.link.flush() else self.link.waiting()

    def forget(self, number: int) -> bool:
        """Whether the call was open."""
        return self.calls.pop(number, None) is not None

    def lose(self) -> None:
        """It has ended, or must: nobody waits for its calls any more."""
        self.serves = False
        self.link.close()
        self._door.close()
        self.process.kill()
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.cancel()
        self._failed("it ended before it served")
        self._is_drained(True)

    # --- records ---

    def _call(self, record: Record) -> None:
        route = self._route(record)
        if not isinstance(route, Quick | Slow | Deferred):
            raise Broken(f"a unary call of route {record.code}, which is {type(route).__name__}")
        call = self.calls[record.call] = UnaryCall(self, record)
        call.start(route, record.body)

    def _open(self, record: Record) -> None:
        route = self._route(record)
        if not isinstance(route, Stream):
            raise Broken(f"a stream of route {record.code}, which is {type(route).__name__}")
        call = self.calls[record.call] = StreamCall(self, record)
        call.open(route.run)

    def _route(self, record: Record) -> Route:
        if record.code >= len(self._routes):
            raise Broken(f"route {record.code} of {len(self._routes)}")
        if record.call in self.calls:
            raise Broken(f"call {record.call} a second time")
        return self._routes[record.code]

    def _give(self, record: Record, message: bytes | bytearray | memoryview | None) -> None:
        call = self.calls.get(record.call)
        if isinstance(call, StreamCall):  # else it has ended meanwhile
            call.give(message)

    def _cancel(self, record: Record) -> None:
        call = self.calls.pop(record.call, None)
        if call is not None:
            call.cancel()

    def _has_closed(self, record: Record) -> None:
        if not self._closed <= record.call <= self._handed:
            raise Broken(f"{record.call} connections closed, after {self._closed} of {self._handed}")
        self._closed = record.call

    def _log(self, record: Record) -> None:
        try:
            text, fields = json.loads(bytes(record.body))
            known = {str(key): value for key, value in fields.items()}
            _LEVELS[record.code](str(text), **{**known, "front": self.number})
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            raise Broken(f"a log line that cannot be read: {error}") from None

    def _is_up(self) -> None:
        self.serves = True
        if not self.up.done():
            self.up.set_result(None)

    def _failed(self, why: str) -> None:
        if not self.up.done():
            self.up.set_exception(OSError(why))

    def _is_drained(self, whole: bool) -> None:
        if not self._drained.done():
            self._drained.set_result(whole)


def described(routes: dict[str, Route]) -> list[tuple[str, str, str]]:
    """Routes as a front gets them: path, kind, and the text of a refusal."""

    def row(path: str, route: Route) -> tuple[str, str, str]:
        match route:
            case Refused(error):
                return path, "refused", str(error)
            case Stream():
                return path, "stream", ""
            case _:
                return path, "unary", ""

    return [row(path, route) for path, route in routes.items()]
