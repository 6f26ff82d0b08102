"""grpc.health.v1: SERVING while the server is ready. As in Triton, the service name asked for is not looked at."""

from __future__ import annotations

from collections.abc import Callable
from threading import Lock

from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2

from server.errors import InvalidRequest
from server.rpc.call import Buffer, OnMessage, Quick, Routes, Stream, StreamCall

SERVICE = "grpc.health.v1.Health"
FILE = health_pb2.DESCRIPTOR
CHECK = f"/{SERVICE}/Check"
WATCH = f"/{SERVICE}/Watch"


class Health:
    """Answers Check and Watch from `ready`. All methods may be called from any thread."""

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready
        self._lock = Lock()
        self._told: dict[StreamCall, bool] = {}
        """Those who watch, and what they were told last."""
        self._ended = False

    def routes(self) -> Routes:
        return {CHECK: Quick(self.check), WATCH: Stream(self.watch)}

    def check(self, body: Buffer) -> bytes:
        _parse(body)
        return self._answer(self._ready())

    def watch(self, call: StreamCall) -> OnMessage:
        """The state now, and again whenever it changes; ends with the call or the server."""
        call.on_cancel(lambda: self._forget(call))

        def on_message(body: Buffer | None) -> None:
            if body is None:
                return
            try:
                _parse(body)
            except InvalidRequest as error:
                call.end(error)
                return
            with self._lock:
                ended = self._ended
                self._tell(call)
            if ended:
                call.end()

        return on_message

    def refresh(self) -> None:
        """Readiness may have changed: tell those who watch."""
        with self._lock:
            for call in self._told:
                self._tell(call)

    def end(self) -> None:
        """The server is going: nobody has to wait for those who watch."""
        with self._lock:
            self._ended = True
            watchers = list(self._told)
            self._told.clear()
        for call in watchers:
            call.end()

    def _tell(self, call: StreamCall) -> None:
        ready = self._ready()
        if self._told.get(call) is not ready:
            self._told[call] = ready
            call.send(self._answer(ready))

    def _forget(self, call: StreamCall) -> None:
        with self._lock:
            self._told.pop(call, None)

    @staticmethod
    def _answer(ready: bool) -> bytes:
        status = health_pb2.HealthCheckResponse.SERVING if ready else health_pb2.HealthCheckResponse.NOT_SERVING
        body: bytes = health_pb2.HealthCheckResponse(status=status).SerializeToString()
        return body


def _parse(body: Buffer) -> None:
    try:
        health_pb2.HealthCheckRequest.FromString(body)
    except (DecodeError, UnicodeDecodeError):
        raise InvalidRequest("request is not a valid grpc.health.v1.HealthCheckRequest message") from None
