"""Options of the onnxruntime backend by Triton's parameter names, as frozen values. Knows nothing of onnxruntime.

They stand in `config.pbtxt`'s `parameters`; `--backend-config=onnxruntime,<name>=<value>` gives a default for all.
Source: github.com/triton-inference-server/onnxruntime_backend, README.md and src/onnxruntime.cc.

One of them is ours: `tune` (in an entry `demiglace.tune`) chooses instances, threads and spinning together, wherever
instance_group, intra_op_thread_count and session.intra_op.allow_spinning do not say them.

                throughput (default)                     latency
    instances   2, as in Triton                          1
    threads     what the instances leave of the cores    all cores; for runs that are short, one (`ort_threads.py`)
    spinning    no: it takes the cores from others       yes: threads stay awake between the parts of a run

On two cores that is 47 against 44 rows per second of MiniLM at 128 tokens with 32 requests in flight and 39 against 25
milliseconds of one alone; of its INT8 form 112 against 68 and 16 against 17 where the host is busy, 19 against 10
where it is not (`python -m tests.bench.tune minilm`, `... minilm-int8`). What spinning takes is dear where runs are
short: a perceptron 784-512-10 with two threads answers 5,900 requests per second with it and 16,300 without, 16 in
flight, for 122 and 52 µs of processor time each.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from protos.model_config import ModelConfig
from server.backends.base import BackendError, Device

# Parameters that become options of the CUDA provider, with the spellings of their values; Triton takes the numbers.
_CUDA_VALUES: Mapping[str, Mapping[str, str]] = {
    "cudnn_conv_algo_search": {
        "0": "EXHAUSTIVE", "1": "HEURISTIC", "2": "DEFAULT",
        "EXHAUSTIVE": "EXHAUSTIVE", "HEURISTIC": "HEURISTIC", "DEFAULT": "DEFAULT",
    },
    "arena_extend_strategy": {
        "0": "kNextPowerOfTwo", "1": "kSameAsRequested",
        "kNextPowerOfTwo": "kNextPowerOfTwo", "kSameAsRequested": "kSameAsRequested",
    },
    "do_copy_in_default_stream": {"0": "0", "1": "1"},
}  # fmt: skip

_T = TypeVar("_T")

TUNINGS = ("throughput", "latency")
"""`--backend-config=onnxruntime,tune=latency`, or for one model its parameter `demiglace.tune`."""

SPINNING = "session.intra_op.allow_spinning"

_GRAPH_LEVELS = {None: "all", 0: "all", -1: "basic", 1: "extended", 2: "disabled"}
"""`optimization.graph.level` (Triton's meaning: absent all, -1 basic, 1 extended, 2 none)."""


@dataclass(frozen=True, slots=True)
class Options:
    intra_op_threads: int
    threads_named: bool = False
    """Whether somebody wants exactly so many."""
    inter_op_threads: int = 0
    """0: ONNX Runtime's own default."""
    parallel: bool = False
    mem_arena: bool = True
    mem_pattern: bool = True
    arena_shrinkage: str = ""
    """Which arenas give memory back after each run, e.g. `cpu:0;gpu:0`."""
    graph: str = "all"
    session: Mapping[str, str] = field(default_factory=dict)
    cuda: Mapping[str, str] = field(default_factory=dict)
    preflight: bool = True


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def read(config: ModelConfig, options: Mapping[str, str], devices: tuple[Device, ...]) -> Options:
    """Options for one model. Raises BackendError naming the parameter, its value and what is allowed.

    Parameters with names that are not known belong to others and are left alone, as in Triton.
    """
    values = {**options, **config.parameters}
    where = f"model '{config.name}'"
    on_cpu = sum(device.kind == "cpu" for device in devices)
    if config.graph_level not in _GRAPH_LEVELS:
        raise BackendError(f"{where}: optimization.graph.level is {config.graph_level}, allowed are -1, 0, 1, 2")
    # EXHAUSTIVE, Triton's default, times every algorithm for every new shape: 634 ms against 1.9 ms (PaddleX #5057).
    cuda = {"cudnn_conv_algo_search": "HEURISTIC"}
    for name, allowed in _CUDA_VALUES.items():
        if name in values:
            cuda[name] = _one_of(values[name], allowed, f"{where}: {name}")
    if "gpu_mem_limit" in values:
        cuda["gpu_mem_limit"] = str(_count(values["gpu_mem_limit"], f"{where}: gpu_mem_limit"))
    session = {SPINNING: str(int(tuning(config, options) == "latency"))}
    for name in (SPINNING, "session.use_device_allocator_for_initializers"):
        if name in values:
            session[name] = str(int(_flag(values[name], f"{where}: {name}")))
    get = partial(_get, values, where)
    named = get("intra_op_thread_count", _count, 0)
    return Options(
        intra_op_threads=named or _threads(on_cpu),
        threads_named=named > 0,
        inter_op_threads=get("inter_op_thread_count", _count, 0),
        parallel=get("execution_mode", _flag, False),
        mem_arena=get("enable_mem_arena", _flag, True),
        mem_pattern=get("enable_mem_pattern", _flag, True),
        arena_shrinkage=get("memory.enable_memory_arena_shrinkage", _arenas, ""),
        graph=_GRAPH_LEVELS[config.graph_level],
        session=session,
        cuda=cuda,
        preflight=_one_of(options.get("preflight", "on"), {"on": "1", "off": ""}, "backend option preflight") == "1",
    )


def tuning(config: ModelConfig, options: Mapping[str, str]) -> str:
    """What an entry is tuned for, one of TUNINGS, where it does not say how many instances and threads it wants."""
    allowed = {name: name for name in TUNINGS}
    if "demiglace.tune" in config.parameters:
        return _one_of(config.parameters["demiglace.tune"], allowed, f"model '{config.name}': demiglace.tune")
    return _one_of(options.get("tune", TUNINGS[0]), allowed, "backend option tune")


def _threads(instances: int) -> int:
    """Threads of the session that all instances on the CPU share.

    A session with n threads keeps n - 1 of its own and has the caller of a run as the n-th, so with each instance
    being a caller this many keep every core busy and none twice.
    """
    return max(1, cores() - instances + 1) if instances else 1


def _get(values: Mapping[str, str], where: str, name: str, parse: Callable[[str, str], _T], default: _T) -> _T:
    return parse(values[name], f"{where}: {name}") if name in values else default


def _one_of(value: str, allowed: Mapping[str, str], where: str) -> str:
    if value not in allowed:
        raise BackendError(f"{where} is '{value}', allowed are {', '.join(allowed)}")
    return allowed[value]


def _count(value: str, where: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 16):
        raise BackendError(f"{where} is '{value}', allowed are whole numbers from 0")
    return int(value)


def _flag(value: str, where: str) -> bool:
    return _one_of(value.lower(), {"0": "", "1": "1", "false": "", "true": "1"}, where) == "1"


def _arenas(value: str, where: str) -> str:
    for part in value.split(";"):
        kind, _, index = part.partition(":")
        if kind not in ("cpu", "gpu") or not index.isdigit():
            raise BackendError(f"{where} is '{value}', allowed are lists like cpu:0;gpu:0")
    return value
