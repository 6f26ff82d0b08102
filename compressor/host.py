"""What this machine is, as far as it decides which forms are fast: processor, instruction sets, GPU."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from compressor.passes.base import Host

FLAGS: Mapping[str, frozenset[str]] = {
    # our name -> names in /proc/cpuinfo (x86) and its Features line (ARM)
    "vnni": frozenset({"avx512_vnni", "avx_vnni"}),
    "amx": frozenset({"amx_int8"}),
    "avx512f": frozenset({"avx512f"}),
    "avx2": frozenset({"avx2"}),
    "dotprod": frozenset({"asimddp"}),
    "i8mm": frozenset({"i8mm"}),
}


@cache
def detect() -> Host:
    cpu, found = _cpuinfo()
    flags = frozenset(name for name, theirs in FLAGS.items() if theirs & found)
    return Host(cpu=cpu, cores=cores(), flags=flags, gpu=_gpu())


def cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe(host: Host) -> dict[str, Any]:
    """For the card."""
    return {
        "cpu": host.cpu,
        "cores": host.cores,
        "flags": sorted(host.flags),
        "gpu": host.gpu,
        "memory_bytes": _memory(),
        "os": f"{platform.system()} {platform.machine()}",
    }


def _cpuinfo() -> tuple[str, frozenset[str]]:
    file = Path("/proc/cpuinfo")
    if not file.exists():
        return platform.processor() or platform.machine(), frozenset()
    lines = [line.partition(":") for line in file.read_text(errors="replace").splitlines()]
    values = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    name = values.get("model name") or values.get("Model") or platform.machine()
    return name, frozenset((values.get("flags") or values.get("Features") or "").split())


def _gpu() -> str | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    done = subprocess.run(
        [program, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=30, check=False
    )
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout.strip() else None


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
