"""A front: a process that speaks gRPC with clients and hands every call to the engine.

python -m server.rpc.fronts.front BELL DOOR MEMORY        inherited descriptors; all else comes with SETUP
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import count
from pathlib import Path
from queue import SimpleQueue
from select import select
from typing import TypeVar

from server import memory
from server.errors import Internal, ServerError, Unsupported
from server.rpc.call import (
    Answer,
    BaseCall,
    Buffer,
    Call,
    Deferred,
    OnMessage,
    Refused,
    Route,
    Routes,
    Stream,
    StreamCall,
)
from server.rpc.fronts.link import Gone, Kind, Link, Record, packed, unpacked
from server.rpc.http2 import Http2Transport
from server.rpc.limits import Limits
from server.rpc.status import CODES, Code
from server.rpc.tls import Tls

C = TypeVar("C", bound=BaseCall)
ANY_SIZE = 1 << 32
_packed = lru_cache(256)(packed)
"""Clients say the same with every call."""
_ERRORS: dict[int, type[ServerError]] = {code: error for error, code in CODES.items()}


class Relay:
    """The service of a front: each call becomes records, each record of the engine an answer to its call.

    `put` to the link from any thread; the rest on the transport's loop.
    """

    def __init__(self, link: Link, routes: list[tuple[str, str, str]], commands: SimpleQueue[Record]) -> None:
        self.health = _NoHealth()
        self._link = link
        self._calls: dict[int, Call] = {}
        self._streams: dict[int, StreamCall] = {}
        self._numbers = count(1)
        self._welcomed = 0
        self._told_closed = 0
        self._routes = {path: self._route(code, kind, text) for code, (path, kind, text) in enumerate(routes)}
        self._handlers: dict[int, Callable[[Record], None]] = {
            Kind.METADATA: self._metadata,
            Kind.MESSAGE: self._message,
            Kind.ANSWER: self._answer,
            Kind.END: self._end,
            Kind.DRAIN: commands.put,
            Kind.STOP: commands.put,
        }

    # --- for the transport ---

    def routes(self) -> Routes:
        return self._routes

    def begin_drain(self) -> None:
        """The engine's service refuses what has to be refused."""

    def attach(self, transport: Http2Transport, door: socket.socket) -> None:
        """Before the transport begins."""
        self._transport = transport
        self._door = door
        transport.watch(self._link.fileno(), self._receive)
        transport.watch(door.fileno(), self._welcome)

    def release(self) -> None:
        """At the end of each round of reading. When something does not fit, clients are not read until it does."""
        closed = self._welcomed - self._transport.connections
        if closed != self._told_closed:
            self._told_closed = closed
            self._link.put(Kind.CLOSED, closed)
        self._transport.reading = self._link.flush()

    def _welcome(self) -> None:
        said, descriptors, _, _ = socket.recv_fds(self._door, 1, 1)
        if not said:
            os._exit(0)  # as in `_receive`
        self._welcomed += 1
        for descriptor in descriptors:  # none where this process may have no more
            self._transport.welcome(socket.socket(fileno=descriptor))

    def _receive(self) -> None:
        try:
            records = self._link.take()
        except Gone:
            os._exit(0)  # the engine has ended: nothing here can be answered, nor told to anybody
        for record in records:
            self._handlers[record.kind](record)

    # --- towards the engine ---

    def _route(self, code: int, kind: str, text: str) -> Route:
        if kind == "refused":
            return Refused(Unsupported(text))
        return Stream(partial(self._open, code)) if kind == "stream" else Deferred(partial(self._call, code))

    def _call(self, code: int, body: Buffer, call: Call) -> None:
        self._begin(Kind.CALL, code, call, self._calls, body)

    def _open(self, code: int, call: StreamCall) -> OnMessage:
        number = self._begin(Kind.OPEN, code, call, self._streams)

        def on_message(body: Buffer | None) -> None:
            if body is None:
                self._link.put(Kind.HALF_CLOSE, number)
            else:
                self._link.put(Kind.MESSAGE, number, body=body)

        return on_message

    def _begin(self, kind: Kind, code: int, call: C, calls: dict[int, C], body: Buffer = b"") -> int:
        number = next(self._numbers)
        calls[number] = call
        self._link.put(kind, number, code, call.deadline_ns or 0, _packed(tuple(call.metadata)), body)
        call.on_cancel(partial(self._cancel, number, calls))
        return number

    def _cancel(self, number: int, calls: dict[int, C]) -> None:
        if calls.pop(number, None) is not None:
            self._link.put(Kind.CANCEL, number)
            self._transport.post(_nothing)  # it may be too late for this round's release

    # --- from the engine; a call that is not there has been taken back meanwhile ---

    def _metadata(self, record: Record) -> None:
        call = self._calls.get(record.call) or self._streams.get(record.call)
        if call is not None:
            call.send_metadata(unpacked(record.metadata))

    def _message(self, record: Record) -> None:
        if (stream := self._streams.get(record.call)) is not None:
            stream.send(_as_answer(record.body))

    def _answer(self, record: Record) -> None:
        if (call := self._calls.pop(record.call, None)) is not None:
            call.set_trailers(unpacked(record.metadata))
            call.complete(partial(_as_answer, record.body))

    def _end(self, record: Record) -> None:
        error = None
        if record.code != Code.OK:
            text = bytes(record.body).decode("utf-8", "surrogatepass")
            error = _ERRORS.get(record.code, Internal)(text)
        if (call := self._calls.pop(record.call, None)) is not None:
            call.set_trailers(unpacked(record.metadata))
            call.complete(partial(_raise, error))
        elif (stream := self._streams.pop(record.call, None)) is not None:
            stream.set_trailers(unpacked(record.metadata))
            stream.end(error)


