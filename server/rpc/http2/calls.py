"""One RPC on its way: messages in, answers out. `UnaryCall` and `StreamCall` are what handlers get (`rpc/call.py`).

All state belongs to the loop's thread; what handlers may call from elsewhere goes through `Shared.post`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING

from server.errors import DeadlineExceeded, Internal, ResourceExhausted, ServerError, Unsupported
from server.logs import log
from server.rpc.call import Answer, Buffer, Call, Deferred, Metadata, OnMessage, Quick, Slow
from server.rpc.http2 import framing
from server.rpc.http2.framing import PREFIX_BYTES, unpack_prefix
from server.rpc.http2.messages import Messages
from server.rpc.http2.shared import Head
from server.rpc.http2.timers import Timer
from server.rpc.status import code_of, text_of

if TYPE_CHECKING:
    from server.rpc.http2.connection import Connection

LARGE = 1 << 20
"""Bytes of a message from which on decoding leaves the loop: half a million BYTES elements take some 50 ms."""
DEFECT = Internal("internal error, see the server's log")
FULL = ResourceExhausted("clients leave as many bytes of answers unread as this server may hold; try again")


class BaseCall:
    """Identity, deadline, metadata, cancellation, and the ways to end."""

    __slots__ = (
        "_actions", "_begun", "_connection", "_head", "_initial", "_messages", "_shared", "_stream", "_timer",
        "_trailers", "deadline_ns", "ended", "since_ns",
    )  # fmt: skip

    def __init__(self, connection: Connection, stream: int, head: Head) -> None:
        shared = connection.shared
        self._connection = connection
        self._shared = shared
        self._stream = stream
        self._head = head
        self._messages: Messages | None = None
        self._actions: list[Callable[[], None]] | None = None
        self._initial: Metadata = ()
        self._trailers: Metadata = ()
        self._begun = False
        """Whether the answer's headers have gone out."""
        self._timer: Timer | None = None
        self.ended = False
        self.since_ns: int | None = shared.now_ns
        """Since when the client has owed bytes; None while it owes none."""
        self.deadline_ns: int | None = None
        if head.timeout_ns is not None:
            self.deadline_ns = shared.clock() + head.timeout_ns
            self._timer = shared.timers.add(self.deadline_ns, self._late)

    # --- for handlers ---

    @property
    def metadata(self) -> Metadata:
        return framing.metadata_of(self._head.headers)

    def send_metadata(self, metadata: Metadata) -> None:
        self._initial = metadata

    def set_trailers(self, metadata: Metadata) -> None:
        self._trailers = metadata

    def on_cancel(self, action: Callable[[], None]) -> None:
        if self._actions is None:
            self._actions = [action]
        else:
            self._actions.append(action)
        if self.ended:  # gone while a large message was being decoded
            self._abandon()

    # --- for the connection ---

    def cancel(self) -> None:
        """The client has gone, or taken the call back."""
        if not self.ended:
            self._close()
            self._abandon()

    def fail(self, error: ServerError) -> None:
        """End the call with a status: alone where nothing has been sent yet, else behind it."""
        if not self.ended:
            self._close()
            status = framing.status_headers(code_of(error), text_of(error))
            first = self._first()
            if first is not None and self._initial:  # in one block with the status it would be trailing metadata
                self._connection.begin(self._stream, first)
                first = None
            self._connection.end(self._stream, first, [*status, *framing.metadata_headers(self._trailers)])

    def too_slow(self) -> None:
        self.fail(DeadlineExceeded("the message did not arrive within the server's time for receiving"))
        self._abandon()

    # --- for the two kinds ---

    def _feed(self, data: bytes) -> list[Buffer]:
        """The messages that are whole with `data`; an error ends the call."""
        messages = self._messages
        if messages is None:
            shared = self._shared
            messages = self._messages = Messages(shared.limits.message_bytes, self._head.encoding, shared.reserve)
        try:
            return list(messages.feed(data))
        except ServerError as error:
            self.fail(error)
            return []

    def _first(self) -> framing.Headers | None:
        """The headers of the answer, once."""
        if self._begun:
            return None
        self._begun = True
        if not self._initial:
            return framing.HEAD
        return [*framing.HEAD, *framing.metadata_headers(self._initial)]

    def _close(self) -> None:
        self.ended = True
        self.since_ns = None
        if self._messages is not None:
            self._shared.buffered -= self._messages.reserved
            self._messages = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._connection.forget(self._stream)

    def _abandon(self) -> None:
        """Nobody waits for what the handler is doing any more."""
        actions, self._actions = self._actions, None
        for action in actions or ():
            try:
                action()
            except Exception as error:  # noqa: BLE001 as in `UnaryCall._decode`
                log.defect("a call could not be taken back", error)

    def _late(self) -> None:
        self._timer = None
        self.fail(DeadlineExceeded("Deadline Exceeded"))
        self._abandon()


