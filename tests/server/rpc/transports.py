"""Both transports behind one door, and a small service whose handlers do what a test needs of them."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

import grpc
import pytest

from server.errors import NotFound, Unavailable, Unsupported
from server.rpc.call import (
    Answer,
    Buffer,
    Call,
    Deferred,
    OnMessage,
    Quick,
    Refused,
    Routes,
    Slow,
    Stream,
    StreamCall,
)
from server.rpc.grpcio import GrpcioTransport
from server.rpc.http2 import Http2Transport
from server.rpc.limits import Limits
from server.rpc.service import SHUTTING_DOWN
from server.rpc.tls import Tls

WAIT = 20.0
"""Seconds until a test gives up on what must happen: for safety only, no test waits for it to pass."""
KINDS = ("grpcio", "http2")


@dataclass
class Held:
    """A call that nobody answers but the test."""

    body: bytes
    call: Any
    notices: SimpleQueue[str] = field(default_factory=SimpleQueue)
    """One entry for every time that its `on_cancel` was called."""

    def __post_init__(self) -> None:
        self.call.on_cancel(lambda: self.notices.put("cancelled"))

    def cancelled(self) -> bool:
        """Waits for the notice."""
        return self.notices.get(timeout=WAIT) == "cancelled"


@dataclass
class Opened(Held):
    """A stream that nobody answers but the test."""

    messages: SimpleQueue[bytes | None] = field(default_factory=SimpleQueue)

    def on_message(self, body: Buffer | None) -> None:
        self.messages.put(None if body is None else bytes(body))

    def next(self) -> bytes | None:
        return self.messages.get(timeout=WAIT)


class StandIn:
    """What a transport uses of a `Service`, with one handler for each thing that handlers may do."""

    def __init__(self, routes: Routes | None = None) -> None:
        self.draining = False
        self.health = self
        self.ended = False
        self.releases = 0
        self.calls = self.accepted = 0
        """Deferred calls given to a handler; those not refused for draining."""
        self.held: SimpleQueue[Held] = SimpleQueue()
        self.opened: SimpleQueue[Opened] = SimpleQueue()
        self.rounds: list[int] = []
        """How many calls each release found waiting for it."""
        self._until_release: list[tuple[Buffer, Call]] = []
        self._routes = routes

    def routes(self) -> Routes:
        if self._routes is not None:
            return self._routes
        own: Routes = {
            "quick": Quick(self._echo),
            "slow": Slow(self._echo),
            "parts": Quick(lambda body: [body[:1], memoryview(bytearray(body[1:2])), b"", bytes(body[2:])]),
            "large": Quick(lambda body: bytes(int(bytes(body)))),
            "missing": Quick(self._missing),
            "defect": Quick(self._defect),
            "slow_defect": Slow(self._defect),
            "deferred": Deferred(self._at_once),
            "thread": Deferred(self._in_a_thread),
            "released": Deferred(self._at_release),
            "hold": Deferred(self._hold),
            "deferred_defect": Deferred(self._raise),
            "answer_defect": Deferred(lambda body, call: call.complete(lambda: self._defect(body))),
            "deferred_missing": Deferred(lambda body, call: call.complete(lambda: self._missing(body))),
            "nothing": Refused(Unsupported("nothing is not supported by this server")),
            "stream": Stream(self._stream),
            "open": Stream(self._open),
            "stream_defect": Stream(self._stream_defect),
        }
        return {path(name): route for name, route in own.items()}

    def release(self) -> None:
        self.releases += 1
        waiting, self._until_release = self._until_release, []
        if waiting:
            self.rounds.append(len(waiting))
        for body, call in waiting:
            call.complete(lambda body=body: bytes(body))  # type: ignore[misc]

    def begin_drain(self) -> None:
        self.draining = True

    def end(self) -> None:
        """As `Health.end`."""
        self.ended = True

    # --- handlers ---

    @staticmethod
    def _echo(body: Buffer) -> bytes:
        return bytes(body)

    @staticmethod
    def _missing(body: Buffer) -> bytes:
        raise NotFound(bytes(body).decode())

    def _raise(self, body: Buffer, call: Call) -> None:
        self._defect(body)

    @staticmethod
    def _defect(body: Buffer) -> Answer:
        raise ValueError("a secret of the server")

    def _accepted(self, call: Call) -> bool:
        self.calls += 1
        if not self.draining:
            self.accepted += 1
            return True
        call.complete(_shutting_down)
        return False

    def _at_once(self, body: Buffer, call: Call) -> None:
        if self._accepted(call):
            call.complete(lambda: bytes(body))

    def _in_a_thread(self, body: Buffer, call: Call) -> None:
        if self._accepted(call):
            threading.Thread(target=call.complete, args=(lambda: bytes(body),)).start()

    def _at_release(self, body: Buffer, call: Call) -> None:
        if self._accepted(call):
            self._until_release.append((body, call))

    def _hold(self, body: Buffer, call: Call) -> None:
        if self._accepted(call):
            self.held.put(Held(bytes(body), call))

    @staticmethod
    def _stream(call: StreamCall) -> OnMessage:
        def on_message(body: Buffer | None) -> None:
            if body is None:
                call.end()
            else:
                call.send(bytes(body))

        return on_message

    def _open(self, call: StreamCall) -> OnMessage:
        opened = Opened(b"", call)
        self.opened.put(opened)
        return opened.on_message

    def _stream_defect(self, call: StreamCall) -> OnMessage:
        def on_message(body: Buffer | None) -> None:
            self._defect(body or b"")

        return on_message


def _shutting_down() -> bytes:
    raise Unavailable(SHUTTING_DOWN)


def path(name: str) -> str:
    return f"/test.Service/{name}"


@dataclass
class Served:
    """A transport that listens."""

    kind: str
    transport: Any
    service: Any
    address: str
    port: int

    @property
    def url(self) -> str:
        """For grpcio's clients."""
        if self.address.startswith("unix:"):
            return self.address
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def connect(self) -> socket.socket:
        if self.address.startswith("unix:"):
            found = socket.socket(socket.AF_UNIX)
            found.settimeout(WAIT)
            found.connect(self.address.removeprefix("unix:"))
            return found
        return socket.create_connection((self.address, self.port), timeout=WAIT)

    def held(self) -> Held:
        """The next call of `hold`."""
        found: Held = self.service.held.get(timeout=WAIT)
        return found

    def opened(self) -> Opened:
        """The next call of `open`."""
        found: Opened = self.service.opened.get(timeout=WAIT)
        return found

    @contextmanager
    def channel(self, *options: tuple[str, Any], credentials: Any = None) -> Iterator[grpc.Channel]:
        """One connection of its own: grpcio shares them between channels of equal arguments."""
        own = (("grpc.use_local_subchannel_pool", 1), *OPEN, *options)
        made = (
            grpc.insecure_channel(self.url, own)
            if credentials is None
            else grpc.secure_channel(self.url, credentials, own)
        )
        with made as channel:
            yield channel


