"""The flags of the gRPC port, and what they say. Names are Triton's where they mean the same."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path

from server.flags import INT32_MAX, SettingsError, truth_flag, whole_flag
from server.rpc.limits import MIB, Limits
from server.rpc.tls import Tls

TRANSPORTS = ("http2", "grpcio")


@dataclass(frozen=True, slots=True)
class GrpcSettings:
    allowed: bool = True
    address: str = "127.0.0.1"
    """An IP address, a host name, or `unix:/path`."""
    port: int = 8001
    transport: str = "http2"
    front_processes: int = 0
    """0: the front end is a thread of the server itself."""
    busy_poll_us: int = 100
    """How long an idle front end looks for the next request before it sleeps. A core that sleeps takes some 50 µs to be
    back, and has then to fetch all code again: with one request of a perceptron 784-512-10 in flight 3,980 requests per
    second and 244 µs of processor time each, without 2,960 and 268; with four 9,600 and 101, without 8,300 and 94; with
    16 no difference (medians of 14 turns on two cores)."""
    limits: Limits = field(default_factory=Limits)
    tls: Tls | None = None

    @property
    def unix(self) -> Path | None:
        return Path(self.address.removeprefix("unix:")) if self.address.startswith("unix:") else None


def add_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("gRPC")
    truth_flag(group, "--allow-grpc", True, "listen for gRPC")
    group.add_argument("--grpc-address", default="127.0.0.1", metavar="ADDR",
                       help="address, or unix:/path; 0.0.0.0 opens it to the network (default 127.0.0.1)")  # fmt: skip
    whole_flag(group, "--grpc-port", 8001, 0, 65535, "port for gRPC; 0 picks a free one and prints it")
    group.add_argument("--grpc-transport", choices=TRANSPORTS, default="http2", metavar="|".join(TRANSPORTS),
                       help="http2: our own, the fast one (default)\n"
                       "grpcio: gRPC's own, for trusted clients: it knows fewer of the limits below")  # fmt: skip
    whole_flag(group, "--grpc-front-processes", 0, 0, 64,
               "processes that speak gRPC in front of the one that runs models; 0: none; for hosts with many\n"
               "cores and large tensors, where one front end is the limit")  # fmt: skip
    whole_flag(group, "--grpc-busy-poll-us", 100, 0, 1_000_000,
               "µs that an idle front end looks for the next request before it sleeps: answers a client that waits\n"
               "for each answer sooner, for at most so much of a core after each; 0: none (http2)")  # fmt: skip
    _limit_flags(group)
    _keepalive_flags(group)
    tls = parser.add_argument_group("TLS of gRPC")
    truth_flag(tls, "--grpc-use-ssl", False, "speak TLS; needs --grpc-server-cert and --grpc-server-key")
    truth_flag(tls, "--grpc-use-ssl-mutual", False, "ask clients for a certificate; needs --grpc-root-cert")
    for name, text in (
        ("server-cert", "the server's certificate chain"),
        ("server-key", "its private key"),
        ("root-cert", "certificates of those who vouch for clients"),
    ):
        tls.add_argument(f"--grpc-{name}", type=Path, metavar="FILE.pem", help=text)


def _limit_flags(group: argparse._ArgumentGroup) -> None:
    most = Limits()
    whole_flag(group, "--grpc-max-message-size", most.message_bytes, 1024, INT32_MAX,
               "bytes of the largest request; with grpcio a larger one is held whole before it is refused")  # fmt: skip
    truth_flag(group, "--grpc-allow-compression", False,
               "accept compressed requests; a small one may expand to --grpc-max-message-size")  # fmt: skip
    whole_flag(group, "--grpc-max-buffered-mib", most.buffered_bytes // MIB, 1, 1 << 20,
               "MiB of all requests being received and answers not yet taken, together (http2)")  # fmt: skip
    whole_flag(group, "--grpc-max-connections", most.connections, 1, 1 << 20, "connections open at once (http2)")
    whole_flag(group, "--grpc-max-streams", most.streams, 1, INT32_MAX, "calls open at once on one connection")
    whole_flag(group, "--grpc-receive-timeout-secs", int(most.receive_secs), 1, 86400,
               "how long a client may take to send one message, and to take an answer (http2)")  # fmt: skip


def _keepalive_flags(group: argparse._ArgumentGroup) -> None:
    most = Limits()
    whole_flag(group, "--grpc-keepalive-time", int(most.keepalive_secs * 1000), 0, INT32_MAX,
               "ms without a sign of life until a client is pinged; 0: never")  # fmt: skip
    whole_flag(group, "--grpc-keepalive-timeout", int(most.keepalive_timeout_secs * 1000), 1, INT32_MAX,
               "ms that it may take to answer")  # fmt: skip
    whole_flag(group, "--grpc-http2-min-recv-ping-interval-without-data", int(most.min_ping_secs * 1000), 0, INT32_MAX,
               "ms that a client has to leave between pings while nothing is sent to it")  # fmt: skip
    whole_flag(group, "--grpc-http2-max-ping-strikes", most.ping_strikes, 0, INT32_MAX,
               "pings too many until its connection is closed; 0: any number")  # fmt: skip


def read(given: argparse.Namespace) -> GrpcSettings:
    """Raises SettingsError."""
    limits = Limits(
        message_bytes=given.grpc_max_message_size,
        compression=given.grpc_allow_compression,
        buffered_bytes=given.grpc_max_buffered_mib * MIB,
        connections=given.grpc_max_connections,
        streams=given.grpc_max_streams,
        receive_secs=float(given.grpc_receive_timeout_secs),
        send_secs=float(given.grpc_receive_timeout_secs),
        keepalive_secs=given.grpc_keepalive_time / 1000,
        keepalive_timeout_secs=given.grpc_keepalive_timeout / 1000,
        min_ping_secs=given.grpc_http2_min_recv_ping_interval_without_data / 1000,
        ping_strikes=given.grpc_http2_max_ping_strikes,
    )
    if given.grpc_front_processes and given.grpc_transport != "http2":
        raise SettingsError("--grpc-front-processes needs --grpc-transport http2, it is grpcio")
    return GrpcSettings(
        given.allow_grpc,
        given.grpc_address,
        given.grpc_port,
        given.grpc_transport,
        given.grpc_front_processes,
        given.grpc_busy_poll_us,
        limits,
        _tls(given),
    )


def _tls(given: argparse.Namespace) -> Tls | None:
    if not given.grpc_use_ssl:
        if given.grpc_use_ssl_mutual:
            raise SettingsError("--grpc-use-ssl-mutual needs --grpc-use-ssl true")
        return None
    needed = {"--grpc-server-cert": given.grpc_server_cert, "--grpc-server-key": given.grpc_server_key}
    if given.grpc_use_ssl_mutual:
        needed["--grpc-root-cert"] = given.grpc_root_cert
    for flag, path in needed.items():
        if path is None:
            raise SettingsError(f"{flag} is missing: --grpc-use-ssl needs a PEM file there")
    tls = Tls(given.grpc_server_cert, given.grpc_server_key, given.grpc_root_cert, given.grpc_use_ssl_mutual)
    try:
        tls.context()
    except OSError as error:
        raise SettingsError(str(error)) from None
    return tls
