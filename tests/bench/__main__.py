"""Speed and memory, side by side in one run: `make bench`, or `python -m tests.bench [NAME ...] [--quick]`.

Whatever is compared takes turns, several times; shown are the ratio to the reference, the median, and how far apart the
repeats were. Nothing here passes or fails but the goals at the end, which are printed as met or missed. The figures are
written to `reports/bench.json`; `python -m tests.bench.page` makes the page and its plots of them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import ModuleType

from rich.console import Console

from tests.bench import figures, goals, workloads
from tests.bench.h2load import LoadFailed
from tests.bench.machine import machine
from tests.bench.suite import (
    batches,
    first_hit,
    front,
    growth,
    identity,
    limits,
    memory,
    models_100,
    peers,
    processes,
    served,
)
from tests.bench.suite.plan import Plan
from tests.children import ROOT

REPORT = ROOT / "reports" / "bench.json"
BENCHES: dict[str, ModuleType] = {
    "front": front,
    "peers": peers,
    "limits": limits,
    "identity": identity,
    "served": served,
    "first-hit": first_hit,
    "models-100": models_100,
    "growth": growth,
    "processes": processes,
    "memory": memory,
    "batches": batches,
}


def main() -> int:
    given = _parse()
    if not all((workloads.REPOSITORY / model).is_dir() for model in (workloads.FP32, workloads.INT8)):
        subprocess.run([sys.executable, "-m", "compressor", str(workloads.RECIPE)], check=True, cwd=ROOT)
    console = Console(width=figures.WIDTH, highlight=False)
    about = {"machine": machine(), "command": _command(given), "seconds": {}}
    found: list[figures.Figure] = []
    broken = False
    for name in given.names or BENCHES:
        bench, start = BENCHES[name], time.monotonic()
        console.rule(f"{name}: {(bench.__doc__ or '').splitlines()[0]}", align="left")
        try:
            with tempfile.TemporaryDirectory() as folder:
                measured = bench.run(Plan(Path(folder), given.quick))
        except (LoadFailed, RuntimeError) as error:
            broken = True
            console.print(f"{name} failed: {error}", markup=False)
            continue
        about["seconds"][name] = round(time.monotonic() - start)
        figures.show(console, measured, bench.REFERENCE)
        console.print(f"  {figures.disturbance(measured)}")
        found += measured
        figures.write(given.json, about, found)
    console.rule("goals", align="left")
    goals.show(console, found)
    for what, text in about["machine"].items():
        console.print(f"  {what}: {text}", markup=False)
    console.print(f"  {' '.join(about['command'])}, {sum(about['seconds'].values())} s, written to {given.json}")
    return 1 if broken else 0


def _command(given: argparse.Namespace) -> list[str]:
    return ["python", "-m", "tests.bench", *given.names, *(["--quick"] if given.quick else [])]


def _parse() -> argparse.Namespace:
    lines = "\n".join(f"  {name:<11} {(bench.__doc__ or '').splitlines()[0]}" for name, bench in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description=f"{__doc__}\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="benchmarks to run; all without")
    parser.add_argument("--quick", action="store_true", help="shorter and fewer repeats: figures to look at, no more")
    parser.add_argument("--json", type=Path, default=REPORT)
    given = parser.parse_args()
    if unknown := set(given.names) - set(BENCHES):
        parser.error(f"{', '.join(sorted(unknown))}: unknown; there are {', '.join(BENCHES)}")
    return given


if __name__ == "__main__":
    sys.exit(main())
