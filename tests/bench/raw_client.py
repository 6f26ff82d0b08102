"""grpcio's client with messages prepared as bytes, in a process of its own.

    python -m tests.bench.raw_client ADDRESS IN_FLIGHT < PLAN

PLAN is JSON: `messages`, a list of files with one serialised ModelInferRequest each, and `order`, the numbers of those
to send, in turn. Printed is JSON: the seconds that all took, and milliseconds of each in the order of sending. The
first error ends it with status 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from tests.children import ROOT
from tests.load.client import MODEL_INFER, OPTIONS

SERVER_LIVE = "/inference.GRPCInferenceService/ServerLive"
PROBES = 5


@dataclass(frozen=True, slots=True)
class Sent:
    seconds: float
    took_ms: list[float]


def send(address: str, in_flight: int, messages: Sequence[Path], order: Sequence[int]) -> Sent:
    """Run it as a child. Raises RuntimeError when any request fails."""
    plan = json.dumps({"messages": [str(path) for path in messages], "order": list(order)})
    command = [sys.executable, "-m", "tests.bench.raw_client", address, str(in_flight)]
    done = subprocess.run(command, input=plan, capture_output=True, text=True, cwd=ROOT, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {done.stderr.strip().splitlines()[-1]}")
    return Sent(**json.loads(done.stdout))


def main(address: str, in_flight: int) -> None:
    plan = json.load(sys.stdin)
    messages = [Path(path).read_bytes() for path in plan["messages"]]
    with grpc.insecure_channel(address, options=OPTIONS) as channel:
        grpc.channel_ready_future(channel).result(30)
        call = channel.unary_unary(MODEL_INFER)
        # as whoever waits for a server does; what a client's own first call costs is not the server's
        for _ in range(PROBES):
            channel.unary_unary(SERVER_LIVE)(b"")

        def one(number: int) -> float:
            start = time.perf_counter()
            call(messages[number])
            return (time.perf_counter() - start) * 1e3

        start = time.perf_counter()
        if in_flight == 1:
            took = [one(number) for number in plan["order"]]
        else:
            with ThreadPoolExecutor(in_flight) as pool:
                took = list(pool.map(one, plan["order"]))
        print(json.dumps({"seconds": time.perf_counter() - start, "took_ms": took}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
