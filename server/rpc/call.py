"""The seam between handlers and transports: what a transport offers a handler, and the kinds of handlers there are.

A transport walks `Service.routes()` and does for each kind what stands with it. Whatever a handler gets or gives is
bytes; handlers know no transport, transports know no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from server.errors import ServerError, Unsupported

Buffer = bytes | bytearray | memoryview
Answer = bytes | Sequence[Buffer]
"""A serialised message, whole or as the parts that it is made of, so that large tensors need not be joined."""
Metadata = Sequence[tuple[str, str | bytes]]
"""As gRPC defines it: lower-case keys; those that end in `-bin` have bytes."""


class BaseCall(Protocol):
    """What every handler may know of the call that it answers."""

    @property
    def deadline_ns(self) -> int | None:
        """The client's deadline on the server's clock."""
        ...

    @property
    def metadata(self) -> Metadata:
        """What the client sent, without the headers that belong to gRPC itself."""
        ...

    def send_metadata(self, metadata: Metadata) -> None:
        """Initial metadata, before the first answer. From any thread."""
        ...

    def set_trailers(self, metadata: Metadata) -> None:
        """Trailing metadata, to go out with the status. From any thread."""
        ...

    def on_cancel(self, action: Callable[[], None]) -> None:
        """`action` is called, from any thread, when the client goes away before the call has ended."""
        ...


class Call(BaseCall, Protocol):
    """One request, one answer."""

    def complete(self, answer: Callable[[], Answer]) -> None:
        """End the call with what `answer` returns or the ServerError it raises; once, from any thread.

        The transport calls `answer` in its own thread, so that an instance thread is free for its next batch.
        """
        ...


class StreamCall(BaseCall, Protocol):
    """Any number of messages each way."""

    def send(self, message: Answer) -> None:
        """One message to the client; from any thread. A client that does not read is cut off by the transport."""
        ...

    def end(self, error: ServerError | None = None) -> None:
        """End the call, after what has been sent; once, from any thread."""
        ...


OnMessage = Callable[[Buffer | None], None]
"""Given each message of the client in order, then None once when the client has sent its last."""


@dataclass(frozen=True, slots=True)
class Quick:
    """Answers at once from memory: may run on an event loop."""

    run: Callable[[Buffer], Answer]


@dataclass(frozen=True, slots=True)
class Slow:
    """Reads disks or waits for loads: must run in a thread that may wait."""

    run: Callable[[Buffer], Answer]


@dataclass(frozen=True, slots=True)
class Deferred:
    """Takes the call, returns at once and completes it later; needs long only to decode a large body."""

    run: Callable[[Buffer, Call], None]


@dataclass(frozen=True, slots=True)
class Stream:
    """Called when the call opens; what it returns is given the client's messages, on the event loop, one at a time."""

    run: Callable[[StreamCall], OnMessage]


@dataclass(frozen=True, slots=True)
class Refused:
    """An RPC of the protocol that this server does not have, unary or stream alike."""

    error: Unsupported


Route = Quick | Slow | Deferred | Stream | Refused
Routes = dict[str, Route]
"""By path, exactly as spelled; any other path is UNIMPLEMENTED."""


class Ends(Protocol):
    def end(self) -> None: ...


class Handlers(Protocol):
    """What a transport needs of a `Service`, which says what each of these is."""

    @property
    def health(self) -> Ends: ...

    def routes(self) -> Routes: ...

    def release(self) -> None: ...

    def begin_drain(self) -> None: ...
