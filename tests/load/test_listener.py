"""Who listens where, found on this host's real sockets."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.load import listener
from tests.load.client import endpoint
from tests.load.errors import LoadError
from tests.load.virtual import Servicer, serving

SHARING = """
import socket, sys
with socket.socket() as sock:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", int(sys.argv[1])))
    sock.listen()
    print(sock.getsockname()[1], flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("localhost:8001", ("localhost", 8001)),
        ("[::1]:80", ("::1", 80)),
        ("unix:/run/s", "/run/s"),
        ("unix:///run/s", "/run/s"),
    ],
)
def test_an_address_is_host_and_port_or_a_path(url: str, found: object) -> None:
    assert endpoint(url) == found


@pytest.mark.parametrize("url", ["host", "host:", ":80", "host:x", "host:65536", "http://host:80", "a:b:80"])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(LoadError, match="is not HOST:PORT"):
        endpoint(url)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_the_process_that_listens_is_found(host: str) -> None:
    with socket.create_server((host, 0)) as server:
        port = server.getsockname()[1]
        assert listener.pid(f"127.0.0.1:{port}") == os.getpid()
        assert listener.pid(f"localhost:{port}") == os.getpid()


def test_the_process_of_a_grpcio_server_is_found() -> None:
    async def main() -> None:
        async with serving(Servicer()) as url:
            assert listener.pid(url) == os.getpid()

    asyncio.run(main())


def test_unix_sockets_have_listeners_too(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        assert listener.pid(f"unix:{path}") == os.getpid()


def test_of_several_that_share_a_port_their_parent_is_meant() -> None:
    with ExitStack() as stack:
        port = "0"
        for _ in range(2):
            command = [sys.executable, "-c", SHARING, port]
            child = stack.enter_context(subprocess.Popen(command, stdin=-1, stdout=-1, text=True))
            assert child.stdout is not None
            port = child.stdout.readline().strip()
        assert listener.pid(f"127.0.0.1:{port}") == os.getpid()


def test_elsewhere_and_nobody_are_mistakes() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(LoadError, match="nobody listens"):
        listener.pid(f"127.0.0.1:{port}")
    # TEST-NET-1 (RFC 5737) is nobody's.
    with pytest.raises(LoadError, match="not on this host"):
        listener.pid("192.0.2.1:8001")
