"""a model that gives its input back, at one element and at 16 MB, against a bare gRPC echo and Triton"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from contextlib import ExitStack

from tests.bench import echo, h2load, ours, raw_client, workloads
from tests.bench.figures import BANDWIDTH, Figure, in_turn
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan
from tests.peers import triton_server
from tests.peers.peer import NotInstalled, Running

REFERENCE = "grpcio echo, threaded"
ELEMENTS = 4 << 20
LARGE = f"identity, {ELEMENTS * 4 >> 20} MiB"
ONE = "identity, 1 element"
IN_FLIGHT = 2


def run(plan: Plan) -> list[Figure]:
    models = plan.folder / "models"
    workloads.write_identity(models)
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ours.started(models)),
            *(stack.enter_context(echo.started(k)) for k in echo.KINDS),
        ]
        try:
            servers.append(stack.enter_context(triton_server.started(models)))
        except NotInstalled as error:
            print(f"  Triton: not installed: {error}", flush=True)
        found = []
        for load in (1, 16):
            asked = {server.name: (server, workloads.identity(1)) for server in servers}
            found += plan.compare("identity", ONE, Load(load), asked)
        return [*found, *_bandwidth(plan, servers)]


def _bandwidth(plan: Plan, servers: list[Running]) -> list[Figure]:
    """Payload per second each way, as two clients see it: grpcio's own is the limit sooner than h2load."""
    question = workloads.identity(ELEMENTS)
    message = plan.folder / "large.message"
    message.write_bytes(question.as_grpc())
    count = 16 if plan.quick else 40
    payload = ELEMENTS * 4 / 1e6

    def by_grpcio(server: Running) -> Callable[[], float]:
        return lambda: count * payload / raw_client.send(server.address, IN_FLIGHT, [message], [0] * count).seconds

    def by_h2load(server: Running) -> Callable[[], float]:
        prepared = h2load.prepared(plan.folder, server, question)
        return lambda: payload * h2load.run(prepared, Load(IN_FLIGHT), count, server.process).rate

    found = []
    for client, way in (("grpcio client", by_grpcio), ("h2load", by_h2load)):
        turns = {server.name: way(server) for server in servers}
        rates = in_turn(turns, plan.repeats)
        load = f"{IN_FLIGHT} in flight, {client}"
        found += [Figure("identity", name, LARGE, load, BANDWIDTH, tuple(values)) for name, values in rates.items()]
        print(f"  {client}: " + ", ".join(f"{n} {statistics.median(v):.0f} MB/s" for n, v in rates.items()), flush=True)
    return found
