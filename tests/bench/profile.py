"""Where a request's time goes: processor time by stage, at 1, 16 and 64 in flight, with a model that costs nothing.

    python -m tests.bench.profile [--levels 1,16,64] [--seconds 8] [--json FILE] [--flame FILE.svg] [-- SERVER FLAGS]

Starts the server with the tiny perceptron, loads it with h2load, measures the processor time of a request without any
sampling, then samples with perf and with py-spy and shares that time out (`stages.py` says how). Needs h2load, perf,
py-spy, and the right to trace processes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import h2load, ours, workloads
from tests.bench.h2load import Load
from tests.bench.machine import machine
from tests.bench.stages import STAGES, shares
from tests.children import started_server
from tests.load import flame
from tests.load.errors import LoadError

PERF_RATE = 499
"""Samples per second; no divisor of the timer's rate."""


def profile(prepared: h2load.Prepared, in_flight: int, seconds: float, pid: int) -> dict[str, Any]:
    """One level: rate and processor time without sampling, then the stages."""
    server, load = psutil.Process(pid), Load(in_flight)
    plain = h2load.measure(prepared, load, seconds / 2, server)
    with h2load.running(prepared, load):
        script = perf(pid, seconds)
        spied = flame.stacks(pid, seconds)
        found = shares(script, spied, flame.threads(pid))
    stages = {stage: {"share": share, "us": share * plain.cpu_us} for stage, share in found.items()}
    return {
        "rate": plain.rate,
        "cpu_us": plain.cpu_us,
        "cores": plain.cpu_us * plain.rate / 1e6,
        "p50_ms": plain.p50_ms,
        "client_cores": plain.client_cores,
        "samples": {"perf": script.count("\n\n"), "py-spy": sum(spied.values())},
        "stages": stages,
    }


def perf(pid: int, seconds: float) -> str:
    """What ran on a core on behalf of the process, as `perf script` prints it. Raises LoadError."""
    program = shutil.which("perf")
    if program is None:
        raise LoadError("perf is not there, which samples the server; it comes with Debian's package linux-perf")
    with tempfile.NamedTemporaryFile(suffix=".perf") as file:
        record = [program, "record", "-q", "-F", str(PERF_RATE), "-g", "-p", str(pid), "-o", file.name]
        _run([*record, "--", "sleep", str(seconds)])
        return _run([program, "script", "-i", file.name, "-F", "tid,ip,sym,dso"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = " ".join(done.stderr.split())[:300]
        raise LoadError(f"{command[0]} {command[1]} ended with status {done.returncode}: {reason}")
    return done.stdout


def table(levels: dict[str, Any]) -> Table:
    shown = Table(title="processor time of a request by stage, µs")
    shown.add_column("stage")
    for level in levels:
        shown.add_column(f"{level} in flight", justify="right")
    for stage in STAGES:
        cells = [level["stages"][stage] for level in levels.values()]
        if any(cell["us"] for cell in cells):
            shown.add_row(stage, *(f"{cell['us']:.0f} ({cell['share']:.0%})" for cell in cells))
    shown.add_section()
    shown.add_row("together", *(f"{level['cpu_us']:.0f}" for level in levels.values()))
    shown.add_row("requests per second", *(f"{level['rate']:,.0f}" for level in levels.values()))
    shown.add_row("cores busy", *(f"{level['cores']:.2f}" for level in levels.values()))
    shown.add_row("p50, ms", *(f"{level['p50_ms']:.2f}" for level in levels.values()))
    return shown


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--levels", default="1,16,64", help="requests in flight, one level after the other")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each sampler, per level (default 8)")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--flame", type=Path, metavar="FILE.svg", help="a flame graph of the last level as well")
    parser.add_argument("server", nargs="*", metavar="FLAG", help="further flags of the server, after --")
    given = parser.parse_args()
    levels: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        models = workloads.write_tinies(Path(folder) / "models", 1)
        with started_server(models, *given.server) as child:
            prepared = h2load.prepared(Path(folder), ours.running(child), workloads.tiny())
            for level in given.levels.split(","):
                levels[level] = profile(prepared, int(level), given.seconds, child.process.pid)
            if given.flame:
                with h2load.running(prepared, Load(int(level))):
                    flame.record(child.process.pid, given.seconds, given.flame)
    # where it was written to is nobody's business
    asked = [
        "--levels",
        given.levels,
        "--seconds",
        f"{given.seconds:g}",
        *(["--", *given.server] if given.server else []),
    ]
    result = {"machine": machine(), "command": ["python", "-m", "tests.bench.profile", *asked], "levels": levels}
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    Console(width=110).print(table(levels))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (LoadError, h2load.LoadFailed) as error:
        print(f"profile: {error}", file=sys.stderr)
        sys.exit(2)
