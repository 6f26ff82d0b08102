"""One client's connection: reads, hands events to calls, collects what they answer and sends it in one go.

All of it belongs to the loop's thread.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import cast

from server.errors import ServerError
from server.logs import log
from server.rpc.call import Buffer, Stream
from server.rpc.http2 import framing, handshake, library
from server.rpc.http2.calls import StreamCall, UnaryCall
from server.rpc.http2.framing import Headers
from server.rpc.http2.handshake import Waits
from server.rpc.http2.library import DataReceived, RequestReceived, StreamClosed, StreamReset
from server.rpc.http2.outgoing import SLICE_BYTES, Outgoing
from server.rpc.http2.pings import Pings
from server.rpc.http2.shared import Shared
from server.rpc.status import Code, code_of, text_of

WRITE_BYTES = 1 << 18
"""Bytes of one system call; more at once would be copied again when the socket takes only part of them."""
FAREWELL = b"farewell"  # what the ping says that follows the first GOAWAY
_WAIT = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError, InterruptedError)


class Connection:
    """See the module's text; `on_closed` and `on_interest` are the loop's."""

    def __init__(
        self,
        sock: socket.socket,
        shared: Shared,
        on_interest: Callable[[int, bool], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self.shared = shared
        self.descriptor = sock.fileno()
        self.calls: dict[int, UnaryCall | StreamCall] = {}
        self._socket = sock
        self._tls = self._shaking = isinstance(sock, ssl.SSLSocket)
        self._http2 = library.accept(shared.limits)
        self._on_interest = on_interest
        self._on_closed = on_closed
        self._unsent: memoryview | None = None
        self._outbox: dict[int, Outgoing] = {}  # by stream, what the library has not been given yet
        self._resets: list[int] = []
        """Streams to be reset once what ends them has gone out, if their client still sends."""
        self._owed = 0
        """Bytes of answers counted as buffered."""
        self._ending = self._called = self._blocked = False
        self._over = False
        """Whether the library is done with it, whatever it still holds."""
        self._left_ns: int | None = None
        """When we said our last; what the client still sends is read, and dropped, until it closes."""
        self.open = True
        self.settled = False
        """Whether the client has said its SETTINGS."""
        self.since_ns = self.heard_ns = shared.now_ns
        self.stalled_ns: int | None = None
        """Since when the client has taken nothing of what is ready for it."""
        self._left = 0
        self._pinged = False
        self._pings = Pings(shared.limits)
        shared.touched[self] = None

    # --- the loop's side ---

    def on_ready(self, readable: bool) -> None:
        if self._shaking and not self._shake():
            return
        shared = self.shared
        shared.touched[self] = None
        if not readable:
            return
        while self.open:
            try:
                size = self._socket.recv_into(shared.inbox)
            except _WAIT:
                return
            except OSError:
                size = 0
            if not size:
                self.close()
                return
            if self._left_ns is not None:
                return
            self._receive(shared.inbox[:size])
            # TLS may hold what epoll does not know of; a plain socket is asked again when others have had their turn
            if not self._tls:
                return

    def flush(self) -> None:
        """Send what is ready, as far as the socket takes it."""
        if self._shaking or not self.open or self._left_ns is not None:
            return
        self._write()
        if self._resets and self._unsent is None and self.open:
            self._stop_senders()
            self._write()
        for event in self._http2.events():  # sending, too, brings some: the end of streams and of the connection
            self._other(event)
        if self._owed:
            self._owe(self._waiting() - self._owed)
        if self._ending and self._unsent is None and (self._over or not (self.calls or self._waiting())):
            self._leave()

    def sweep(self, now_ns: int) -> None:
        """Once a second: whoever is too slow, or gone without a word."""
        limits = self.shared.limits
        if self._left_ns is not None:
            if now_ns - self._left_ns > limits.handshake_secs * 1e9:
                self.close()
            return
        if not self.settled:
            if now_ns - self.since_ns > limits.handshake_secs * 1e9:
                self.close()
            return
        late = now_ns - int(limits.receive_secs * 1e9)
        for call in [c for c in self.calls.values() if c.since_ns is not None and c.since_ns < late]:
            call.too_slow()
            self.shared.touched[self] = None
        left = self._waiting()
        if not left or left != self._left:
            self.stalled_ns = None
        if left and self.stalled_ns is None:
            self.stalled_ns = now_ns
        self._left = left
        if self.stalled_ns is not None and now_ns - self.stalled_ns > limits.send_secs * 1e9:
            log.warning("a connection was closed: its client takes nothing", unread=left)
            self.close()
            return
        silent = (now_ns - self.heard_ns) / 1e9
        if self._pinged:
            if silent > limits.keepalive_secs + limits.keepalive_timeout_secs:
                self.close()
        elif limits.keepalive_secs and silent > limits.keepalive_secs:
            self._pinged = True
            self._http2.ping()
            self.shared.touched[self] = None

    def go_away(self, final: bool) -> None:
        """Tell the client to send no new calls here; with `final`, close when the open ones have ended.

        First without, then with, when a ping says that the client knows (RFC 9113, 6.8). Not to those who have not
        called yet: clients of gRPC's core (1.85) that are told as they connect try here without end, and read no more.
        """
        self._ending |= final
        if self.open and self._called:
            with contextlib.suppress(library.Http2Error):  # already ending
                if final:
                    self._http2.send_goaway()
                else:
                    self._http2.send_shutdown_notice()
                    self._http2.ping(FAREWELL)
        self.shared.touched[self] = None

    def _leave(self) -> None:
        """Say no more, and close when the client does: to close while it sends would cost it what it has not read."""
        if not self.open:
            return
        self._left_ns = self.shared.now_ns
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone
            self.close()

    def close(self) -> None:
        """At once; whoever still waits is gone."""
        if not self.open:
            return
        self.open = False
        self.shared.touched.pop(self, None)
        self._owe(-self._owed)
        for call in list(self.calls.values()):
            call.cancel()
        self._on_closed(self)
        self._socket.close()

    # --- the calls' side ---

    def answer(self, stream: int, first: Headers | None, parts: tuple[Buffer, ...], trailers: Headers) -> None:
        """A whole answer and its status."""
        try:
            self._put(stream, first, parts)
            if (outgoing := self._outbox.get(stream)) is not None:
                outgoing.trailers = trailers
            else:
                self._http2.send_trailers(stream, trailers)
        except library.Http2Error:  # the stream went in the same turn
            return

    def begin(self, stream: int, first: Headers) -> None:
        """The answer's headers by themselves."""
        with contextlib.suppress(library.Http2Error):  # as in `answer`
            self._http2.send_response(stream, first)

    def send(self, stream: int, first: Headers | None, parts: tuple[Buffer, ...]) -> int:
        """One message; returns the bytes of the stream that wait to be taken by the client."""
        try:
            self._put(stream, first, parts)
            queued = self._http2.queued_body_size(stream)
        except library.Http2Error:  # as in `answer`
            return 0
        return queued + outgoing.size if (outgoing := self._outbox.get(stream)) is not None else queued

    def end(self, stream: int, first: Headers | None, trailers: Headers) -> None:
        """A status, alone (`first` and it in one block) or behind what has been sent."""
        self.shared.touched[self] = None
        self._pings.sent()
        self._resets.append(stream)
        if (outgoing := self._outbox.get(stream)) is not None:
            outgoing.trailers = trailers
            return
        with contextlib.suppress(library.Http2Error):  # as in `answer`
            if first is not None:
                self._http2.send_response(stream, [*first, *trailers], end_stream=True)
            else:
                self._http2.send_trailers(stream, trailers)

    def reset(self, stream: int) -> None:
        self._outbox.pop(stream, None)
        with contextlib.suppress(library.Http2Error):
            self._http2.reset_stream(stream, library.CANCEL)

    def forget(self, stream: int) -> None:
        self.calls.pop(stream, None)

    # --- inside ---

    def _put(self, stream: int, first: Headers | None, parts: tuple[Buffer, ...]) -> None:
        """A message on its way. Raises Http2Error where the stream has gone."""
        self.shared.touched[self] = None
        self._pings.sent()
        if first is not None:
            self._http2.send_response(stream, first)
        if len(parts) == 1 and not self._outbox:
            self._http2.send_data(stream, parts[0])
            self._owe(len(parts[0]))
        else:
            self._owe(self._outbox.setdefault(stream, Outgoing()).add(parts))

    def _shake(self) -> bool:
        """Whether the TLS handshake is done."""
        try:
            waits = handshake.step(cast(ssl.SSLSocket, self._socket))
        except OSError as error:  # ssl.SSLError among them
            if log.is_verbose:
                log.verbose("TLS handshake failed", reason=error)
            self.close()
            return False
        self._on_interest(self.descriptor, waits is Waits.WRITABLE)
        self._shaking = waits is not Waits.NOTHING
        return not self._shaking

    def _receive(self, data: memoryview) -> None:
        http2 = self._http2
        self.heard_ns = self.shared.now_ns
        self._pinged = False
        try:
            http2.receive_data(data)
        except library.Http2Error as error:
            if log.is_verbose:
                log.verbose("a connection broke the protocol", reason=error)
            self._last_words()
            return
        calls = self.calls
        for event in http2.events():
            if isinstance(event, DataReceived):
                call = calls.get(event.stream_id)
                if call is not None:
                    call.receive(event.data, event.end_stream)
            elif isinstance(event, RequestReceived):
                self._request(event)
            else:
                self._other(event)

    def _request(self, event: RequestReceived) -> None:
        self._called = True
        shared = self.shared
        head = shared.head(event.headers)
        stream = event.stream_id
        route = head.route
        if route is None:
            self._refuse(stream, head.refusal, head.http_status)
            return
        call: UnaryCall | StreamCall
        if isinstance(route, Stream):
            call = self.calls[stream] = StreamCall(self, stream, head)
            call.open(route.run)
        else:
            call = self.calls[stream] = UnaryCall(self, stream, head)
        if event.end_stream:
            call.receive(b"", True)

    def _refuse(self, stream: int, error: ServerError | None, http_status: bytes) -> None:
        if error is None:
            self.end(stream, [(b":status", http_status)], [])
            return
        trailers = framing.status_headers(code_of(error), text_of(error))
        if code_of(error) is Code.UNIMPLEMENTED:
            allowed = framing.ACCEPTED if self.shared.limits.compression else b"identity"
            trailers.append((b"grpc-accept-encoding", allowed))
        self.end(stream, framing.HEAD, trailers)

    def _other(self, event: library.Event) -> None:
        match event:
            case StreamClosed() | StreamReset():  # first, because each call ends with one
                self._outbox.pop(event.stream_id, None)
                if (call := self.calls.get(event.stream_id)) is not None:
                    call.cancel()
            case library.TrailersReceived():
                if (call := self.calls.get(event.stream_id)) is not None:
                    call.receive(b"", True)
            case library.SettingsReceived():
                self.settled = True
            case library.PingReceived():
                if self._waiting():  # clients measure the connection with pings while they receive
                    self._pings.sent()
                elif self._pings.too_many(self.shared.now_ns):
                    self._http2.send_goaway(library.ENHANCE_YOUR_CALM, debug_data=b"too_many_pings")
                    self._last_words()
            case library.PingAcknowledged():
                if event.opaque_data == FAREWELL:
                    self.go_away(final=True)
            case library.ConnectionClosed():
                self._ending = self._over = True
                self._outbox.clear()
                for call in list(self.calls.values()):
                    call.cancel()

    def _last_words(self) -> None:
        """Send what explains the end, if the socket takes it, and close."""
        with contextlib.suppress(library.Http2Error):
            self._write()
        self.close()

    def _stop_senders(self) -> None:
        """Reset, without an error, the streams that have ended here and not yet there (RFC 9113, 8.1)."""
        later = []
        for stream in self._resets:
            if stream in self._outbox or self._http2.queued_body_size(stream):
                later.append(stream)
            elif library.is_open(self._http2, stream):
                self._http2.reset_stream(stream, library.NO_ERROR)
        self._resets = later

    def _waiting(self) -> int:
        """Bytes of answers that the client has not let us send."""
        left = self._http2.queued_body_size()
        if self._unsent is not None:
            left += len(self._unsent)
        return left + sum(outgoing.size for outgoing in self._outbox.values()) if self._outbox else left

    def _owe(self, size: int) -> None:
        self._owed += size
        self.shared.buffered += size

    def _top_up(self, http2: library.Connection) -> None:
        """Give the library more of each large answer: a slice at a time, since it copies what it is given."""
        for stream, outgoing in list(self._outbox.items()):
            try:
                while outgoing.size and http2.queued_body_size(stream) < SLICE_BYTES:
                    http2.send_data(stream, outgoing.take())
                if not outgoing.size:
                    del self._outbox[stream]
                    if outgoing.trailers is not None:
                        http2.send_trailers(stream, outgoing.trailers)
            except library.Http2Error:  # the stream is gone
                self._outbox.pop(stream, None)

    def _write(self) -> None:
        try:
            while True:
                if self._unsent is None:
                    if self._outbox:
                        self._top_up(self._http2)
                    data = self._http2.data_to_send(WRITE_BYTES)
                    if not data:
                        break
                    self._unsent = memoryview(data)
                sent = self._socket.send(self._unsent)
                self._unsent = self._unsent[sent:] if sent < len(self._unsent) else None
        except _WAIT:
            if not self._blocked:
                self._blocked = True
                self._on_interest(self.descriptor, True)
            return
        except OSError:
            self.close()
            return
        if self._blocked:
            self._blocked = False
            self._on_interest(self.descriptor, False)
