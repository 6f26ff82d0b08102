"""latency of one model in a server with 100 models against a server with only that one; both are up and take turns"""

from __future__ import annotations

from contextlib import ExitStack

from tests.bench import h2load, ours, workloads
from tests.bench.figures import P50, P99, Figure, in_turn, of_loads
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan, in_flight

REFERENCE = "1 model"
COUNTS = {"1 model": 1, "100 models": 100}


def run(plan: Plan) -> list[Figure]:
    with ExitStack() as stack:
        turns = {}
        for name, count in COUNTS.items():
            models = workloads.write_tinies(plan.folder / str(count), count)
            server = stack.enter_context(ours.started(models))
            prepared = h2load.prepared(plan.folder, server, workloads.tiny())
            turns[name] = lambda p=prepared, s=server: h2load.measure(p, Load(1), plan.seconds, s.process)
        runs = in_turn(turns, 4 if plan.quick else 9)
    return [
        figure
        for name, found in runs.items()
        for figure in of_loads("models-100", name, "tiny", in_flight(1), found, (P50, P99))
    ]
