"""One RPC of the transport over grpcio: what handlers get, and how its end reaches the loop."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import grpc

from server.errors import Internal, ResourceExhausted, ServerError
from server.logs import log
from server.rpc.call import Answer, Metadata
from server.rpc.status import Code, code_of, text_of

Context = Any
"""grpc.aio.ServicerContext, whose type parameters say nothing about bytes."""
Clock = Callable[[], int]
STATUS: dict[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}
DEFECT = Internal("internal error, see the server's log")

assert set(Code) <= set(STATUS), "every code of ours is one of grpcio's"


class Mailbox:
    """Brings work from any thread to the loop, with one wake-up for all that has come meanwhile."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Callable[[], None]] = deque()
        self._woken = False

    def put(self, action: Callable[[], None]) -> None:
        self._waiting.append(action)
        # append comes first and `_drain` clears the flag before it takes, so whoever sees it set will be taken
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._drain)
            except RuntimeError:  # the loop is closed: the server is gone, and so are its callers
                self._waiting.clear()

    def _drain(self) -> None:
        self._woken = False
        while self._waiting:
            self._waiting.popleft()()


class BaseCall:
    """What a unary call and a stream have in common; created on the loop."""

    __slots__ = ("_actions", "_cancelled", "_context", "_initial", "_mailbox", "_trailers", "deadline_ns")

    def __init__(self, context: Context, mailbox: Mailbox, clock: Clock) -> None:
        remaining = context.time_remaining()
        self.deadline_ns: int | None = None if remaining is None else clock() + int(remaining * 1e9)
        self._context = context
        self._mailbox = mailbox
        self._actions: list[Callable[[], None]] = []
        self._cancelled = False
        self._initial: Metadata = ()
        self._trailers: Metadata = ()

    @property
    def metadata(self) -> Metadata:
        return tuple((key, value) for key, value in self._context.invocation_metadata() or () if key != "user-agent")

    def send_metadata(self, metadata: Metadata) -> None:
        self._initial = metadata

    def set_trailers(self, metadata: Metadata) -> None:
        self._trailers = metadata

    def on_cancel(self, action: Callable[[], None]) -> None:
        self._actions.append(action)
        if self._cancelled:  # gone while a large body was being decoded
            action()

    def forget(self) -> None:
        """The handler is done: it and the call hold each other no more, and are freed without the collector."""
        self._actions.clear()

    def cancel(self) -> None:
        self._cancelled = True
        for action in self._actions:
            action()

    async def head(self) -> None:
        """Send what has to go before the first answer."""
        if self._initial:
            metadata, self._initial = self._initial, ()
            await self._context.send_initial_metadata(tuple(metadata))

    async def close(self, error: ServerError | None) -> None:
        if self._trailers:
            self._context.set_trailing_metadata(tuple(self._trailers))
        if error is not None:
            await self._context.abort(STATUS[code_of(error)], text_of(error), tuple(self._trailers))


class UnaryCall(BaseCall):
    __slots__ = ("result",)

    def __init__(self, context: Context, mailbox: Mailbox, clock: Clock, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(context, mailbox, clock)
        self.result: asyncio.Future[bytes | ServerError] = loop.create_future()

    def complete(self, answer: Callable[[], Answer]) -> None:
        self._mailbox.put(lambda: self._resolve(answer))

    def _resolve(self, answer: Callable[[], Answer]) -> None:
        if not self.result.done():  # else the client has gone
            self.result.set_result(guarded(answer))


class StreamCall(BaseCall):
    __slots__ = ("_most_unread", "_unread", "answers")

    def __init__(self, context: Context, mailbox: Mailbox, clock: Clock, most_unread: int) -> None:
        super().__init__(context, mailbox, clock)
        self._most_unread = most_unread
        self.answers: asyncio.Queue[bytes | ServerError | None] = asyncio.Queue()
        self._unread = 0

    def send(self, message: Answer) -> None:
        whole = joined(message)
        self._mailbox.put(lambda: self._put(whole))

    def end(self, error: ServerError | None = None) -> None:
        self._mailbox.put(lambda: self.answers.put_nowait(error))

    def written(self, message: bytes) -> None:
        self._unread -= len(message)

    def _put(self, message: bytes) -> None:
        self._unread += len(message)
        if self._unread > self._most_unread:
            text = f"client left more than {self._most_unread} bytes of answers unread"
            self.answers.put_nowait(ResourceExhausted(text))
            self.cancel()
        else:
            self.answers.put_nowait(message)


def joined(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else b"".join(answer)


def guarded(answer: Callable[[], Answer]) -> bytes | ServerError:
    try:
        return joined(answer())
    except ServerError as error:
        return error
    except Exception as error:  # noqa: BLE001 a defect of ours must not end the loop, nor reach the client as a trace
        log.defect("handler failed", error)
        return DEFECT
