"""What fronts cost and what they take off the engine: `python -m tests.bench.fronts [--fronts 0 1 2] [--quick]`.

On a host with few cores the rate tells nothing, since fronts and engine share them; what counts is the processor time
per request of the engine alone, which all fronts wait for. One second over it is what the host could serve at most.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import h2load, ours, workloads
from tests.bench.h2load import Load
from tests.bench.machine import machine
from tests.peers.peer import Question

CASES: dict[str, tuple[Question, Load]] = {
    "perceptron, 3 KiB": (workloads.tiny(), Load(64, 4)),
    "identity, 64 KiB": (workloads.identity(1 << 14), Load(32, 4)),
    "identity, 1 MiB": (workloads.identity(1 << 18), Load(8, 4)),
    "identity, 16 MiB": (workloads.identity(1 << 22), Load(4, 4)),
}


@dataclass(frozen=True, slots=True)
class Turn:
    rate: float
    engine_us: float
    fronts_us: float


def turn(prepared: h2load.Prepared, load: Load, seconds: float, server: psutil.Process) -> Turn:
    engine, whole = own_seconds(server), h2load.cpu_seconds(server)
    found = h2load.measure(prepared, load, seconds, server)
    engine, whole = own_seconds(server) - engine, h2load.cpu_seconds(server) - whole
    share = engine / whole
    return Turn(found.rate, found.cpu_us * share, found.cpu_us * (1 - share))


def own_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.fronts", description=__doc__)
    parser.add_argument("--fronts", type=int, nargs="+", default=[0, 1, 2], help="numbers of fronts to compare")
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one repeat of a second")
    given = parser.parse_args(argv)
    seconds, repeats = (1.0, 1) if given.quick else (given.seconds, given.repeats)
    turns: dict[tuple[str, int], list[Turn]] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workloads.write_tinies(folder / "models", 1)
        workloads.write_identity(folder / "models")
        servers = {
            fronts: stack.enter_context(ours.started(folder / "models", f"--grpc-front-processes={fronts}"))
            for fronts in given.fronts
        }
        for _ in range(repeats):
            for name, (question, load) in CASES.items():
                for fronts, running in servers.items():
                    prepared = h2load.prepared(folder, running, question)
                    turns.setdefault((name, fronts), []).append(turn(prepared, load, seconds, running.process))
    console = Console(width=120)
    console.print(" · ".join(f"{key} {value}" for key, value in machine().items()))
    table = Table(
        "", "in flight", "fronts", "requests/s", "engine, µs/request", "fronts, µs/request", "engine at most/s"
    )
    for (name, fronts), found in turns.items():
        rate, engine, front = (
            statistics.median(getattr(one, field) for one in found) for field in ("rate", "engine_us", "fronts_us")
        )
        cells = (f"{rate:,.0f}", f"{engine:,.1f}", f"{front:,.1f}", f"{1e6 / engine:,.0f}")
        table.add_row(name, str(CASES[name][1].in_flight), str(fronts), *cells)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
