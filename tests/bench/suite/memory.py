"""resident memory of the server with four instances of a model against one, after both have worked"""

from __future__ import annotations

import shutil
from dataclasses import replace

from protos import config_text, repository
from protos.model_config import InstanceGroup
from tests.bench import h2load, ours, workloads
from tests.bench.figures import MEMORY, Figure
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan

REFERENCE = "1 instance"
COUNTS = {"1 instance": 1, "4 instances": 4}


def run(plan: Plan) -> list[Figure]:
    return [
        Figure("memory", name, model, "", MEMORY, (_resident(plan, model, count),))
        for model in (workloads.FP32, workloads.INT8)
        for name, count in COUNTS.items()
    ]


def _resident(plan: Plan, model: str, count: int) -> float:
    models = plan.folder / f"{model}-{count}"
    shutil.copytree(workloads.REPOSITORY / model, models / model)
    config = repository.read(workloads.REPOSITORY, model).config
    grown = replace(config, instance_groups=(InstanceGroup(kind="KIND_CPU", count=count),))
    (models / model / repository.CONFIG_FILENAME).write_text(config_text.dump(grown))
    with ours.started(models) as server:
        prepared = h2load.prepared(plan.folder, server, workloads.minilm(model, 128))
        h2load.measure(prepared, Load(8), 2 * plan.seconds, server.process)
        return h2load.resident_mib(server.process)
