"""the first 1,000 requests, of mixed batch sizes, to a server that has just started: no one may have to wait

The next 1,000 to the same server stand beside them: what stalls there, too, is the host's doing.
"""

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
NEXT = "the next 1,000"
REQUESTS = 1000
TURNS = 5
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
        turns = [_turn(plan, models, [question(rows) for rows in ROWS]) for _ in range(1 if plan.quick else TURNS)]
        for who, begin in ((ours.NAME, 0), (NEXT, REQUESTS)):
            parts = [sorted(took[begin : begin + REQUESTS]) for took in turns]
            for metric, share in ((P50, 0.5), (P999, 0.999)):
                values = tuple(part[math.ceil(share * REQUESTS) - 1] for part in parts)
                found.append(Figure("first-hit", who, case, in_flight(1), metric, values))
    return found


def _turn(plan: Plan, models: Path, questions: list[Question]) -> list[float]:
    """Milliseconds of the first 2,000 requests to a server, in their order."""
    files = []
    for rows, question in zip(ROWS, questions, strict=True):
        files.append(plan.folder / f"{models.name}-{rows}.message")
        files[-1].write_bytes(question.as_grpc())
    order = random.Random(SEED).choices(range(len(files)), k=2 * REQUESTS)
    with ours.started(models) as server:
        return raw_client.send(server.address, 1, files, order).took_ms
