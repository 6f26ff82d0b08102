"""TLS and mutual TLS over both transports, by grpcio's client and by bare sockets."""

from __future__ import annotations

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from server.rpc.call import Quick
from server.rpc.limits import MIB
from server.rpc.tls import Tls
from tests.server.rpc import certificates
from tests.server.rpc.certificates import OPENSSL, Certificates, Pair
from tests.server.rpc.raw import RawClient, framed
from tests.server.rpc.transports import WAIT, Served, StandIn, refused, serving, unary

pytestmark = pytest.mark.skipif(OPENSSL is None, reason="needs the openssl program")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return certificates.make(tmp_path_factory.mktemp("certificates"))


def tls_of(made: Certificates, mutual: bool = False) -> Tls:
    return Tls(made.server.certificate, made.server.key, made.authority.certificate if mutual else None, mutual)


@pytest.fixture(scope="module")
def secure(kind: str, made: Certificates) -> Iterator[Served]:
    with serving(kind, StandIn(), tls=tls_of(made)) as found:
        yield found


@pytest.fixture(scope="module")
def mutual(kind: str, made: Certificates) -> Iterator[Served]:
    with serving(kind, StandIn(), tls=tls_of(made, mutual=True)) as found:
        yield found


def credentials(made: Certificates, pair: Pair | None = None) -> grpc.ChannelCredentials:
    key, certificate = pair.read() if pair else (None, None)
    return grpc.ssl_channel_credentials(made.authority.certificate.read_bytes(), key, certificate)


def context(made: Certificates, protocols: list[str], pair: Pair | None = None) -> ssl.SSLContext:
    found = ssl.create_default_context(cafile=str(made.authority.certificate))
    if protocols:
        found.set_alpn_protocols(protocols)
    if pair:
        found.load_cert_chain(pair.certificate, pair.key)
    return found


def wrapped(served: Served, made: Certificates, *protocols: str) -> ssl.SSLSocket:
    return context(made, list(protocols)).wrap_socket(served.connect(), server_hostname="localhost")


def test_calls_of_every_kind(secure: Served, made: Certificates) -> None:
    body = os.urandom(3 * MIB)
    with secure.channel(credentials=credentials(made)) as channel:
        for name in ("quick", "slow", "deferred", "thread", "released"):
            assert unary(channel, name, b"x") == b"x"
            assert unary(channel, name, body) == body
        bodies = [b"%d" % i for i in range(300)]
        assert list(channel.stream_stream("/test.Service/stream")(iter(bodies), timeout=WAIT)) == bodies


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_both_versions_of_tls_are_spoken(secure: Served, made: Certificates, version: ssl.TLSVersion) -> None:
    found = context(made, ["h2"])
    found.minimum_version = found.maximum_version = version
    with RawClient(found.wrap_socket(secure.connect(), server_hostname="localhost")) as client:
        assert client.call("quick", b"x").messages == [b"x"]
        assert client.call("large", b"%d" % MIB).messages == [bytes(MIB)]


def test_older_versions_are_refused(secure: Served, made: Certificates) -> None:
    found = context(made, ["h2"])
    found.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        found.minimum_version = found.maximum_version = ssl.TLSVersion.TLSv1_1
    with secure.connect() as bare, pytest.raises(ssl.SSLError):
        found.wrap_socket(bare, server_hostname="localhost")


@pytest.mark.parametrize("protocols", [(), ("http/1.1",)], ids=["none", "HTTP/1.1"])
def test_without_http2_in_alpn_the_connection_is_closed(
    secure: Served, made: Certificates, protocols: tuple[str, ...]
) -> None:
    try:
        with wrapped(secure, made, *protocols) as client:
            client.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"))
            assert read_all(client) == b""
    except (ssl.SSLError, ConnectionError):  # refused within the handshake, or right after it
        pass
    with secure.channel(credentials=credentials(made)) as channel:
        assert unary(channel, "quick", b"x") == b"x"


def read_all(client: socket.socket) -> bytes:
    found = b""
    while data := client.recv(1 << 16):
        found += data
    return found


def test_a_client_that_does_not_trust_the_server_is_refused_and_harms_nobody(
    secure: Served, made: Certificates
) -> None:
    stranger = grpc.ssl_channel_credentials(made.stranger.certificate.read_bytes())
    with secure.channel(credentials=stranger) as channel:
        assert refused(lambda: unary(channel, "quick"))[0] is grpc.StatusCode.UNAVAILABLE
    with secure.channel() as channel:
        assert refused(lambda: unary(channel, "quick"))[0] is grpc.StatusCode.UNAVAILABLE
    with secure.channel(credentials=credentials(made)) as channel:
        assert unary(channel, "quick", b"x") == b"x"


def test_mutual_tls_asks_for_a_certificate(mutual: Served, made: Certificates) -> None:
    with mutual.channel(credentials=credentials(made, made.client)) as channel:
        assert unary(channel, "quick", b"x") == b"x"
    for pair in (None, made.stranger):
        with mutual.channel(credentials=credentials(made, pair)) as channel:
            assert refused(lambda channel=channel: unary(channel, "quick"))[0] is grpc.StatusCode.UNAVAILABLE  # type: ignore[misc]
    with mutual.channel(credentials=credentials(made, made.client)) as channel:
        assert unary(channel, "quick", b"x") == b"x"


@pytest.mark.parametrize("sent", [b"", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bytes(5000)])
@pytest.mark.parametrize("way", ["fin", "rst"])
def test_clients_that_go_within_the_handshake_harm_nobody(
    secure: Served, made: Certificates, sent: bytes, way: str
) -> None:
    for _ in range(20):
        with secure.connect() as client:
            client.sendall(sent)
            if way == "rst":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    with secure.channel(credentials=credentials(made)) as channel:
        assert unary(channel, "quick", b"x") == b"x"


def test_a_client_that_was_gone_before_it_was_accepted_harms_nobody(made: Certificates) -> None:
    """The loop is held while clients come, speak and go, so that it finds only what they left."""
    gate, entered = threading.Event(), threading.Event()

    def wait(body: Any) -> bytes:
        entered.set()
        assert gate.wait(WAIT)
        return bytes(body)

    routes = {"/wait": Quick(wait), "/quick": Quick(bytes)}
    with serving("http2", StandIn(routes), tls=tls_of(made)) as served, RawClient(wrapped(served, made, "h2")) as first:
        stream = first.request("/wait", framed(b"x"))
        assert entered.wait(WAIT)
        for _ in range(20):
            with served.connect() as client:
                client.sendall(b"\x16\x03\x01")
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gate.set()
        assert first.answer(stream).messages == [b"x"]
        with RawClient(wrapped(served, made, "h2")) as other:
            assert other.call("/quick", b"y").messages == [b"y"]


def test_a_slow_handshake_does_not_hold_the_others(secure: Served, made: Certificates) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context(made, ["h2"]).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    with secure.connect() as slow, secure.channel(credentials=credentials(made)) as channel:
        slow.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(hello), 50):
            slow.sendall(hello[at : at + 50])
            assert unary(channel, "quick", b"x") == b"x"
        incoming.write(slow.recv(1 << 16))
        tls.do_handshake()
        assert tls.selected_alpn_protocol() == "h2"


def test_files_that_cannot_be_used_are_named(made: Certificates, tmp_path: Path) -> None:
    missing = tmp_path / "missing.pem"
    for tls in (
        Tls(missing, made.server.key),
        Tls(made.server.certificate, made.client.key),
        Tls(made.server.certificate, made.server.key, missing, True),
    ):
        with pytest.raises(OSError, match=r"^TLS: /.* cannot be used: "):
            tls.context()
