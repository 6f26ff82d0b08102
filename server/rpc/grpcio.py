"""The transport over grpcio: grpc.aio on one event loop in a thread of its own, raw bytes in and out.

grpc.aio answers about 1.6 times the requests of grpcio's threaded server (grpc_bench PR 166). What comes from other
threads is collected and brought to the loop together, since waking it costs more than an answer.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import grpc.aio

from server.errors import ServerError
from server.logs import log
from server.rpc import grpcio_calls
from server.rpc.call import Answer, Buffer, Call, Deferred, Quick, Refused, Route, Slow, Stream, StreamCall
from server.rpc.grpcio_calls import DEFECT, STATUS, Clock, Context, Mailbox, UnaryCall, guarded
from server.rpc.limits import Limits
from server.rpc.service import Service
from server.rpc.status import code_of, text_of
from server.rpc.tls import Tls

Unary = Callable[[bytes, Context], Awaitable[bytes]]

LARGE = 1 << 20
"""Bytes of a body from which on decoding leaves the loop: half a million BYTES elements take some 50 ms."""
LINGER_STEPS = 10
LINGER_STEP_SECS = 0.05
"""How often and how long a drained server looks whether requests still come, before it closes."""
_ONLY_IDENTITY = 1
_NEVER = (1 << 31) - 1


class GrpcioTransport:
    """Serves a `Service`; all methods are for other threads than the loop's own."""

    def __init__(
        self,
        service: Service,
        clock: Clock = time.monotonic_ns,
        limits: Limits | None = None,
        tls: Tls | None = None,
    ) -> None:
        self._service = service
        self._clock = clock
        self._limits = limits or Limits()
        self._tls = tls
        self._loop = asyncio.new_event_loop()
        self._mailbox = Mailbox(self._loop)
        self._waiters = ThreadPoolExecutor(8, thread_name_prefix="rpc-wait")
        self._decoders = ThreadPoolExecutor(2, thread_name_prefix="rpc-decode")
        self._in_flight = 0
        """Deferred calls read and not yet answered; the loop's own."""
        self._arrived = 0
        self._releasing = False
        self._idle = asyncio.Event()
        self._server: grpc.aio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name="rpc", daemon=True)

    def start(self, address: str, port: int) -> int:
        """Listen; returns the port. Raises OSError when it cannot be had."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(address, port), self._loop).result()

    def drain(self, timeout: float) -> bool:
        """Refuse new inferences, wait for the accepted ones; False if `timeout` seconds were not enough."""
        self._service.begin_drain()
        return asyncio.run_coroutine_threadsafe(self._drained(timeout), self._loop).result()

    def stop(self, grace: float = 1.0) -> None:
        """Close the listener and, after `grace` seconds at most, what is still open."""
        self._service.begin_drain()
        self._service.health.end()
        if self._server is not None:
            asyncio.run_coroutine_threadsafe(self._server.stop(grace), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._waiters.shutdown(wait=False, cancel_futures=True)
        self._decoders.shutdown(wait=False, cancel_futures=True)

    async def _start(self, address: str, port: int) -> int:
        limits = self._limits
        options: list[tuple[str, Any]] = [
            ("grpc.max_receive_message_length", limits.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.header_bytes),
            ("grpc.max_concurrent_streams", limits.streams),
            # else calls beyond 1,000 that Python has not taken over yet are cancelled
            ("grpc.server.max_pending_requests", _NEVER),
            ("grpc.server.max_pending_requests_hard_limit", _NEVER),
            ("grpc.keepalive_time_ms", int(limits.keepalive_secs * 1000) or _NEVER),
            ("grpc.keepalive_timeout_ms", int(limits.keepalive_timeout_secs * 1000)),
            ("grpc.http2.min_ping_interval_without_data_ms", int(limits.min_ping_secs * 1000)),
            ("grpc.http2.max_ping_strikes", limits.ping_strikes),
            # without it a second server on a taken port starts happily and takes half of the connections
            ("grpc.so_reuseport", 0),
        ]
        if not limits.compression:
            # a compressed message is expanded whole before its size is looked at (grpc issue 41996)
            options.append(("grpc.compression_enabled_algorithms_bitset", _ONLY_IDENTITY))
        server = grpc.aio.server(options=options)
        server.add_generic_rpc_handlers((_Table(self._handlers()),))
        host = f"[{address}]" if ":" in address else address
        try:
            where = address if address.startswith("unix:") else f"{host}:{port}"
            bound = (
                server.add_secure_port(where, _credentials(self._tls)) if self._tls else server.add_insecure_port(where)
            )
        except RuntimeError as error:
            raise OSError(f"cannot listen on {address}:{port}") from error
        await server.start()
        self._server = server
        return 0 if address.startswith("unix:") else int(bound)

    async def _drained(self, timeout: float) -> bool:
        try:
            async with asyncio.timeout(timeout):
                while self._in_flight:
                    self._idle.clear()
                    await self._idle.wait()
        except TimeoutError:
            return False
        # grpcio cancels calls that it has read and not yet handed over when it stops, which clients take for their own
        # doing; while it is still open they get the text that tells them to go elsewhere
        for _ in range(LINGER_STEPS):
            before = self._arrived
            await asyncio.sleep(LINGER_STEP_SECS)
            if before == self._arrived:
                break
        return True

    # --- handlers ---

    def _handlers(self) -> dict[str, grpc.RpcMethodHandler]:
        return {path: self._handler(route) for path, route in self._service.routes().items()}

    def _handler(self, route: Route) -> grpc.RpcMethodHandler:
        match route:
            case Refused(error):
                # as a stream, so that it is refused before the first message, whichever kind the client thinks it is
                return grpc.stream_stream_rpc_method_handler(_refuse(error))
            case Stream(opened):
                return grpc.stream_stream_rpc_method_handler(self._stream(opened))
            case Deferred(start):
                return grpc.unary_unary_rpc_method_handler(self._deferred(start))
            case Slow(run):
                return grpc.unary_unary_rpc_method_handler(self._slow(run))
            case Quick(run):
                return grpc.unary_unary_rpc_method_handler(self._quick(run))

    def _quick(self, run: Callable[[Buffer], Answer]) -> Unary:
        async def handle(body: bytes, context: Context) -> bytes:
            return await _given(context, guarded(lambda: run(body)))

        return handle

    def _slow(self, run: Callable[[Buffer], Answer]) -> Unary:
        async def handle(body: bytes, context: Context) -> bytes:
            return await _given(context, await self._loop.run_in_executor(self._waiters, guarded, lambda: run(body)))

        return handle

    def _deferred(self, run: Callable[[Buffer, Call], None]) -> Unary:
        async def handle(body: bytes, context: Context) -> bytes:
            call = UnaryCall(context, self._mailbox, self._clock, self._loop)
            self._in_flight += 1
            self._arrived += 1
            try:
                if len(body) < LARGE:
                    _started(run, body, call)
                else:
                    await self._loop.run_in_executor(self._decoders, _started, run, body, call)
                del body  # the arrays hold what they need of it
                self._release_soon()
                result = await call.result
                await call.head()
                if isinstance(result, ServerError):
                    await call.close(result)
                    raise result  # not reached: the line before ends the call
                await call.close(None)
                return result
            except asyncio.CancelledError:  # by the client, its deadline, or the end of the grace period
                call.cancel()
                raise
            finally:
                call.forget()
                self._in_flight -= 1
                if not self._in_flight:
                    self._idle.set()

        return handle

    def _release_soon(self) -> None:
        """One release for all calls that the loop starts in this turn, so that they may share a batch."""
        if not self._releasing:
            self._releasing = True
            self._loop.call_soon(self._release)

    def _release(self) -> None:
        self._releasing = False
        self._service.release()

    def _stream(self, opened: Callable[[StreamCall], Callable[[Buffer | None], None]]) -> Any:
        async def handle(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            call = grpcio_calls.StreamCall(context, self._mailbox, self._clock, self._limits.unread_bytes)
            reader = asyncio.ensure_future(_read(messages, opened(call), call))
            try:
                while (answer := await call.answers.get()) is not None:
                    await call.head()
                    if isinstance(answer, ServerError):
                        await call.close(answer)
                    else:
                        yield answer
                        call.written(answer)
                await call.head()
                await call.close(None)
            except (asyncio.CancelledError, GeneratorExit):
                call.cancel()
                raise
            finally:
                reader.cancel()

        return handle


async def _read(
    messages: AsyncIterator[bytes], on_message: Callable[[Buffer | None], None], call: grpcio_calls.StreamCall
) -> None:
    try:
        async for body in messages:
            on_message(body)
        on_message(None)
    except grpc.aio.AbortError:  # the call has been ended with a status, and with it what there was to read
        return
    except Exception as error:  # noqa: BLE001 as in `guarded`
        log.defect("handler failed", error)
        call.end(DEFECT)


def _started(run: Callable[[Buffer, Call], None], body: bytes, call: UnaryCall) -> None:
    try:
        run(body, call)
    except Exception as error:  # noqa: BLE001 as in `guarded`
        log.defect("handler failed", error)
        call.complete(_defect)


def _defect() -> bytes:
    raise DEFECT


def _credentials(tls: Tls) -> grpc.ServerCredentials:
    pair = (tls.key.read_bytes(), tls.certificate.read_bytes())
    root = None if tls.root is None else tls.root.read_bytes()
    return grpc.ssl_server_credentials([pair], root, tls.mutual)


async def _given(context: Context, result: bytes | ServerError) -> bytes:
    if isinstance(result, ServerError):
        await _fail(context, result)
        raise result  # not reached: the line before ends the call
    return result


async def _fail(context: Context, error: ServerError) -> None:
    await context.abort(STATUS[code_of(error)], text_of(error))


def _refuse(error: ServerError) -> Callable[[AsyncIterator[bytes], Context], AsyncIterator[bytes]]:
    async def handle(messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
        await _fail(context, error)
        yield b""  # not reached: makes this a stream

    return handle


class _Table(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpcio has no types
    """Paths exactly as spelled; another spelling is grpcio's UNIMPLEMENTED."""

    def __init__(self, handlers: dict[str, grpc.RpcMethodHandler]) -> None:
        self._handlers = handlers

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        return self._handlers.get(handler_call_details.method)
