"""Calls as the engine's handlers know them (`rpc/call.py`): what comes of them goes to the front that has the client.

All state belongs to the engine's thread; what handlers may call from elsewhere goes through `Loop.post`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from server.errors import ServerError
from server.logs import log
from server.rpc.call import Answer, Buffer, Deferred, Metadata, OnMessage, Quick, Slow
from server.rpc.fronts.link import Kind, Record, packed, unpacked
from server.rpc.http2.calls import DEFECT, FULL, LARGE
from server.rpc.status import Code, code_of

if TYPE_CHECKING:
    from server.rpc.fronts.peer import Peer


class BaseCall:
    """Identity, deadline, metadata, cancellation, and the end."""

    __slots__ = ("_actions", "_gone", "_initial", "_metadata", "_number", "_peer", "_trailers", "deadline_ns")

    def __init__(self, peer: Peer, record: Record) -> None:
        self._peer = peer
        self._number = record.call
        self._metadata = record.metadata
        self._actions: list[Callable[[], None]] = []
        self._gone = False
        self._initial: Metadata = ()
        self._trailers: Metadata = ()
        self.deadline_ns: int | None = record.time or None

    @property
    def metadata(self) -> Metadata:
        return unpacked(self._metadata)

    def send_metadata(self, metadata: Metadata) -> None:
        self._initial = metadata

    def set_trailers(self, metadata: Metadata) -> None:
        self._trailers = metadata

    def on_cancel(self, action: Callable[[], None]) -> None:
        self._actions.append(action)
        if self._gone:  # while a large message was being decoded
            self._abandon()

    def cancel(self) -> None:
        """The client has gone, or its front has."""
        self._gone = True
        self._abandon()

    def fail(self, error: ServerError) -> None:
        # the text as it is: the front makes it fit for the wire, as it does with its own
        self._end(code_of(error), str(error).encode("utf-8", "surrogatepass"))

    def _abandon(self) -> None:
        actions, self._actions = self._actions, []
        for action in actions:
            try:
                action()
            except Exception as error:  # noqa: BLE001 as in `UnaryCall._decode`
                log.defect("a call could not be taken back", error)

    def _end(self, code: int, text: bytes = b"") -> None:
        if self._close():
            self._head()
            self._peer.reply(Kind.END, self._number, code, packed(self._trailers), text)

    def _close(self) -> bool:
        """Whether it was open."""
        self._actions = []  # handlers hold the call and it them: so both are freed now, not by the collector
        return self._peer.forget(self._number)

    def _head(self) -> None:
        """Before the first answer."""
        if self._initial:
            self._peer.reply(Kind.METADATA, self._number, 0, packed(self._initial))
            self._initial = ()


class UnaryCall(BaseCall):
    """One message each way."""

    __slots__ = ()

    def start(self, route: Quick | Slow | Deferred, body: Buffer) -> None:
        peer = self._peer
        if isinstance(route, Deferred):
            if len(body) < LARGE:
                self._decode(route.run, body)
            else:
                peer.decoders.submit(self._decode_elsewhere, route.run, body)
        elif isinstance(route, Quick):
            self._finish(partial(route.run, body))
        else:
            peer.waiters.submit(self._wait, route.run, body)

    def complete(self, answer: Callable[[], Answer]) -> None:
        if self._peer.loop.here:
            self._finish(answer)
        else:
            self._peer.loop.post(partial(self._finish, answer))

    def _decode(self, run: Callable[[Buffer, UnaryCall], None], body: Buffer) -> None:
        try:
            run(body, self)
        except Exception as error:  # noqa: BLE001 a defect of ours must not end the loop, nor reach the client as a trace
            log.defect("handler failed", error)
            self.complete(_defect)

    def _decode_elsewhere(self, run: Callable[[Buffer, UnaryCall], None], body: Buffer) -> None:
        self._decode(run, body)
        self._peer.loop.post(_nothing)  # the round that follows releases what has been submitted

    def _wait(self, run: Callable[[Buffer], Answer], body: Buffer) -> None:
        try:
            result = run(body)
        except Exception as error:  # noqa: BLE001 whatever it is, it is raised again where it is answered
            self.complete(partial(_raise, error))
        else:
            self.complete(lambda: result)

    def _finish(self, answer: Callable[[], Answer]) -> None:
        if self._gone:
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
        if self._peer.full:
            self.fail(FULL)
        elif self._close():
            self._head()
            self._peer.reply(Kind.ANSWER, self._number, 0, packed(self._trailers), result)


class StreamCall(BaseCall):
    """Any number of messages each way."""

    __slots__ = ("_on_message",)

    def open(self, run: Callable[[StreamCall], OnMessage]) -> None:
        self._on_message: OnMessage | None = None
        self._guarded(lambda: setattr(self, "_on_message", run(self)))

    def give(self, message: Buffer | None) -> None:
        """The client's next; None: it has sent its last."""
        if (on_message := self._on_message) is not None:
            self._guarded(lambda: on_message(message))

    def send(self, message: Answer) -> None:
        self._peer.loop.post(partial(self._send, message))

    def end(self, error: ServerError | None = None) -> None:
        self._peer.loop.post(partial(self._end, Code.OK) if error is None else partial(self.fail, error))

    def _send(self, message: Answer) -> None:
        if self._peer.calls.get(self._number) is not self:  # it has ended
            return
        if self._peer.full:
            self._abandon()
            self.fail(FULL)
            return
        self._head()
        self._peer.reply(Kind.MESSAGE, self._number, 0, b"", message)

    def _guarded(self, action: Callable[[], None]) -> None:
        try:
            action()
        except ServerError as error:
            self.fail(error)
        except Exception as error:  # noqa: BLE001 as in `UnaryCall._decode`
            log.defect("handler failed", error)
            self.fail(DEFECT)


def _defect() -> bytes:
    raise DEFECT


def _raise(error: Exception) -> bytes:
    raise error


def _nothing() -> None:
    """Only wakes the loop."""
