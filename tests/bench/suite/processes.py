"""one and two front-end processes on one port against none: the server's own process speaks gRPC"""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

from tests.bench import ours, workloads
from tests.bench.figures import RATE, Figure
from tests.bench.h2load import Load
from tests.bench.suite.plan import Plan, in_flight
from tests.children import ROOT

FLAG = "--grpc-front-processes"
REFERENCE = "none"
COUNTS = {"none": 0, "1 process": 1, "2 processes": 2}
LOADS = (1, 16, 64)


def run(plan: Plan) -> list[Figure]:
    known = subprocess.run(
        [sys.executable, "-m", "server", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    )
    if FLAG not in known.stdout:
        note = f"this server has no flag {FLAG}"
        return [Figure("processes", name, "tiny", in_flight(n), RATE, (), note) for name in COUNTS for n in LOADS]
    models = workloads.write_tinies(plan.folder / "models", 1)
    with ExitStack() as stack:
        asked = {
            name: (stack.enter_context(ours.started(models, FLAG, str(count))), workloads.tiny())
            for name, count in COUNTS.items()
        }
        # as many connections as there are requests in flight: the kernel shares connections out, not requests
        return [
            figure
            for load in LOADS
            for figure in plan.compare("processes", "tiny", Load(load, connections=load), asked)
        ]
