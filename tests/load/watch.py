"""What is looked at beside the requests of one level: processor time, the server's own statistics, its stacks."""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.load import flame, stages
from tests.load.client import Server
from tests.load.loops import Window
from tests.load.result import ClientCpu, Stages
from tests.load.stats import Usage


@dataclass(frozen=True, slots=True)
class Sampling:
    """A flame graph to be made of a process."""

    pid: int
    seconds: float
    svg: Path


class Watch:
    """From `start` to `stop`, between which no request but the level's own is sent."""

    def __init__(self, server: Server, sampling: Sampling | None = None) -> None:
        self._server = server
        self._sampling = sampling

    async def start(self) -> None:
        self._told = await self._server.counts()
        if self._sampling is not None:
            wanted = self._sampling
            self._sampler = asyncio.create_task(asyncio.to_thread(flame.record, wanted.pid, wanted.seconds, wanted.svg))
        self._before = _read()

    async def stop(self, window: Window) -> None:
        """Raises LoadError when the server could not be sampled."""
        self._after = _read()
        answered = sum(sample.error is None for sample in window.samples)
        at_least = answered + (self._told.requests if isinstance(self._told, stages.Counts) else 0)
        self._stages = stages.between(self._told, await self._server.counts(at_least), window.samples)
        if self._sampling is not None:
            await self._sampler

    def stages(self) -> tuple[Stages | None, str | None]:
        """Where the time went, and what there is to say against that."""
        return self._stages

    def usage(self) -> Usage:
        wall, process, thread, idle, total = (
            after - before for before, after in zip(self._before, self._after, strict=True)
        )
        wall = max(wall, 1e-9)
        cores = process / wall
        machine = None if total <= 0 else 1 - max(0.0, idle) / total
        return Usage(ClientCpu(cores, cores / available_cores()), thread / wall, machine)


def _read() -> tuple[float, float, float, float, float]:
    """Wall time; processor time of this process and of its Python thread; idle and all time of the machine."""
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0)
    # guest time is part of user time on Linux (psutil: cpu_times).
    total = sum(times) - getattr(times, "guest", 0.0) - getattr(times, "guest_nice", 0.0)
    return time.monotonic(), time.process_time(), time.thread_time(), idle, total


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
