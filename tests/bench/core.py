"""What the core costs per request, without wire and front end: from `submit` to `on_done`.

    python -m tests.bench.core [ROUNDS]

One thread submits `batch` requests of one row and waits for their answers, over and over. `held` is how a transport
that reads many sockets does it (`hold`, then one `release`), `single` submits each on its own. The models are the fake
backend's echo and the perceptron 784-512-10; `run` is what its bare `session.run` takes for the same rows.
Printed are the medians over the rounds, in microseconds per request: wall time, and processor time of all threads.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np

from protos import repository
from server.backends.base import Batch
from server.loading import EntryLoader
from server.model import Model
from server.request import InferRequest, Response, Result, Tensor
from server.settings import Settings
from tests.bench.tiny import write_tiny

BATCHES = (1, 32, 64)
FAKE = """[behaviour]
steady = true
[[input]]
name = "image"
datatype = "FP32"
shape = [-1, 784]
[[output]]
name = "score"
datatype = "FP32"
shape = [-1, 784]
"""
FAKE_CONFIG = """name: "echo"
backend: "fake"
max_batch_size: 64
input { name: "image" data_type: TYPE_FP32 dims: 784 }
output { name: "score" data_type: TYPE_FP32 dims: 784 }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching { }
"""


class Client:
    """Sends rounds of `batch` requests to one model and waits for each round."""

    def __init__(self, model: Model, batch: int, held: bool) -> None:
        self._model = model
        self._batch = batch
        self._held = held
        self._left = 0
        self._all = Event()
        spec = model.config.inputs[0]
        self._inputs = (Tensor(spec.name, spec.datatype, np.zeros((1, *spec.dims), spec.datatype.numpy)),)

    def round(self) -> tuple[int, int]:
        """Wall and processor nanoseconds of one round."""
        requests = [InferRequest(self._model.name, self._inputs) for _ in range(self._batch)]
        self._left = self._batch
        self._all.clear()
        submit, on_done, held = self._model.submit, self._on_done, self._held
        wall, used = time.perf_counter_ns(), time.process_time_ns()
        for request in requests:
            submit(request, on_done, hold=held)
        if held:
            self._model.release()
        self._all.wait()
        return time.perf_counter_ns() - wall, time.process_time_ns() - used

    def _on_done(self, _: InferRequest, result: Result) -> None:
        assert isinstance(result, Response), result
        self._left -= 1
        if not self._left:
            self._all.set()


def load(root: Path, name: str) -> Model:
    entry = repository.read(root, name)
    return EntryLoader(Settings(repositories=(root,)))(entry, entry.versions[-1])


def write_fake(root: Path) -> None:
    folder = root / "echo" / "1"
    folder.mkdir(parents=True)
    (folder / "model.fake").write_text(FAKE)
    (root / "echo" / "config.pbtxt").write_text(FAKE_CONFIG)


def bare_run(model: Model, batch: int) -> Callable[[], tuple[int, int]]:
    spec = model.config.inputs[0]
    what = Batch({spec.name: np.zeros((batch, *spec.dims), np.float32)}, batch, (model.config.outputs[0].name,))

    def once() -> tuple[int, int]:
        wall, used = time.perf_counter_ns(), time.process_time_ns()
        model._session.run(0, what)
        return time.perf_counter_ns() - wall, time.process_time_ns() - used

    return once


def bench_core(rounds: int = 300) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_fake(root)
        write_tiny(root)
        for name in ("echo", "tiny"):
            model = load(root, name)
            for batch in BATCHES:
                ways = {
                    "held": Client(model, batch, held=True).round,
                    "single": Client(model, batch, held=False).round,
                    "run": bare_run(model, batch),
                }
                times: dict[str, list[tuple[int, int]]] = {way: [] for way in ways}
                for _ in range(rounds):  # interleaved, so that all see the same noise
                    for way, measure in ways.items():
                        times[way].append(measure())
                for way, pairs in times.items():
                    wall, used = (statistics.median(column) / batch / 1000 for column in zip(*pairs, strict=True))
                    found[f"{name} {batch} {way}"] = {"wall_us": round(wall, 2), "cpu_us": round(used, 2)}
            model.close()
    return found


if __name__ == "__main__":
    for what, figures in bench_core(int(sys.argv[1]) if len(sys.argv) > 1 else 300).items():
        print(f"{what:18}", json.dumps(figures))
