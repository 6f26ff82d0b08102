"""what cannot be beaten: onnxruntime bare in a process of its own, and a gRPC server that only echoes"""

from __future__ import annotations

from contextlib import ExitStack

from tests.bench import bare_loop, echo, ours, workloads
from tests.bench.figures import ROWS, Figure
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan

REFERENCE = ours.NAME
LOADS = (1, 16, 64)


def run(plan: Plan) -> list[Figure]:
    models = workloads.write_tinies(plan.folder / "models", 1)
    file = models / "tiny" / "1" / "model.onnx"
    rates = bare_loop.run(file, 0.5 if plan.quick else 1.0, "all", {"image": (784,)}).rows
    best = max(rates, key=rates.__getitem__)
    note = f"best of {len(rates)} ways to call it (callers × threads × batch)"
    found = [Figure("limits", "bare onnxruntime", "tiny", best, ROWS, (rates[best],), note)]
    with ExitStack() as stack:
        servers = [
            stack.enter_context(ours.started(models)),
            *(stack.enter_context(echo.started(k)) for k in echo.KINDS),
        ]
        asked = {server.name: (server, workloads.tiny()) for server in servers}
        for load in LOADS:
            found += plan.compare("limits", "tiny", Load(load), asked)
    return found
