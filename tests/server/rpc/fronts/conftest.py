"""Front processes before the stand-in's handlers, or before whatever service a test gives."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from mmap import mmap
from typing import Any

import pytest

from server.rpc.fronts.link import MEMORY_BYTES, Link
from server.rpc.fronts.transport import FrontsTransport
from server.rpc.limits import Limits
from server.rpc.tls import Tls
from tests.server.rpc.transports import Served, StandIn

FRONTS = 2
MOST = 64 << 20


@contextmanager
def fronted(
    service: Any = None,
    limits: Limits | None = None,
    *,
    fronts: int = FRONTS,
    address: str = "127.0.0.1",
    port: int = 0,
    tls: Tls | None = None,
) -> Iterator[Served]:
    service = service or StandIn()
    transport = FrontsTransport(service, limits or Limits(), tls, fronts)
    served = Served("fronts", transport, service, address, transport.start(address, port))
    try:
        yield served
    finally:
        transport.stop(0)


@pytest.fixture(scope="module")
def shared() -> Iterator[Served]:
    """For tests that leave nothing behind."""
    with fronted() as found:
        yield found


@pytest.fixture
def served() -> Iterator[Served]:
    with fronted() as found:
        yield found


class Pair:
    def __init__(self) -> None:
        self.bells = socket.socketpair()
        self.memory = mmap(-1, MEMORY_BYTES)
        self.engine = Link(self.bells[0], self.memory, engine=True, most=MOST)
        self.front = Link(self.bells[1], self.memory, engine=False, most=MOST)

    def close(self) -> None:
        self.bells[1].close()
        self.front._reader.close()
        self.engine.close()


@pytest.fixture
def pair() -> Iterator[Pair]:
    found = Pair()
    yield found
    found.close()
