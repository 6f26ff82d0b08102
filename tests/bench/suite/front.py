"""requests of a tiny model, where the front end is all the cost, in flight by 1, 16 and 64"""

from __future__ import annotations

from tests.bench import ours, workloads
from tests.bench.figures import Figure
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan

REFERENCE = ours.NAME
LOADS = (1, 16, 64)


def run(plan: Plan) -> list[Figure]:
    models = workloads.write_tinies(plan.folder / "models", 1)
    with ours.started(models) as server:
        return [
            figure
            for load in LOADS
            for figure in plan.compare("front", "tiny", Load(load), {server.name: (server, workloads.tiny())})
        ]
