"""Which transport serves: our own over HTTP/2, or grpcio's where ours cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from server.grpc_settings import GrpcSettings
from server.logs import log
from server.rpc.service import Service


class Transport(Protocol):
    """All methods are called once, from any thread but the transport's own."""

    def start(self, address: str, port: int) -> int:
        """Listen; returns the port, 0 for a Unix socket. Raises OSError when it cannot be had."""
        ...

    def drain(self, timeout: float) -> bool:
        """Refuse new inferences, wait for the accepted ones; False if `timeout` seconds were not enough."""
        ...

    def stop(self, grace: float = 1.0) -> None:
        """Close the listener and, after `grace` seconds at most, what is still open."""
        ...


def make(service: Service, clock: Callable[[], int], settings: GrpcSettings) -> Transport:
    """The transport asked for; grpcio's, with a line that says so, where ours does not work on this host."""
    if settings.transport == "http2":
        ours = _ours(service, clock, settings)
        if ours is not None:
            return ours
    from server.rpc.grpcio import GrpcioTransport  # late, because importing grpcio takes time and memory

    return GrpcioTransport(service, clock, settings.limits, settings.tls)


def _ours(service: Service, clock: Callable[[], int], settings: GrpcSettings) -> Transport | None:
    try:
        from server.rpc.fronts.transport import FrontsTransport
        from server.rpc.http2 import Http2Transport, library
    except ImportError as error:  # no ngh2, or no epoll
        log.warning("our HTTP/2 transport cannot be had, grpcio serves instead", reason=error)
        return None
    try:
        if settings.front_processes:
            library.check()  # here, where the other way is still open
            # deadlines go to the fronts and back on the clock that processes share, whatever `clock` is
            return FrontsTransport(
                service, settings.limits, settings.tls, settings.front_processes, settings.busy_poll_us
            )
        return Http2Transport(service, clock, settings.limits, settings.tls, settings.busy_poll_us)
    except library.Unusable as error:
        log.warning("our HTTP/2 transport does not work here, grpcio serves instead", reason=error)
        return None
