"""An entry through the core, in one process and without a wire, against bare loops over the same sessions.

    python -m tests.bench.tune [ENTRY] [LENGTH] [TURNS]        default: minilm 128 5

For each way to use the cores (instances, threads of a run, spinning): rows per second with 32 requests of one row in
flight, and the milliseconds of one alone. The bare loop has as many callers as there are instances, and the batches
that the entry prefers. The turns of all ways are interleaved, and medians printed, since the host is never quiet.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any

import numpy as np

from protos import repository
from protos.model_config import InstanceGroup, TensorSpec
from server.backends.base import Batch
from server.backends.ort_options import cores
from server.loading import EntryLoader
from server.model import Model
from server.request import InferRequest, Response, Result, Tensor
from server.settings import Settings

ROOT = Path("model_repo")
IN_FLIGHT = 32
SECONDS = 2.0
A_BATCH = 0.001
"""Answers of one batch come within this many seconds."""


@dataclass(frozen=True, slots=True)
class Way:
    instances: int
    threads: int
    spinning: bool

    def __str__(self) -> str:
        return f"{self.instances} × {self.threads}{' spinning' if self.spinning else ''}"


def ways() -> list[Way]:
    every = cores()
    found = [Way(2, max(1, every - 1), False), Way(1, every, True), Way(1, every, False), Way(every, 1, False)]
    return list(dict.fromkeys([*found, Way(2, every, True), Way(2, every, False)]))


def load(name: str, way: Way) -> Model:
    entry = repository.read(ROOT, name)
    config = replace(
        entry.config,
        instance_groups=(InstanceGroup("KIND_CPU", way.instances),),
        parameters={
            **entry.config.parameters,
            "intra_op_thread_count": str(way.threads),
            "session.intra_op.allow_spinning": str(int(way.spinning)),
        },
    )
    return EntryLoader(Settings(repositories=(ROOT,)))(replace(entry, config=config), entry.versions[-1])


class Served:
    def __init__(self, model: Model, length: int) -> None:
        self.model = model
        rng = np.random.default_rng(0)
        self._rows = [tuple(_row(spec, length, rng) for spec in model.config.inputs) for _ in range(IN_FLIGHT)]

    def throughput(self) -> float:
        """Rows per second between the first answer and the last; each is followed by a request as long as time is left.

        Rows that are half done at either end are on neither side of the fraction.
        """
        answers: SimpleQueue[Result] = SimpleQueue()
        times: list[float] = []

        def on_done(_: InferRequest, result: Result) -> None:
            times.append(time.perf_counter())
            answers.put(result)

        for row in self._rows:
            self._send(row, on_done)
        self.model.release()
        sent, end = IN_FLIGHT, time.perf_counter() + SECONDS
        while time.perf_counter() < end:
            for _ in range(max(1, answers.qsize())):
                assert isinstance(answers.get(), Response)
                self._send(self._rows[sent % IN_FLIGHT], on_done)
                sent += 1
            self.model.release()
        busy = times[:]
        for _ in range(IN_FLIGHT):
            answers.get()
        return sum(at > busy[0] + A_BATCH for at in busy) / (busy[-1] - busy[0])

    def latency(self) -> float:
        """Median milliseconds."""
        done = Event()

        def once() -> None:
            done.clear()
            self._send(self._rows[0], lambda _, result: done.set())
            self.model.release()
            done.wait()

        return _median_ms(once)

    def bare_throughput(self) -> float:
        """Rows per second."""
        config = self.model.config
        preferred = config.dynamic_batching.preferred_batch_size if config.dynamic_batching else ()
        batch = self._batch(max(preferred, default=config.max_batch_size))
        times: list[float] = []
        end = time.perf_counter() + SECONDS

        def loop(instance: int) -> None:
            while time.perf_counter() < end:
                self.model._session.run(instance, batch)
                times.append(time.perf_counter())

        threads = [Thread(target=loop, args=(instance,)) for instance in range(len(self.model.instances))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        busy = sorted(at for at in times if at < end)
        return batch.rows * (len(busy) - 1) / (busy[-1] - busy[0])

    def bare_latency(self) -> float:
        batch = self._batch(1)
        return _median_ms(lambda: self.model._session.run(0, batch))

    def _send(self, row: tuple[Tensor, ...], on_done: Callable[[InferRequest, Result], None]) -> None:
        self.model.submit(InferRequest(self.model.name, row), on_done, hold=True)

    def _batch(self, rows: int) -> Batch:
        names = [tensor.name for tensor in self._rows[0]]
        columns = zip(*self._rows[:rows], strict=True)
        inputs = {n: np.concatenate([t.array for t in column]) for n, column in zip(names, columns, strict=True)}
        return Batch(inputs, rows, tuple(spec.name for spec in self.model.config.outputs))


def _row(spec: TensorSpec, length: int, rng: np.random.Generator) -> Tensor:
    shape = (1, *(length if dim < 0 else dim for dim in spec.dims))
    values = np.ones(shape) if "mask" in spec.name else rng.integers(1000, 20000, shape)
    return Tensor(spec.name, spec.datatype, values.astype(spec.datatype.numpy))


def _median_ms(once: Callable[[], Any]) -> float:
    times = []
    end = time.perf_counter() + SECONDS
    while time.perf_counter() < end:
        began = time.perf_counter()
        once()
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e3


def main(name: str = "minilm", length: str = "128", turns: str = "5") -> None:
    served = {way: Served(load(name, way), int(length)) for way in ways()}
    figures: dict[Way, list[tuple[float, ...]]] = {way: [] for way in served}
    for _ in range(int(turns)):
        for way, one in served.items():
            figures[way].append((one.throughput(), one.bare_throughput(), one.latency(), one.bare_latency()))
    print(f"{name}, {length} tokens, {cores()} cores, medians of {turns} turns")
    print(f"{'instances × threads':22}{'rows/s':>9}{'bare':>9}{'ms alone':>11}{'bare':>9}")
    for way, turns_of in figures.items():
        rate, bare_rate, ms, bare_ms = (statistics.median(column) for column in zip(*turns_of, strict=True))
        print(f"{way!s:22}{rate:9.1f}{bare_rate:9.1f}{ms:11.1f}{bare_ms:9.1f}")
    for one in served.values():
        one.model.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