class UnaryCall(BaseCall):
    """One message each way."""

    __slots__ = ("_counted", "_whole")

    def __init__(self, connection: Connection, stream: int, head: Head) -> None:
        super().__init__(connection, stream, head)
        self._whole: Sequence[Buffer] = ()
        self._counted = False

    def receive(self, data: bytes, end: bool) -> None:
        if end and self._messages is None and len(data) >= PREFIX_BYTES:
            flag, length = unpack_prefix(data)
            if not flag and len(data) == PREFIX_BYTES + length and length <= self._shared.limits.message_bytes:
                self._start(data[PREFIX_BYTES:])
                return
        found = self._feed(data)
        if self.ended:
            return
        self._whole = [*self._whole, *found]
        if len(self._whole) > 1:
            self.fail(Unsupported("more than one message on a unary call"))
        elif end:
            if self._messages is not None and self._messages.partial:
                self.fail(Internal("the call ended within a message"))
            elif not self._whole:
                self.fail(Unsupported("no message on a unary call"))
            else:
                self._start(self._whole[0])

    def complete(self, answer: Callable[[], Answer]) -> None:
        if get_ident() == self._shared.thread:
            self._finish(answer)
        else:
            self._shared.post(partial(self._finish, answer))

    def _start(self, body: Buffer) -> None:
        shared = self._shared
        self.since_ns = None
        self._counted = True
        shared.in_flight += 1
        shared.arrived += 1
        route = self._head.route
        if isinstance(route, Deferred):
            if len(body) < LARGE:
                self._decode(route.run, body)
            else:
                shared.decoders.submit(self._decode_elsewhere, route.run, body)
        elif isinstance(route, Quick):
            self._finish(partial(route.run, body))
        else:
            assert isinstance(route, Slow)
            shared.waiters.submit(self._wait, route.run, body)

    def _decode(self, run: Callable[[Buffer, Call], None], body: Buffer) -> None:
        try:
            run(body, self)
        except Exception as error:  # noqa: BLE001 a defect of ours must not end the loop, nor reach the client as a trace
            log.defect("handler failed", error)
            self.complete(_defect)

    def _decode_elsewhere(self, run: Callable[[Buffer, Call], None], body: Buffer) -> None:
        self._decode(run, body)
        self._shared.post(_nothing)  # the round that follows releases what has been submitted

    def _wait(self, run: Callable[[Buffer], Answer], body: Buffer) -> None:
        try:
            result = run(body)
        except Exception as error:  # noqa: BLE001 whatever it is, it is raised again where it is answered
            self.complete(partial(_raise, error))
        else:
            self.complete(lambda: result)

    def _finish(self, answer: Callable[[], Answer]) -> None:
        self._actions = None  # a handler that is done holds the call no more: both are freed now, not by the collector
        if self.ended:  # the client has gone
            return
        try:
            result = answer()
        except ServerError as error:
            self.fail(error)
            return
        except Exception as error:  # noqa: BLE001 as in `_decode`
            log.defect("handler failed", error)
            self.fail(DEFECT)
            return
        if self._shared.full:
            self.fail(FULL)
            return
        self._close()
        trailers = framing.OK_TRAILERS
        if self._trailers:
            trailers = [*trailers, *framing.metadata_headers(self._trailers)]
        self._connection.answer(self._stream, self._first(), framing.framed(result), trailers)

    def _close(self) -> None:
        BaseCall._close(self)
        if self._counted:
            self._counted = False
            self._shared.in_flight -= 1


class StreamCall(BaseCall):
    """Any number of messages each way."""

    __slots__ = ("_on_message",)

    def __init__(self, connection: Connection, stream: int, head: Head) -> None:
        super().__init__(connection, stream, head)
        self.since_ns = None
        self._on_message: OnMessage | None = None

    def open(self, run: Callable[[StreamCall], OnMessage]) -> None:
        try:
            self._on_message = run(self)
        except ServerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 as in `UnaryCall._decode`
            log.defect("handler failed", error)
            self.fail(DEFECT)

    def receive(self, data: bytes, end: bool) -> None:
        for message in self._feed(data):
            self._give(message)
        if self.ended:  # by what came; the handler has not been told
            self._abandon()
        messages = self._messages
        if messages is None:
            return
        if not messages.partial:
            self._shared.buffered -= messages.reserved
            messages.reserved = 0
            self.since_ns = None
        elif self.since_ns is None:
            self.since_ns = self._shared.now_ns
        if end:
            if messages.partial:
                self.fail(Internal("the call ended within a message"))
                self._abandon()
            else:
                self._give(None)

    def _give(self, message: Buffer | None) -> None:
        if self.ended or self._on_message is None:
            return
        try:
            self._on_message(message)
        except Exception as error:  # noqa: BLE001 as in `UnaryCall._decode`
            log.defect("handler failed", error)
            self.fail(DEFECT)

    def send(self, message: Answer) -> None:
        self._shared.post(partial(self._send, message))

    def end(self, error: ServerError | None = None) -> None:
        self._shared.post(partial(self._end, error))

    def _send(self, message: Answer) -> None:
        if self.ended:
            return
        if self._shared.full:
            self.fail(FULL)
            self._connection.reset(self._stream)
            self._abandon()
            return
        unread = self._connection.send(self._stream, self._first(), framing.framed(message))
        limit = self._shared.limits.unread_bytes
        if unread > limit:
            log.warning("a stream was ended: its client does not read", unread=unread, limit=limit)
            self.fail(ResourceExhausted(f"client left more than {limit} bytes of answers unread"))
            self._connection.reset(self._stream)
            self._abandon()

    def _end(self, error: ServerError | None) -> None:
        if self.ended:
            return
        if error is not None:
            self.fail(error)
            return
        self._close()
        trailers = [*framing.OK_TRAILERS, *framing.metadata_headers(self._trailers)]
        self._connection.end(self._stream, self._first(), trailers)


def _defect() -> bytes:
    raise DEFECT


def _raise(error: Exception) -> bytes:
    raise error


def _nothing() -> None:
    """Only wakes the loop."""
