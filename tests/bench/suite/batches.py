"""MiniLM INT8 with other preferred batch sizes, in turn: which of them the recipe should ask for"""

from __future__ import annotations

from dataclasses import replace

from protos import repository
from protos.model_config import DynamicBatching
from tests.bench import h2load, ours, workloads
from tests.bench.figures import ROWS, Figure, in_turn
from tests.bench.h2load import Load, Measured
from tests.bench.suite.plan import Plan, in_flight
from tests.peers.peer import Question

SIZES = (1, 2, 4, 8)
REFERENCE = "batch-4"
IN_FLIGHT = 32
LENGTH = 128


def run(plan: Plan) -> list[Figure]:
    entry = repository.read(workloads.REPOSITORY, workloads.INT8)
    file = repository.model_file(entry, max(entry.versions))
    models = plan.folder / "models"
    names = [f"batch-{size}" for size in SIZES]
    for name, size in zip(names, SIZES, strict=True):
        config = replace(entry.config, name=name, dynamic_batching=DynamicBatching(preferred_batch_size=(size,)))
        repository.write(models, config, {file.name: file})
    with ours.started(models) as server:

        def measure(name: str) -> Measured:
            question = workloads.minilm(workloads.INT8, LENGTH)
            named = Question(name, question.arrays, question.datatypes)
            prepared = h2load.prepared(plan.folder, server, named)
            return h2load.measure(prepared, Load(IN_FLIGHT), 2 * plan.seconds, server.process)

        # each starts a round as often as the others: whoever comes first after the pause between runs is slower
        runs = in_turn({name: lambda name=name: measure(name) for name in names}, len(names))  # type: ignore[misc]
    case = f"{workloads.INT8}, {LENGTH} tokens"
    return [
        Figure("batches", name, case, in_flight(IN_FLIGHT), ROWS, tuple(one.rate for one in found))
        for name, found in runs.items()
    ]
