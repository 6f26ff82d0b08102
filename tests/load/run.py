"""One run: ask each server about its model, prepare the requests, measure every level on every target in turn."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import math
import os
import platform
import selectors
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import psutil

from tests.load import inputs, samples, schedule, stats
from tests.load.client import Address, Connections, Described, describe, encode
from tests.load.loops import Call, ClosedPlan, Tally, Window, closed_loop, open_loop
from tests.load.options import Options
from tests.load.result import CONCURRENCY, REQUEST_RATE, ClientCpu, Level, Run, Target

WARMUP_AT_LEAST = 10
OPEN_WARMUP_IN_FLIGHT = 4
Answer = TypeVar("Answer")


class Display(Protocol):
    """What shows a run as it goes."""

    def begin(self, target: Target, load: float, tally: Tally) -> None: ...
    def end(self, target: Target, level: Level) -> None: ...


@dataclass(slots=True)
class _Ready:
    """A target with its requests prepared; `target` gathers the levels as they are measured."""

    target: Target
    call: Call
    batch: int


def run_loop(main: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
    """Run on an event loop whose timers are finer than a millisecond: epoll, the usual selector, rounds waits up to the
    next one, which at 1000 requests per second would send them late in lumps and count that as latency."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(main())


async def measure(options: Options, display: Display, stop: asyncio.Event) -> Run:
    """Levels in the order given, and per level all targets, the order turned round from level to level: a machine that
    slows down or warms up hits all alike. When `stop` is set, gives what there is. Raises LoadError."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    async with AsyncExitStack() as stack:
        ready = []
        for address in options.targets:
            connections = await stack.enter_async_context(Connections(address.url, options.connections))
            described = await describe(address)
            ready.append(prepare(options, address, described, connections))
        # What lives now lives to the end; without this the collector walks the prepared requests again and again.
        gc.collect()
        gc.freeze()
        for turn, load in enumerate(options.loads):
            for one in ready if turn % 2 == 0 else reversed(ready):
                if not stop.is_set():
                    await _measure_level(options, one, load, display, stop)
    return Run(
        tool=_version("demiglace"),
        started=started,
        command=options.command,
        mode=REQUEST_RATE if options.open_loop else CONCURRENCY,
        interrupted=stop.is_set(),
        host=host(),
        targets=tuple(one.target for one in ready),
    )


def prepare(options: Options, address: Address, described: Described, connections: Connections) -> _Ready:
    """Fill and encode the requests for one target. Raises LoadError."""
    model = described.model
    inputs.check_batch(model, options.batch)
    if options.input_file is not None:
        inputs.check_names(model, options.filling)
        rows = samples.read(options.input_file, model, options.filling.shapes)
    else:
        rows = inputs.generate(model, options.filling, options.batch)
    requests = inputs.batches(rows, options.batch, batched=model.max_batch_size > 0)
    datatypes = {item.name: item.datatype for item in model.inputs}
    target = Target(
        label=address.label,
        url=address.url,
        model=address.model,
        version=address.version,
        platform=model.platform,
        server=described.server,
        inputs={name: f"{datatypes[name]} {list(array.shape)}" for name, array in requests[0].items()},
        levels=(),
    )
    encoded = [encode(address, arrays, datatypes) for arrays in requests]
    return _Ready(target, connections.call(encoded, options.timeout_s), options.batch)


async def _measure_level(options: Options, one: _Ready, load: float, display: Display, stop: asyncio.Event) -> None:
    tally = Tally()
    display.begin(one.target, load, tally)
    meter = _Meter()
    if options.open_loop:
        window = await _open(options, one.call, load, tally, stop, meter)
    else:
        window = await _closed(options, one.call, int(load), tally, stop, meter)
    if not window.samples:
        return
    extra = () if options.percentile is None else (options.percentile,)
    level = stats.level(window, meter.usage(), load=load, open_loop=options.open_loop, batch=one.batch, extra=extra)
    one.target = replace(one.target, levels=(*one.target.levels, level))
    display.end(one.target, level)


async def _closed(
    options: Options, call: Call, in_flight: int, tally: Tally, stop: asyncio.Event, meter: _Meter
) -> Window:
    warmup = _warmup(options, in_flight)
    clock = time.monotonic_ns
    if options.request_count is not None:
        await _warm_up(call, in_flight, warmup, stop)
        meter.start()
        plan = ClosedPlan(in_flight, begin=clock(), count=options.request_count)
    else:
        meter.start()
        begin = None if warmup else clock()
        plan = ClosedPlan(in_flight, begin, interval=int(options.interval_s * 1e9), warmup=warmup)
    window = await closed_loop(call, plan, clock, tally, stop)
    meter.stop()
    return window


async def _open(options: Options, call: Call, rate: float, tally: Tally, stop: asyncio.Event, meter: _Meter) -> Window:
    duration = None if options.request_count is not None else options.interval_s
    offsets = schedule.send_times(
        rate, options.distribution, duration_s=duration, count=options.request_count, seed=options.seed
    )
    span = options.interval_s if options.request_count is None else options.request_count / rate
    await _warm_up(call, OPEN_WARMUP_IN_FLIGHT, _warmup(options, OPEN_WARMUP_IN_FLIGHT), stop)
    meter.start()
    window = await open_loop(call, offsets.tolist(), int(span * 1e9), time.monotonic_ns, tally, stop)
    meter.stop()
    return window


async def _warm_up(call: Call, in_flight: int, count: int, stop: asyncio.Event) -> None:
    if count:
        plan = ClosedPlan(in_flight, begin=time.monotonic_ns(), count=count)
        await closed_loop(call, plan, time.monotonic_ns, Tally(), stop)


def _warmup(options: Options, in_flight: int) -> int:
    return max(WARMUP_AT_LEAST, 2 * in_flight, options.connections) if options.warmup is None else options.warmup


class _Meter:
    """Processor time from start to stop: of this process, of the thread that runs Python, of the machine."""

    def start(self) -> None:
        self._before = self._read()

    def stop(self) -> None:
        self._after = self._read()

    def _read(self) -> tuple[float, float, float, float, float]:
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # guest time is part of user time on Linux (psutil: cpu_times).
        total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
        return time.monotonic(), time.process_time(), time.thread_time(), idle, total

    def usage(self) -> stats.Usage:
        wall, process, thread, idle, total = (
            after - before for before, after in zip(self._before, self._after, strict=True)
        )
        wall = max(wall, 1e-9)
        cores = process / wall
        machine = None if total <= 0 else 1 - max(0.0, idle) / total
        return stats.Usage(ClientCpu(cores, cores / available_cores()), thread / wall, machine)


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def host() -> dict[str, str]:
    return {
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": str(available_cores()),
        "memory": f"{math.floor(psutil.virtual_memory().total / 2**30 + 0.5)} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
        "tritonclient": _version("tritonclient"),
        "grpcio": str(grpc.__version__),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
