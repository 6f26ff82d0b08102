"""A bare onnxruntime loop: the speed that a server of the same model can at best reach on this host.

    python -m tests.bench.bare_loop MODEL.onnx SECONDS NAME:DIM[,DIM...] ...

Runs in a process of its own so that nothing of ours is in the way, tries every sensible way to use the cores (one
caller with all of them, one caller per core) at several batch sizes, and prints the rows per second of each as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time

os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import numpy as np
import onnxruntime as ort

DTYPES = {"tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(float)": np.float32}
BATCHES = (1, 2, 4, 8, 16, 32)


def rows_per_second(session: ort.InferenceSession, feed: dict[str, np.ndarray], callers: int, seconds: float) -> float:
    rows = next(iter(feed.values())).shape[0]
    done = [0] * callers
    session.run(None, feed)
    start = time.perf_counter()

    def call(i: int) -> None:
        while time.perf_counter() - start < seconds:
            session.run(None, feed)
            done[i] += rows

    threads = [threading.Thread(target=call, args=(i,)) for i in range(callers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(done) / (time.perf_counter() - start)


def draw(rng: np.random.Generator, tensor: ort.NodeArg, shape: tuple[int, ...]) -> np.ndarray:
    return rng.integers(1, 2 if "mask" in tensor.name else 20000, shape).astype(DTYPES[tensor.type])


def main(path: str, seconds: float, shapes: dict[str, tuple[int, ...]]) -> dict[str, float]:
    cores = len(os.sched_getaffinity(0))
    rng = np.random.default_rng(0)
    rates = {}
    for callers, threads in sorted({(1, cores), (cores, 1)}):
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        for batch in BATCHES:
            feed = {i.name: draw(rng, i, (batch, *shapes[i.name])) for i in session.get_inputs()}
            label = f"{callers} callers x {threads} threads, batch {batch}"
            rates[label] = rows_per_second(session, feed, callers, seconds)
    return rates


if __name__ == "__main__":
    named = (argument.split(":") for argument in sys.argv[3:])
    shape_of = {name: tuple(int(d) for d in dims.split(",")) for name, dims in named}
    print(json.dumps(main(sys.argv[1], float(sys.argv[2]), shape_of)))
