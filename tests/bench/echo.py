"""A bare gRPC server: whatever the method, the answer is the request's bytes. What grpcio costs, and nothing else.

    python -m tests.bench.echo aio|threaded

Prints the port it listens on.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import grpc
import grpc.aio
import psutil

from tests.children import ROOT
from tests.peers.peer import Running

OPTIONS = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
KINDS = {"aio": "grpc.aio, one event loop", "threaded": "grpc.server, 8 threads"}


class _Anything(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, handler: grpc.RpcMethodHandler) -> None:
        self._handler = handler

    def service(self, handler_call_details: Any) -> grpc.RpcMethodHandler:
        return self._handler


def _threaded() -> None:
    def answer(body: bytes, context: Any) -> bytes:
        return body

    server = grpc.server(ThreadPoolExecutor(8), options=OPTIONS)
    server.add_generic_rpc_handlers((_Anything(grpc.unary_unary_rpc_method_handler(answer)),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    server.wait_for_termination()


async def _aio() -> None:
    async def answer(body: bytes, context: Any) -> bytes:
        return body

    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((_Anything(grpc.unary_unary_rpc_method_handler(answer)),))
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    await server.start()
    await server.wait_for_termination()


@contextmanager
def started(kind: str) -> Iterator[Running]:
    process = Popen([sys.executable, "-m", "tests.bench.echo", kind], stdout=PIPE, text=True, cwd=ROOT)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        address = f"127.0.0.1:{port}"
        with grpc.insecure_channel(address) as channel:
            grpc.channel_ready_future(channel).result(30)
        name = f"grpcio echo, {kind}"
        yield Running(name, grpc.__version__, KINDS[kind], psutil.Process(process.pid), address)
    finally:
        process.terminate()
        process.communicate()


if __name__ == "__main__":
    if sys.argv[1:] not in (["aio"], ["threaded"]):
        sys.exit(f"{Path(__file__).name}: {' '.join(sys.argv[1:]) or 'nothing'}: allowed are aio and threaded")
    if sys.argv[1] == "aio":
        asyncio.run(_aio())
    else:
        _threaded()
