"""grpc.health.v1: SERVING while the server is ready. As in Triton, the service name asked for is not looked at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from server.errors import InvalidRequest

SERVICE = "grpc.health.v1.Health"
FILE = health_pb2.DESCRIPTOR
CHECK = f"/{SERVICE}/Check"
WATCH = f"/{SERVICE}/Watch"


class Health:
    """Answers Check and Watch from `ready`; lives on one event loop, where `refresh` must be called after a change."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._watchers: set[asyncio.Event] = set()
        self._ended = False

    def check(self, body: bytes) -> bytes:
        try:
            health_pb2.HealthCheckRequest.FromString(body)
        except (DecodeError, UnicodeDecodeError):
            raise InvalidRequest("request is not a valid grpc.health.v1.HealthCheckRequest message") from None
        return self._answer(self._ready())

    async def watch(self, body: bytes) -> AsyncIterator[bytes]:
        """The state now, and again whenever it changes; ends with the call or the server."""
        self.check(body)
        changed = asyncio.Event()
        self._watchers.add(changed)
        told: bool | None = None
        try:
            while not self._ended:
                changed.clear()
                ready = self._ready()
                if ready is not told:
                    told = ready
                    yield self._answer(ready)
                await changed.wait()
        finally:
            self._watchers.discard(changed)

    def refresh(self) -> None:
        for changed in self._watchers:
            changed.set()

    def end(self) -> None:
        """The server is going: nobody has to wait for those who watch."""
        self._ended = True
        self.refresh()

    @staticmethod
    def _answer(ready: bool) -> bytes:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        body: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return body
