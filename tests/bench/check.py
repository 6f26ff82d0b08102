"""Has the front end become dearer? Its processor time per request to that of a yardstick in the same run.

    python -m tests.bench.check [--update]

The yardstick is a bare grpc.aio server that echoes the same message: interpreter, sockets and event loop as ours has
them, and nothing of ours, so that a slower machine, a newer Python or a busy neighbour makes both dearer. The two take
turns in many short runs, and the least disturbed of them count: while others want the cores, requests come one by one
instead of in lumps and are dearer, or gather and are cheaper. A level that looks too dear, or was disturbed, is
measured again, up to three times as long, before that counts.
The model's runs have one onnxruntime thread: a pool that spins would be half of the processor time, and no front end.

Exit status 1: at some level dearer than the committed `baseline.json` by more than the limit; 2: the machine was too
busy to tell. `--update` rewrites the baseline.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench import echo, h2load, ours, workloads
from tests.bench.figures import WIDTH, in_turn
from tests.bench.h2load import Load, Measured
from tests.bench.machine import machine
from tests.bench.tiny import write_tiny

BASELINE = Path(__file__).with_name("baseline.json")
LEVELS = (1, 16, 64)
ROUNDS = 12
COUNTED = 6
"""The least disturbed of all rounds."""
ATTEMPTS = 3
SECONDS = 0.4
CPU_LIMIT = 1.25
"""Above the baseline's: a front end that became 30 % dearer fails, also where the cheapest run was a lucky one."""
RATE_LIMIT = 0.6
"""Below the baseline's: throughput depends on who else wants the cores, so only a great loss counts."""
QUIET = 0.25
"""Cores that others may use in the runs that count."""


@dataclass(frozen=True, slots=True)
class Relative:
    """Ours to the yardstick, at one level."""

    cpu: float
    rate: float
    other_cores: float


def relative(runs: Mapping[str, list[Measured]], yardstick: str) -> Relative:
    least = {name: sorted(found, key=lambda run: run.other_cores)[:COUNTED] for name, found in runs.items()}
    cpu = {name: statistics.median(run.cpu_us for run in found) for name, found in least.items()}
    rate = {name: statistics.median(run.rate for run in found) for name, found in least.items()}
    others = max(run.other_cores for found in least.values() for run in found)
    return Relative(cpu[ours.NAME] / cpu[yardstick], rate[ours.NAME] / rate[yardstick], others)


def problem(level: int, found: Relative, baseline: Relative) -> str | None:
    """What is wrong at this level, in words; None if nothing is."""
    if found.cpu > CPU_LIMIT * baseline.cpu:
        dearer = f"{found.cpu / baseline.cpu - 1:.0%} more processor time per request than the baseline"
        return f"{level} in flight: {dearer}, allowed is {CPU_LIMIT - 1:.0%}"
    if found.rate < RATE_LIMIT * baseline.rate:
        slower = f"{1 - found.rate / baseline.rate:.0%} fewer requests per second than the baseline"
        return f"{level} in flight: {slower}, allowed is {1 - RATE_LIMIT:.0%}"
    return None


def verdict(found: Mapping[int, Relative], baseline: Mapping[int, Relative]) -> tuple[int, list[str]]:
    """The exit status, and what is to be said."""
    problems = {level: text for level, one in found.items() if (text := problem(level, one, baseline[level]))}
    lines = list(problems.values())
    busy = {level: one.other_cores for level, one in found.items() if one.other_cores > QUIET}
    if busy:
        where = ", ".join(map(str, busy))
        lines.append(f"others used up to {max(busy.values()):.2f} cores (at {where} in flight): no verdict there")
    if set(problems) - set(busy):
        return 1, lines
    return (2 if busy else 0), lines


def measure(baseline: Mapping[int, Relative]) -> dict[int, Relative]:
    found = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        write_tiny(folder / "models", threads=1)
        servers = (stack.enter_context(ours.started(folder / "models")), stack.enter_context(echo.started("aio")))
        ready = {server.name: (h2load.prepared(folder, server, workloads.tiny()), server.process) for server in servers}
        for level in LEVELS:
            runs: dict[str, list[Measured]] = {server: [] for server in ready}
            for _ in range(ATTEMPTS):
                for server, more in in_turn(_turns(ready, level), ROUNDS).items():
                    runs[server] += more
                found[level] = relative(runs, servers[1].name)
                fine = level not in baseline or problem(level, found[level], baseline[level]) is None
                if fine and found[level].other_cores <= QUIET:
                    break
    return found


def _turns(
    ready: Mapping[str, tuple[h2load.Prepared, psutil.Process]], level: int
) -> dict[str, Callable[[], Measured]]:
    def turn(name: str) -> Callable[[], Measured]:
        prepared, process = ready[name]
        return lambda: h2load.measure(prepared, Load(level), SECONDS, process)

    return {name: turn(name) for name in ready}


def read(path: Path) -> dict[int, Relative]:
    levels: dict[str, Any] = json.loads(path.read_text())["levels"]
    return {int(level): Relative(**one) for level, one in levels.items()}


def write(path: Path, found: Mapping[int, Relative]) -> None:
    levels = {str(level): asdict(one) for level, one in found.items()}
    path.write_text(json.dumps({"machine": machine(), "levels": levels}, indent=1) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="take what is found for the new baseline")
    update = parser.parse_args().update
    if not update and not BASELINE.exists():
        print(f"bench-check: {BASELINE} is not there: make it with --update, on a machine that does nothing else")
        return 2
    baseline = {} if update else read(BASELINE)
    found = measure(baseline)
    table = Table(title="ours to a bare grpc.aio echo")
    for heading in ("in flight", "processor time", "baseline", "requests/s", "baseline", "cores used by others"):
        table.add_column(heading, justify="right")
    for level, one in found.items():
        base = baseline.get(level)
        wanted = (f"{base.cpu:.3f}", f"{base.rate:.2f}") if base else ("", "")
        table.add_row(str(level), f"{one.cpu:.3f}", wanted[0], f"{one.rate:.2f}", wanted[1], f"{one.other_cores:.2f}")
    Console(width=WIDTH).print(table)
    if update:
        used = max(one.other_cores for one in found.values())
        if used > QUIET:
            print(
                f"bench-check: no baseline: others used up to {used:.2f} cores, at most {QUIET} allowed",
                file=sys.stderr,
            )
            return 2
        write(BASELINE, found)
        print(f"written to {BASELINE}")
        return 0
    status, lines = verdict(found, baseline)
    for line in lines:
        print(f"bench-check: {line}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
