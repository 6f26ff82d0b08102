"""Where a running Python process spends its time, sampled from outside by py-spy: a flame graph, or counted stacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.load.errors import LoadError

RATE = 100
"""Samples per second. py-spy stops the process for each; at 200, with native frames, it no longer keeps up here."""


def record(pid: int, seconds: float, svg: Path) -> None:
    """Write a flame graph of the process and its children, all threads that are not idle. Raises LoadError."""
    _py_spy("record", "--subprocesses", "--threads", "--native", *_sampling(pid, seconds), "-o", str(svg))


def stacks(pid: int, seconds: float) -> dict[str, int]:
    """Samples by stack (`;` between the frames, outermost first, native ones among them) of whoever held the
    interpreter's lock. Raises LoadError."""
    with tempfile.NamedTemporaryFile(suffix=".raw") as file:
        _py_spy("record", "--gil", "--native", "--format", "raw", *_sampling(pid, seconds), "-o", file.name)
        lines = Path(file.name).read_text().splitlines()
    return {stack: int(count) for stack, _, count in (line.rpartition(" ") for line in lines)}


def threads(pid: int) -> frozenset[int]:
    """The operating system's ids of the threads that run Python. Raises LoadError."""
    return frozenset(thread["os_thread_id"] for thread in json.loads(_py_spy("dump", "--json", "--pid", str(pid))))


def _sampling(pid: int, seconds: float) -> Sequence[str]:
    # py-spy takes whole seconds
    return ("--pid", str(pid), "--duration", str(max(1, round(seconds))), "--rate", str(RATE))


def _py_spy(*arguments: str) -> str:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise LoadError("py-spy is not there, which samples the server: pip install py-spy")
    done = subprocess.run([*_at_once(), program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        # "Error: …" comes first, a backtrace may follow
        reason = next((line.removeprefix("Error: ") for line in lines if line.startswith("Error")), lines[-1])
        # what is not permitted it may report as a process that is not there
        hint = "" if os.geteuid() == 0 else "; it needs the right to trace processes: root, or CAP_SYS_PTRACE"
        raise LoadError(f"py-spy could not look at process {_pid(arguments)}: {reason}{hint}")
    return done.stdout


def _at_once() -> list[str]:
    """Makes a sampler run the moment its time has come. On a busy machine it would else get a core when a thread of the
    server gives one up, and see calls that block far too often: 77 % instead of 50 % of all samples, measured with two
    cores. Only root may ask for it."""
    program = shutil.which("chrt")
    return [program, "--fifo", "1"] if program and os.geteuid() == 0 else []


def _pid(arguments: Sequence[str]) -> str:
    return arguments[arguments.index("--pid") + 1]
