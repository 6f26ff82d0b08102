"""One run: ask each server about its model, prepare the requests, measure every level on every target in turn."""

from __future__ import annotations

import asyncio
import gc
import importlib.metadata
import math
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

from tests.load import flame, inputs, listener, samples, schedule, stats
from tests.load.client import Address, Connections, Described, GrpcioConnections, Server, encode
from tests.load.http2 import Http2Connections
from tests.load.loops import Call, ClosedPlan, Tally, Window, closed_loop, open_loop
from tests.load.options import GRPCIO, HTTP2, Options
from tests.load.result import CONCURRENCY, REQUEST_RATE, Level, Run, Target
from tests.load.watch import Sampling, Watch, available_cores

WARMUP_AT_LEAST = 10
OPEN_WARMUP_IN_FLIGHT = 4
SELECTABLE = 900
"""Connections; the rest of 1024 is for files, and grpcio's own descriptors."""
CLIENTS: dict[str, Callable[[str, int, float], Connections]] = {HTTP2: Http2Connections, GRPCIO: GrpcioConnections}
Answer = TypeVar("Answer")


class Display(Protocol):
    """What shows a run as it goes."""

    def begin(self, target: Target, load: float, tally: Tally) -> None: ...
    def end(self, target: Target, level: Level) -> None: ...


@dataclass(slots=True)
class _Ready:
    """A target with its requests prepared; `target` gathers the levels as they are measured."""

    target: Target
    server: Server
    call: Call
    batch: int


def run_loop(main: Callable[[], Coroutine[Any, Any, Answer]], connections: int) -> Answer:
    """Run on an event loop whose timers are finer than a millisecond: epoll, the usual selector, rounds waits up to the
    next one, which at 1000 requests per second would send them late in lumps and count that as latency. `select` knows
    descriptors below 1024 only."""
    selector = selectors.SelectSelector if connections <= SELECTABLE else selectors.DefaultSelector
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selector())) as runner:
        return runner.run(main())


async def measure(options: Options, display: Display, stop: asyncio.Event) -> Run:
    """Levels in the order given, and per level all targets, the order turned round from level to level: a machine that
    slows down or warms up hits all alike. When `stop` is set, gives what there is. Raises LoadError."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    async with AsyncExitStack() as stack:
        ready = []
        for address in options.targets:
            server = await stack.enter_async_context(Server(address))
            described = await server.describe()
            connections = CLIENTS[options.client](address.url, options.connections, options.timeout_s)
            await stack.enter_async_context(connections)
            ready.append(prepare(options, address, described, server, connections))
        sampling = _sampling(options)
        # What lives now lives to the end; without this the collector walks the prepared requests again and again.
        gc.collect()
        gc.freeze()
        for turn, load in enumerate(options.loads):
            for one in ready if turn % 2 == 0 else reversed(ready):
                if not stop.is_set():
                    last = turn == len(options.loads) - 1
                    watch = Watch(one.server, sampling if last else None)
                    await _measure_level(options, one, load, display, stop, watch)
    return Run(
        tool=_version("demiglace"),
        started=started,
        command=options.command,
        mode=REQUEST_RATE if options.open_loop else CONCURRENCY,
        interrupted=stop.is_set(),
        host={**host(), "sent by": options.client},
        targets=tuple(one.target for one in ready),
    )


def _sampling(options: Options) -> Sampling | None:
    """Of the one target's server, which is looked at once, to see now whether that can be done. Raises LoadError."""
    if options.flame is None:
        return None
    pid = listener.pid(options.targets[0].url)
    flame.threads(pid)
    return Sampling(pid, options.interval_s, options.flame)


def prepare(
    options: Options, address: Address, described: Described, server: Server, connections: Connections
) -> _Ready:
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
    return _Ready(target, server, connections.call(encoded), options.batch)


async def _measure_level(
    options: Options, one: _Ready, load: float, display: Display, stop: asyncio.Event, watch: Watch
) -> None:
    tally = Tally()
    display.begin(one.target, load, tally)
    if options.open_loop:
        window = await _open(options, one.call, load, tally, stop, watch)
    else:
        window = await _closed(options, one.call, int(load), tally, stop, watch)
    if not window.samples:
        return
    extra = () if options.percentile is None else (options.percentile,)
    level = stats.level(window, watch.usage(), load=load, open_loop=options.open_loop, batch=one.batch, extra=extra)
    # Requests that were given up leave no sample here, but were counted there.
    spent, note = (None, "interrupted") if stop.is_set() else watch.stages()
    level = replace(level, stages=spent, stages_note=note)
    one.target = replace(one.target, levels=(*one.target.levels, level))
    display.end(one.target, level)


async def _closed(
    options: Options, call: Call, in_flight: int, tally: Tally, stop: asyncio.Event, watch: Watch
) -> Window:
    warmup = _warmup(options, in_flight)
    clock = time.monotonic_ns
    if options.request_count is not None:
        await _warm_up(call, in_flight, warmup, stop)
        await watch.start()
        plan = ClosedPlan(in_flight, begin=clock(), count=options.request_count)
    else:
        await watch.start()
        begin = None if warmup else clock()
        plan = ClosedPlan(in_flight, begin, interval=int(options.interval_s * 1e9), warmup=warmup)
    window = await closed_loop(call, plan, clock, tally, stop)
    await watch.stop(window)
    return window


async def _open(options: Options, call: Call, rate: float, tally: Tally, stop: asyncio.Event, watch: Watch) -> Window:
    duration = None if options.request_count is not None else options.interval_s
    offsets = schedule.send_times(
        rate, options.distribution, duration_s=duration, count=options.request_count, seed=options.seed
    )
    span = options.interval_s if options.request_count is None else options.request_count / rate
    await _warm_up(call, OPEN_WARMUP_IN_FLIGHT, _warmup(options, OPEN_WARMUP_IN_FLIGHT), stop)
    await watch.start()
    window = await open_loop(call, offsets.tolist(), int(span * 1e9), time.monotonic_ns, tally, stop)
    await watch.stop(window)
    return window


async def _warm_up(call: Call, in_flight: int, count: int, stop: asyncio.Event) -> None:
    if count:
        plan = ClosedPlan(in_flight, begin=time.monotonic_ns(), count=count)
        await closed_loop(call, plan, time.monotonic_ns, Tally(), stop)


def _warmup(options: Options, in_flight: int) -> int:
    return max(WARMUP_AT_LEAST, 2 * in_flight, options.connections) if options.warmup is None else options.warmup


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
        "ngh2": _version("ngh2"),
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
