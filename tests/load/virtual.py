"""For tests: an event loop on virtual time, and a server of the protocol whose answers the test holds in its hand."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

Answer = TypeVar("Answer")


class VirtualLoop(asyncio.SelectorEventLoop):
    """Time stands still while anything runs, and jumps to the next timer when nothing does."""

    def __init__(self) -> None:
        super().__init__(_Jumping(self))
        self.seconds = 0.0

    def time(self) -> float:
        return self.seconds

    def nanoseconds(self) -> int:
        return round(self.seconds * 1e9)

    def stall(self, seconds: float) -> None:
        """As if the thread had been busy or descheduled for so long."""
        self.seconds += seconds


class _Jumping(selectors.SelectSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        found = super().select(0)
        if not found and timeout is None:
            raise RuntimeError("everything waits and nothing is scheduled: the code under test hangs")
        if not found and timeout:
            self._loop.seconds += timeout
        return found


def on_virtual_time(main: Callable[[VirtualLoop], Coroutine[Any, Any, Answer]]) -> Answer:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, VirtualLoop)
        return runner.run(main(loop))


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Model `m`: INT64 inputs `input_ids` and `attention_mask` of variable length. Each ModelInfer calls `answer`."""

    def __init__(self, *, max_batch_size: int | None = 8) -> None:
        self.max_batch_size = max_batch_size
        """None: the server has no ModelConfig, as others of the protocol."""
        self.requests: list[Any] = []
        self.peers: set[str] = set()
        self.in_flight = 0
        self.most_in_flight = 0
        self.arrived = asyncio.Condition()

    async def answer(self, number: int, context: Any) -> None:
        """Overridden by tests: wait, or `await context.abort(...)`."""

    async def ServerMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ServerMetadataResponse(name="held", version="1")

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        return service_pb2.ModelReadyResponse(ready=request.name == "m")

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        metadata = service_pb2.ModelMetadataResponse(name=request.name, platform="held_in_hand")
        leading = [] if self.max_batch_size == 0 else [-1]
        for name in ("input_ids", "attention_mask"):
            metadata.inputs.add(name=name, datatype="INT64", shape=[*leading, -1])
        return metadata

    async def ModelConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        if self.max_batch_size is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "no such method")
        answer = service_pb2.ModelConfigResponse()
        answer.config.max_batch_size = self.max_batch_size
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        number = len(self.requests)
        self.requests.append(request)
        self.peers.add(context.peer())
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        async with self.arrived:
            self.arrived.notify_all()
        try:
            await self.answer(number, context)
        finally:
            self.in_flight -= 1
        return service_pb2.ModelInferResponse(model_name=request.model_name)


@asynccontextmanager
async def serving(servicer: Servicer, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """The address of a real gRPC server in this process."""
    server = grpc.aio.server()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port(address)
    await server.start()
    try:
        yield address.removesuffix(":0") + ("" if address.startswith("unix:") else f":{port}")
    finally:
        await server.stop(None)
