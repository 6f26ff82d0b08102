"""Several front ends on one port, one engine behind them: for hosts where one front end is the limit.

Each front is a process with `Http2Transport` in it, and is given some of the connections. This process keeps what there
must be one of: the service, with its catalog, models, batches, metrics. One thread here reads what all fronts have
brought, hands it to the service, says release, and sends the answers back: a batch is what the clients of all fronts
sent while the last one ran.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

from server.logs import log
from server.rpc.call import Handlers
from server.rpc.fronts import process
from server.rpc.fronts.acceptor import Acceptor
from server.rpc.fronts.link import Gone, Kind
from server.rpc.fronts.loop import Loop
from server.rpc.fronts.peer import Peer, described
from server.rpc.fronts.ring import Broken
from server.rpc.http2 import listen
from server.rpc.http2.transport import most_connections
from server.rpc.limits import MIB, Limits
from server.rpc.tls import Tls

START_SECS = 60.0
FIRST_PAUSE_SECS = 0.1
LONGEST_PAUSE_SECS = 10.0
"""Before a front that ended is started again; twice as long each time, from the beginning once one has lived."""
LIVED_SECS = 60.0
END_SECS = 5.0
"""What a front may take to end after its time for that."""


class FrontsTransport:
    """Serves a `Service`; all methods are for other threads than the loop's own."""

    def __init__(self, service: Handlers, limits: Limits, tls: Tls | None, fronts: int, busy_poll_us: int = 0) -> None:
        self._service = service
        # of what may be held in all each front has its share, and in any case room for one message
        share = max(limits.buffered_bytes // fronts, limits.message_bytes)
        self._limits = replace(limits, buffered_bytes=share)
        self._tls = tls
        self._count = fronts
        self._busy_poll_us = busy_poll_us
        routes = service.routes()
        self._described = described(routes)
        self._routes = tuple(routes.values())
        self._pools = (
            ThreadPoolExecutor(8, thread_name_prefix="rpc-wait"),
            ThreadPoolExecutor(2, thread_name_prefix="rpc-decode"),
        )
        self._loop = Loop(self._after)
        self._peers: dict[int, Peer] = {}
        """By number; the loop's own."""
        self._keepers: list[threading.Thread] = []
        self._acceptor: Acceptor | None = None
        self._unix: Path | None = None
        self._setup = b""
        self._closing = threading.Event()

    @property
    def in_flight(self) -> int:
        """Calls that have come and not ended."""
        return sum(len(peer.calls) for peer in list(self._peers.values()))

    @property
    def processes(self) -> dict[int, int]:
        """Process ids of the fronts by their number."""
        return {number: peer.process.pid for number, peer in list(self._peers.items())}

    @property
    def connections(self) -> dict[int, int]:
        """Open connections of the fronts by their number."""
        return {number: peer.connections for number, peer in list(self._peers.items())}

    def start(self, address: str, port: int) -> int:
        """Listen on an IP address, a host name or `unix:/path`; returns the port once all serve. Raises OSError."""
        found = listen.listener(address, port)
        self._setup = json.dumps({
            "limits": asdict(self._limits), "tls": self._tls and asdict(self._tls),
            "routes": self._described, "verbose": log.is_verbose,
            "busy_poll_us": self._busy_poll_us,
        }, default=str).encode()  # fmt: skip
        self._loop.start()
        first: list[Peer] = []
        try:
            for number in range(self._count):
                first.append(self._front(number))
            until = time.monotonic() + START_SECS
            for peer in first:
                peer.up.result(max(0.0, until - time.monotonic()))
        except OSError:  # TimeoutError is one
            found.close()
            for peer in first:
                peer.process.kill()
                peer.process.wait()
            self._loop.call(self._lose_all)
            raise
        for peer in first:
            keeper = threading.Thread(target=self._keep, args=(peer,), name=f"front-{peer.number}", daemon=True)
            keeper.start()
            self._keepers.append(keeper)
        if address.startswith("unix:"):
            self._unix = listen.unix_path(address)
        port = 0 if self._unix else int(found.getsockname()[1])
        most = most_connections(self._limits)
        self._acceptor = self._loop.call(lambda: Acceptor(found, self._loop, self._peers.values, most))
        return port

    def drain(self, timeout: float) -> bool:
        """Refuse new inferences, wait for the accepted ones; False if `timeout` seconds were not enough."""
        self._service.begin_drain()
        self._closing.set()
        if self._acceptor is None:
            return True
        asked = self._loop.call(lambda: [peer.drain(int(timeout * 1e9)) for peer in self._peers.values()])
        done, late = wait(asked, timeout + END_SECS)
        return not late and all(future.result() for future in done)

    def stop(self, grace: float = 1.0) -> None:
        """Close the listeners and, after `grace` seconds at most, what is still open."""
        self._service.begin_drain()
        self._service.health.end()
        self._closing.set()
        if self._acceptor is None:
            self._loop.end()
            return
        self._loop.call(partial(self._stop, grace))
        until = time.monotonic() + grace + END_SECS
        for keeper in self._keepers:
            keeper.join(max(0.0, until - time.monotonic()))
        self._loop.call(self._lose_all)
        for keeper in self._keepers:
            keeper.join()
        self._loop.call(self._lose_all)  # one of them may have started another meanwhile
        self._loop.end()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)

    # --- the loop ---

    def _after(self) -> None:
        try:
            self._service.release()
        except Exception as error:  # noqa: BLE001 a defect of ours must not end the loop
            log.defect("requests could not be released", error)
        if self._acceptor is not None:
            self._acceptor.look()
        for peer in self._peers.values():
            peer.flush()

    def _add(self, peer: Peer) -> None:
        if (before := self._peers.get(peer.number)) is not None:
            self._lose(before)
        self._peers[peer.number] = peer
        self._loop.watch(peer.link.fileno(), partial(self._read, peer))
        peer.link.put(Kind.SETUP, body=self._setup)
        if self._closing.is_set():  # too late to be told with the others
            peer.stop(0)

    def _read(self, peer: Peer) -> None:
        try:
            peer.read()
        except Gone:
            self._lose(peer)
        except Broken as error:
            self._lose(peer, error)
        except Exception as error:  # noqa: BLE001 a defect of ours must not end the loop
            log.defect("a front's records could not be read", error, front=peer.number)
            self._lose(peer)

    def _lose(self, peer: Peer, why: Broken | None = None) -> None:
        if why is not None:
            log.error("a front broke its word and is ended", front=peer.number, reason=why)
        del self._peers[peer.number]
        self._loop.unwatch(peer.link.fileno())
        peer.lose()

    def _lose_all(self) -> None:
        for peer in list(self._peers.values()):
            self._lose(peer)

    def _stop(self, grace: float) -> None:
        if self._acceptor is not None:
            self._acceptor.close()
        for peer in self._peers.values():
            peer.stop(int(grace * 1e9))

    # --- one thread for each front, which starts it again ---

    def _front(self, number: int) -> Peer:
        """Raises OSError."""
        # metadata travels with a message, and is limited apart from it
        started, link, door = process.start(self._limits.message_bytes + 8 * self._limits.header_bytes + MIB)
        peer = Peer(number, started, link, door, self._loop, self._routes, self._pools, self._limits.buffered_bytes)
        self._loop.call(partial(self._add, peer))
        return peer

    def _keep(self, peer: Peer) -> None:
        pause = FIRST_PAUSE_SECS
        began = time.monotonic()
        while True:
            status = peer.process.wait()
            if self._closing.is_set():
                return
            if time.monotonic() - began > LIVED_SECS:
                pause = FIRST_PAUSE_SECS
            log.warning("a front ended and is started again", front=peer.number, status=status, pause=pause)
            if self._closing.wait(pause):
                return
            pause = min(2 * pause, LONGEST_PAUSE_SECS)
            began = time.monotonic()
            try:
                peer = self._front(peer.number)
            except OSError as error:
                log.error("a front cannot be started", front=peer.number, reason=error)