OPEN = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
"""Options of a client that takes any size."""


def made(kind: str, service: Any, limits: Limits, tls: Tls | None = None) -> Any:
    return (GrpcioTransport if kind == "grpcio" else Http2Transport)(service, time.monotonic_ns, limits, tls)


@contextmanager
def serving(
    kind: str,
    service: Any = None,
    limits: Limits | None = None,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    tls: Tls | None = None,
) -> Iterator[Served]:
    """A started transport, stopped at the end with what is still open."""
    service = service or StandIn()
    transport = made(kind, service, limits or Limits(), tls)
    served = Served(kind, transport, service, address, transport.start(address, port))
    try:
        yield served
    finally:
        transport.stop(0)


def unary(channel: grpc.Channel, name: str, body: bytes = b"", **options: Any) -> bytes:
    """One call of the stand-in's handlers by grpcio's client, with raw bytes."""
    answer: bytes = channel.unary_unary(path(name))(body, timeout=options.pop("timeout", WAIT), **options)
    return answer


def begun(served: Served, client: Any, name: str) -> tuple[int, Held]:
    """A call of `hold` or `open` by a raw client: its stream, and what the handler has."""
    stream = client.request(name, b"\0\0\0\0\1x", end=name == "hold")
    return stream, served.held() if name == "hold" else served.opened()


def refused(call: Callable[[], Any]) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call of grpcio's client that must fail."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details()
