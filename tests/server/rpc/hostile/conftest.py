"""A server among hostile clients; after each test it has to be as it was before."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.rpc.limits import KIB, MIB, Limits
from tests.server.harness import eventually
from tests.server.rpc.raw import raw
from tests.server.rpc.transports import Served, StandIn, serving

LIMITS = Limits(
    message_bytes=4 * MIB,
    compression=True,
    buffered_bytes=16 * MIB,
    connections=200,
    streams=100,
    header_bytes=16 * KIB,
    unread_bytes=MIB,
    ping_strikes=0,
)
GROWTH = 64 * MIB
"""What the process, client included, may grow by at most while a test runs."""


@contextmanager
def unharmed(served: Served, growth: int = GROWTH) -> Iterator[Served]:
    """Checks, at the end, that the server has forgotten everybody, answers, and did not swell meanwhile."""
    before = settled_memory()
    yield served
    grown = peak_memory() - before
    healthy(served)
    nothing = threading.Event()  # tells when the loop has seen a client go
    if served.kind == "http2":
        transport = served.transport
        eventually(lambda: transport.connections == 0, nothing)
        assert transport.in_flight == 0
        assert transport._shared.buffered == 0, "bytes are counted that nobody holds"
    assert grown <= growth, f"{grown / MIB:.0f} MiB more than before"


def healthy(served: Served) -> None:
    assert served.transport._thread.is_alive()
    with raw(served) as client:
        for name in ("quick", "deferred", "slow", "released", "stream"):
            assert client.call(name, b"healthy").messages == [b"healthy"]


def settled_memory() -> int:
    """Resident bytes now, from where on the peak is counted."""
    Path("/proc/self/clear_refs").write_text("5")
    return _memory("VmRSS")


def peak_memory() -> int:
    return _memory("VmHWM")


def _memory(what: str) -> int:
    found = re.search(rf"^{what}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * KIB


Serve = Callable[[Limits], Served]


@pytest.fixture(scope="module")
def _server(kind: str) -> Iterator[Served]:
    with serving(kind, StandIn(), LIMITS) as found:
        yield found


@pytest.fixture
def target(_server: Served) -> Iterator[Served]:
    """Either transport."""
    with unharmed(_server):
        yield _server


@pytest.fixture(scope="module")
def _own_server() -> Iterator[Served]:
    with serving("http2", StandIn(), LIMITS) as found:
        yield found


@pytest.fixture
def own_target(_own_server: Served) -> Iterator[Served]:
    """Ours alone, for what grpcio has no limit for."""
    with unharmed(_own_server):
        yield _own_server
