"""speed and memory against the number of models, of instances, of connections, and the size of a message"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from tests.bench import h2load, ours, workloads
from tests.bench.figures import MEMORY, Figure
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan, in_flight
from tests.peers.peer import Question, Running

REFERENCE = "1"
MODELS = (1, 10, 100)
QUICK_MODELS = (1, 10)
INSTANCES = (1, 2, 4)
CONNECTIONS = (1, 10, 100)
SIZES = {"1 kB": 256, "16 kB": 4 << 10, "256 kB": 64 << 10, "4 MB": 1 << 20}
LOADS = (1, 16)


def run(plan: Plan) -> list[Figure]:
    plan = plan.at_most(2)
    counts = QUICK_MODELS if plan.quick else MODELS
    models = {n: workloads.write_tinies(plan.folder / f"models-{n}", n) for n in counts}
    instances = {n: workloads.write_tinies(plan.folder / f"instances-{n}", 1, n) for n in INSTANCES}
    return [
        *_servers(plan, "models loaded", models),
        *_servers(plan, "instances", instances),
        *_connections(plan, models[1]),
        *_sizes(plan),
    ]


def _servers(plan: Plan, case: str, repositories: Mapping[int, Path]) -> list[Figure]:
    """One server for each repository, asked in turn."""
    with ExitStack() as stack:
        asked: dict[str, tuple[Running, Question]] = {}
        for count, repository in repositories.items():
            asked[str(count)] = (stack.enter_context(ours.started(repository)), workloads.tiny())
        found = [figure for load in LOADS for figure in plan.compare("growth", case, Load(load), asked)]
        return [*found, *(_memory(case, name, server) for name, (server, _) in asked.items())]


def _connections(plan: Plan, models: Path) -> list[Figure]:
    found = []
    with ours.started(models) as server:
        most = max(CONNECTIONS)
        for count in CONNECTIONS:
            asked = {str(count): (server, workloads.tiny())}
            load = Load(most, connections=count)
            found += plan.compare("growth", "connections", load, asked, in_flight(most))
            found.append(_memory("connections", str(count), server))
    return found


def _sizes(plan: Plan) -> list[Figure]:
    models = plan.folder / "identity"
    workloads.write_identity(models)
    found = []
    with ours.started(models) as server:
        for size, elements in SIZES.items():
            question = workloads.identity(elements)
            for load in LOADS:
                found += plan.compare("growth", "message size", Load(load), {size: (server, question)})
            found.append(_memory("message size", size, server))
    return found


def _memory(case: str, name: str, server: Running) -> Figure:
    """After the load that it has just had."""
    return Figure("growth", name, case, "", MEMORY, (h2load.resident_mib(server.process),))
