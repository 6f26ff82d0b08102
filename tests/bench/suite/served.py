"""MiniLM through the server against a bare onnxruntime loop in a process of its own, in turn

Rows per second at 32 requests of one row in flight, 128 tokens, against the best way (callers × threads × batch) of
those that a bare loop tried; and the latency of one request in flight against a bare run with as many threads as the
server's session has.
"""

from __future__ import annotations

import shutil

from protos import repository
from tests.bench import bare_loop, h2load, ours, workloads
from tests.bench.figures import OTHERS, P50, ROWS, Figure, in_turn
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan, in_flight
from tests.children import started_server

REFERENCE = "bare onnxruntime"
IN_FLIGHT = 32
LENGTH = 128
SHAPES = {"input_ids": (LENGTH,), "attention_mask": (LENGTH,)}


def run(plan: Plan) -> list[Figure]:
    plan = plan.at_most(3)
    models = (workloads.INT8,) if plan.quick else (workloads.FP32, workloads.INT8)
    return [figure for model in models for figure in _model(plan, model)]


def _model(plan: Plan, model: str) -> list[Figure]:
    entry = repository.read(workloads.REPOSITORY, model)
    file = repository.model_file(entry, max(entry.versions))
    tried = bare_loop.run(file, plan.seconds, "all", SHAPES).rows
    best = max(tried, key=tried.__getitem__)
    models = plan.folder / f"repository-{model}"
    shutil.copytree(workloads.REPOSITORY / model, models / model)
    with started_server(models) as child:
        alone = f"1x{ours.session_threads(child, model)}x1"
        server = ours.running(child)
        prepared = h2load.prepared(plan.folder, server, workloads.minilm(model, LENGTH))

        disturbed: list[float] = []

        def through(load: int) -> h2load.Measured:
            run = h2load.measure(prepared, Load(load), 2 * plan.seconds, server.process)
            disturbed.append(run.other_cores)
            return run

        def bare(way: str) -> bare_loop.Rates:
            return bare_loop.run(file, 2 * plan.seconds, way, SHAPES)

        many = in_turn(
            {REFERENCE: lambda: bare(best).rows[best], ours.NAME: lambda: through(IN_FLIGHT).rate}, plan.repeats
        )
        one = in_turn(
            {REFERENCE: lambda: bare(alone).p50_ms[alone], ours.NAME: lambda: through(1).p50_ms}, plan.repeats
        )
    case = f"{model}, {LENGTH} tokens"
    note = f"{model}: {best} is the best of {len(tried)} ways (callers × threads × batch), {alone} is the server's own"
    return [
        *(Figure("served", who, case, in_flight(IN_FLIGHT), ROWS, tuple(values), note) for who, values in many.items()),
        *(Figure("served", who, case, in_flight(1), P50, tuple(values)) for who, values in one.items()),
        Figure("served", ours.NAME, case, "", OTHERS, tuple(disturbed)),
    ]