class _NoHealth:
    def end(self) -> None:
        """The engine ends its watchers itself."""


class _LogToEngine(logging.Handler):
    """There is one log, the engine's."""

    def __init__(self, link: Link, wake: Callable[[], None]) -> None:
        super().__init__()
        self._link = link
        self._wake = wake

    def emit(self, record: logging.LogRecord) -> None:
        fields = {key: value if isinstance(value, int | float) else str(value)
                  for key, value in getattr(record, "fields", {}).items()}  # fmt: skip
        if record.exc_info:
            fields["defect"] = "".join(traceback.format_exception(*record.exc_info))
        self._link.put(Kind.LOG, code=record.levelno, body=json.dumps([record.getMessage(), fields]).encode())
        self._wake()


@dataclass(frozen=True, slots=True)
class Setup:
    """What a front is told of the settings."""

    limits: Limits
    tls: Tls | None
    routes: list[tuple[str, str, str]]
    verbose: bool
    busy_poll_us: int

    @classmethod
    def read(cls, text: bytes) -> Setup:
        given = json.loads(text)
        tls = given["tls"]
        if tls is not None:
            root = None if tls["root"] is None else Path(tls["root"])
            tls = Tls(Path(tls["certificate"]), Path(tls["key"]), root, tls["mutual"])
        return cls(**{**given, "limits": Limits(**given["limits"]), "tls": tls})


def serve(link: Link, door: socket.socket) -> None:
    """Until the engine says STOP."""
    select([link], [], [])
    first = link.take()[0]
    assert first.kind == Kind.SETUP
    setup = Setup.read(bytes(first.body))
    commands: SimpleQueue[Record] = SimpleQueue()
    relay = Relay(link, setup.routes, commands)
    try:
        transport = Http2Transport(relay, limits=setup.limits, tls=setup.tls, busy_poll_us=setup.busy_poll_us)
        _log_to(link, transport, setup.verbose)
    except OSError as error:
        link.put(Kind.FAILED, body=str(error).encode())
        link.flush()
        return
    relay.attach(transport, door)
    memory.freeze()
    link.put(Kind.UP)
    transport.begin()
    transport.post(_nothing)
    while (command := commands.get()).kind == Kind.DRAIN:
        link.put(Kind.DRAINED, code=int(transport.drain(command.time / 1e9)))
        transport.post(_nothing)
    transport.stop(command.time / 1e9)


def _log_to(link: Link, transport: Http2Transport, verbose: bool) -> None:
    logger = logging.getLogger("demiglace.server")
    logger.addHandler(_LogToEngine(link, lambda: transport.post(_nothing)))
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False


def _as_answer(body: Buffer) -> Answer:
    """Large ones in parts, so that they are counted as what clients have yet to take."""
    return body if isinstance(body, bytes) else (body,)


def _raise(error: ServerError | None) -> bytes:
    assert error is not None
    raise error


def _nothing() -> None:
    """Only makes a round, at the end of which what waits in the link goes."""


def _end_with_defect(args: threading.ExceptHookArgs) -> None:
    """A front without one of its threads is of no use: a new one is."""
    traceback.print_exception(args.exc_type, args.exc_value, args.exc_traceback)
    os._exit(1)


def main(bell: int, door: int, shared: int) -> int:
    memory.keep_freed()
    threading.excepthook = _end_with_defect
    try:
        link = Link(socket.socket(fileno=bell), mmap.mmap(shared, 0), engine=False, most=ANY_SIZE)
        serve(link, socket.socket(fileno=door))
    except Gone:  # the engine, before it said anything
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
