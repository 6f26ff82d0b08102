"""A front that loses its mind: `python -m tests.server.rpc.fronts.mad BELL DOOR MEMORY`."""

from __future__ import annotations

import json
import mmap
import os
import socket
import sys
from select import select

from server.rpc.fronts.link import _BELL, MEMORY_BYTES, RING_BYTES, Kind, Link
from tests.server.rpc.transports import path


def main(bell: int, memory: int) -> None:
    sock, shared = socket.socket(fileno=bell), mmap.mmap(memory, MEMORY_BYTES)
    link = Link(sock, shared, engine=False, most=1 << 30)
    select([link], [], [])
    routes = [name for name, _, _ in json.loads(bytes(link.take()[0].body))["routes"]]
    link.put(Kind.UP)
    link.put(Kind.CALL, 1, routes.index(path("hold")), body=b"from the mad one")
    link.flush()
    shared[RING_BYTES:] = os.urandom(RING_BYTES)
    sock.send(_BELL.pack(RING_BYTES, 0))
    select([], [], [])  # until it is ended


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[3]))
