"""the first 1,000 requests, of mixed batch sizes, to a server that has just started: no one may have to wait"""

from __future__ import annotations

import math
import random
import shutil
from pathlib import Path

from tests.bench import ours, raw_client, workloads
from tests.bench.figures import P50, P999, Figure
from tests.bench.suite.plan import Plan, in_flight
from tests.peers.peer import Question

REFERENCE = ours.NAME
REQUESTS = 1000
ROWS = range(1, 9)
SEED = 3
CASES = {
    "tiny": lambda rows: workloads.tiny(rows),
    "minilm-int8, 32 tokens": lambda rows: workloads.minilm(workloads.INT8, 32, rows),
}


def run(plan: Plan) -> list[Figure]:
    workloads.write_tinies(plan.folder / "tiny", 1)
    shutil.copytree(workloads.REPOSITORY / workloads.INT8, plan.folder / "minilm" / workloads.INT8)
    found = []
    for case, question in CASES.items():
        models = plan.folder / ("tiny" if case == "tiny" else "minilm")
        turns = [_first(plan, models, [question(rows) for rows in ROWS]) for _ in range(1 if plan.quick else 3)]
        for metric, share in ((P50, 0.5), (P999, 0.999)):
            values = tuple(took[math.ceil(share * REQUESTS) - 1] for took in turns)
            found.append(Figure("first-hit", ours.NAME, case, in_flight(1), metric, values))
    return found


def _first(plan: Plan, models: Path, questions: list[Question]) -> list[float]:
    files = []
    for rows, question in zip(ROWS, questions, strict=True):
        files.append(plan.folder / f"{models.name}-{rows}.message")
        files[-1].write_bytes(question.as_grpc())
    order = random.Random(SEED).choices(range(len(files)), k=REQUESTS)
    with ours.started(models) as server:
        return sorted(raw_client.send(server.address, 1, files, order).took_ms)
