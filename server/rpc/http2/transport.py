"""Our own gRPC transport: one thread, one epoll set, all connections.

A round: read each ready socket once, hand whole messages to the handlers, tell the service that no more follow (which
runs quick models right here), then send what each connection has to say in one go. So a batch is what the clients sent
while the last one ran, and a system call carries many answers.
"""

from __future__ import annotations

import resource
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from select import EPOLLIN, EPOLLOUT, epoll

from server.logs import log
from server.rpc.call import Handlers
from server.rpc.http2 import library, listen
from server.rpc.http2.connection import Connection
from server.rpc.http2.shared import Shared
from server.rpc.http2.timers import Timer
from server.rpc.limits import Limits
from server.rpc.tls import Tls

SWEEP_NS = 10**9
PAUSE_NS = 10**9
QUIET_NS = 60 * 10**9
ACCEPTS = 64
"""Connections accepted in one round."""
SPARE_DESCRIPTORS = 64
LINGER_STEPS = 10
LINGER_STEP_SECS = 0.05
"""How often and how long a drained server looks whether requests still come, before it closes."""
Clock = Callable[[], int]


class Http2Transport:
    """Serves a `Service`; all methods are for other threads than the loop's own. Raises library.Unusable."""

    def __init__(
        self,
        service: Handlers,
        clock: Clock = time.monotonic_ns,
        limits: Limits | None = None,
        tls: Tls | None = None,
        busy_poll_us: int = 0,
    ) -> None:
        library.check()
        limits = limits or Limits()
        self._service = service
        self._busy_poll_ns = busy_poll_us * 1000
        self._tls = None if tls is None else tls.context()
        self._listener: socket.socket | None = None
        self._connections: dict[int, Connection] = {}
        self.reading = True
        """The loop's own: while it is False clients are not read, and wait."""
        self._poll = epoll()
        self._quiet = epoll()
        """Without the clients."""
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        for end in (self._wake_in, self._wake_out):
            end.setblocking(False)
        self.watch(self._wake_out.fileno(), self._woken)
        self._shared = Shared(service.routes(), limits, clock, self._wake)
        self._most = most_connections(limits)
        self._paused: Timer | None = None
        """While no connection is accepted; it has another look."""
        self._say_again_ns = 0
        self._drained: threading.Event | None = None
        self._stop_at_ns: int | None = None
        self._unix: Path | None = None
        self._thread = threading.Thread(target=self._run, name="rpc", daemon=True)

    @property
    def connections(self) -> int:
        return len(self._connections)

    @property
    def in_flight(self) -> int:
        """Unary calls begun and not yet ended."""
        return self._shared.in_flight

    def start(self, address: str, port: int) -> int:
        """Listen on an IP address, a host name or `unix:/path`; returns the port. Raises OSError."""
        listener = self._listener = listen.listener(address, port)
        self._poll.register(listener, EPOLLIN)
        self.begin()
        if address.startswith("unix:"):
            self._unix = listen.unix_path(address)
            return 0
        return int(listener.getsockname()[1])

    def begin(self) -> None:
        """Instead of `start`: without listening, for connections that are accepted elsewhere and given to `welcome`."""
        self._thread.start()

    def watch(self, descriptor: int, action: Callable[[], None]) -> None:
        """Do `action` on the loop's thread whenever there is something to be read. Before `start`."""
        self._watched[descriptor] = action
        self._poll.register(descriptor, EPOLLIN)
        self._quiet.register(descriptor, EPOLLIN)

    def post(self, action: Callable[[], None]) -> None:
        """Have `action` done on the loop's thread; from any thread."""
        self._shared.post(action)

    def drain(self, timeout: float) -> bool:
        """Refuse new inferences, wait for the accepted ones; False if `timeout` seconds were not enough."""
        self._service.begin_drain()
        drained = threading.Event()

        def begin() -> None:
            self._drained = drained
            for connection in list(self._connections.values()):
                connection.go_away(final=False)

        self._shared.post(begin)
        if not drained.wait(timeout):
            return False
        # what is on its way here is still told to go elsewhere; clients that never pause are not waited for
        for _ in range(LINGER_STEPS):
            before = self._shared.arrived
            time.sleep(LINGER_STEP_SECS)
            if before == self._shared.arrived:
                break
        return True

    def stop(self, grace: float = 1.0) -> None:
        """Close the listener and, after `grace` seconds at most, what is still open."""
        self._service.begin_drain()
        self._service.health.end()

        def begin() -> None:
            self._close_listener()
            self._stop_at_ns = self._shared.clock() + int(grace * 1e9)
            for connection in list(self._connections.values()):
                connection.go_away(final=True)

        self._shared.post(begin)
        if self._thread.is_alive():
            self._thread.join()
        else:
            self._close_listener()
        self._shared.waiters.shutdown(wait=False, cancel_futures=True)
        self._shared.decoders.shutdown(wait=False, cancel_futures=True)
        self._poll.close()
        self._quiet.close()
        self._wake_in.close()
        self._wake_out.close()

    def _close_listener(self) -> None:
        if self._listener is None:
            return
        if self._paused is None:
            self._poll.unregister(self._listener)
        self._listener.close()
        self._listener = None
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)

    # --- the loop ---

    def _run(self) -> None:
        shared = self._shared
        shared.thread = threading.get_ident()
        sweep_ns = 0
        ready: list[tuple[int, int]] = []
        while not self._over():
            ready = self._await(bool(ready))
            shared.now_ns = shared.clock()
            self._read(ready)
            shared.deliver()
            self._release()
            shared.timers.run(shared.now_ns)
            if shared.now_ns >= sweep_ns:
                sweep_ns = shared.now_ns + SWEEP_NS
                self._sweep()
            self._send()
            if self._drained is not None and not shared.in_flight:
                self._drained.set()
        for connection in list(self._connections.values()):
            connection.close()

    def _await(self, busy: bool) -> list[tuple[int, int]]:
        """What is ready, once something is. After a round that was `busy` and left no call open, it is looked for
        without sleeping first, for `busy_poll_us`."""
        poll = (self._poll if self.reading else self._quiet).poll
        if busy and not self._shared.in_flight:
            clock = self._shared.clock
            until = clock() + self._busy_poll_ns
            while clock() < until:
                if ready := poll(0):
                    return ready
        return poll(self._timeout())

    def _read(self, ready: list[tuple[int, int]]) -> None:
        for descriptor, mask in ready:
            connection = self._connections.get(descriptor)
            if connection is not None:
                try:
                    connection.on_ready(mask != EPOLLOUT)
                except Exception as error:  # noqa: BLE001  one connection must not end all
                    self._broken(connection, error)
            elif descriptor in self._watched:
                self._watched[descriptor]()
            elif self._listener is not None:
                self._accept(self._listener)

    def _release(self) -> None:
        try:
            self._service.release()
        except Exception as error:  # noqa: BLE001  as in `_read`
            log.defect("requests could not be released", error)

    def _send(self) -> None:
        touched = self._shared.touched
        while touched:
            connection = touched.popitem()[0]
            try:
                connection.flush()
            except Exception as error:  # noqa: BLE001  as in `_read`
                self._broken(connection, error)

    def _sweep(self) -> None:
        for connection in list(self._connections.values()):
            try:
                connection.sweep(self._shared.now_ns)
            except Exception as error:  # noqa: BLE001  as in `_read`
                self._broken(connection, error)

    def _broken(self, connection: Connection, error: Exception) -> None:
        if not isinstance(error, library.Http2Error):
            log.defect("a connection was closed", error)
        elif log.is_verbose:
            log.verbose("a connection broke the protocol", reason=error)
        connection.close()

    def _over(self) -> bool:
        at = self._stop_at_ns
        return at is not None and (not self._connections or self._shared.clock() >= at)

    def _timeout(self) -> float:
        """Seconds until there is something to do without any event."""
        soonest = self._shared.timers.next_ns()
        if self._stop_at_ns is not None:
            soonest = self._stop_at_ns if soonest is None else min(soonest, self._stop_at_ns)
        if soonest is None:
            return 1.0
        return min(1.0, max(0.0, (soonest - self._shared.clock()) / 1e9))

    def _woken(self) -> None:
        self._wake_out.recv(64)

    def _wake(self) -> None:
        try:
            self._wake_in.send(b"\0")
        except OSError:  # full: it will wake; closed: nobody has to
            return

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS):
            if len(self._connections) >= self._most:
                self._pause(f"{self._most} connections are open, no more are accepted until some leave")
                return
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone before it was accepted
                continue
            except OSError as error:
                self._pause(f"no connection can be accepted: {error.strerror}")
                return
            self.welcome(sock)

    def welcome(self, sock: socket.socket) -> None:
        """Serve an accepted connection; on the loop's thread."""
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is not None:
            try:
                sock.getpeername()  # wrapping one that is gone before it was accepted makes half a socket
                sock = self._tls.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            except OSError:
                sock.close()
                return
        connection = Connection(sock, self._shared, self._interest, self._closed)
        self._connections[connection.descriptor] = connection
        self._poll.register(connection.descriptor, EPOLLIN)

    def _interest(self, descriptor: int, writable: bool) -> None:
        self._poll.modify(descriptor, EPOLLIN | (EPOLLOUT if writable else 0))

    def _closed(self, connection: Connection) -> None:
        self._poll.unregister(connection.descriptor)
        del self._connections[connection.descriptor]
        if self._paused is not None:
            self._resume()

    def _pause(self, why: str) -> None:
        if self._shared.now_ns >= self._say_again_ns:  # connections that come and go at the limit must not fill a disk
            self._say_again_ns = self._shared.now_ns + QUIET_NS
            log.warning(why)
        assert self._listener is not None
        self._poll.unregister(self._listener)
        self._paused = self._shared.timers.add(self._shared.clock() + PAUSE_NS, self._resume)

    def _resume(self) -> None:
        if self._paused is None or self._listener is None:
            return
        self._paused.cancel()
        if len(self._connections) < self._most:
            self._paused = None
            self._poll.register(self._listener, EPOLLIN)
        else:
            self._paused = self._shared.timers.add(self._shared.clock() + PAUSE_NS, self._resume)


def most_connections(limits: Limits) -> int:
    """Of one process."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return limits.connections if soft == resource.RLIM_INFINITY else min(limits.connections, soft - SPARE_DESCRIPTORS)
