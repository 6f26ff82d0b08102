"""Connections: as many as allowed, more than the process may have, and many one after the other."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from server.rpc.limits import MIB
from tests.children import ROOT
from tests.server.harness import eventually
from tests.server.rpc.hostile.conftest import LIMITS, healthy, unharmed
from tests.server.rpc.raw import RawClient, raw
from tests.server.rpc.transports import Served, StandIn, begun, serving

FEW = 5


@pytest.fixture
def narrow() -> Iterator[Served]:
    with serving("http2", StandIn(), replace(LIMITS, connections=FEW)) as served, unharmed(served):
        yield served


def test_connections_past_the_cap_wait_until_others_leave(narrow: Served) -> None:
    """They are not lost: the system keeps them until there is room."""
    with ExitStack() as stack:
        first = [stack.enter_context(raw(narrow)) for _ in range(FEW)]
        for client in first:
            assert client.call("quick", b"x").messages == [b"x"]
        late = [stack.enter_context(raw(narrow)) for _ in range(FEW)]
        streams = [client.request("quick", b"\0\0\0\0\1y") for client in late]
        for client in first:
            assert client.call("quick", b"x").messages == [b"x"], "those that are in are served"
        assert narrow.transport.connections == FEW
        for client in first:
            client.socket.close()
        for client, stream in zip(late, streams, strict=True):
            assert client.answer(stream).messages == [b"y"]


def test_a_cap_that_is_reached_and_left_again_and_again(narrow: Served) -> None:
    for _ in range(50):
        with ExitStack() as stack:
            for client in [stack.enter_context(raw(narrow)) for _ in range(FEW)]:
                assert client.call("quick", b"x").messages == [b"x"]
    assert len(narrow.transport._shared.timers) < 10


def test_two_thousand_clients_one_after_the_other(own_target: Served) -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = descriptors()
    with unharmed(own_target, 8 * MIB):
        for i in range(2000):
            client = own_target.connect()
            if i % 4:
                with RawClient(client) as raw_client:
                    assert raw_client.call("quick", b"x").messages == [b"x"]
            elif i % 8:
                client.close()
            else:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                client.close()
    eventually(lambda: descriptors() <= before, threading.Event())


def test_a_thousand_idle_connections_are_no_burden_to_others(own_target: Served) -> None:
    with (
        serving("http2", StandIn(), replace(LIMITS, connections=2000)) as served,
        unharmed(served),
        ExitStack() as stack,
    ):
        for _ in range(1000):
            stack.enter_context(raw(served)).flush()
        eventually(lambda: served.transport.connections == 1000, threading.Event())
        healthy(served)
        client = stack.enter_context(raw(served))
        _, held = begun(served, client, "hold")
        assert served.transport.connections > 1000
        client.reset(1)
        assert held.cancelled()


# In a child, whose limit of descriptors is its own: one client within, then more than there are descriptors for.
PAST_THE_LIMIT = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from server.rpc.limits import Limits
from tests.server.rpc.raw import raw
from tests.server.rpc.transports import StandIn, serving
files = [open("/dev/null") for _ in range(int(sys.argv[1]))]
with serving("http2", StandIn(), Limits()) as served, raw(served) as client:
    assert client.call("quick", b"x").messages == [b"x"]
    print(served.port, flush=True)
    for line in sys.stdin:
        assert client.call("quick", line.encode()).messages == [line.encode()]
        if not files:
            open("/dev/null").close()  # there are descriptors left for files
        print(served.transport.connections, flush=True)
print("ended", flush=True)
"""


@pytest.mark.parametrize(
    ("files", "told"),
    [(0, "no more are accepted until some leave"), (100, "no connection can be accepted: Too many open files")],
    ids=["the cap", "the limit itself"],
)
def test_more_connections_than_descriptors(files: int, told: str) -> None:
    """H42: who is in is served, files can be opened, and new clients come in when others leave."""
    command = [sys.executable, "-c", PAST_THE_LIMIT, str(files)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as child:
        assert child.stdin
        assert child.stdout
        assert child.stderr

        def asked() -> int:
            assert child.stdin
            assert child.stdout
            print("more", file=child.stdin, flush=True)
            return int(child.stdout.readline())

        outside = Served("http2", None, None, "127.0.0.1", int(child.stdout.readline()))
        with ExitStack() as stack:
            clients = [stack.enter_context(raw(outside)) for _ in range(400)]
            for client in clients:
                client.flush()
            eventually(lambda: asked() > 60, threading.Event())
            assert clients[0].call("quick", b"x").messages == [b"x"]
            assert asked() < 200 - 2  # its own client has two ends, the first of which counts
            for client in clients[:-1]:
                client.socket.close()
            assert clients[-1].call("quick", b"y").messages == [b"y"]
            assert asked() < 10
        child.stdin.close()
        assert child.stdout.readline() == "ended\n"
        errors = child.stderr.read()
        assert child.wait(20) == 0, errors
        assert "Traceback" not in errors
        assert told in errors
