"""Many different requests in turn, some in flight on one connection, their answers kept; in a process of its own.

    python -m tests.bench.mix_client HOST:PORT IN_FLIGHT REQUESTS ANSWERS

REQUESTS is a file of ModelInferRequests in gRPC's framing, one after the other; ANSWERS is written in the same form and
order. Printed is JSON: the seconds that all took, and the processor seconds that this client took of them. An answer
that is an error ends it with status 1. Frames are libnghttp2's: some 25 µs a request, where grpcio's client takes 200.
"""

from __future__ import annotations

import json
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import ngh2

from tests.children import ROOT
from tests.load.client import MODEL_INFER

PREFIX = struct.Struct(">BI")


@dataclass(frozen=True, slots=True)
class Sent:
    seconds: float
    cores: float
    """Processor seconds of the client per second."""
    answers: list[bytes]


def framed(messages: Iterable[bytes]) -> bytes:
    return b"".join(PREFIX.pack(0, len(message)) + message for message in messages)


def unframed(data: bytes) -> list[bytes]:
    found, start = [], 0
    while start < len(data):
        end = start + PREFIX.size + PREFIX.unpack_from(data, start)[1]
        found.append(data[start + PREFIX.size : end])
        start = end
    return found


def send(address: str, in_flight: int, requests: Path, answers: Path) -> Sent:
    """Run it as a child. Raises RuntimeError when any request fails."""
    command = [sys.executable, "-m", "tests.bench.mix_client", address, str(in_flight), str(requests), str(answers)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    told = json.loads(done.stdout)
    return Sent(told["seconds"], told["processor"] / told["seconds"], unframed(answers.read_bytes()))


class Client:
    def __init__(self, address: str, bodies: list[bytes]) -> None:
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host, int(port)))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT, ngh2.Configuration())
        self._http2.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 24})
        self._head = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", MODEL_INFER.encode()),
            (b":authority", address.encode()),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
        ]
        self._bodies = bodies
        self._next = 0
        self._number: dict[int, int] = {}
        """Of the request, by its stream."""
        self._answers: list[bytes] = [b""] * len(bodies)

    def run(self, in_flight: int) -> list[bytes]:
        for _ in range(in_flight):
            self._send()
        while self._number:
            self._socket.sendall(self._http2.data_to_send())
            data = self._socket.recv(1 << 18)
            if not data:
                raise SystemExit("the server closed the connection")
            self._http2.receive_data(data)
            for event in self._http2.events():
                self._take(event)
        return self._answers

    def _send(self) -> None:
        if self._next < len(self._bodies):
            stream = self._http2.send_request(self._head)
            self._http2.send_data(stream, self._bodies[self._next], end_stream=True)
            self._number[stream] = self._next
            self._next += 1

    def _take(self, event: ngh2.Event) -> None:
        if isinstance(event, ngh2.DataReceived):
            self._answers[self._number[event.stream_id]] += event.data
        elif isinstance(event, ngh2.ResponseReceived | ngh2.TrailersReceived):
            status = dict(event.headers).get(b"grpc-status")
            if status not in (None, b"0"):
                raise SystemExit(f"an answer has status {status!r}: {dict(event.headers).get(b'grpc-message')!r}")
            if status is not None:
                del self._number[event.stream_id]
                self._send()
        elif isinstance(event, ngh2.GoAwayReceived | ngh2.ConnectionClosed | ngh2.StreamReset):
            raise SystemExit(f"the server ended it: {event!r}")


def main(address: str, in_flight: int, requests: Path, answers: Path) -> None:
    bodies = [PREFIX.pack(0, len(message)) + message for message in unframed(requests.read_bytes())]
    client = Client(address, bodies)
    start, used = time.perf_counter(), time.process_time()
    found = client.run(in_flight)
    told = {"seconds": time.perf_counter() - start, "processor": time.process_time() - used}
    answers.write_bytes(b"".join(found))
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
